"""Rounds, decisions and leases in the control database."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from sqlalchemy import Engine

from monitor.decide.ledger import REQUESTED, Ledger, Round
from monitor.lake.lake import Conflict
from monitor.rules.phases import Phase, RuleState, Transition
from monitor.rules.rules import Verdict
from monitor.rules.tracking import RuleRecord, firing
from monitor.rules.triggers import Cause, Suppressed, SuppressReason
from retrain.control import audit
from retrain.control.audit import AuditKind
from retrain.terms.request import RetrainRequest, TriggerKind
from tests.builders import HOUR, MINUTE, NOW

FIRING = RuleState(Phase.FIRING, (True, True), NOW, NOW, NOW)
RECORD = RuleRecord("1", "drop", FIRING, 3, Verdict.BREACH, 0.1, "bad", NOW)
MOVE = Transition("drop", Phase.PENDING, Phase.FIRING, NOW, "bad")
ROUND = Round("fraud", -1, 4, [RECORD], [("1", MOVE)])


@pytest.fixture
def ledger(engine: Engine) -> Ledger:
    ledger = Ledger(engine)
    ledger.create()
    return ledger


def cause(rule: str = "drop", version: str = "1", trigger: TriggerKind = TriggerKind.RULE) -> Cause:
    return Cause("fraud", trigger, "o", f"rule {rule} fires", {"rule": rule, "version": version}, version)


def refusal(detail: str = "until 14:10", **of: str) -> Suppressed:
    return Suppressed(cause(**of), SuppressReason.COOLDOWN, detail)  # type: ignore[arg-type]


def request(name: str) -> RetrainRequest:
    return RetrainRequest(name, "fraud", TriggerKind.RULE, "why", {"rule": "drop", "version": "1"}, NOW)


def test_round_is_stored_whole(ledger: Ledger) -> None:
    assert ledger.cursor("fraud") == -1
    ledger.record(ROUND, NOW)
    assert ledger.cursor("fraud") == 4
    assert ledger.rule_records("fraud") == {("1", "drop"): RECORD}
    assert firing(ledger.rule_records("fraud")) == [RECORD]
    assert [(t["rule"], t["after"], t["at"]) for t in ledger.transitions("fraud")] == [("drop", "firing", NOW)]
    assert ledger.cursor("other") == -1


@pytest.mark.parametrize("before", [-1, 3])
def test_of_two_rounds_from_one_cursor_the_second_stores_nothing(ledger: Ledger, before: int) -> None:
    if before >= 0:
        ledger.record(Round("fraud", -1, before), NOW)
    ledger.record(replace(ROUND, before=before), NOW)
    other = replace(RECORD, version="2", value=9.0)
    with pytest.raises(Conflict):
        ledger.record(Round("fraud", before, 9, [other], [("2", MOVE)], retired=["1"]), NOW)
    assert ledger.cursor("fraud") == 4
    assert ledger.rule_records("fraud") == {("1", "drop"): RECORD}
    assert len(ledger.transitions("fraud")) == 1


def test_of_two_leaders_judging_at_once_one_wins(ledger: Ledger, engine: Engine) -> None:
    ready = threading.Barrier(2)
    won: list[bool] = []

    def judge() -> None:
        ready.wait()
        try:
            Ledger(engine).record(ROUND, NOW)
            won.append(True)
        except Conflict:
            won.append(False)

    threads = [threading.Thread(target=judge) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(won) == [False, True]
    assert len(ledger.transitions("fraud")) == 1


def test_next_round_replaces_states_and_drops_retired_versions(ledger: Ledger) -> None:
    ledger.record(ROUND, NOW)
    second = replace(RECORD, version="2")
    ledger.record(Round("fraud", 4, 5, [second]), NOW)
    calm = replace(second, state=RuleState(at=NOW + HOUR), firing_since=None, value=None, verdict=Verdict.OK)
    ledger.record(Round("fraud", 5, 6, [calm], retired=["1"]), NOW)
    assert ledger.rule_records("fraud") == {("2", "drop"): calm}


def test_rounds_and_decisions_are_in_the_audit_log_as_often_as_in_the_ledger(ledger: Ledger, engine: Engine) -> None:
    ledger.record(ROUND, NOW)
    with pytest.raises(Conflict):
        ledger.record(ROUND, NOW)
    for decision, at in ((refusal(), NOW + MINUTE), (request("r1"), NOW + HOUR)):
        assert ledger.decide(decision, at)
        assert not ledger.decide(decision, at)
    ledger.mark_dispatched(request("r1"), NOW + HOUR, "dropped: job j is in flight")
    found = list(audit.entries(engine))
    assert [(e.at, e.kind, e.subject, e.detail) for e in found] == [
        (NOW, AuditKind.RULE_CHANGED, "drop", "bad"),
        (NOW + MINUTE, AuditKind.RETRAIN_SUPPRESSED, "cooldown", "until 14:10"),
        (NOW + HOUR, AuditKind.RETRAIN_REQUESTED, "r1", "why"),
        (NOW + HOUR, AuditKind.REQUEST_DROPPED, "r1", "dropped: job j is in flight"),
    ]
    assert found[0].body == {
        "version": "1", "before": "pending", "after": "firing", "window_end": NOW.isoformat()
    }  # fmt: skip
    assert found[1].body["cause"] == "rule drop fires"


def test_the_end_of_a_rule_that_fires_is_on_record_when_its_version_or_itself_goes(
    ledger: Ledger, engine: Engine
) -> None:
    calm = replace(RECORD, rule="calm", state=RuleState(at=NOW), firing_since=None)
    ledger.record(Round("fraud", -1, 0, [RECORD, replace(RECORD, version="2"), calm]), NOW)
    ledger.record(Round("fraud", 0, 1, retired=["1"]), NOW + HOUR)
    ledger.keep_rules("fraud", ["calm"], NOW + 2 * HOUR)
    ended = [(e.at, e.subject, e.body["version"], e.body["before"], e.detail) for e in audit.entries(engine)]
    assert ended == [
        (NOW + HOUR, "drop", "1", "firing", "the version serves no more"),
        (NOW + 2 * HOUR, "drop", "2", "firing", "the rule is no longer configured"),
    ]
    assert ledger.rule_records("fraud") == {}


def test_request_is_recorded_once(ledger: Ledger) -> None:
    assert ledger.last_request("fraud") is None
    assert ledger.decide(request("r1"), NOW)
    assert not ledger.decide(request("r1"), NOW + MINUTE)
    assert ledger.undispatched() == [request("r1")] == [ledger.last_request("fraud")]
    ledger.mark_dispatched(request("r1"), NOW, "job started")
    assert ledger.undispatched() == []
    (decision,) = ledger.decisions("fraud")
    assert (decision.outcome, decision.detail, decision.request_id) == (REQUESTED, "job started", "r1")


def test_refusal_is_recorded_once_until_it_changes(ledger: Ledger) -> None:
    story = [
        (refusal(), True),
        (refusal(), False),
        (refusal("until 15:00"), True),
        (refusal("until 15:00"), False),
        (refusal(), True),
        (request("r1"), True),
        (refusal(), True),
        (refusal(), False),
    ]
    assert [ledger.decide(decision, NOW) for decision, _ in story] == [new for _, new in story]


def test_two_rules_refused_in_turn_are_recorded_once_each(ledger: Ledger) -> None:
    both = [refusal(rule="drop"), refusal("version 2 has replaced it", rule="drift"), refusal("x", version="2")]
    assert [ledger.decide(d, NOW) for d in both] == [True] * 3
    assert [ledger.decide(d, NOW) for _ in range(5) for d in both] == [False] * 15


def test_decisions_of_models_and_triggers_do_not_mix(ledger: Ledger) -> None:
    assert ledger.decide(refusal(), NOW)
    assert ledger.decide(replace(refusal(), cause=cause(trigger=TriggerKind.SCHEDULE)), NOW)
    assert ledger.decide(replace(refusal(), cause=replace(cause(), model="other")), NOW)
    assert len(ledger.decisions("fraud")) == 2
    assert len(ledger.decisions("fraud", limit=1)) == 1


def test_one_leads_until_the_lease_is_over_or_given_up(ledger: Ledger) -> None:
    until = NOW + MINUTE
    assert ledger.lead("evaluator", "a", NOW, until)
    assert not ledger.lead("evaluator", "b", NOW, until)
    assert not ledger.lead("evaluator", "b", until, until + MINUTE)
    assert ledger.lead("evaluator", "a", NOW, until + MINUTE)
    assert not ledger.lead("evaluator", "b", until + MINUTE, until + HOUR)
    late = until + 2 * MINUTE
    assert ledger.lead("evaluator", "b", late, late + MINUTE)
    assert not ledger.lead("evaluator", "a", late, late + MINUTE)
    ledger.resign("evaluator", "a")
    assert not ledger.lead("evaluator", "a", late, late + MINUTE)
    ledger.resign("evaluator", "b")
    assert ledger.lead("evaluator", "a", late, late + MINUTE)
    assert ledger.lead("other", "b", late, late + MINUTE)
