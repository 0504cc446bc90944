"""Verdicts and phases."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.rules.measurement import Measure, Measurement
from monitor.rules.phases import Phase, RuleState, Transition, explain, step
from monitor.rules.rules import ForDuration, ForEvidence, ForWindows, Judgement, Rule, Verdict, judge, parse_for
from monitor.rules.significance import surprise

START = datetime(2026, 1, 1, tzinfo=UTC)
DROP = Measure.PERFORMANCE_DROP
Q, P, F = Phase.INACTIVE, Phase.PENDING, Phase.FIRING
RULE = Rule("drop", DROP, above=0.05)


def at(minute: int) -> datetime:
    return START + timedelta(minutes=minute)


def measured(value: float | None, **more: object) -> Measurement:
    return Measurement(DROP, value, 100, **more)  # type: ignore[arg-type]


def run(rule: Rule, story: list[tuple[int, float | None]]) -> tuple[list[Phase], list[Transition], RuleState]:
    state, phases, transitions = RuleState(), [], []
    for minute, value in story:
        state, moved = step(rule, state, judge(rule, [measured(value)]), at(minute))
        phases.append(state.phase)
        transitions += [moved] if moved else []
    return phases, transitions, state


def every(minutes: int, values: list[float | None]) -> list[tuple[int, float | None]]:
    return [(minutes * n, v) for n, v in enumerate(values, start=1)]


ONCE, TWO_OF_THREE, HALF_HOUR = ForWindows(1, 1), ForWindows(2, 3), ForDuration(timedelta(minutes=30))
UP, OK = 0.1, 0.0


@pytest.mark.parametrize(
    ("rule", "story", "phases"),
    [
        pytest.param(replace(RULE, sustained=ONCE), every(10, [OK, UP, OK]), [Q, F, Q], id="at once"),
        pytest.param(replace(RULE, sustained=ONCE), every(10, [0.05]), [Q], id="the threshold itself is no breach"),
        pytest.param(replace(RULE, sustained=TWO_OF_THREE), every(10, [UP, UP]), [P, F], id="2 of 3: two in a row"),
        pytest.param(replace(RULE, sustained=TWO_OF_THREE), every(10, [UP, OK, UP]), [P, P, F], id="2 of 3: a gap"),
        pytest.param(
            replace(RULE, sustained=TWO_OF_THREE), every(10, [UP, OK, OK, OK, UP]), [P, P, P, Q, P],
            id="2 of 3: pending until the breach leaves the windows",
        ),
        pytest.param(
            replace(RULE, sustained=TWO_OF_THREE), every(10, [UP, None, None, UP]), [P, P, P, F],
            id="2 of 3: undecided windows are not counted",
        ),
        pytest.param(
            replace(RULE, sustained=TWO_OF_THREE), every(10, [UP, UP, OK, UP, UP]), [P, F, Q, P, F],
            id="2 of 3: counts anew after it resolved",
        ),
        pytest.param(
            replace(RULE, sustained=HALF_HOUR), every(10, [UP, UP, UP, UP]), [P, P, P, F],
            id="30m: a breach that lasts",
        ),
        pytest.param(
            replace(RULE, sustained=HALF_HOUR), every(10, [UP, UP, UP, OK, UP, UP]), [P, P, P, Q, P, P],
            id="30m: pending resets after one ok window",
        ),
        pytest.param(
            replace(RULE, sustained=ONCE, clear=0.02), every(10, [UP, 0.04, 0.03, 0.02]), [F, F, F, Q],
            id="clear: between the thresholds it goes on firing",
        ),
        pytest.param(
            replace(RULE, sustained=ONCE, clear=0.02), every(10, [0.04, UP]), [Q, F],
            id="clear: between the thresholds it does not begin to fire",
        ),
        pytest.param(
            replace(RULE, sustained=ONCE, keep_firing_for=timedelta(minutes=25)),
            every(10, [UP, OK, OK, OK]), [F, F, F, Q], id="keep_firing_for: until quiet for so long",
        ),
        pytest.param(
            replace(RULE, sustained=ONCE, keep_firing_for=timedelta(minutes=25)),
            every(10, [UP, OK, OK, UP, OK, OK, OK]), [F, F, F, F, F, F, Q],
            id="keep_firing_for: a breach starts it anew",
        ),
        pytest.param(
            replace(RULE, sustained=ONCE), [(10, UP), (20, None), (600, None), (610, OK)], [F, F, F, Q],
            id="undecided neither fires nor resolves",
        ),
        pytest.param(
            Rule("auc", DROP, below=0.5, clear=0.6), every(10, [0.5, 0.4, 0.55, 0.6]), [Q, F, F, Q], id="below"
        ),
        pytest.param(
            replace(RULE, sustained=ONCE), [(20, OK), (10, UP), (20, UP), (30, UP)], [Q, Q, Q, F],
            id="a window not newer than the last changes nothing",
        ),
    ],
)  # fmt: skip
def test_phases(rule: Rule, story: list[tuple[int, float | None]], phases: list[Phase]) -> None:
    assert run(rule, story)[0] == phases


sustained = st.one_of(
    st.tuples(st.integers(1, 5), st.integers(0, 3)).map(lambda t: ForWindows(t[0], t[0] + t[1])),
    st.integers(0, 60).map(lambda m: ForDuration(timedelta(minutes=m))),
)
rules = st.builds(
    Rule,
    name=st.just("drop"),
    measure=st.just(DROP),
    above=st.just(0.05),
    clear=st.sampled_from([None, 0.05, 0.02]),
    sustained=sustained,
    keep_firing_for=st.integers(0, 40).map(lambda m: timedelta(minutes=m)),
)
value_lists = st.lists(st.sampled_from([None, 0.0, 0.03, 0.05, 0.1]), max_size=25)


@given(rules, value_lists)
def test_undecided_windows_change_nothing(rule: Rule, values: list[float | None]) -> None:
    story = every(10, values)
    decided = [(minute, v) for minute, v in story if v is not None]
    _, transitions, state = run(rule, story)
    assert (transitions, state) == run(rule, decided)[1:]


@given(rules, value_lists)
def test_every_window_seen_twice_gives_the_same(rule: Rule, values: list[float | None]) -> None:
    story = every(10, values)
    twice = [w for window in story for w in (window, window)]
    assert run(rule, twice)[1:] == run(rule, story)[1:]
    assert run(rule, story + story)[1:] == run(rule, story)[1:]


@given(rules, value_lists, st.data())
def test_stop_and_restore_after_any_step_ends_the_same(
    rule: Rule, values: list[float | None], data: st.DataObject
) -> None:
    story = every(10, values)
    stop = data.draw(st.integers(0, len(story)))
    _, before, state = run(rule, story[:stop])
    restored = RuleState.from_json(json.loads(json.dumps(state.to_json())))
    assert restored == state
    after = []
    for minute, value in story[stop:]:
        restored, moved = step(rule, restored, judge(rule, [measured(value)]), at(minute))
        after += [moved] if moved else []
    assert (before + after, restored) == run(rule, story)[1:]


@given(rules, value_lists)
def test_transitions_form_a_chain_and_firing_is_entered_once_each_time(rule: Rule, values: list[float | None]) -> None:
    phases, transitions, _ = run(rule, every(10, values))
    chain = [Q, *(t.after for t in transitions)]
    assert [t.before for t in transitions] == chain[:-1]
    assert all(t.before is not t.after for t in transitions)
    entered = sum(b is F and a is not F for a, b in zip([Q, *phases], phases, strict=False))
    assert entered == sum(t.after is F for t in transitions)


@given(rules, value_lists)
def test_fires_only_on_a_breach_and_resolves_only_when_clear(rule: Rule, values: list[float | None]) -> None:
    found = dict(every(10, values))
    for t in run(rule, list(found.items()))[1]:
        value = found[int((t.at - START).total_seconds() // 60)]
        assert value is not None
        if t.after is F:
            assert value > 0.05
        if t.before is F:
            assert value <= (rule.clear if rule.clear is not None else 0.05)


def drift(feature: str, value: float | None, drifted: bool | None, threshold: float = 0.1) -> Measurement:
    return Measurement(
        Measure.FEATURE_DRIFT, value, 100, feature=feature, method="psi", threshold=threshold, drifted=drifted
    )


ANY_DRIFT = Rule("drift", Measure.FEATURE_DRIFT)


@pytest.mark.parametrize(
    ("rule", "measurements", "verdict", "worst", "breaching"),
    [
        (ANY_DRIFT, [], Verdict.UNDECIDED, None, 0),
        (ANY_DRIFT, [drift("a", None, None)], Verdict.UNDECIDED, None, 0),
        (ANY_DRIFT, [drift("a", 0.05, False), drift("b", None, None)], Verdict.OK, "a", 0),
        (ANY_DRIFT, [drift("a", 0.2, True), drift("b", 0.3, True), drift("c", 0.05, False)], Verdict.BREACH, "b", 2),
        (ANY_DRIFT, [drift("gone", None, True), drift("b", 0.9, True)], Verdict.BREACH, "gone", 2),
        (replace(ANY_DRIFT, above=0.5), [drift("gone", None, True)], Verdict.BREACH, "gone", 1),
        (replace(ANY_DRIFT, above=0.5), [drift("a", 0.2, True)], Verdict.OK, "a", 0),
        (replace(ANY_DRIFT, below=0.01), [drift("a", 0.002, True, 0.05), drift("b", 0.02, True, 0.05)],
         Verdict.BREACH, "a", 1),
        (replace(ANY_DRIFT, feature="b"), [drift("a", 0.2, True)], Verdict.UNDECIDED, None, 0),
    ],
)  # fmt: skip
def test_verdict_over_several_measurements(
    rule: Rule, measurements: list[Measurement], verdict: Verdict, worst: str | None, breaching: int
) -> None:
    judged = judge(rule, measurements)
    assert (judged.verdict, judged.worst.feature if judged.worst else None, judged.breaching) == (
        verdict, worst, breaching,
    )  # fmt: skip
    assert explain(rule, judged)


@pytest.mark.parametrize(
    ("segment", "matched"), [(None, [""]), ("country=de", ["country=de"]), ("*", ["country=de", "country=fr"])]
)
def test_segment_narrows_and_star_means_each(segment: str | None, matched: list[str]) -> None:
    rule = replace(RULE, segment=segment)
    found = [measured(0.1, segment=s) for s in ("", "country=de", "country=fr")]
    assert [m.segment for m in found if rule.matches(m)] == matched


def test_undecided_says_why() -> None:
    judged = judge(RULE, [measured(None, reason="one class only")])
    assert judged == Judgement(Verdict.UNDECIDED, False, None, 0, "one class only")
    assert explain(RULE, judged) == "performance_drop one class only"


def test_reason_holds_the_numbers() -> None:
    _, (moved,), _ = run(replace(RULE, sustained=ONCE), [(10, 0.0814)])
    assert moved.reason == "performance_drop 0.0814 above 0.05 (1 of 1 windows)"


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("3 of 4 windows", ForWindows(3, 4)),
        (" 1 of 1 window ", ForWindows(1, 1)),
        ("2 of 3", ForWindows(2, 3)),
        ("30m", ForDuration(timedelta(minutes=30))),
        ("1h30m", ForDuration(timedelta(minutes=90))),
    ],
)
def test_for_reads_windows_and_durations(text: str, meaning: object) -> None:
    assert parse_for(text) == meaning
    assert parse_for(str(meaning)) == meaning


@pytest.mark.parametrize("text", ["", "0 of 3 windows", "4 of 3 windows", "1 of 1001", "three", "-5m", "5"])
def test_for_refuses_anything_else(text: str) -> None:
    with pytest.raises(ValueError, match=r"windows|duration"):
        parse_for(text)


# -- rules that chance decides


def auto(**changes: Any) -> Rule:
    return replace(Rule("r", Measure.FEATURE_DRIFT, calibrated=True, level=0.01), **changes)


def drift(feature: str, p_value: float | None, drifted: bool = True) -> Measurement:
    return Measurement(
        Measure.FEATURE_DRIFT, 0.3, 500, feature=feature, method="wasserstein", threshold=0.1, drifted=drifted,
        p_value=p_value,
    )  # fmt: skip


def dropped(value: float, error: float = 0.02, reference_error: float = 0.0) -> Measurement:
    z = value / (error**2 + reference_error**2) ** 0.5
    return Measurement(
        Measure.PERFORMANCE_DROP, value, 500, metric="accuracy", p_value=surprise(z), standard_error=error,
        reference_error=reference_error, interval=(value - 2 * error, value + 2 * error),
    )  # fmt: skip


def test_one_surprise_among_many_features_is_no_breach() -> None:
    quiet = [drift(f"x{n}", 0.4) for n in range(199)]
    assert judge(auto(), [*quiet, drift("odd", 0.001)]).verdict is Verdict.OK
    judged = judge(auto(), [*quiet, drift("odd", 0.00001)])
    assert (judged.verdict, judged.breaching) == (Verdict.BREACH, 1)
    assert judged.worst is not None
    assert judged.worst.feature == "odd"


def test_chance_does_not_explain_it_but_it_is_too_small_to_matter() -> None:
    assert judge(auto(), [drift("x", 1e-9, drifted=False)]).verdict is Verdict.OK


def test_without_known_chance_there_is_no_verdict() -> None:
    judged = judge(auto(), [drift("x", None)])
    assert judged.verdict is Verdict.UNDECIDED
    assert "chance is not known" in judged.reason


def test_feature_gone_missing_needs_no_chance() -> None:
    gone = Measurement(Measure.FEATURE_DRIFT, None, 0, feature="x", drifted=True, reason="went missing")
    assert judge(auto(), [gone, drift("y", 0.5)]).verdict is Verdict.BREACH


@pytest.mark.parametrize(
    ("value", "interval", "verdict"), [(0.06, (0.04, 0.08), Verdict.OK), (0.09, (0.06, 0.12), Verdict.BREACH)]
)
def test_significant_breach_lies_beyond_the_threshold_with_its_whole_interval(
    value: float, interval: tuple[float, float], verdict: Verdict
) -> None:
    rule = Rule("r", Measure.PERFORMANCE_DROP, above=0.05, significant=True)
    assert judge(rule, [Measurement(Measure.PERFORMANCE_DROP, value, 500, interval=interval)]).verdict is verdict


EVIDENCE = Rule(
    "drop", Measure.PERFORMANCE_DROP, metric="accuracy", calibrated=True, sustained=ForEvidence(1000), level=0.3
)


def weighed(*values: float, error: float = 0.02, reference_error: float = 0.0) -> list[RuleState]:
    state, states = RuleState(), []
    for n, value in enumerate(values):
        judged = judge(EVIDENCE, [dropped(value, error, reference_error)])
        state, _ = step(EVIDENCE, state, judged, at(n))
        states.append(state)
    return states


def test_large_drop_fires_at_once_and_a_small_one_when_it_has_added_up() -> None:
    assert weighed(0.2)[-1].phase is Phase.FIRING
    small = weighed(*[0.04] * 8)
    firing = [s.phase is Phase.FIRING for s in small]
    assert not firing[0]
    assert firing[-1]


def test_reference_that_was_lucky_does_not_add_up_window_after_window() -> None:
    """Every window is 0.02 below a reference that is only known to 0.02: no drop that anybody could tell."""
    assert all(s.phase is not Phase.FIRING for s in weighed(*[0.02] * 50, reference_error=0.02))
    assert weighed(*[0.02] * 50, reference_error=0.0)[-1].phase is Phase.FIRING


def test_recovery_is_seen_as_soon_as_the_decline_was() -> None:
    states = weighed(*[0.2] * 30, *[0.0] * 30)
    assert states[29].phase is Phase.FIRING
    assert states[-1].phase is Phase.INACTIVE
    assert states[-1].amiss_since is None


def test_evidence_knows_when_it_began() -> None:
    states = weighed(0.0, 0.0, 0.1, 0.1)
    assert states[-1].amiss_since == at(1)  # the end of the last window that was fine


@given(st.lists(st.floats(-0.2, 0.3), max_size=20), st.integers(0, 20))
def test_evidence_survives_a_restart_at_any_window(values: list[float], restart: int) -> None:
    whole = weighed(*values)
    state = RuleState()
    for n, value in enumerate(values):
        if n == restart:
            state = RuleState.from_json(state.to_json())
        state, _ = step(EVIDENCE, state, judge(EVIDENCE, [dropped(value)]), at(n))
    assert not whole or state == whole[-1]
