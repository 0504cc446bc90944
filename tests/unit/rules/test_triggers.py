"""A request, or the first reason against it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.rules.triggers import (
    CLEAR_GAIN,
    SAVED_AT_FIRST,
    SAVED_AT_MOST,
    Cause,
    JobHistory,
    PastJob,
    Requests,
    Suppressed,
    SuppressReason,
    TriggerPolicy,
    decide,
    follow_up_due,
    jobs_saved,
    request_id,
)
from retrain.terms.request import RetrainRequest, TriggerKind
from tests.builders import HOUR, MINUTE, NOW

POLICY = TriggerPolicy(
    enabled=True, cooldown=HOUR, max_per_day=4, pace=7, follow_up=True, stop_after_rejected=3, window=HOUR
)
RULE = Cause("fraud", TriggerKind.RULE, "1/drop/2026", "rule drop fires", {"value": 0.1}, version="1")
FREE = JobHistory()
REJECTED = PastJob(NOW, stands=False, no_better=True)
ROLLED_BACK, FAILED = replace(REJECTED, gain=9.0), PastJob(NOW, stands=False)
R = SuppressReason


@pytest.mark.parametrize(
    ("policy", "history", "reason", "detail"),
    [
        (POLICY, JobHistory(in_flight="j1"), R.JOB_IN_FLIGHT, "job j1 is under way"),
        (replace(POLICY, enabled=False), FREE, R.DISABLED, "retrain.enabled is false"),
        (POLICY, JobHistory(paused="paused by ada"), R.PAUSED, "paused by ada"),
        (POLICY, JobHistory(maintenance="maintenance until noon"), R.MAINTENANCE, "maintenance until noon"),
        (POLICY, JobHistory(champion="2"), R.SUPERSEDED, "version 2 has replaced version 1"),
        (
            POLICY,
            JobHistory(past=(REJECTED, ROLLED_BACK, REJECTED), requests=Requests(NOW, since_last=2)),
            R.TOO_MANY_REJECTED,
            "3 jobs in a row found nothing better: look at them, then `driftd retrain fraud`; "
            "else with the window that ends 2026-03-03 07:00 UTC",
        ),
        (POLICY, JobHistory(last_ended_at=NOW - 59 * MINUTE), R.COOLDOWN, "cooldown until 2026-03-02 12:01 UTC"),
        (
            POLICY,
            JobHistory(past=(REJECTED,), requests=Requests(NOW, since_last=0)),
            R.AWAITING_NEW_DATA,
            "the last job gained nothing: with more rows, with the window that ends 2026-03-02 13:00 UTC",
        ),
        (POLICY, JobHistory(started_today=4), R.BUDGET, "4 jobs today, max_per_day = 4"),
        (
            POLICY,
            JobHistory(requests=Requests(NOW, windows_ago=(1, 2))),
            R.PACE,
            "one job in 7 windows (retrain.pace): with the window that ends 2026-03-02 17:00 UTC",
        ),
    ],
)
def test_suppressed_with_its_reason(
    policy: TriggerPolicy, history: JobHistory, reason: SuppressReason, detail: str
) -> None:
    found = decide(RULE, policy, history, NOW)
    assert isinstance(found, Suppressed)
    assert (found.reason, found.cause) == (reason, RULE)
    assert detail in found.detail


def test_every_reason_has_a_row_in_the_table_above() -> None:
    rows = test_suppressed_with_its_reason.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert {reason for _, _, reason, _ in rows} == set(SuppressReason)


@pytest.mark.parametrize(
    "history",
    [
        FREE,
        JobHistory(last_ended_at=NOW - HOUR),
        JobHistory(past=(REJECTED,), requests=Requests(since_last=1)),
        JobHistory(past=(REJECTED, ROLLED_BACK), requests=Requests(since_last=1)),
        JobHistory(past=(FAILED,) * 5, requests=Requests(since_last=0)),  # says nothing of what there is to gain
        JobHistory(started_today=3),
        JobHistory(champion="1"),
    ],
)
def test_requested_when_nothing_speaks_against_it(history: JobHistory) -> None:
    assert decide(RULE, POLICY, history, NOW) == RetrainRequest(
        request_id(RULE), "fraud", TriggerKind.RULE, "rule drop fires", {"value": 0.1}, NOW
    )


@pytest.mark.parametrize(
    ("amiss", "since_last", "missing"),
    [(0, 0, 1), (0, 1, 0), (4, 0, 4), (6, 2, 2), (8, 4, 0), (40, 3, 4), (40, 7, 0)],  # at most the pace, which is 7
)
def test_after_a_refusal_a_rule_waits_until_twice_as_much_is_known(amiss: float, since_last: int, missing: int) -> None:
    history = JobHistory(past=(REJECTED,), requests=Requests(NOW, since_last=since_last))
    found = decide(replace(RULE, windows_amiss=amiss), POLICY, history, NOW)
    if missing:
        assert isinstance(found, Suppressed)
        assert f"ends {NOW + missing * HOUR:%Y-%m-%d %H:%M} UTC" in found.detail
    else:
        assert isinstance(found, RetrainRequest)


def test_a_refusal_says_the_same_until_its_time_has_come() -> None:
    """The ledger records it once."""
    cause, past = replace(RULE, windows_amiss=40), (REJECTED,) * 2
    details = set()
    for hour in range(7):
        history = JobHistory(past=past, requests=Requests(NOW + hour * HOUR, (hour,), hour))
        found = decide(cause, POLICY, history, NOW + hour * HOUR)
        assert isinstance(found, Suppressed)
        details.add(found.detail)
    assert len(details) == 1


@pytest.mark.parametrize("trigger", [TriggerKind.RULE, TriggerKind.LABELS, TriggerKind.SCHEDULE])
def test_after_too_many_failures_jobs_are_tried_again_but_seldom(trigger: TriggerKind) -> None:
    cause, failed = replace(RULE, trigger=trigger), JobHistory(past=(REJECTED,) * 3)
    # pace 7, 3 are too many
    by_windows = [replace(failed, requests=Requests(NOW, since_last=ago)) for ago in (20.0, 21.0)]
    by_clock = [replace(failed, last_ended_at=NOW - ago * HOUR) for ago in (20, 21)]  # no rule judges windows
    for refused, tried in (by_windows, by_clock):
        assert isinstance(found := decide(cause, POLICY, refused, NOW), Suppressed)
        assert "2026-03-02 13:00 UTC" in found.detail
        assert isinstance(decide(cause, POLICY, tried, NOW), RetrainRequest)


def test_person_passes_everything_but_a_job_in_flight_and_a_pause() -> None:
    manual = replace(RULE, trigger=TriggerKind.MANUAL)
    against = JobHistory(None, NOW, 99, "2", (REJECTED,) * 9, Requests(NOW, (0.5,) * 9, 0.5))
    assert isinstance(decide(manual, replace(POLICY, enabled=False), against, NOW), RetrainRequest)
    assert isinstance(decide(manual, POLICY, replace(against, maintenance="until noon"), NOW), RetrainRequest)
    assert isinstance(decide(manual, POLICY, replace(against, in_flight="j"), NOW), Suppressed)
    assert isinstance(decide(manual, POLICY, replace(against, paused="by ada"), NOW), Suppressed)


@pytest.mark.parametrize("trigger", [TriggerKind.SCHEDULE, TriggerKind.LABELS, TriggerKind.WEBHOOK])
def test_only_rules_wait_for_new_windows(trigger: TriggerKind) -> None:
    cause = replace(RULE, trigger=trigger, version=None)
    assert isinstance(decide(cause, POLICY, JobHistory(past=(REJECTED,)), NOW), RetrainRequest)


def test_request_id_follows_from_the_occasion_alone() -> None:
    again = replace(RULE, reason="worse", evidence={"value": 0.2}, version="9")
    assert request_id(again) == request_id(RULE)
    assert request_id(RULE) == "fraud-" + request_id(RULE).removeprefix("fraud-")
    others = [replace(RULE, model="x"), replace(RULE, trigger=TriggerKind.MANUAL), replace(RULE, occasion="2")]
    assert len({request_id(c) for c in (RULE, *others)}) == 4


def test_same_facts_give_the_same_answer_until_time_passes() -> None:
    history = JobHistory(last_ended_at=NOW)
    assert decide(RULE, POLICY, history, NOW) == decide(RULE, POLICY, history, NOW)
    assert isinstance(decide(RULE, POLICY, history, NOW + HOUR - timedelta(microseconds=1)), Suppressed)
    assert isinstance(decide(RULE, POLICY, history, NOW + HOUR), RetrainRequest)


@pytest.mark.parametrize(("since", "count"), [(None, 2), (NOW - 2 * HOUR, 2), (NOW - MINUTE, 1), (NOW + MINUTE, 0)])
def test_failures_from_before_a_rule_fired_do_not_count(since: datetime | None, count: int) -> None:
    before = replace(REJECTED, requested_at=NOW - HOUR)
    past = (REJECTED, FAILED, before, PastJob(NOW - 2 * HOUR, stands=True), REJECTED)
    assert JobHistory(past=past).without_gain(since) == count


HEAD, CLEAR = PastJob(NOW, stands=True, gain=1.5), PastJob(NOW, stands=True, gain=3.0)
RENEWED, FOLLOWED = (PastJob(NOW, stands=True, gain=g, follow_up=True) for g in (-0.5, 3.5))
GAINED = JobHistory(past=(CLEAR,), requests=Requests(NOW, (7,), 7))


@pytest.mark.parametrize(
    ("history", "due"),
    [
        (GAINED, True),
        (replace(GAINED, requests=Requests(NOW, (7,), 6.5)), False),  # too soon
        (replace(GAINED, requests=Requests(NOW, (7,), None)), False),
        (replace(GAINED, requests=Requests(NOW, (), 7)), True),  # a person asked for it
        (replace(GAINED, in_flight="j"), False),
        (replace(GAINED, past=()), False),  # nothing was ever promoted
        (replace(GAINED, past=(REJECTED, ROLLED_BACK)), False),
        (replace(GAINED, past=(HEAD,)), True),  # the first follow-up is always due
        (replace(GAINED, past=(RENEWED, HEAD)), False),  # the second needs a clear gain
        (replace(GAINED, past=(REJECTED, HEAD)), False),
        (replace(GAINED, past=(RENEWED, FOLLOWED, HEAD)), True),
        (replace(GAINED, past=(ROLLED_BACK, HEAD)), False),  # what did not stand is no gain
        (replace(GAINED, past=(REJECTED, RENEWED, CLEAR)), True),
        (replace(GAINED, past=(REJECTED, RENEWED, ROLLED_BACK, CLEAR)), False),  # there is nothing more to gain
        (replace(GAINED, past=(RENEWED, HEAD, CLEAR)), True),
        (replace(GAINED, requests=Requests(NOW, (7, 8), 7)), False),  # the one that is left is kept for a rule
        (replace(GAINED, requests=Requests(NOW, (7, 14, 21), 7)), True),
    ],
)
def test_promotion_is_followed_up_while_there_is_something_to_gain(history: JobHistory, due: bool) -> None:
    assert follow_up_due(POLICY, history) is due
    assert not follow_up_due(replace(POLICY, follow_up=False), history)


def test_clear_gain_is_what_chance_seldom_gives() -> None:
    assert NormalDist().cdf(-CLEAR_GAIN) == pytest.approx(1 / 700, rel=0.1)


@given(st.lists(st.floats(0, 20), max_size=30), st.integers(1, 9))
def test_pace_holds_on_average_whoever_asks_as_often_as_allowed(gaps: list[float], pace: int) -> None:
    policy, made, now = replace(POLICY, pace=pace), [], 0.0
    for gap in gaps:
        now += gap
        saved = jobs_saved(policy, [now - at for at in reversed(made)])
        assert saved <= SAVED_AT_MOST
        if saved >= 1:
            made.append(now)
    if made:
        assert len(made) <= SAVED_AT_FIRST + (made[-1] - made[0]) / pace + 1e-6
    latest = [now - at for at in reversed(made)]
    assert jobs_saved(policy, [ago + 100 * pace for ago in latest]) == (SAVED_AT_MOST if made else SAVED_AT_FIRST)


def test_pace_is_for_what_windows_ask_for_not_for_people() -> None:
    busy = JobHistory(requests=Requests(NOW, (1, 2)))
    assert isinstance(decide(RULE, POLICY, busy, NOW), Suppressed)
    assert isinstance(decide(replace(RULE, trigger=TriggerKind.MANUAL), POLICY, busy, NOW), RetrainRequest)
    assert isinstance(decide(replace(RULE, trigger=TriggerKind.SCHEDULE), POLICY, busy, NOW), RetrainRequest)
