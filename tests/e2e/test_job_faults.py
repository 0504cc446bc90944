"""What may go wrong around a job, each with one consistent outcome: MLflow cut off or silent, processes that race,
rows and models that vanish, labels that change, clocks that jump."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import cycle
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake

from retrain.base.retry import Backoff
from retrain.config.spec import JobSpec
from retrain.control import audit
from retrain.control.audit import AuditKind
from retrain.control.store import Store
from retrain.job.driver import Driver, Limits, utc_now
from retrain.job.manual_actions import approve, reject, rollback
from retrain.job.reproduce import reproduce
from retrain.models.registry import Registry
from retrain.terms.errors import LeaseLost, Refused
from retrain.terms.states import JobState
from tests.jobs import (
    LOGISTIC,
    drive,
    first_champion,
    fork_server,
    freeze_at,
    kill_at,
    runs,
    store_of,
    submit,
    versions,
)
from tests.mlflow_server import MlflowServer
from tests.proxy import Proxy
from tests.retrain_data import NOW, outcomes, spec, write

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)
ASKS_NEXT = {
    *("evaluating", "run_opened", "model_logged", "version_registered", "decided", "promotion_begun", "alias_moved")
}
"""Steps after which a job needs MLflow before it comes to the next."""
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


@pytest.fixture
def proxy(mlflow: MlflowServer) -> Iterator[Proxy]:
    proxy = Proxy(mlflow.uri)
    yield proxy
    proxy.close()


def begin(folder: Path, name: str, uri: str, *, skill: float = 0.2, **config: object) -> tuple[JobSpec, Store]:
    """Version 1 is champion, and a job for a better one is recorded."""
    settings = {"trainer": LOGISTIC, **config}
    wanted = replace(spec(folder, tracking_uri=uri, **settings), registered_model=name)
    store = store_of(folder)
    first_champion(store, wanted, outcomes(900))
    write(folder / "outcomes", outcomes(1200, seed=1, flipped=True, skill=skill))
    submit(folder, wanted)
    return wanted, store


def assert_promoted_once(wanted: JobSpec, store: Store) -> None:
    """Version 2, one run for the job, one move, and a log that says the same."""
    assert versions(wanted) == ["1", "2"]
    assert sum(tags.get("driftd.job_id") == "job-1" for tags in runs(wanted)) == 1
    registry = Registry(wanted.tracking_uri)
    aliases, _ = registry.pointers(wanted.registered_model)
    assert aliases == {"champion": "2", "previous": "1"}
    assert [m.version for m in store.champion_moves("fraud")] == ["2", "1"]
    moved = [e.body["version"] for e in audit.entries(store.engine) if e.kind == AuditKind.ALIAS_MOVED]
    assert moved.count("2") == 1
    assert audit.verify(store.engine, {}).problem == ""


def test_mlflow_cut_off_after_every_step_delays_the_job_and_changes_nothing(
    tmp_path: Path, mlflow: MlflowServer, proxy: Proxy
) -> None:
    wanted, store = begin(tmp_path, "cut-off", mlflow.uri, watch_rows=100)
    rewrite(store, replace(wanted, tracking_uri=proxy.uri))
    waited: dict[str, str] = {}

    def cut_after(reached: str) -> None:
        if reached in ("requested", "promoted", "rolled_back"):
            return
        proxy.cut, before = True, proxy.refused
        threading.Thread(target=mend, args=(reached, before), daemon=True).start()

    def mend(reached: str, before: int) -> None:
        missed, said = time.monotonic() + (60 if reached in ASKS_NEXT else 1), ""
        while proxy.refused == before and time.monotonic() < missed:
            time.sleep(0.02)
        while proxy.refused > before and not said:
            said = store.get("job-1").waiting or ""
        waited[reached] = said
        proxy.cut = False

    assert drive(tmp_path, checkpoint=cut_after) is JobState.PROMOTED
    assert_promoted_once(wanted, store)
    write(tmp_path / "outcomes", outcomes(200, seed=2, version="2", start=TODAY + timedelta(days=1)))
    assert drive(tmp_path, checkpoint=cut_after) is JobState.ROLLED_BACK
    cut = {name for name, text in waited.items() if text.startswith("mlflow away since")}
    assert cut >= ASKS_NEXT
    aliases, _ = Registry(wanted.tracking_uri).pointers(wanted.registered_model)
    assert aliases == {"champion": "1"}
    assert [m.version for m in store.champion_moves("fraud")] == ["1", "2", "1"]
    assert store.get("job-1").waiting is None


def test_answers_of_mlflow_that_get_lost_make_nothing_twice(tmp_path: Path, mlflow: MlflowServer, proxy: Proxy) -> None:
    """The server did what it was asked and the client never heard: a promotion is found again, not made again."""
    wanted, store = begin(tmp_path, "lost", mlflow.uri)
    proxy.loses = 0.15
    rewrite(store, replace(wanted, tracking_uri=proxy.uri))
    assert drive(tmp_path) is JobState.WATCHED
    assert proxy.lost >= 3
    assert_promoted_once(wanted, store)


def rewrite(store: Store, wanted: JobSpec) -> None:
    """The job as if it had been submitted so."""
    from sqlalchemy import update

    from retrain.control.tables import jobs

    with store.engine.begin() as connection:
        connection.execute(update(jobs).where(jobs.c.id == wanted.request.id).values(spec=wanted.to_json()))


@pytest.mark.parametrize("frozen_at", ["promotion_begun", "alias_moved"])
def test_a_process_that_was_frozen_and_replaced_moves_nothing_any_more(
    tmp_path: Path, mlflow: MlflowServer, frozen_at: str
) -> None:
    wanted, store = begin(tmp_path, f"frozen-{frozen_at.replace('_', '-')}", mlflow.uri)
    registry = Registry(wanted.tracking_uri)
    with freeze_at(tmp_path, frozen_at) as frozen:
        until_lease_expires(store)
        assert drive(tmp_path) is JobState.WATCHED
        assert_promoted_once(wanted, store)
        assert rollback(store, registry, "fraud", wanted.registered_model, "ann", "I do not trust it", NOW) == "1"
        code = frozen.wake()
    assert code == 3  # it says that another process drives the job
    assert registry.resolve_alias(wanted.registered_model, "champion") == "1"
    assert [(m.version, m.actor) for m in store.champion_moves("fraud")] == [("1", "ann"), ("2", "job"), ("1", "ann")]
    assert [s.to_state for s in store.history("job-1")][-2:] == [JobState.WATCHED, JobState.ROLLED_BACK]
    assert audit.verify(store.engine, {}).problem == ""


def until_lease_expires(store: Store) -> None:
    while store.get("job-1").id not in {job.id for job in store.drivable(utc_now())}:
        time.sleep(0.1)


def test_of_two_daemons_that_start_a_job_at_once_one_drives_it(tmp_path: Path, mlflow: MlflowServer) -> None:
    wanted, store = begin(tmp_path, "raced", mlflow.uri)
    command = [sys.executable, "-m", "retrain", "run", "job-1", "--control", f"sqlite:///{tmp_path}/control.db"]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    codes = [process.wait(120) for process in both]
    assert sorted(codes) == [0, 3]
    assert_promoted_once(wanted, store)


@pytest.mark.parametrize("said", ["rejected", "rolled back"])
def test_who_says_no_while_a_promotion_waits_for_mlflow_is_heard(
    tmp_path: Path, mlflow: MlflowServer, proxy: Proxy, said: str
) -> None:
    """The job's process lives, and comes back to a registry that answers again."""
    wanted, store = begin(tmp_path, f"no-{said.replace(' ', '-')}", mlflow.uri, approval="manual")
    assert drive(tmp_path) is JobState.AWAITING_APPROVAL
    approve(store, "job-1", "ann", utc_now())
    rewrite(store, replace(wanted, tracking_uri=proxy.uri))
    registry, name = Registry(mlflow.uri), wanted.registered_model
    ended: list[Exception] = []

    def driven() -> None:
        try:
            drive(tmp_path, checkpoint=cut)
        except LeaseLost as exc:
            ended.append(exc)

    def cut(reached: str) -> None:
        if reached == "promotion_begun":
            if said == "rolled back":  # moved, and the answer is lost
                registry.promote(name, "2", "1")
            proxy.cut = True

    thread = threading.Thread(target=driven)
    thread.start()
    while not (store.get("job-1").waiting or "").startswith("mlflow away"):
        time.sleep(0.05)
    if said == "rejected":
        reject(store, registry, "job-1", "bob", "I do not agree", utc_now())
    else:
        with pytest.raises(Refused, match="job job-1 has promoted version 2 by now: roll it back"):
            reject(store, registry, "job-1", "bob", "I do not agree", utc_now())
        assert rollback(store, registry, "fraud", name, "bob", "I do not agree", utc_now()) == "1"
    proxy.cut = False
    thread.join(60)
    assert ended
    assert store.get("job-1").state is JobState.REJECTED
    assert registry.resolve_alias(name, "champion") == "1"
    assert "2" not in [m.version for m in store.champion_moves("fraud")]


def test_a_rollback_that_was_cut_off_is_completed_and_goes_no_further_back(
    tmp_path: Path, mlflow: MlflowServer
) -> None:
    wanted, store = begin(tmp_path, "cut-rollback", mlflow.uri, watch_rows=100)
    assert drive(tmp_path) is JobState.PROMOTED
    registry, name = Registry(mlflow.uri), wanted.registered_model
    registry.set_alias(name, "champion", "1")  # and then the terminal was closed
    assert rollback(store, registry, "fraud", name, "ann", "worse", utc_now()) == "1"
    assert registry.pointers(name)[0] == {"champion": "1"}
    assert [m.version for m in store.champion_moves("fraud")] == ["1", "2", "1"]
    assert store.get("job-1").state is JobState.ROLLED_BACK


def test_a_champion_whose_files_are_gone_is_judged_by_what_it_answered(tmp_path: Path, mlflow: MlflowServer) -> None:
    wanted, store = begin(tmp_path, "gone", mlflow.uri, watch_rows=100)
    run = Registry(mlflow.uri)._client.get_model_version(wanted.registered_model, "1").run_id
    (model,) = mlflow.folder.glob(f"artifacts/**/{run}/artifacts/model")
    shutil.rmtree(model)
    assert drive(tmp_path) is JobState.PROMOTED
    source = store.get("job-1").result["champion"]["source"]
    assert source.startswith("as served (version 1 is not in the registry any more: ")
    write(tmp_path / "outcomes", outcomes(200, seed=2, version="2", start=TODAY + timedelta(days=1)))
    assert drive(tmp_path) is JobState.WATCHED  # there is nothing to go back to
    assert store.history("job-1")[-1].detail.startswith("version 1 cannot be compared: ")


def test_a_rollback_by_hand_overtakes_the_automatic_one(tmp_path: Path, mlflow: MlflowServer) -> None:
    """Somebody moves the alias after the watch has looked at it, before it moves it itself."""
    wanted, store = begin(tmp_path, "overtaken", mlflow.uri, watch_rows=100)
    assert drive(tmp_path) is JobState.PROMOTED
    write(tmp_path / "outcomes", outcomes(200, seed=2, version="2", start=TODAY + timedelta(days=1)))
    registry = Registry(wanted.tracking_uri)
    third = registry.register(wanted.registered_model, registry.open_run(wanted.registered_model, "by hand", {}), {})

    class Overtaken(Store):
        def update(self, job_id: str, owner: str | None, **values: object) -> None:  # type: ignore[override]
            super().update(job_id, owner, **values)  # type: ignore[arg-type]
            if "rollback" in str(values.get("result", "")):
                registry.set_alias(wanted.registered_model, "champion", third)

    driver = Driver(Overtaken(store.engine), environ=dict(os.environ), stopping=threading.Event(), limits=QUICK)
    assert driver.drive("job-1") is JobState.WATCHED
    assert store.history("job-1")[-1].detail == f"watching ended: the champion is version {third} by now"
    assert registry.resolve_alias(wanted.registered_model, "champion") == third
    assert [m.version for m in store.champion_moves("fraud")] == ["2", "1"]


QUICK = Limits(backoff=Backoff(first=0.2, most=1.0))


def vacuum(folder: Path) -> None:
    """Other files hold the newest rows, and the old ones are gone."""
    table = DeltaTable(str(folder / "outcomes"))
    rows = pl.DataFrame(table.to_pyarrow_table())
    write_deltalake(str(folder / "outcomes"), rows.to_arrow(), partition_by=["date"], mode="overwrite")
    table = DeltaTable(str(folder / "outcomes"))
    assert table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)


def test_a_job_whose_rows_are_gone_for_good_ends_and_says_so(tmp_path: Path) -> None:
    write(tmp_path / "outcomes", outcomes(1200))
    wanted = spec(tmp_path, trainer=LOGISTIC)
    store = submit(tmp_path, wanted)
    assert kill_at(tmp_path, "evaluating")
    shutil.rmtree(wanted.job_dir)  # another machine goes on, and the lake has been cleaned
    vacuum(tmp_path)
    assert drive(tmp_path) is JobState.FAILED
    step = store.history("job-1")[-1]
    assert step.detail.startswith("the snapshot's files are gone, and cannot be made again (lake.keep_versions_for): ")
    assert f"version 0 of {tmp_path}/outcomes" in step.detail
    assert versions(wanted) == []
    submit(tmp_path, spec(tmp_path, id="job-2", trainer=LOGISTIC))  # the same rows, as they lie now

    def vacuumed_again(reached: str) -> None:
        if reached == "training":
            vacuum(tmp_path)

    assert drive(tmp_path, "job-2", checkpoint=vacuumed_again) is JobState.WATCHED  # it has its rows


def test_a_challenger_that_cannot_be_loaded_from_the_registry_is_not_promoted(tmp_path: Path) -> None:
    write(tmp_path / "outcomes", outcomes(1200))
    wanted = spec(tmp_path, trainer=LOGISTIC)
    store = submit(tmp_path, wanted)

    def harm(reached: str) -> None:
        if reached == "version_registered":
            (path,) = tmp_path.glob("artifacts/*/artifacts/model/model.skops")
            path.write_bytes(path.read_bytes()[:1000])

    assert drive(tmp_path, checkpoint=harm) is JobState.REJECTED
    job = store.get("job-1")
    (gate,) = [g for g in job.result["gates"] if g["name"] == "smoke_test"]
    assert (gate["passed"], gate["detail"]) == (False, "version 1 cannot be loaded: BadZipFile: File is not a zip file")
    assert store.history("job-1")[-1].detail == f"smoke_test: {gate['detail']}"
    assert Registry(wanted.tracking_uri).pointers("fraud")[0] == {}
    assert runs(wanted)[0]["driftd.gate.smoke_test"] == "failed"


def test_labels_corrected_after_the_decision_change_the_watch_not_the_decision(tmp_path: Path) -> None:
    wanted, store = begin(tmp_path, "fraud", spec(tmp_path).tracking_uri, watch_rows=200, approval="manual")
    assert drive(tmp_path) is JobState.AWAITING_APPROVAL
    judged = store.get("job-1").result
    everything = pl.DataFrame(DeltaTable(str(tmp_path / "outcomes")).to_pyarrow_table())
    write(tmp_path / "outcomes", corrected(everything))  # all were wrong, says the label service
    approve(store, "job-1", "ann", utc_now())
    assert drive(tmp_path) is JobState.PROMOTED
    after = store.get("job-1").result
    assert {k: after[k] for k in ("gates", "snapshot", "challenger", "version")} == {
        k: judged[k] for k in ("gates", "snapshot", "challenger", "version")
    }
    rebuilt = reproduce(store.get("job-1"), tmp_path / "again", fork_server())
    assert rebuilt.same, list(rebuilt.to_words())
    served = outcomes(250, seed=2, version="2", start=TODAY + timedelta(days=1), flipped=True)
    write(tmp_path / "outcomes", served[:150])
    assert drive(tmp_path) is JobState.PROMOTED
    write(tmp_path / "outcomes", corrected(served[:150]))  # before the watch has seen enough
    assert drive(tmp_path) is JobState.PROMOTED
    assert store.get("job-1").waiting == "watching: 150 of 200 labelled rows"  # a correction is no further row
    write(tmp_path / "outcomes", corrected(served[150:]))
    assert drive(tmp_path) is JobState.ROLLED_BACK
    assert Registry(wanted.tracking_uri).resolve_alias("fraud", "champion") == "1"


def corrected(rows: pl.DataFrame) -> pl.DataFrame:
    other = pl.when(pl.col("label") == "ok").then(pl.lit("fraud")).otherwise(pl.lit("ok"))
    return rows.with_columns(label=other, label_ts=pl.col("label_ts") + timedelta(hours=5))


def test_a_clock_that_jumps_leaves_one_outcome(tmp_path: Path) -> None:
    """At every step to and fro, and killed with the wrong time in its lease."""
    wanted, store = begin(tmp_path, "fraud", spec(tmp_path).tracking_uri)
    off, jumps = timedelta(), cycle([timedelta(days=400), timedelta(), timedelta(days=-400), timedelta()])

    def jumping(_: str) -> None:
        nonlocal off
        off = next(jumps)

    for checkpoint, jump in (("trained", timedelta(days=400)), ("model_logged", timedelta(days=-400))):
        assert kill_at(tmp_path, checkpoint, off=jump, free=False)
        assert store.get("job-1").lease_until is not None
        until_lease_expires(store)  # at once, whatever it says
    assert drive(tmp_path, clock=lambda: utc_now() + off, checkpoint=jumping) is JobState.WATCHED
    assert_promoted_once(wanted, store)
