"""Challengers on trial: beside the champion, then with a share of the traffic; killed, refused, paused, overtaken."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from retrain.config.spec import JobSpec
from retrain.control import audit
from retrain.control.audit import AuditKind
from retrain.control.holds import Pause, pause, resume
from retrain.control.store import Store
from retrain.control.traffic import traffic
from retrain.job.driver import utc_now
from retrain.job.manual_actions import approve, reject
from retrain.job.trials import awaited, due
from retrain.models.registry import Registry, import_mlflow
from retrain.terms.aliases import TRAFFIC_TAG as TAG
from retrain.terms.errors import Refused
from retrain.terms.states import JobState
from tests.jobs import LOGISTIC, drive, first_champion, kill_at, model_tags, runs, store_of, submit, versions
from tests.retrain_data import START, outcomes, spec, write

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)
LATER = START + timedelta(days=5)
SHADOW = {"rows": 150}
CANARY = {"steps": [0.1, 0.5], "rows": 100}


def served(folder: Path, rows: pl.DataFrame) -> None:
    """What a service answered, with its labels."""
    for table in ("outcomes", "predictions"):
        write(folder / table, rows)


def begin(folder: Path, **config: Any) -> tuple[JobSpec, Store]:
    """Version 1 is the champion, of another world; a job is asked for."""
    before, store = outcomes(500, flipped=True), store_of(folder)
    first_champion(store, spec(folder), before)
    served(folder, outcomes(1200))
    wanted = spec(folder, **{"trainer": LOGISTIC, **config})
    return wanted, submit(folder, wanted)


def champion(wanted: JobSpec) -> str | None:
    return Registry(wanted.tracking_uri).resolve_alias("fraud", "champion")


def test_a_challenger_comes_over_shadow_person_and_canary_to_be_champion_whenever_it_is_killed(tmp_path: Path) -> None:
    wanted, store = begin(tmp_path, refit=True, shadow=SHADOW, canary=CANARY, approval="manual")
    assert drive(tmp_path) is JobState.SHADOW
    assert store.get("job-1").waiting == "shadow: 0 of 150 labelled rows"
    served(tmp_path, outcomes(120, seed=2, start=LATER, days=1))
    assert kill_at(tmp_path, "shadow_decided") is False  # not enough of them
    job = store.get("job-1")
    assert (job.state, job.attempt, champion(wanted)) == (JobState.SHADOW, 0, "1")
    assert job.waiting is not None
    assert job.waiting.startswith("shadow: 120 of 150 labelled rows, ")
    assert job.waiting.endswith("% answered as the champion did")
    served(tmp_path, outcomes(120, seed=3, start=LATER + timedelta(days=1), days=1))
    assert kill_at(tmp_path, "shadow_decided")
    assert kill_at(tmp_path, "awaiting_approval")
    detail = store.history("job-1")[-1].detail
    assert detail.startswith("version 2 passed every gate; it is better by ")
    assert "shadow on 240 labelled rows: roc_auc" in detail
    approve(store, "job-1", "ann", utc_now())
    assert kill_at(tmp_path, "canary")
    assert traffic(store, "fraud").share == 0  # nobody was told yet
    assert kill_at(tmp_path, "traffic_noted")
    wants = {"champion": "1", "challenger": "2", "shares": {"1": 0.9, "2": 0.1}, "job": "job-1"}
    assert traffic(store, "fraud").to_json() == wants
    assert TAG not in model_tags(wanted)
    assert drive(tmp_path) is JobState.CANARY
    assert json.loads(model_tags(wanted)[TAG]) == {"champion": "1", "challenger": "2", "share": 0.1}
    assert store.get("job-1").waiting == "canary: share 0.1, 0 of 100 labelled rows of version 2"
    for step, (reached, then) in enumerate((("canary_step", JobState.CANARY), ("canary_decided", JobState.WATCHED))):
        day = LATER + timedelta(days=3 + step)
        served(tmp_path, outcomes(200, seed=4 + step, start=day, days=1))
        served(tmp_path, outcomes(110, seed=6 + step, start=day, days=1, version="2", skill=0.95))
        assert kill_at(tmp_path, reached)
        if step == 1:
            assert kill_at(tmp_path, "alias_moved")
            assert kill_at(tmp_path, "promoted")
        assert drive(tmp_path) is then
    assert champion(wanted) == "2"
    assert traffic(store, "fraud").to_json()["shares"] == {"2": 1.0}
    assert TAG not in model_tags(wanted)
    assert [s.to_state.value for s in store.history("job-1")] == [
        *("requested", "snapshot", "training", "evaluating", "shadow", "awaiting_approval", "awaiting_approval"),
        *("canary", "promoted", "watched"),
    ]  # fmt: skip
    logged = list(audit.entries(store.engine))
    assert [e.body["share"] for e in logged if e.kind == AuditKind.TRAFFIC_CHANGED] == [0.1, 0.5, 0.0]
    left = {e.body["from_state"]: e.body for e in logged if e.kind == AuditKind.JOB_MOVED}
    assert left["shadow"]["shadow"]["rows"] == 240
    assert [step["share"] for step in left["canary"]["canary"]["steps"]] == [0.1, 0.5]
    assert audit.verify(store.engine, {}).problem == ""
    assert versions(wanted) == ["1", "2"]
    tags = next(t for t in runs(wanted) if t.get("driftd.job_id") == "job-1")
    assert (tags["driftd.shadow"], tags["driftd.canary"], tags["driftd.decision"]) == ("passed", "passed", "promoted")
    client = import_mlflow().MlflowClient(wanted.tracking_uri, wanted.tracking_uri)
    files = {f.path for f in client.list_artifacts(store.get("job-1").result["run_id"])}
    assert {"shadow.json", "canary.json"} <= files


def test_a_challenger_that_is_not_better_on_the_live_stream_is_rejected(tmp_path: Path) -> None:
    wanted, store = begin(tmp_path, shadow=SHADOW)
    assert drive(tmp_path) is JobState.SHADOW
    served(tmp_path, outcomes(200, seed=2, start=LATER, days=1, skill=1.0))  # the champion is good there
    assert drive(tmp_path) is JobState.REJECTED
    assert store.history("job-1")[-1].detail.startswith("shadow on 200 labelled rows: quality: roc_auc")
    assert champion(wanted) == "1"
    assert Registry(wanted.tracking_uri).resolve_alias("fraud", "challenger") is None
    (gate,) = [g for g in store.get("job-1").result["shadow"]["gates"] if g["name"] == "quality"]
    assert gate["value"] < 0


def test_a_trial_without_rows_ends_in_time(tmp_path: Path) -> None:
    _, store = begin(tmp_path, shadow={**SHADOW, "time_limit": "2d"}, canary={**CANARY, "time_limit": "3d"})
    assert drive(tmp_path) is JobState.SHADOW
    assert drive(tmp_path, clock=lambda: utc_now() + timedelta(days=1)) is JobState.SHADOW
    served(tmp_path, outcomes(200, seed=2, start=LATER, days=1))
    assert drive(tmp_path, clock=lambda: utc_now() + timedelta(days=1)) is JobState.CANARY
    assert drive(tmp_path, clock=lambda: utc_now() - timedelta(days=300)) is JobState.CANARY  # a clock set back
    assert drive(tmp_path, clock=lambda: utc_now() + timedelta(days=9)) is JobState.REJECTED
    detail = "canary: only 0 of 100 labelled rows of version 2 came within 3 days, 0:00:00 at a share of 0.1"
    assert store.history("job-1")[-1].detail == detail
    assert traffic(store, "fraud").share == 0


def test_a_challenger_that_is_worse_with_real_traffic_loses_it_at_once(tmp_path: Path) -> None:
    wanted, store = begin(tmp_path, canary=CANARY)
    assert drive(tmp_path) is JobState.CANARY
    served(tmp_path, outcomes(300, seed=2, start=LATER, days=1, skill=0.9))
    served(tmp_path, outcomes(110, seed=3, start=LATER, days=1, version="2", skill=0.0))
    assert kill_at(tmp_path, "traffic_noted")  # on its way out
    assert TAG in model_tags(wanted)
    assert drive(tmp_path) is JobState.REJECTED
    assert store.history("job-1")[-1].detail.startswith(
        "canary at a share of 0.1: quality: version 2 against version 1 on live traffic, 110 and "
    )
    assert (champion(wanted), model_tags(wanted).get(TAG), traffic(store, "fraud").share) == ("1", None, 0)


def test_a_person_ends_a_canary(tmp_path: Path) -> None:
    wanted, store = begin(tmp_path, canary=CANARY)
    assert drive(tmp_path) is JobState.CANARY
    registry = Registry(wanted.tracking_uri)
    reject(store, registry, "job-1", "ann", "customers complain", utc_now())
    assert store.get("job-1").state is JobState.REJECTED
    assert (champion(wanted), model_tags(wanted).get(TAG), traffic(store, "fraud").share) == ("1", None, 0)
    assert registry.resolve_alias("fraud", "challenger") is None
    shares = [e for e in audit.entries(store.engine) if e.kind == AuditKind.TRAFFIC_CHANGED]
    assert [(e.actor, e.body["share"]) for e in shares] == [("job", 0.1), ("ann", 0.0)]
    with pytest.raises(Refused, match="job job-1 is rejected: only a challenger that waits or is on trial"):
        reject(store, registry, "job-1", "ann", "again", utc_now())


def test_a_canary_takes_no_step_under_a_pause_and_ends_when_the_champion_is_moved(tmp_path: Path) -> None:
    made, store = begin(tmp_path, canary=CANARY)
    pause(store.engine, Pause("fraud", utc_now(), None, "ann", "a fair"))
    assert drive(tmp_path) is JobState.EVALUATING
    assert store.get("job-1").waiting == "promotion waits: paused by ann until `driftd resume`: a fair"
    resume(store.engine, "fraud", "ann", "", utc_now())
    assert drive(tmp_path) is JobState.CANARY
    pause(store.engine, Pause("fraud", utc_now(), None, "ann", "a fair"))
    served(tmp_path, outcomes(200, seed=2, start=LATER, days=1))
    served(tmp_path, outcomes(110, seed=3, start=LATER, days=1, version="2", skill=0.9))
    assert drive(tmp_path) is JobState.CANARY
    job = store.get("job-1")
    assert job.waiting == "canary: share 0.1, the next step waits: paused by ann until `driftd resume`: a fair"
    assert not due(job, 10_000, utc_now())  # no process for every row
    assert due(job, 0, utc_now() + timedelta(minutes=10))
    resume(store.engine, "fraud", "ann", "", utc_now())
    assert drive(tmp_path) is JobState.CANARY
    job = store.get("job-1")
    assert job.waiting == "canary: share 0.5, 0 of 100 labelled rows of version 2"
    wanted = awaited(job.state, job.result)
    assert wanted.version == "2"
    assert wanted.after >= LATER
    assert not due(job, 9, utc_now())
    assert due(job, 10, utc_now())
    Registry(made.tracking_uri).set_alias("fraud", "champion", "2")  # by hand
    assert drive(tmp_path) is JobState.REJECTED
    assert "the champion was moved meanwhile: compared with version 1, now it is 2" in (
        store.history("job-1")[-1].detail
    )
    assert model_tags(made).get(TAG) is None
