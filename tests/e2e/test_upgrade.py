"""A state folder of 0.1.0, with data in it, is taken over. `tests/data/make_state_0_1_0.py` has made it."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.daemons import Daemon, rows, until

ARCHIVE = Path(__file__).parents[1] / "data" / "state_0_1_0.tar.gz"
ENDED = ("rejected", "promoted", "watched", "failed")
MADE_IN = "/tmp/driftd-0.1.0"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    for name in ("control.db", "mlflow.db"):
        moved(tmp_path / "state" / name, tmp_path)
    config = tomllib.loads((tmp_path / "config.toml").read_text())
    config["daemon"] |= {"state": str(tmp_path / "state"), "log_format": "json"}
    found = Daemon(tmp_path / "new", config)
    yield found
    found.kill()


def moved(database: Path, folder: Path) -> None:
    """Paths in it are absolute: where it was made, it stayed."""
    with sqlite3.connect(database) as db:
        guarded = {name for (name,) in db.execute("SELECT tbl_name FROM sqlite_master WHERE type = 'trigger'")}
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            if table in guarded:
                continue  # the audit log: it stays as it was written
            for column, kind in db.execute(f'SELECT name, type FROM pragma_table_info("{table}")').fetchall():
                if any(word in kind.upper() for word in ("CHAR", "TEXT", "JSON")):
                    change = f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) WHERE "{column}" LIKE ?'
                    db.execute(change, (MADE_IN, str(folder), f"%{MADE_IN}%"))
    db.close()


def measured(daemon: Daemon, model: str) -> pl.DataFrame:
    """How often each window has a value, by its measure."""
    keys = ["model_version", "window_start", "measure", "feature", "metric", "segment", "final"]
    return rows(daemon.lake, "measurements", model).group_by(keys).len()


def command(daemon: Daemon, *arguments: str) -> str:
    driftd = [sys.executable, "-m", "monitor.cli", "--config", str(daemon.config_path)]
    done = subprocess.run([*driftd, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def send(daemon: Daemon, hours: int) -> None:
    """Of both models, up to now."""
    now = datetime.now(UTC)
    events: list[dict[str, Any]] = []
    for n in range(hours * 40):
        ts = (now - timedelta(hours=hours) + n * timedelta(minutes=1.5)).isoformat()
        features = {"amount": n % 10 / 10, "is_new": n % 3 == 0, "kind": "abc"[n % 3]}
        common = {"prediction_id": f"new-{n}", "ts": ts, "features": features}
        events.append({**common, "model": "fraud", "model_version": "1", "prediction": "ok", "score": 0.2})
        events.append({**common, "model": "price", "model_version": "v9", "prediction": n / 10})
    path = daemon.state / "events" / "predictions" / "new.ndjson"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))


def job_of(daemon: Daemon, reason: str) -> dict[str, Any]:
    """Once it has ended."""
    jobs = json.loads(command(daemon, "status", "fraud", "--json"))["models"]["fraud"]["jobs"]
    ended = [job for job in jobs if job["reason"].endswith(reason) and job["state"] in ENDED]
    return dict(ended[0]) if ended else {}


def test_what_an_earlier_release_left_is_gone_on_with(daemon: Daemon) -> None:
    before = {m: measured(daemon, m) for m in ("fraud", "price")}
    counts = {(m, t): rows(daemon.lake, t, m).height for m in before for t in ("predictions", "labels", "outcomes")}
    references = daemon.state / "references" / "fraud"
    assert (references / "smoke" / "labelled.parquet").exists(), "the archive is of before"
    command(daemon, "check")
    told = json.loads(command(daemon, "status", "fraud", "--json"))["models"]["fraud"]

    daemon.start()
    aside = until("what was set aside", lambda: daemon.logged("reference_set_aside"))
    assert [line["model"] for line in aside] == ["fraud"]
    assert "smoke" in aside[0]["detail"]
    kept = {path.relative_to(references).as_posix() for path in references.rglob("*") if path.is_file()}
    assert {name for name in kept if name.startswith("smoke/")} == {"smoke/labelled.too_few"}
    assert not [name for name in kept if name.startswith("b_2/")], "named by what the rows say: b/2"
    assert any(name.startswith("b-2~") and name.endswith(".parquet") for name in kept)

    send(daemon, 3)
    until("new windows", lambda: len(daemon.logged("window_measured")) >= 2 * 2)
    for model, known in before.items():
        again = known.join(measured(daemon, model), on=[c for c in known.columns if c != "len"], nulls_equal=True)
        assert again.height == known.height
        assert (again["len"] == again["len_right"]).all(), "a window of before was measured again"
        assert set(daemon.logged("window_measured")[0]) >= {"reference", "rows"}
    assert {at: rows(daemon.lake, at[1], at[0]).height for at in counts if at[1] != "predictions"} == {
        at: count for at, count in counts.items() if at[1] != "predictions"
    }
    assert rows(daemon.lake, "predictions", "fraud").height == counts["fraud", "predictions"] + 120

    now = json.loads(command(daemon, "status", "fraud", "--json"))["models"]["fraud"]
    assert now["champion"] == told["champion"] == "1"
    assert [job["id"] for job in now["jobs"]] == [job["id"] for job in told["jobs"]]
    assert {job["state"] for job in now["jobs"]} >= {"rejected"}
    held = json.loads(command(daemon, "status", "price", "--json"))["models"]["price"]["held"]
    assert held.startswith("paused by ann")
    assert "the audit log is whole" in command(daemon, "audit", "verify")
    assert "version 1" in command(daemon, "audit", "serving", "fraud")
    assert daemon.request("/models/fraud")[0] == 200

    command(daemon, "retrain", "fraud", "--actor", "bob", "--reason", "after the upgrade")
    ended = until("its end", lambda: job_of(daemon, "after the upgrade"), within=120)
    assert ended["result"]["compared_with"] == "1"
    assert "as served" not in json.dumps(ended["result"]["gates"]), "the champion of 0.1.0 is opened and compared"
    assert daemon.faults() == []
    assert daemon.stop()[0] == 0
