"""Whole jobs on generated data: promoted, rejected, killed at every step, waiting for MLflow, rolled back."""

from __future__ import annotations

import os
import shutil
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from deltalake import DeltaTable
from sqlalchemy import Engine

from monitor.jobs.supervisor import job_history
from retrain.base.retry import Backoff
from retrain.control import audit
from retrain.control.audit import AuditKind
from retrain.control.holds import Pause, pause, resume
from retrain.control.store import AliasMove, Store
from retrain.data.frame import features_frame
from retrain.job.driver import Driver, Limits, utc_now
from retrain.job.manual_actions import approve, register_initial, rollback
from retrain.job.reproduce import reproduce
from retrain.models.model_files import load_model
from retrain.models.registry import Registry, import_mlflow
from retrain.terms.errors import LeaseLost, Refused, TransientError
from retrain.terms.states import JobState
from tests.jobs import LOGISTIC, drive, first_champion, fork_server, kill_at, runs, store_of, submit, versions
from tests.retrain_data import BINARY, NOW, outcomes, spec, write

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)
CHECKPOINTS = [
    *("snapshot", "training", "trained", "evaluating", "refitted", "run_opened", "model_logged"),
    *("version_registered", "decided", "awaiting_approval", "promotion_begun", "alias_moved", "promoted", "watched"),
]


def test_a_job_killed_after_every_step_ends_as_one_version_and_one_outcome(tmp_path: Path) -> None:
    write(tmp_path / "outcomes", outcomes(1200))
    wanted = spec(tmp_path, approval="manual", refit=True)
    store = submit(tmp_path, wanted)
    killed = []
    for name in CHECKPOINTS:
        killed += [name] if kill_at(tmp_path, name) else []
        if store.get("job-1").state is JobState.AWAITING_APPROVAL and store.get("job-1").approved_by is None:
            approve(store, "job-1", "ann", utc_now())
    assert killed == CHECKPOINTS
    assert store.get("job-1").state is JobState.WATCHED
    states = [s.to_state.value for s in store.history("job-1")]
    assert states == [
        *("requested", "snapshot", "training", "evaluating"),
        *("awaiting_approval", "awaiting_approval", "promoted", "watched"),
    ]
    assert versions(wanted) == ["1"]
    assert len(runs(wanted)) == 1
    assert [(m.alias, m.version, m.actor) for m in store.alias_moves("fraud")] == [("champion", "1", "ann")]
    assert audit.verify(store.engine, {}).problem == ""
    logged = list(audit.entries(store.engine))
    assert [e.body["to_state"] for e in logged if e.subject == "job-1"] == states
    assert [(e.actor, e.body["version"]) for e in logged if e.kind == AuditKind.ALIAS_MOVED] == [("ann", "1")]
    (decided,) = [e for e in logged if "result" in e.body]
    assert decided.body["result"]["gates"] == store.get("job-1").result["gates"]
    tags = runs(wanted)[0]
    assert tags["driftd.decision"] == "promoted"
    assert tags["driftd.trigger"] == "rule"
    assert tags["driftd.data_version"] == "0"
    reference = Registry(wanted.tracking_uri).fetch_reference("fraud", "1", tmp_path / "fetched")
    assert reference is not None
    assert {"ts", "label", "prediction", "score", "segment_country", "feature_kind"} <= set(
        pl.read_parquet(reference).columns
    )


def test_a_job_goes_on_where_the_files_of_the_one_before_are_gone_and_asks_about_a_close_call(tmp_path: Path) -> None:
    write(tmp_path / "outcomes", outcomes(1200))
    wanted = spec(tmp_path, trainer=LOGISTIC, approval="close_calls", close_call=900.0)
    store = submit(tmp_path, wanted)
    assert kill_at(tmp_path, "run_opened")
    assert store.get("job-1").state is JobState.EVALUATING
    shutil.rmtree(wanted.job_dir)  # as on another replica, which has its own state folder
    assert drive(tmp_path) is JobState.AWAITING_APPROVAL
    assert len(runs(wanted)) == 1
    assert "standard errors, 900 would be clear" in store.history("job-1")[-1].detail
    approve(store, "job-1", "ann", utc_now(), "seen the numbers")
    assert drive(tmp_path) is JobState.WATCHED
    assert [s.detail for s in store.history("job-1") if s.actor == "ann"] == ["approved: seen the numbers"]


def test_a_challenger_that_is_not_better_is_rejected_and_not_trained_again(tmp_path: Path) -> None:
    write(tmp_path / "outcomes", outcomes(1200, skill=1.0))
    wanted = spec(tmp_path, trainer=LOGISTIC)
    store = submit(tmp_path, wanted)
    assert drive(tmp_path) is JobState.REJECTED
    assert store.history("job-1")[-1].detail.startswith("quality: roc_auc")
    assert runs(wanted)[0]["driftd.decision"] == "rejected"
    assert versions(wanted) == []
    submit(tmp_path, spec(tmp_path, id="job-2", trainer=LOGISTIC))
    assert drive(tmp_path, "job-2") is JobState.REJECTED
    assert store.history("job-2")[-1].detail.startswith("already trained as job job-1")
    assert job_history(store, "fraud", NOW).without_gain(None) == 1


def test_a_challenger_that_has_seen_the_answers_waits_for_a_person(tmp_path: Path) -> None:
    write(tmp_path / "outcomes", outcomes(1200))
    lake = str(tmp_path / "outcomes")
    wanted = spec(tmp_path, trainer="tests.retrain_data:reads_the_lake", parameters={"lake": lake}, refit=True)
    store = submit(tmp_path, wanted)
    assert drive(tmp_path) is JobState.AWAITING_APPROVAL
    told = store.history("job-1")[-1].detail
    assert told.startswith("too_good: 0 of the answers are wrong on 300 holdout rows"), told
    assert runs(wanted)[0]["driftd.gate.too_good"] == "asks"
    approve(store, "job-1", "ann", utc_now(), "the label is a rule")
    assert drive(tmp_path) is JobState.WATCHED

    off = spec(
        tmp_path, id="job-2", trainer=wanted.config.trainer, parameters={"lake": lake}, gates={"too_good": "off"}
    )
    submit(tmp_path, off)
    assert drive(tmp_path, "job-2") is JobState.REJECTED  # as good as the champion, which knows these rows too
    assert [g["name"] for g in store.get("job-2").result["gates"] if g["name"] == "too_good"] == []


def test_every_gate_that_was_asked_for_is_judged_with_its_numbers(tmp_path: Path) -> None:
    rows = outcomes(1200)
    store = store_of(tmp_path)
    gates = {
        "calibration_tolerance": 0.2, "robustness_tolerance": 0.5, "min_agreement": 0.1, "max_size": "10MiB",
        "fairness_segment": "country", "max_parity_difference": 0.9, "max_odds_difference": 0.9, "segment_min_rows": 20,
        "functions": ["tests.retrain_data:few_refusals"],
    }  # fmt: skip
    first_champion(store, spec(tmp_path), rows[:300])
    write(tmp_path / "outcomes", rows)
    submit(tmp_path, spec(tmp_path, gates={**gates, "max_size": "10B"}))
    assert drive(tmp_path) is JobState.REJECTED
    judged = {g["name"]: g for g in store.get("job-1").result["gates"]}
    assert set(judged) == {
        *("quality", "segment", "signature", "latency", "calibration", "demographic_parity", "equalized_odds"),
        *("agreement", "robustness", "size", "too_good", "function.tests.retrain_data:few_refusals"),
    }
    assert [name for name, gate in judged.items() if not gate["passed"]] == ["size"]
    assert all(
        judged[name]["interval"] for name in ("calibration", "demographic_parity", "equalized_odds", "agreement")
    )
    assert store.history("job-1")[-1].detail.startswith("size: ")
    tags = next(t for t in runs(spec(tmp_path)) if t.get("driftd.job_id") == "job-1")
    assert tags["driftd.gate.size"] == "failed"
    assert tags["driftd.gate.function.tests.retrain_data:few_refusals"] == "passed"


def test_a_job_is_reproduced_from_its_lake_version(tmp_path: Path) -> None:
    write(tmp_path / "outcomes", outcomes(1200))
    store = submit(
        tmp_path, spec(tmp_path, refit=True, parameters={"max_iter": 20, "learning_rate": 0.001, "search": 2})
    )
    assert drive(tmp_path) is JobState.WATCHED
    write(tmp_path / "outcomes", outcomes(300, seed=5))  # what came later is not in it
    job = store.get("job-1")
    settings = job.result["search"]["parameters"]
    assert settings, job.result["search"]
    found = reproduce(job, tmp_path / "again", fork_server())
    assert found.same
    assert {c.what: c.same for c in (*found.causes, *found.results)} == dict.fromkeys(
        ("rows", "code", "packages", "metrics", "predictions"), True
    )
    assert "300 of 300 answers; scores differ by 0 at most" in [c.detail for c in found.results]
    with pytest.raises(Refused, match="is there already: choose another --folder"):
        reproduce(job, tmp_path / "again", fork_server())
    searches = sorted(p.parent.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("search.json"))
    assert searches == ["artifacts", "jobs"], "neither the refit nor the rebuilt job has searched again"
    found_by_run = store.find_by_run(job.result["run_id"])
    assert found_by_run is not None
    assert found_by_run.id == "job-1"

    other = replace(job, spec=replace(job.spec, config=job.spec.config.model_copy(update={"trainer": LOGISTIC})))
    changed = reproduce(other, tmp_path / "other", fork_server())
    assert not changed.same
    assert {c.what for c in (*changed.causes, *changed.results) if not c.same} == {
        "code", "metrics", "predictions"
    }  # fmt: skip
    assert "roc_auc" in next(c.detail for c in changed.results if c.what == "metrics")
    for file in (tmp_path / "outcomes").rglob("*.parquet"):
        file.unlink()  # as vacuum does
    with pytest.raises(Refused, match=r"version 0 of .*outcomes cannot be read; is it older than"):
        reproduce(job, tmp_path / "gone", fork_server())


def test_while_a_model_is_paused_its_job_trains_and_the_promotion_waits(tmp_path: Path) -> None:
    write(tmp_path / "outcomes", outcomes(1200))
    wanted = spec(tmp_path, trainer=LOGISTIC)
    store = submit(tmp_path, wanted)
    registry = Registry(wanted.tracking_uri)
    pause(store.engine, Pause("fraud", utc_now(), None, "ann", "a fair"))
    for _ in range(2):  # the second process finds the same
        assert drive(tmp_path) is JobState.EVALUATING
        assert store.get("job-1").waiting == "promotion waits: paused by ann until `driftd resume`: a fair"
        assert registry.resolve_alias("fraud", "champion") is None
    assert resume(store.engine, "fraud", "ann", "", utc_now())
    assert drive(tmp_path) is JobState.WATCHED
    assert registry.resolve_alias("fraud", "champion") == "1"
    assert store.get("job-1").waiting is None


def test_a_pause_leaves_no_promotion_half_done(tmp_path: Path) -> None:
    write(tmp_path / "outcomes", outcomes(1200))
    wanted = spec(tmp_path, trainer=LOGISTIC)
    store = submit(tmp_path, wanted)
    assert kill_at(tmp_path, "alias_moved")
    assert (store.get("job-1").state, store.champion_moves("fraud")) == (JobState.EVALUATING, [])
    pause(store.engine, Pause("fraud", utc_now(), None, "ann", ""))
    assert drive(tmp_path) is JobState.WATCHED  # the alias had moved before: what is left is to put it on record
    assert [m.version for m in store.champion_moves("fraud")] == ["1"]


def test_a_pause_that_comes_before_the_alias_has_moved_holds_the_promotion(tmp_path: Path) -> None:
    write(tmp_path / "outcomes", outcomes(1200))
    wanted = spec(tmp_path, trainer=LOGISTIC)
    store = submit(tmp_path, wanted)

    def checkpoint(reached: str) -> None:
        if reached == "decided":  # as when MLflow is away just then: it was about to promote
            store.update("job-1", None, result={**store.get("job-1").result, "promoting": True})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(tmp_path, checkpoint=checkpoint)
    pause(store.engine, Pause("fraud", utc_now(), None, "ann", ""))
    assert drive(tmp_path) is JobState.EVALUATING
    assert Registry(wanted.tracking_uri).resolve_alias("fraud", "champion") is None
    assert store.get("job-1").result["promoting"] is False
    assert resume(store.engine, "fraud", "ann", "", utc_now())
    assert drive(tmp_path) is JobState.WATCHED


def test_rolling_back_a_promotion_that_is_not_on_record_yet_ends_its_job(tmp_path: Path) -> None:
    rows = outcomes(1200)
    store = store_of(tmp_path)
    first_champion(store, spec(tmp_path), rows[:300])
    write(tmp_path / "outcomes", outcomes(1200, seed=1, flipped=True))
    wanted = spec(tmp_path, trainer=LOGISTIC)
    submit(tmp_path, wanted)
    assert kill_at(tmp_path, "alias_moved")
    registry = Registry(wanted.tracking_uri)
    assert registry.resolve_alias("fraud", "champion") == "2"
    assert [m.version for m in store.champion_moves("fraud")] == ["1"]
    assert rollback(store, registry, "fraud", "fraud", "ann", "at once", utc_now()) == "1"
    assert store.get("job-1").state is JobState.REJECTED
    assert drive(tmp_path) is JobState.REJECTED
    assert registry.resolve_alias("fraud", "champion") == "1"


def test_a_champion_that_was_moved_and_not_recorded_can_be_put_on_record(tmp_path: Path) -> None:
    rows = outcomes(600)
    store = store_of(tmp_path)
    first = spec(tmp_path)
    first_champion(store, first, rows[:300])
    store.record_alias(AliasMove("fraud", "champion", "2", "1", None, "job", NOW, "a job"))  # and then killed
    registry = Registry(first.tracking_uri)
    assert rollback(store, registry, "fraud", "fraud", "ann", "as it is", utc_now(), "1") == "1"
    assert [m.version for m in store.champion_moves("fraud")] == ["1", "2", "1"]


class Troubled(Store):
    """Away as often as `troubles` says."""

    troubles = 0

    @property
    def engine(self) -> Engine:
        if self.troubles:
            self.troubles -= 1
            raise TransientError("control database: locked")
        return self._engine

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self._engine = engine


def test_trouble_of_the_control_database_delays_a_promotion(tmp_path: Path) -> None:
    write(tmp_path / "outcomes", outcomes(1200))
    store = Troubled(submit(tmp_path, spec(tmp_path, trainer=LOGISTIC)).engine)

    def checkpoint(reached: str) -> None:
        store.troubles = 2 if reached in ("snapshot", "decided") else 0

    limits = Limits(backoff=Backoff(first=0.2, most=1.0))
    driver = Driver(store, environ=dict(os.environ), stopping=threading.Event(), limits=limits, checkpoint=checkpoint)
    assert driver.drive("job-1") is JobState.WATCHED


def test_a_champion_moved_by_hand_meanwhile_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "outcomes", outcomes(1200))
    wanted = spec(tmp_path, trainer=LOGISTIC)
    store = submit(tmp_path, wanted)
    registry = Registry(wanted.tracking_uri)

    def by_hand(reached: str) -> None:
        if reached == "version_registered":  # while the job evaluates
            other = registry.open_run("fraud", "by hand", {})
            registry.set_alias("fraud", "champion", registry.register("fraud", other, {}))

    assert drive(tmp_path, checkpoint=by_hand) is JobState.REJECTED
    assert "the champion was moved meanwhile: compared with version none, now it is 2" in (
        store.history("job-1")[-1].detail
    )
    assert registry.resolve_alias("fraud", "champion") == "2"
    assert registry.resolve_alias("fraud", "challenger") is None
    assert store.alias_moves("fraud") == []


def test_a_new_champion_that_turns_out_worse_is_rolled_back_and_does_not_come_back(tmp_path: Path) -> None:
    first = spec(tmp_path, id="initial", trainer=LOGISTIC)
    store = store_of(tmp_path)
    rows = outcomes(1200)
    environ = dict(os.environ)
    version = register_initial(store, first, rows[:900], rows[900:], environ, NOW, "ann")
    assert register_initial(store, first, rows[:900], rows[900:], environ, NOW, "ann") == version == "1"
    write(tmp_path / "outcomes", outcomes(1200, seed=1, flipped=True))
    submit(tmp_path, spec(tmp_path, trainer=LOGISTIC, watch_rows=300))
    assert drive(tmp_path) is JobState.PROMOTED
    assert store.get("job-1").waiting == "watching: 0 of 300 labelled rows"
    today = utc_now().replace(hour=0, minute=0)
    write(tmp_path / "outcomes", outcomes(400, seed=2, version="2", start=today + timedelta(days=1)))
    assert drive(tmp_path) is JobState.ROLLED_BACK
    registry = Registry(first.tracking_uri)
    assert registry.resolve_alias("fraud", "champion") == "1"
    assert [m.version for m in store.champion_moves("fraud")] == ["1", "2", "1"]
    assert job_history(store, "fraud", NOW).without_gain(None) == 1
    submit(tmp_path, spec(tmp_path, id="job-2", trainer=LOGISTIC))
    assert drive(tmp_path, "job-2") is JobState.REJECTED  # the rows that came since speak against the like of version 2
    assert store.history("job-2")[-1].detail.startswith("quality: ")
    DeltaTable(str(tmp_path / "outcomes")).restore(0)  # the very rows that made version 2
    submit(tmp_path, spec(tmp_path, id="job-3", trainer=LOGISTIC, watch_rows=300))
    assert drive(tmp_path, "job-3") is JobState.REJECTED
    assert store.history("job-3")[-1].detail == "already trained as job job-1: same rows, code and config"
    assert registry.pointers("fraud")[0] == {"champion": "1"}
    with pytest.raises(Refused, match=r"version 7 is no earlier champion that driftd knows of; these are: 2$"):
        rollback(store, registry, "fraud", "fraud", "ann", "a slip", NOW, "7")
    with pytest.raises(Refused, match="there is no previous champion"):
        rollback(store, registry, "fraud", "fraud", "ann", "again", NOW)
    assert rollback(store, registry, "fraud", "fraud", "ann", "I know better", NOW, "2") == "2"
    assert registry.resolve_alias("fraud", "champion") == "2"
    assert registry.resolve_alias("fraud", "previous") == "1"
    assert store.champion_moves("fraud")[0].actor == "ann"


def test_two_processes_never_drive_one_job(tmp_path: Path) -> None:
    store = submit(tmp_path, spec(tmp_path))
    store.acquire("job-1", "other", utc_now(), timedelta(minutes=1))
    with pytest.raises(LeaseLost):
        drive(tmp_path)


def test_too_few_rows_end_the_job_without_training(tmp_path: Path) -> None:
    write(tmp_path / "outcomes", outcomes(50))
    store = submit(tmp_path, spec(tmp_path))
    assert drive(tmp_path) is JobState.REJECTED
    assert store.history("job-1")[-1].detail == "50 labelled rows, min_rows is 200"


def test_rows_that_are_not_fit_to_learn_from_stop_the_job_with_a_report(tmp_path: Path) -> None:
    write(tmp_path / "outcomes", outcomes(1200))
    wanted = spec(tmp_path, trainer=LOGISTIC, validation={"ranges": {"amount": (0, 10)}})
    store = submit(tmp_path, wanted)
    assert drive(tmp_path) is JobState.REJECTED
    job = store.get("job-1")
    assert store.history("job-1")[-1].detail.startswith("the rows are not fit to learn from: range: amount: ")
    assert [c["name"] for c in job.result["validation"] if c["level"] == "failed"] == ["range"]
    assert not (wanted.job_dir / "model").exists()
    assert runs(wanted)[0]["driftd.decision"] == "rejected"
    client = import_mlflow().MlflowClient(wanted.tracking_uri, wanted.tracking_uri)
    [run] = client.search_runs([client.get_experiment_by_name("fraud").experiment_id])
    assert {f.path for f in client.list_artifacts(run.info.run_id)} >= {"validation.md", "manifest.json"}
    submit(tmp_path, spec(tmp_path, id="job-2", trainer=LOGISTIC))  # the range was wrong, the rows were not
    assert kill_at(tmp_path, "training", "job-2")


def test_a_trainer_that_raises_fails_the_job_and_its_run(tmp_path: Path) -> None:
    write(tmp_path / "outcomes", outcomes(300))
    wanted = spec(tmp_path, trainer="tests.retrain_data:raises")
    store = submit(tmp_path, wanted)
    assert drive(tmp_path) is JobState.FAILED
    assert store.get("job-1").error == "the trainer raised ValueError: no such luck"
    assert runs(wanted)[0]["driftd.decision"] == "failed"
    with pytest.raises(Refused, match="job job-1 is failed: it judged no challenger"):
        reproduce(store.get("job-1"), tmp_path / "again", fork_server())


def test_what_is_promoted_has_seen_every_row_and_its_reference_had_not(tmp_path: Path) -> None:
    write(tmp_path / "outcomes", outcomes())
    wanted = spec(tmp_path, refit=True)
    store = submit(tmp_path, wanted)
    assert drive(tmp_path) is JobState.WATCHED
    job = store.get("job-1")
    assert job.result["refit"] is True
    registry, name = Registry(wanted.tracking_uri), wanted.registered_model
    path = registry.fetch_reference(name, "1", tmp_path / "fetched")
    assert path is not None
    reference = pl.read_parquet(path)
    champion = load_model(registry.fetch_model(name, "1", tmp_path / "champion"))
    said = champion.predictions(features_frame(reference, BINARY), BINARY).scores
    judged = reference["score"].to_numpy()
    assert said is not None
    assert not np.allclose(said, judged)  # the holdout is known by now, and it was not when it was judged
    label = (reference["label"] == BINARY.positive).to_numpy()
    assert np.mean((said - label) ** 2) < np.mean((judged - label) ** 2)
    assert not list(wanted.job_dir.rglob("*.parquet")), "the rows of an ended job are in the lake"
    assert not list(wanted.job_dir.rglob("*.skops")), "and its models in the registry"


def test_what_was_judged_is_promoted_and_its_run_tells_what_caused_it(tmp_path: Path) -> None:
    """Without a refit; nobody is asked about a clear case, and a first model has nothing to be tried beside."""
    write(tmp_path / "outcomes", outcomes(1200))
    reports = tmp_path / "reports"
    reports.mkdir()
    for name in ("1-20260201T100000.html", "1-20260201T110000.html", "2-20260201T120000.html", ".1-unfinished.tmp"):
        (reports / name).write_text(name)
    trials = {"shadow": {"rows": 150}, "canary": {"steps": [0.1, 0.5], "rows": 100}}
    wanted = spec(tmp_path, trainer=LOGISTIC, approval="close_calls", close_call=1.0, **trials)
    wanted = replace(wanted, reports=str(reports), request=replace(wanted.request, evidence={"version": "1"}))
    store = submit(tmp_path, wanted)
    assert drive(tmp_path) is JobState.WATCHED
    assert store.get("job-1").result["refit"] is False
    assert not {"shadow", "canary"} & set(store.get("job-1").result)
    client = import_mlflow().MlflowClient(wanted.tracking_uri, wanted.tracking_uri)
    [run] = client.search_runs([client.get_experiment_by_name("fraud").experiment_id])
    assert [f.path for f in client.list_artifacts(run.info.run_id, "evidently")] == ["evidently/1-20260201T110000.html"]
