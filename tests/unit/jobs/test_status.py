"""What a model is doing, in words."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from monitor.decide.ledger import Ledger, Round
from monitor.jobs.status import model_status
from monitor.rules.phases import Phase, RuleState, Transition
from monitor.rules.rules import Verdict
from monitor.rules.tracking import RuleRecord
from monitor.rules.triggers import Cause, Suppressed, SuppressReason
from retrain.config.settings import RetrainConfig
from retrain.config.spec import JobSpec
from retrain.control.store import Store
from retrain.terms.request import RetrainRequest, TriggerKind
from retrain.terms.states import JobState
from tests.builders import BINARY, HOUR, MINUTE, NOW

REQUEST = RetrainRequest("r1", "fraud", TriggerKind.RULE, "rule drop fires", {}, NOW)
CAUSE = Cause("fraud", TriggerKind.RULE, "o", "rule drop fires", {"rule": "drop"})
SPEC = JobSpec(REQUEST, BINARY, "outcomes", "sqlite:///m.db", "fraud", "jobs", RetrainConfig.model_validate({}))


def words(ledger: Ledger, store: Store) -> str:
    return str(model_status("fraud", ledger, store)["summary"])


def test_model_of_which_nothing_is_known(ledger: Ledger, store: Store) -> None:
    found = model_status("fraud", ledger, store)
    assert found["state"] == "no windows yet"
    assert found["champion"] is None
    assert found["summary"] == 'never retrained: no rule with action = "retrain" has fired'


@pytest.mark.parametrize(("phase", "state"), [(Phase.FIRING, "firing"), (Phase.PENDING, "ok"), (Phase.INACTIVE, "ok")])
def test_state_follows_the_rules_and_everything_is_json(ledger: Ledger, store: Store, phase: Phase, state: str) -> None:
    record = RuleRecord("1", "drop", RuleState(phase, at=NOW), 3, Verdict.BREACH, 0.1, "bad")
    moved = Transition("drop", Phase.PENDING, Phase.FIRING, NOW, "bad")
    ledger.record(Round("fraud", -1, 1, [record], [("1", moved)]), NOW)
    found = json.loads(json.dumps(model_status("fraud", ledger, store)))
    assert found["state"] == state
    assert found["rules"][0]["window_end"] == NOW.isoformat()
    assert found["transitions"][0]["after"] == "firing"


def test_summary_tells_the_newest_thing(ledger: Ledger, store: Store) -> None:
    refusal = Suppressed(CAUSE, SuppressReason.COOLDOWN, "cooldown until 14:10")
    ledger.decide(refusal, NOW)
    assert words(ledger, store) == "not retrained: cooldown until 14:10; wanted because rule drop fires"
    ledger.decide(REQUEST, NOW + MINUTE)
    store.submit(SPEC, NOW + MINUTE)
    assert words(ledger, store) == "retraining: requested since 2026-03-02 12:01 UTC, job r1"
    store.update("r1", None, waiting="for MLflow")
    assert words(ledger, store) == "retraining: requested since 2026-03-02 12:01 UTC (for MLflow), job r1"
    store.advance("r1", JobState.REQUESTED, JobState.FAILED, "", NOW + HOUR, error="no rows")
    assert words(ledger, store) == "last job r1 failed at 2026-03-02 13:00 UTC: no rows"
    ledger.decide(replace(refusal, detail="cooldown until 15:00"), NOW + HOUR + timedelta(seconds=1))
    assert words(ledger, store) == "not retrained: cooldown until 15:00; wanted because rule drop fires"


def test_decisions_say_what_was_decided_and_why(ledger: Ledger, store: Store) -> None:
    ledger.decide(REQUEST, NOW)
    ledger.decide(Suppressed(CAUSE, SuppressReason.BUDGET, "4 jobs today"), NOW)
    assert [d["words"] for d in model_status("fraud", ledger, store)["decisions"]] == [
        "not retrained: 4 jobs today; wanted because rule drop fires",
        "retrain requested: rule drop fires",
    ]
