"""One list of what happened, the same every time, and the metrics made from it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from monitor.base.kinds import ActivityKind
from monitor.decide.ledger import Ledger, Round
from monitor.jobs.activity import activities
from monitor.jobs.job_metrics import Observer
from monitor.metrics import Metrics
from monitor.rules.phases import Phase, Transition
from monitor.rules.triggers import Cause, Suppressed, SuppressReason
from retrain.config.settings import RetrainConfig
from retrain.config.spec import JobSpec
from retrain.control.store import AliasMove, Store
from retrain.terms.request import RetrainRequest, TriggerKind
from retrain.terms.states import JobState
from tests.builders import BINARY, HOUR, MINUTE, NOW

_EVIDENCE = {"rule": "drop", "version": "1", "window_end": (NOW - HOUR).isoformat()}
REQUEST = RetrainRequest("r1", "fraud", TriggerKind.RULE, "rule drop fires", _EVIDENCE, NOW)
GATES = [{"name": "quality", "passed": True}, {"name": "latency", "passed": False}]


@pytest.fixture
def ledger(ledger: Ledger) -> Ledger:
    """With a rule that fired."""
    fired = Transition("drop", Phase.PENDING, Phase.FIRING, NOW - HOUR, "0.3 above 0.05")
    pending = Transition("drop", Phase.INACTIVE, Phase.PENDING, NOW - 2 * HOUR, "0.3 above 0.05")
    ledger.record(Round("fraud", -1, 1, [], [("1", pending), ("1", fired)]), NOW)
    return ledger


def run(store: Store, ledger: Ledger, *path: JobState) -> None:
    spec = JobSpec(REQUEST, BINARY, "outcomes", "sqlite:///m.db", "fraud", "jobs", RetrainConfig.model_validate({}))
    ledger.decide(REQUEST, NOW + MINUTE)
    store.submit(spec, NOW + MINUTE)
    at = JobState.REQUESTED
    for n, following in enumerate(path):
        store.advance("r1", at, following, "as it went", NOW + (n + 2) * MINUTE)
        at = following
    store.update("r1", None, result={"version": "2", "gates": GATES, "run_id": "run-2"})


PROMOTED = (JobState.SNAPSHOT, JobState.TRAINING, JobState.EVALUATING, JobState.PROMOTED)


def test_list_is_newest_first_and_leaves_out_what_nobody_needs_to_know(store: Store, ledger: Ledger) -> None:
    run(store, ledger, *PROMOTED)
    found = activities(ledger, store, "fraud")
    kinds = [ActivityKind.PROMOTED, ActivityKind.RETRAIN_REQUESTED, ActivityKind.RULE_FIRED]
    assert [a.kind for a in found] == kinds
    assert [a.job for a in found] == ["r1", "r1", ""]
    assert found[0].version == "2"
    assert found[1].window_end == NOW - HOUR
    assert found == activities(ledger, store, "fraud")
    assert not activities(ledger, store, "other")


def test_refusals_carry_their_reason(store: Store, ledger: Ledger) -> None:
    cause = Cause("fraud", TriggerKind.RULE, "o", "rule drop fires", {"rule": "drop"})
    ledger.decide(Suppressed(cause, SuppressReason.COOLDOWN, "cooldown until 14:10"), NOW + HOUR)
    newest = activities(ledger, store, "fraud")[0]
    assert newest.kind is ActivityKind.RETRAIN_SUPPRESSED
    assert newest.text == "not retrained: cooldown until 14:10; wanted because rule drop fires"


def test_observer_exports_states_gates_champion_and_times(store: Store, ledger: Ledger) -> None:
    metrics = Metrics()
    metrics.declare("1", {"fraud": []})
    observer = Observer(ledger, store, metrics)
    observer.observe(dict.fromkeys(["fraud"], ()), NOW)
    value = metrics.registry.get_sample_value
    assert value("driftd_last_activity_timestamp_seconds", {"model": "fraud", "kind": "promoted"}) == 0

    run(store, ledger, *PROMOTED)
    move = AliasMove("fraud", "champion", "2", "1", "r1", "job", NOW, "better")
    store.record_alias(move)
    observer.observe(dict.fromkeys(["fraud"], ()), NOW)
    promoted = value("driftd_last_activity_timestamp_seconds", {"model": "fraud", "kind": "promoted"})
    assert promoted == (NOW + 5 * MINUTE).timestamp()
    assert value("driftd_jobs", {"model": "fraud", "state": "promoted"}) == 1
    assert value("driftd_gate_passed", {"model": "fraud", "gate": "quality"}) == 1
    assert value("driftd_gate_passed", {"model": "fraud", "gate": "latency"}) == 0
    assert value("driftd_last_job_duration_seconds", {"model": "fraud"}) == 240
    assert value("driftd_champion_info", {"model": "fraud", "version": "2", "run": "run-2"}) == 1

    store.record_alias(replace(move, version="1", previous_version="2", job_id=None, actor="ada"))
    observer.observe(dict.fromkeys(["fraud"], ()), NOW)
    assert value("driftd_champion_info", {"model": "fraud", "version": "2", "run": "run-2"}) is None
    assert value("driftd_champion_info", {"model": "fraud", "version": "1", "run": ""}) == 1


def test_observer_exports_how_far_a_trial_is_until_it_is_over(store: Store, ledger: Ledger) -> None:
    metrics = Metrics()
    metrics.declare("1", {"fraud": []})
    observer = Observer(ledger, store, metrics)

    def told() -> list[float | None]:
        observer.observe(dict.fromkeys(["fraud"], ()), NOW)
        names = ("challenger_traffic_ratio", "trial_rows", "trial_rows_needed")
        return [metrics.registry.get_sample_value(f"driftd_{name}", {"model": "fraud"}) for name in names]

    run(store, ledger, *PROMOTED[:-1], JobState.SHADOW)
    assert told() == [0, 0, 0]
    trials: dict[str, object] = {"shadow": {"rows": 40, "needed": 150}}
    store.update("r1", None, result=trials)
    assert told() == [0, 40, 150]
    store.advance("r1", JobState.SHADOW, JobState.CANARY, "as it went", NOW + HOUR)
    store.update("r1", None, result=trials | {"canary": {"share": 0.25, "rows": 7, "needed": 100}})
    assert told() == [0.25, 7, 100]
    store.advance("r1", JobState.CANARY, JobState.REJECTED, "worse", NOW + 2 * HOUR)
    assert told() == [0, 0, 0]
