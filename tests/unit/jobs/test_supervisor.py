"""Job processes that end: what is released, what is said, what is left to other replicas."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from monitor.decide.ledger import Ledger
from monitor.jobs.supervisor import DRIVEN_ELSEWHERE, Supervisor
from monitor.lake.lake import Lake
from monitor.metrics import Metrics
from monitor.running.build import _due
from retrain.config.settings import RetrainConfig
from retrain.config.spec import JobSpec
from retrain.control.holds import Pause, pause, resume
from retrain.control.records import lease_owner
from retrain.control.store import AliasMove, Store, open_store
from retrain.terms.request import RetrainRequest, TriggerKind
from retrain.terms.states import JobState
from tests.builders import BINARY, NOW

REQUEST = RetrainRequest("r1", "fraud", TriggerKind.RULE, "rule drop fires", {}, NOW)
SPEC = JobSpec(REQUEST, BINARY, "outcomes", "sqlite:///m.db", "fraud", "jobs", RetrainConfig.model_validate({}))
LEASE = timedelta(seconds=60)


class Replica:
    """A supervisor whose job processes end with a given code."""

    def __init__(self, store: Store, folder: Path):
        self.store, self.metrics, self.due = store, Metrics(), True
        ledger = Ledger(store.engine)
        ledger.create()
        self.supervisor = Supervisor(
            ledger, store, lambda _: SPEC, lambda *_: self.due, "sqlite://", {}, folder / "logs", self.metrics
        )

    def ended(self, code: int) -> subprocess.Popen[bytes]:
        """A process of the job that has ended."""
        process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])
        process.wait()
        self.supervisor._processes["r1"] = process
        return process

    def exits(self, outcome: str) -> float | None:
        return self.metrics.registry.get_sample_value("driftd_job_process_exits_total", {"outcome": outcome})


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    store = open_store(f"sqlite:///{tmp_path / 'control.db'}")
    store.submit(SPEC, NOW)
    store.advance("r1", JobState.REQUESTED, JobState.FAILED, "", NOW)  # nothing more to start
    yield Replica(store, tmp_path)
    store.engine.dispose()


def test_a_process_that_dies_gives_its_lease_back(replica: Replica) -> None:
    process = replica.ended(1)
    assert replica.store.acquire("r1", lease_owner(process.pid), NOW, LEASE)
    replica.supervisor.supervise(NOW)
    assert replica.store.get("r1").lease_owner is None
    assert replica.exits("failed") == 1


@pytest.mark.parametrize("code", [1, DRIVEN_ELSEWHERE])
def test_the_lease_of_another_replica_stays_its_own(replica: Replica, code: int) -> None:
    replica.ended(code)
    assert replica.store.acquire("r1", "another-host:1", NOW, LEASE)
    replica.supervisor.supervise(NOW)
    assert replica.store.get("r1").lease_owner == "another-host:1"


def test_a_job_that_another_replica_drives_is_no_failure(replica: Replica) -> None:
    replica.ended(DRIVEN_ELSEWHERE)
    replica.supervisor.supervise(NOW)
    assert not replica.exits("failed")


def test_a_job_is_not_started_with_what_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process's first environment lies open to every process of its user, and a job starts trainers."""
    monkeypatch.setenv("DRIFTD_SECRET", "s3cret")
    store = open_store(f"sqlite:///{tmp_path / 'control.db'}")
    replica = Replica(store, tmp_path)
    store.submit(SPEC, NOW)
    replica.supervisor.supervise(NOW)
    (process,) = replica.supervisor._processes.values()
    began = Path(f"/proc/{process.pid}/environ").read_bytes()
    process.kill()
    process.wait()
    assert b"s3cret" not in began
    assert b"PATH=" in began
    store.engine.dispose()


def test_a_job_that_ends_badly_for_days_is_started_again_now_and_then(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'control.db'}")
    replica = Replica(store, tmp_path)
    store.submit(SPEC, NOW)
    store.update("r1", None, attempt=5000)
    replica.supervisor.supervise(NOW)
    (process,) = replica.supervisor._processes.values()
    process.kill()
    process.wait()
    assert replica.supervisor._not_before["r1"] == (NOW + timedelta(minutes=5)).timestamp()
    store.engine.dispose()


def test_a_promotion_that_was_overtaken_is_ended_though_no_row_comes(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'control.db'}")
    store.submit(SPEC, NOW)
    passed = (JobState.SNAPSHOT, JobState.TRAINING, JobState.EVALUATING, JobState.PROMOTED)
    for before, after in pairwise((JobState.REQUESTED, *passed)):
        store.advance("r1", before, after, "", NOW)
    result = {"version": "2", "compared_with": "1", "snapshot": {"holdout": {"last": NOW.isoformat()}}}
    store.update("r1", None, result=result)
    move = AliasMove("fraud", "champion", "2", "1", "r1", "job", NOW, "better")
    store.record_alias(move)
    lake = Lake(str(tmp_path / "lake"))
    assert not _due(lake, store, store.get("r1"), NOW)
    store.record_alias(replace(move, version="3", previous_version="2", job_id="r2"))
    assert _due(lake, store, store.get("r1"), NOW)
    store.engine.dispose()


def test_a_job_that_could_only_promote_is_left_alone_while_its_model_is_paused(tmp_path: Path) -> None:
    replica = Replica(open_store(f"sqlite:///{tmp_path / 'control.db'}"), tmp_path)
    replica.store.submit(SPEC, NOW)
    pause(replica.store.engine, Pause("fraud", NOW, NOW + 10 * LEASE, "ada", ""))

    def started() -> bool:
        replica.supervisor.supervise(NOW)
        process = replica.supervisor._processes.pop("r1", None)
        if process is not None:
            process.kill()
            process.wait()
        replica.supervisor._not_before.clear()
        return process is not None

    assert started()  # there is still something to train
    for state in (JobState.SNAPSHOT, JobState.TRAINING, JobState.EVALUATING):
        replica.store.advance("r1", replica.store.get("r1").state, state, "", NOW)
    replica.store.update("r1", None, result={"decision": "promote"})
    assert not started()
    replica.store.update("r1", None, result={"decision": "promote", "promoting": True})
    assert started()  # what has begun is completed
    replica.store.update("r1", None, result={"decision": "promote"})
    replica.store.advance("r1", JobState.EVALUATING, JobState.SHADOW, "", NOW)
    assert started()  # a trial goes on
    replica.store.update("r1", None, result={"decision": "promote", "shadow": {"passed": True}})
    assert not started()  # until only the promotion is left
    assert resume(replica.store.engine, "fraud", "ada", "", NOW)
    assert started()
    replica.store.engine.dispose()


def test_a_job_that_waits_for_rows_gets_a_process_when_there_is_something_to_see(tmp_path: Path) -> None:
    replica = Replica(open_store(f"sqlite:///{tmp_path / 'control.db'}"), tmp_path)
    replica.store.submit(SPEC, NOW)
    replica.due = False
    replica.supervisor.supervise(NOW)
    assert not replica.supervisor._processes
    replica.store.engine.dispose()
