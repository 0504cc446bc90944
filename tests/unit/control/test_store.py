from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from monitor.jobs.supervisor import job_history
from monitor.rules.triggers import PastJob
from retrain.config.engine_config import EngineConfig
from retrain.config.spec import JobSpec
from retrain.control.store import AliasMove, Store, SubmitOutcome, open_store
from retrain.terms.errors import LeaseLost, LostRace, UnknownJob
from retrain.terms.request import TriggerKind
from retrain.terms.states import IllegalTransition, JobState
from tests.retrain_data import NOW, spec

S = JobState
MINUTE = timedelta(minutes=1)


@pytest.fixture
def store(control_url: str) -> Iterator[Store]:
    store = open_store(control_url)
    yield store
    store.engine.dispose()


def walk(store: Store, job_id: str, *states: JobState, at: int = 0) -> None:
    for state in states:
        store.advance(job_id, store.get(job_id).state, state, "", NOW + at * MINUTE)


def named(tmp_path: Path, job_id: str) -> JobSpec:
    return spec(tmp_path, id=job_id)


def test_spec_survives_storage(store: Store, tmp_path: Path) -> None:
    call = {"method": "POST", "url": "https://airflow.internal/runs", "headers": {"Authorization": "Bearer $token"}}
    orchestrator = {
        "submit": call, "status": {"url": "https://airflow.internal/runs/$run"}, "state": "state",
        "succeeded": ["success"], "failed": ["failed"], "secrets": {"token": {"env": "TOKEN"}},
    }  # fmt: skip
    wanted = spec(
        tmp_path, environment=("TOKEN",), orchestrator=orchestrator, canary={"steps": [0.1, 0.5]},
        maintenance=[{"cron": "0 22 * * fri", "duration": "2h"}], validation={"ranges": {"amount": [0, 9]}},
    )  # fmt: skip
    ray = EngineConfig.model_validate(
        {"kind": "ray", "ray": {"address": "http://head:8265", "runtime_env": {"a": [1]}}}
    )
    wanted = replace(wanted, storage_options=(("aws_secret", "env:KEY"),), engine=ray)
    store.submit(wanted, NOW)
    assert store.get("job-1").spec == wanted


def test_spec_of_a_newer_replica_is_read_without_what_is_not_known_here(tmp_path: Path) -> None:
    wanted = spec(tmp_path, canary={"steps": [0.1]}, maintenance=[{"cron": "0 22 * * fri", "duration": "2h"}])
    written = json.loads(json.dumps(wanted.to_json()))
    written["config"]["novel"] = 1
    written["config"]["canary"]["novel"] = 1
    written["config"]["maintenance"][0]["novel"] = 1
    written["engine"]["novel"] = {"a": 1}
    assert JobSpec.from_json(written) == wanted


def test_the_same_request_twice_is_one_job(store: Store, tmp_path: Path) -> None:
    assert store.submit(spec(tmp_path), NOW).outcome is SubmitOutcome.CREATED
    assert store.submit(spec(tmp_path), NOW).outcome is SubmitOutcome.EXISTING
    assert len(store.list_jobs("fraud")) == 1


def test_a_second_job_in_flight_is_refused_until_the_first_ended(store: Store, tmp_path: Path) -> None:
    store.submit(named(tmp_path, "a"), NOW)
    refused = store.submit(named(tmp_path, "b"), NOW)
    assert (refused.outcome, refused.job_id) == (SubmitOutcome.IN_FLIGHT, "a")
    walk(store, "a", S.FAILED)
    assert store.submit(named(tmp_path, "b"), NOW).outcome is SubmitOutcome.CREATED


def test_of_many_that_submit_at_once_one_gets_through(store: Store, tmp_path: Path) -> None:
    outcomes = []
    threads = [
        threading.Thread(target=lambda i=i: outcomes.append(store.submit(named(tmp_path, f"j{i}"), NOW).outcome))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["created"] + ["in_flight"] * 7


def test_advance_from_a_state_the_job_has_left_loses(store: Store, tmp_path: Path) -> None:
    store.submit(spec(tmp_path), NOW)
    walk(store, "job-1", S.SNAPSHOT)
    with pytest.raises(LostRace, match="it is snapshot by now"):
        store.advance("job-1", S.REQUESTED, S.SNAPSHOT, "", NOW)
    with pytest.raises(IllegalTransition):
        store.advance("job-1", S.SNAPSHOT, S.PROMOTED, "", NOW)
    with pytest.raises(UnknownJob):
        store.advance("other", S.REQUESTED, S.SNAPSHOT, "", NOW)


def test_every_transition_is_in_the_history(store: Store, tmp_path: Path) -> None:
    store.submit(spec(tmp_path), NOW)
    store.advance("job-1", S.REQUESTED, S.SNAPSHOT, "started", NOW + MINUTE, actor="me")
    assert [(h.from_state, h.to_state, h.at, h.actor, h.detail) for h in store.history("job-1")] == [
        (None, S.REQUESTED, NOW, "rule", "rule: drift of amount"),
        (S.REQUESTED, S.SNAPSHOT, NOW + MINUTE, "me", "started"),
    ]


def test_a_lease_is_held_by_one_until_it_expires(store: Store, tmp_path: Path) -> None:
    store.submit(spec(tmp_path), NOW)
    assert store.acquire("job-1", "a", NOW, MINUTE)
    assert not store.acquire("job-1", "b", NOW + MINUTE / 2, MINUTE)
    assert store.drivable(NOW + MINUTE / 2) == []
    assert store.renew("job-1", "a", NOW + MINUTE / 2, MINUTE)
    assert not store.acquire("job-1", "b", NOW + MINUTE, MINUTE)
    assert store.acquire("job-1", "b", NOW + 2 * MINUTE, MINUTE)
    assert not store.renew("job-1", "a", NOW + 2 * MINUTE, MINUTE)


def test_who_lost_the_lease_changes_nothing(store: Store, tmp_path: Path) -> None:
    store.submit(spec(tmp_path), NOW)
    store.acquire("job-1", "a", NOW, MINUTE)
    store.acquire("job-1", "b", NOW + 2 * MINUTE, MINUTE)
    with pytest.raises(LeaseLost):
        store.advance("job-1", S.REQUESTED, S.SNAPSHOT, "", NOW, owner="a")
    with pytest.raises(LeaseLost):
        store.update("job-1", "a", waiting="x")
    store.release("job-1", "a")
    assert store.get("job-1").lease_owner == "b"


def test_a_challenger_waits_until_it_is_approved_or_its_time_is_over(store: Store, tmp_path: Path) -> None:
    store.submit(spec(tmp_path, approval_timeout="1h"), NOW)
    walk(store, "job-1", S.SNAPSHOT, S.TRAINING, S.EVALUATING, S.AWAITING_APPROVAL)
    assert store.drivable(NOW) == []
    assert [j.id for j in store.drivable(NOW + 60 * MINUTE)] == ["job-1"]
    store.approve("job-1", "ann", NOW)
    assert [j.id for j in store.drivable(NOW)] == ["job-1"]
    assert store.history("job-1")[-1].actor == "ann"


def test_of_two_who_approve_at_once_one_does(store: Store, tmp_path: Path) -> None:
    store.submit(spec(tmp_path), NOW)
    walk(store, "job-1", S.SNAPSHOT, S.TRAINING, S.EVALUATING, S.AWAITING_APPROVAL)
    store.approve("job-1", "ann", NOW)
    with pytest.raises(LostRace, match="job job-1 has been approved already, by ann"):
        store.approve("job-1", "bob", NOW)
    with pytest.raises(UnknownJob):
        store.approve("job-2", "bob", NOW)
    job = store.find("job-1")
    assert job is not None
    assert job.approved_by == "ann"


def test_only_a_waiting_challenger_is_approved(store: Store, tmp_path: Path) -> None:
    store.submit(spec(tmp_path), NOW)
    with pytest.raises(LostRace, match="it is requested"):
        store.approve("job-1", "ann", NOW)


REFUSED = [S.SNAPSHOT, S.TRAINING, S.EVALUATING, S.REJECTED]
PROMOTED = [S.SNAPSHOT, S.TRAINING, S.EVALUATING, S.PROMOTED]
WORSE = {"gates": [{"name": "quality", "passed": False, "value": -0.1, "interval": [-0.2, 0.0]}]}
SEGMENT = {"gates": [{"name": "segment", "passed": False, "value": -0.1, "interval": None}]}
LATE = {"gates": [{"name": "latency", "passed": False, "value": 2.0, "interval": None}]}
UNDEFINED = {"gates": [{"name": "quality", "passed": False, "value": None, "interval": None}]}
WORSE_LIVE = {"gates": [{**WORSE["gates"][0], "passed": True}], "canary": WORSE}


@pytest.mark.parametrize(
    ("endings", "count"),
    [
        ([], 0),
        ([([S.FAILED], {})], 0),
        ([([S.SNAPSHOT, S.REJECTED], {})], 0),  # too few rows, or trained already
        ([(REFUSED, {})], 0),  # by a person, or because its time was over
        ([(REFUSED, LATE)], 0),
        ([(REFUSED, UNDEFINED)], 0),
        ([(REFUSED, WORSE)], 1),
        ([(REFUSED, SEGMENT)], 1),
        ([(REFUSED, WORSE_LIVE)], 1),
        ([(REFUSED, WORSE), (REFUSED, LATE), ([S.FAILED], {}), (REFUSED, WORSE)], 2),
        ([(REFUSED, WORSE), (PROMOTED, {})], 0),
        ([(REFUSED, WORSE), ([*PROMOTED, S.ROLLED_BACK], {})], 2),
        ([(PROMOTED, {}), (REFUSED, WORSE), ([], {})], 1),
    ],
)
def test_only_verdicts_about_quality_say_that_there_is_nothing_to_gain(
    store: Store, tmp_path: Path, endings: list[tuple[list[JobState], dict[str, Any]]], count: int
) -> None:
    for i, (states, result) in enumerate(endings):
        store.submit(named(tmp_path, f"j{i}"), NOW + i * MINUTE)
        store.update(f"j{i}", None, result=result)
        walk(store, f"j{i}", *states, at=i)
    assert job_history(store, "fraud", NOW).without_gain(None) == count
    assert store.count_since("fraud", NOW) == len(endings)
    assert store.count_since("fraud", NOW + MINUTE) == max(len(endings) - 1, 0)


def test_a_job_ends_when_it_is_promoted_not_when_watching_ends(store: Store, tmp_path: Path) -> None:
    store.submit(spec(tmp_path), NOW)
    walk(store, "job-1", S.SNAPSHOT, S.TRAINING, S.EVALUATING, S.PROMOTED, at=1)
    walk(store, "job-1", S.WATCHED, at=9)
    assert job_history(store, "fraud", NOW).last_ended_at == NOW + MINUTE
    assert store.in_flight("fraud") is None


def test_triggers_are_told_what_past_jobs_gained(store: Store, tmp_path: Path) -> None:
    for n, trigger in enumerate((TriggerKind.RULE, TriggerKind.FOLLOW_UP)):
        mine = named(tmp_path, f"j{n}")
        store.submit(replace(mine, request=replace(mine.request, trigger=trigger)), NOW + n * MINUTE)
        store.update(f"j{n}", None, result={"gain": 4.5} if n == 0 else {})
        walk(store, f"j{n}", S.SNAPSHOT, S.TRAINING, S.EVALUATING, S.PROMOTED, at=n)
    newest, first = job_history(store, "fraud", NOW).past
    assert first == PastJob(NOW, stands=True, gain=4.5, follow_up=False)
    assert newest == PastJob(NOW + MINUTE, stands=True, gain=None, follow_up=True)


def test_alias_moves_of_a_resumed_job_are_recorded_once(store: Store) -> None:
    move = AliasMove("fraud", "champion", "2", "1", "job-1", "job", NOW, "drift")
    store.record_alias(move)
    store.record_alias(replace(move, at=NOW + MINUTE))
    assert store.alias_moves("fraud") == [move]


@pytest.mark.parametrize(
    "wrong",
    [{"storage_options": (("aws_secret_access_key", "x"),)}, {"tracking_uri": "https://u:p@mlflow.example"}],
)
def test_a_spec_with_a_secret_is_refused(store: Store, tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="secrets are not stored with a job"):
        store.submit(replace(spec(tmp_path), **wrong), NOW)  # type: ignore[arg-type]
