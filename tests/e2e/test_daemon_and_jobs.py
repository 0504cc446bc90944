"""The daemon that drives jobs, killed in every state of one: the next one finds it where it is and drives it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import polars as pl
import pytest

from monitor.config.loading import from_dict
from retrain.control import audit
from retrain.control.store import Store, open_store
from retrain.control.traffic import traffic
from retrain.models.registry import Registry
from retrain.terms.states import JobState
from tests.daemons import Daemon, Daemons, until
from tests.jobs import LOGISTIC, first_champion, runs, versions
from tests.retrain_data import BINARY, mlflow_store, outcomes, spec

TOKEN = "open-sesame"
START = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=8)
MODEL = {
    "task": "binary", "metrics": ["roc_auc"], "classes": list(BINARY.classes), "positive": BINARY.positive,
    "features": {f.name: f.kind.value for f in BINARY.features}, "segments": list(BINARY.segments), "rules": [],
    "windows": {
        "size": "1d", "lateness": "1s", "min_rows": 20, "idle_after": "1h", "min_coverage": 0.7, "max_delay": "1d",
    },
    "retrain": {
        "trainer": LOGISTIC, "parameters": {"sleep": 2}, "min_rows": 200, "holdout_min_rows": 100, "refit": False,
        "watch_rows": 150, "approval": "manual", "gates": {"metric": "roc_auc"},
        "shadow": {"rows": 150}, "canary": {"steps": [0.2], "rows": 100},
    },
}  # fmt: skip


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    monkeypatch.setenv("DRIFTD_TEST_TOKEN", TOKEN)
    with Daemons(tmp_path) as daemons:
        yield daemons.make({"kind": "files"}, model=MODEL, http={"token": {"env": "DRIFTD_TEST_TOKEN"}})


def test_a_daemon_killed_in_every_state_of_a_job_drives_it_to_one_outcome(daemon: Daemon, tmp_path: Path) -> None:
    config = from_dict(daemon.config).config
    config.state.mkdir(parents=True)
    store, before = open_store(config.control_url), outcomes(500, flipped=True)
    first = spec(tmp_path, trainer=LOGISTIC, tracking_uri=mlflow_store(config.state))
    assert first.tracking_uri == config.tracking_uri
    first_champion(store, first, before)

    def served(seed: int, day: int, version: str = "1", skill: float = 0.2, rows: int = 250) -> None:
        found = outcomes(rows, seed=seed, start=START + timedelta(days=day), days=1, version=version, skill=skill)
        send(config.state / "events", found, f"{seed}")

    served(1, 0, rows=800)
    daemon.start()
    until("the labels to be joined", lambda: daemon.count("outcomes") == 800)
    status, text = daemon.request("/api/v1/models/fraud/retrain", {"actor": "ann"}, token=TOKEN)
    assert status == 202, text
    daemon.kill()  # the request is on record, and no job yet
    daemon.start()
    killed: list[JobState] = []
    again(daemon, store, killed, JobState.TRAINING)
    again(daemon, store, killed, JobState.EVALUATING)
    again(daemon, store, killed, JobState.SHADOW, then=lambda: served(2, 1))
    again(daemon, store, killed, JobState.AWAITING_APPROVAL)
    job = store.list_jobs("fraud", limit=1)[0]
    status, text = daemon.request(f"/api/v1/jobs/{job.id}/approve", {"actor": "bob"}, token=TOKEN)
    assert status == 200, text

    def shared() -> None:
        until("the traffic to be shared", lambda: traffic(store, "fraud").share)
        served(3, 3)
        served(4, 3, version="2", skill=0.95)

    again(daemon, store, killed, JobState.CANARY, then=shared)
    again(daemon, store, killed, JobState.PROMOTED, then=lambda: served(5, 5, version="2", skill=0.95))
    until("the watch to end", lambda: store.get(job.id).state is JobState.WATCHED, within=60)
    assert killed == [
        *(JobState.TRAINING, JobState.EVALUATING, JobState.SHADOW, JobState.AWAITING_APPROVAL),
        *(JobState.CANARY, JobState.PROMOTED),
    ]
    assert len(store.list_jobs("fraud")) == 1
    assert versions(first) == ["1", "2"]
    assert len(runs(first)) == 2
    assert Registry(first.tracking_uri).pointers("fraud")[0] == {"champion": "2", "previous": "1"}
    assert [(m.version, m.actor) for m in store.champion_moves("fraud")] == [("2", "bob"), ("1", "ann")]
    assert traffic(store, "fraud").share == 0
    assert audit.verify(store.engine, {}).problem == ""
    store.engine.dispose()


def again(
    daemon: Daemon, store: Store, killed: list[JobState], wanted: JobState, then: Callable[[], None] = lambda: None
) -> None:
    """Kill the daemon when its job has come to a state, start another, and then go on."""

    def states() -> list[JobState]:
        return [job.state for job in store.list_jobs("fraud", limit=1)]

    until(f"state {wanted}", lambda: states() == [wanted], every=0.02)
    daemon.kill()
    killed += states()
    daemon.start()
    then()


def send(folder: Path, rows: pl.DataFrame, name: str) -> None:
    """Events of what was served and of its labels, as a service writes them."""
    lines: dict[str, list[bytes]] = {"predictions": [], "labels": []}
    for row in rows.iter_rows(named=True):
        known = {"model": "fraud", "prediction_id": row["prediction_id"]}
        features = {f.name: row[f.column] for f in BINARY.features}
        answer = {
            "prediction": row["prediction"],
            "score": row["score"],
            "segment": {"country": row["segment_country"]},
        }
        about = {"model_version": row["model_version"], "ts": row["ts"], "features": features}
        lines["predictions"].append(orjson.dumps(known | about | answer))
        lines["labels"].append(
            orjson.dumps(known | {"ts": row["label_ts"], "label": row["label"], "prediction_ts": row["ts"]})
        )
    for stream, events in lines.items():
        (folder / stream).mkdir(parents=True, exist_ok=True)
        (folder / stream / f"{name}.ndjson").write_bytes(b"\n".join(events) + b"\n")
