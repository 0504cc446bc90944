"""The backtest takes the daemon's decisions: a recorded run, replayed, gives the same transitions and answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor.decide.ledger import Ledger
from retrain.control.store import open_store
from tests.daemons import MODEL, Daemon, configuration, until

ROWS, WINDOWS, SIZE = 80, 12, timedelta(minutes=1)
CHANGE = 7
"""The window from which on amounts are larger and the answers wrong more often."""
RULES = [
    {"name": "accuracy_drops", "measure": "performance_drop", "above": "auto", "for": "auto", "action": "retrain"},
    {"name": "accuracy_low", "measure": "performance", "metric": "accuracy", "below": 0.7, "for": "1 of 2 windows"},
    {"name": "anything_drifts", "measure": "feature_drift", "above": "auto", "for": "2 of 3 windows"},
    {"name": "amount_drifts", "measure": "feature_drift", "feature": "amount", "above": 0.5, "for": "1 of 1 windows"},
    {"name": "ages_missing", "measure": "missing_share", "feature": "age", "above": 0.2, "for": "1 of 1 windows"},
]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that has seen twelve windows, one after the other, and was stopped then."""
    folder = tmp_path_factory.mktemp("recorded")
    events = folder / "events"
    document = configuration(
        folder / "state",
        {"kind": "files", "files": {"path": str(events)}},
        model={
            "windows": {
                "size": "1m", "lateness": "0s", "min_rows": 20, "idle_after": "1d", "min_coverage": 1.0,
                "max_delay": "1d",
            },
            "reference": {"warmup_windows": 2},
            "rules": RULES,
            "retrain": {"enabled": False},
        },
    )  # fmt: skip
    begins = datetime.now(UTC).replace(second=0, microsecond=0) - SIZE * (WINDOWS + 30)
    daemon = Daemon(folder, document)
    rng = np.random.default_rng(0)
    for stream in ("predictions", "labels"):
        (events / stream).mkdir(parents=True)
    try:
        daemon.start()
        for window in range(WINDOWS):
            _append(events, window, begins, rng)
            if window:
                until(f"window {window} to be final", lambda n=window: _measured(daemon) >= n)
        ticks = daemon.metric("driftd_ticks_total", outcome="ok") or 0
        until("two more ticks", lambda: (daemon.metric("driftd_ticks_total", outcome="ok") or 0) >= ticks + 2)
        daemon.stop()
    finally:
        daemon.kill()
    yield daemon


def _measured(daemon: Daemon) -> float:
    return daemon.metric("driftd_windows_measured_total", model=MODEL, kind="performance") or 0.0


def _append(events: Path, window: int, begins: datetime, rng: np.random.Generator) -> None:
    """The window's predictions, and the labels of the one before: these come half a minute after its end."""
    start, changed = begins + SIZE * window, window >= CHANGE
    predictions, labels = [], []
    for n in range(ROWS):
        ts = start + SIZE * n / ROWS
        right = rng.random() < (0.55 if changed else 0.9)
        answer = "1" if rng.random() < 0.5 else "0"
        name = f"w{window}-{n}"
        features = {
            "amount": float(rng.normal(12 if changed else 10, 2)),
            "age": None if changed and window % 2 and n % 2 else float(rng.integers(18, 80)),
            "country": str(rng.choice(["de", "fr"])),
        }
        common = {"prediction_id": name, "model": MODEL}
        predictions.append(
            common | {"model_version": "1", "ts": ts.isoformat(), "features": features, "prediction": answer}
        )
        label = answer if right else "10"[int(answer)]
        labels.append(
            common | {"ts": (start + 1.5 * SIZE).isoformat(), "label": label, "prediction_ts": ts.isoformat()}
        )
    kept = events.parent / "labels-of-the-last-window.json"
    due = json.loads(kept.read_text()) if kept.exists() else []
    kept.write_text(json.dumps(labels))
    for stream, entries in (("labels", due), ("predictions", predictions)):  # labels first: their window closes then
        with (events / stream / "all.ndjson").open("a") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)


def _backtest(daemon: Daemon, *arguments: str) -> dict[str, Any]:
    out = daemon.folder / "backtest.json"
    done = subprocess.run(
        [sys.executable, "-m", "monitor.cli", "--config", str(daemon.config_path), "backtest", *arguments,
         "--json", str(out)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(out.read_text()))


def _ledger(daemon: Daemon) -> Ledger:
    return Ledger(open_store(f"sqlite:///{daemon.state / 'control.db'}").engine)


@pytest.mark.parametrize("arguments", [(), ("--events", "events")], ids=["lake", "events"])
def test_replay_of_a_recorded_run_gives_the_same_transitions(recorded: Daemon, arguments: tuple[str, ...]) -> None:
    if arguments:
        arguments = ("--events", str(recorded.folder / "events"))
    told = [
        (t["rule"], t["version"], t["before"], t["after"], t["at"].isoformat(), t["reason"])
        for t in reversed(_ledger(recorded).transitions(MODEL, limit=1000))
    ]
    run = _backtest(recorded, *arguments)["runs"][0]
    found = [
        (t["rule"], t["version"], t["before"], t["after"], t["window_end"], t["reason"]) for t in run["transitions"]
    ]
    assert {t[0] for t in told if t[3] == "firing"} >= {"accuracy_drops", "anything_drifts", "ages_missing"}
    assert sorted(found) == sorted(told)


def test_replay_gives_the_same_answers_to_the_same_causes(recorded: Daemon) -> None:
    told = [(d.outcome, d.cause, d.detail) for d in reversed(_ledger(recorded).decisions(MODEL, limit=1000))]
    run = _backtest(recorded)["runs"][0]
    assert [(d["outcome"], d["cause"], d["detail"]) for d in run["decisions"]] == told
    assert told
    assert told[0][0] == "disabled"
    assert "rule accuracy_drops fires on version 1" in told[0][1]


def test_other_settings_are_tried_side_by_side_and_nothing_is_touched(recorded: Daemon) -> None:
    before = sorted((str(p), p.stat().st_mtime_ns) for p in recorded.state.rglob("*") if p.is_file())
    document = _backtest(recorded, "--sweep", "rules.amount_drifts.above=0.5,50")
    assert [r["settings"] for r in document["runs"]] == [
        {"rules.amount_drifts.above": 0.5},
        {"rules.amount_drifts.above": 50},
    ]
    fired = [{r["rule"]: r["fired"] for r in run["rules"]}["amount_drifts"] for run in document["runs"]]
    assert fired[0] > 0
    assert fired[1] == 0
    after = sorted((str(p), p.stat().st_mtime_ns) for p in recorded.state.rglob("*") if p.is_file())
    assert [p for p in after if "control.db" not in p[0]] == [p for p in before if "control.db" not in p[0]]
