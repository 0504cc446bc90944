"""The `driftd` command: exit codes, words, JSON, and what it does not import."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from monitor.cli import main
from monitor.intake.rejects import dead_letter_frame
from monitor.lake.lake import Lake, Table
from tests.builders import BINARY, NOW, decoded, label_rows, message, prediction, prediction_rows, stored

BAD = Path(__file__).parents[2] / "configs" / "bad"
HEAVY = ("evidently", "mlflow", "sklearn", "pandas", "polars", "deltalake", "sqlalchemy", "kafka", "pydantic")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    features = "\n".join(f'"{f.name}" = "{f.kind.value}"' for f in BINARY.features)
    path.write_text(
        f'[daemon]\nstate = "{tmp_path}/state"\n\n[models.fraud]\ntask = "binary"\nsegments = ["region"]\n\n'
        f"[models.fraud.features]\n{features}\n"
    )
    return path


@pytest.fixture
def lake(config: Path) -> Lake:
    return Lake(str(config.parent / "state" / "lake"))


def driftd(config: Path | None, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*(["--config", str(config)] if config else []), *arguments])


@pytest.mark.parametrize(
    "command",
    [[], ["run"], ["check"], ["status"], ["retrain"], ["approve"], ["reject"], ["rollback"], ["report"], ["forget"],
     ["dead-letters"], ["dead-letters", "list"], ["dead-letters", "replay"], ["demo"],
     ["pause"], ["resume"], ["reproduce"], ["audit"], ["audit", "verify"], ["audit", "export"], ["audit", "serving"]],
)  # fmt: skip
def test_every_command_explains_itself(command: list[str]) -> None:
    result = driftd(None, *command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom monitor.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip() == "[]"
    assert "dead-letters" in done.stdout


def test_check_imports_no_model_library(config: Path) -> None:
    code = (
        f"import sys\nfrom monitor.cli import main\nmain(['-c', {str(config)!r}, 'check'], standalone_mode=False)\n"
        "print([m for m in ('evidently', 'mlflow', 'sklearn', 'pandas') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip() == "[]"


def test_check_of_a_good_config(config: Path) -> None:
    result = driftd(config, "check")
    assert result.exit_code == 0
    assert "config.toml: good (digest " in result.output
    assert "fraud: binary, 3 features" in result.output
    found = json.loads(driftd(config, "check", "--json").stdout)
    assert (found["ok"], found["models"]["fraud"]["features"]) == (True, 3)


def test_check_lists_ten_mistakes_at_once() -> None:
    path = BAD / "ten_mistakes.toml"
    expected = [line[2:] for line in path.read_text().splitlines() if line.startswith("# ")]
    result = driftd(path, "check")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [*expected, "10 mistake(s)."]
    as_json = driftd(path, "check", "--json")
    assert as_json.exit_code == 2
    assert json.loads(as_json.stdout) == {"ok": False, "problems": expected}


@pytest.mark.parametrize("command", [["run"], ["status"], ["retrain", "fraud"], ["dead-letters", "list"]])
def test_commands_refuse_a_bad_config_with_exit_2(command: list[str]) -> None:
    result = driftd(BAD / "empty.toml", *command)
    assert (result.exit_code, result.stderr) == (2, "driftd: empty.toml: models: is required\n")


def test_missing_config_says_what_to_do(tmp_path: Path) -> None:
    result = driftd(tmp_path / "none.toml", "check")
    assert result.exit_code == 2
    assert "copy config.toml or give --config" in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["status", "froud"],
        ["retrain", "froud"],
        ["forget", "froud", "p1"],
        ["report", "froud"],
        ["rollback", "froud"],
        ["audit", "export", "--model", "froud"],
        ["audit", "serving", "froud"],
        ["pause", "froud"],
        ["resume", "froud"],
    ],
)
def test_unknown_model_names_the_known_ones(config: Path, command: list[str]) -> None:
    result = driftd(config, *command)
    assert result.exit_code == 2
    assert "no model 'froud' in config.toml; configured are fraud" in result.stderr


@pytest.mark.parametrize(
    "command",
    [["nothing"], ["retrain"], ["forget", "fraud"], ["dead-letters", "list", "--limit", "-1"],
     ["report", "fraud", "--window-end", "noon"], ["demo", "--stream", __file__],
     ["audit", "verify", "--anchor", "1:abc"], ["audit", "export", "--from", "noon"],
     ["pause", "fraud", "--for", "soon"]],
)  # fmt: skip
def test_wrong_use_is_exit_2(config: Path, command: list[str]) -> None:
    assert driftd(config, *command).exit_code == 2


def test_status_before_anything_happened(config: Path) -> None:
    result = driftd(config, "status")
    assert result.exit_code == 0
    assert result.output.startswith("fraud: no windows yet (no recorded champion)\n  never retrained")
    found = json.loads(driftd(config, "status", "fraud", "--json").stdout)
    assert found["models"]["fraud"]["decisions"] == []


def test_retrain_is_recorded_with_who_and_why(config: Path) -> None:
    found = json.loads(driftd(config, "retrain", "fraud", "--actor", "ada", "--reason", "new data", "--json").stdout)
    assert found["request"].startswith("fraud-")
    result = driftd(config, "status")
    assert "retrain requested: asked for by ada: new data" in result.output


def test_the_same_code_asks_for_one_retrain(config: Path) -> None:
    first, second, other = (
        json.loads(driftd(config, "retrain", "fraud", "--actor", "ci", "--git-ref", ref, "--json").stdout)["request"]
        for ref in ("abc123", "abc123", "def456")
    )
    assert first == second != other
    again = driftd(config, "retrain", "fraud", "--git-ref", "abc123")
    assert (again.exit_code, again.output) == (0, f"fraud: this has asked before: job {first} is requested\n")
    found = json.loads(driftd(config, "status", "fraud", "--json").stdout)["models"]["fraud"]["decisions"]
    assert [d["words"] for d in found] == [
        "retrain requested: asked for by ci: code at def456",
        "retrain requested: asked for by ci: code at abc123",
    ]
    assert found[0]["evidence"]["git_ref"] == "def456"


def test_unknown_job_is_exit_1(config: Path) -> None:
    result = driftd(config, "approve", "nothing")
    assert (result.exit_code, result.stderr) == (1, "driftd: no job 'nothing'\n")


def test_an_unknown_job_cannot_be_reproduced(config: Path) -> None:
    assert driftd(config, "reproduce", "nothing").stderr == "driftd: no job 'nothing'\n"


def test_report_without_windows_is_exit_2(config: Path) -> None:
    result = driftd(config, "report", "fraud")
    assert result.exit_code == 2
    assert "no window has been measured yet" in result.stderr


def test_forget_says_what_was_deleted(config: Path, lake: Lake) -> None:
    assert "deleted nothing stored" in driftd(config, "forget", "fraud", "p1").output
    lake.append(Table.PREDICTIONS, prediction_rows(["p1", "p2"]), "fraud")
    lake.append(Table.LABELS, label_rows([("p1", "1", NOW)]), "fraud")
    result = driftd(config, "forget", "fraud", "p1", "unknown")
    assert result.exit_code == 0
    expected = "fraud: deleted 1 predictions, 1 labels; older table versions lose them within 7d\n"
    assert result.output == expected
    assert stored(lake, Table.PREDICTIONS)["prediction_id"].to_list() == ["p2"]


def test_dead_letters_are_listed_and_replayed(config: Path, lake: Lake) -> None:
    assert "No dead letters." in driftd(config, "dead-letters", "list").output
    now = datetime.now(UTC)
    body = message(prediction(prediction_id="p1", ts=now.isoformat()))
    rejected = decoded([b"{", body], schemas=[]).rejected
    lake.append(Table.DEAD_LETTERS, dead_letter_frame(rejected, now))
    result = driftd(config, "dead-letters", "list")
    assert result.exit_code == 0
    assert "unknown_model" in result.output
    assert "t:0:0" in result.output
    listed = json.loads(driftd(config, "dead-letters", "list", "--json", "--reason", "not_json").stdout)
    assert listed["counts"] == {"not_json": 1, "unknown_model": 1}
    assert [x["payload"] for x in listed["dead_letters"]] == ["{"]
    done = json.loads(driftd(config, "dead-letters", "replay", "--json").stdout)
    assert done == {"seen": 2, "accepted": 1, "remaining": {"not_json": 1}}
    assert "0 of 1 are events now" in driftd(config, "dead-letters", "replay").stdout
    assert stored(lake, Table.PREDICTIONS)["prediction_id"].to_list() == ["p1"]


def test_lake_that_is_away_is_exit_1(config: Path) -> None:
    (config.parent / "state").mkdir()
    (config.parent / "state" / "lake").mkdir()
    (config.parent / "state" / "lake" / "dead_letters").write_text("no table")
    result = driftd(config, "dead-letters", "list")
    assert result.exit_code in (0, 1), "said in words, never a traceback"
    assert "Traceback" not in result.output


def exported(config: Path, *options: str) -> list[dict[str, Any]]:
    result = driftd(config, "audit", "export", *options)
    assert result.exit_code == 0
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def test_what_people_do_is_in_the_audit_log(config: Path, lake: Lake) -> None:
    assert exported(config) == []
    driftd(config, "retrain", "fraud", "--actor", "ada", "--reason", "new data")
    driftd(config, "forget", "fraud", "p1", "p2", "--actor", "bob", "--reason", "asked by letter")
    driftd(config, "dead-letters", "replay", "--actor", "cem", "--reason", "unknown_model")
    found = [(e["kind"], e["model"], e["actor"], e["subject"], e["detail"]) for e in exported(config)]
    assert found[0][:3] == ("retrain_requested", "fraud", "ada")
    assert found[0][4] == "asked for by ada: new data"
    assert found[1] == ("rows_forgotten", "fraud", "bob", "2 prediction(s)", "asked by letter")
    assert found[2] == ("dead_letters_replayed", "", "cem", "unknown_model", "")
    assert "p1" not in json.dumps(exported(config)), "what was to be forgotten is not kept here"


def test_entries_can_be_exported_as_a_table(config: Path) -> None:
    driftd(config, "retrain", "fraud", "--actor", "ada", "--reason", 'with "quotes", commas\nand lines')
    path = config.parent / "audit.csv"
    assert driftd(config, "audit", "export", "--format", "csv", "--output", str(path)).exit_code == 0
    with path.open(newline="") as file:
        (row,) = csv.DictReader(file)
    (entry,) = exported(config)
    assert row == {**{k: str(v) for k, v in entry.items()}, "body": json.dumps(entry["body"])}


def test_export_of_a_time(config: Path) -> None:
    driftd(config, "retrain", "fraud")
    at = exported(config)[0]["at"]
    assert len(exported(config, "--from", at, "--model", "fraud")) == 1
    assert exported(config, "--to", at) == []


def test_audit_log_is_verified_against_a_digest_kept_elsewhere(config: Path) -> None:
    driftd(config, "retrain", "fraud")
    whole = driftd(config, "audit", "verify")
    assert (whole.exit_code, whole.output.splitlines()[0]) == (0, "the audit log is whole: 1 entries")
    anchor = whole.output.split()[-1]
    driftd(config, "forget", "fraud", "p1")
    assert driftd(config, "audit", "verify", "--anchor", anchor).exit_code == 0
    found = driftd(config, "audit", "verify", "--anchor", f"1:{'0' * 64}")
    assert (found.exit_code, found.stdout) == (1, "")
    assert "entry 1 is not the one that was noted" in found.stderr
    found = driftd(config, "audit", "verify", "--anchor", f"9:{'0' * 64}", "--json")
    assert (found.exit_code, json.loads(found.stdout)["whole"]) == (1, False)


def test_no_champion_on_record_is_exit_1(config: Path) -> None:
    result = driftd(config, "audit", "serving", "fraud", "--at", "2026-03-01T10:00:00Z")
    assert (result.exit_code, result.stderr) == (1, "driftd: fraud: no champion on record at 2026-03-01 10:00 UTC\n")
    assert json.loads(driftd(config, "audit", "serving", "fraud", "--json").stdout) is None


def test_pause_refuses_retrains_until_it_is_ended(config: Path) -> None:
    paused = driftd(config, "pause", "fraud", "--for", "2h", "--actor", "ada", "--reason", "a fair")
    assert (paused.exit_code, paused.output.startswith("fraud: paused by ada until 2")) == (0, True)
    assert "  held: paused by ada until 2" in driftd(config, "status").output
    refused = driftd(config, "retrain", "fraud", "--actor", "bob")
    assert (refused.exit_code, "not retrained: paused by ada until" in refused.output) == (1, True)
    assert driftd(config, "pause", "--actor", "ada").output == "all models are paused by ada until `driftd resume`\n"
    resumed = driftd(config, "resume", "fraud")
    assert resumed.output == "fraud: resumed; all models are paused by ada until `driftd resume`\n"
    assert driftd(config, "resume").output == "all models: resumed\n"
    again = driftd(config, "resume")
    assert (again.exit_code, again.output) == (1, "all models: there was no such pause\n")
    assert driftd(config, "retrain", "fraud", "--actor", "bob").exit_code == 0
    kinds = [e["kind"] for e in exported(config)]
    assert kinds == ["paused", "retrain_suppressed", "paused", "resumed", "resumed", "retrain_requested"]
