"""Verdicts over time -> INACTIVE, PENDING, FIRING: the phase machine of a rule.

Invariant: pure. Time is the window's end, an argument. UNDECIDED changes nothing: it neither advances, fires nor
resolves. Entering or leaving FIRING emits exactly one Transition.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, assert_never

from monitor.rules.measurement import Measurement
from monitor.rules.rules import ForDuration, ForEvidence, ForWindows, Judgement, Rule, Verdict
from monitor.rules.significance import ALLOWANCE

DOUBT = 2.0
"""How much less a reference is trusted than its rows alone would justify: that of a promoted version is the holdout on
which it did well, and part of that was luck (the winner's curse)."""


class Phase(StrEnum):
    INACTIVE = "inactive"
    PENDING = "pending"
    FIRING = "firing"


@dataclass(frozen=True, slots=True)
class RuleState:
    """Running state of one rule on one model version; JSON-serializable through `to_json`.

    `evidence` is a cumulative sum in standard errors (`ForEvidence`), above zero since `evidence_since`. `offset` is
    what the value turned out to be while nothing was amiss, and `offset_error` how well that is known: the reference is
    only a sample.
    """

    phase: Phase = Phase.INACTIVE
    recent: tuple[bool, ...] = ()
    breaching_since: datetime | None = None
    last_uncleared: datetime | None = None
    at: datetime | None = None
    evidence: float = 0.0
    evidence_since: datetime | None = None
    offset: float = 0.0
    offset_error: float | None = None

    @property
    def amiss_since(self) -> datetime | None:
        """When what is wrong now seems to have begun."""
        return self.evidence_since or self.breaching_since

    def to_json(self) -> dict[str, Any]:
        def text(t: datetime | None) -> str | None:
            return t.isoformat() if t else None

        return {
            "phase": self.phase.value,
            "recent": list(self.recent),
            "breaching_since": text(self.breaching_since),
            "last_uncleared": text(self.last_uncleared),
            "at": text(self.at),
            "evidence": self.evidence,
            "evidence_since": text(self.evidence_since),
            "offset": self.offset,
            "offset_error": self.offset_error,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RuleState:
        def time(text: str | None) -> datetime | None:
            return datetime.fromisoformat(text) if text else None

        return cls(
            phase=Phase(data["phase"]),
            recent=tuple(data["recent"]),
            breaching_since=time(data["breaching_since"]),
            last_uncleared=time(data["last_uncleared"]),
            at=time(data["at"]),
            evidence=data.get("evidence", 0.0),
            evidence_since=time(data.get("evidence_since")),
            offset=data.get("offset", 0.0),
            offset_error=data.get("offset_error"),
        )


@dataclass(frozen=True, slots=True)
class Transition:
    """A rule changed its phase at the end of a window."""

    rule: str
    before: Phase
    after: Phase
    at: datetime
    reason: str


def step(rule: Rule, state: RuleState, judged: Judgement, at: datetime) -> tuple[RuleState, Transition | None]:
    """Advance one rule by one window that ended at `at` (aware UTC). A window already seen changes nothing."""
    if judged.verdict is Verdict.UNDECIDED or (state.at is not None and at <= state.at):
        return state, None
    breach = judged.verdict is Verdict.BREACH
    if isinstance(rule.sustained, ForEvidence) and judged.worst is not None:
        before, state = state, _weigh(rule.sustained.threshold, state, judged.worst)
        since = before.evidence_since or before.at or at
        state = replace(state, evidence_since=since if state.evidence > 0 else None)
    size = rule.sustained.windows if isinstance(rule.sustained, ForWindows) else 1
    state = replace(
        state,
        at=at,
        recent=(*state.recent, breach)[-size:],
        breaching_since=(state.breaching_since or at) if breach else None,
        last_uncleared=state.last_uncleared if judged.cleared else at,
    )
    after = _next_phase(rule, state, breach, judged.cleared, at)
    if after is state.phase:
        return state, None
    transition = Transition(rule.name, state.phase, after, at, explain(rule, judged, state))
    if state.phase is Phase.FIRING:
        state = replace(state, recent=())
    return replace(state, phase=after), transition


def _weigh(threshold: float, state: RuleState, m: Measurement) -> RuleState:
    """Add one window to the evidence: a one-sided CUSUM (Page 1954) of standardised values, self-starting.

    What the value is while nothing is amiss is learned from the reference and from the windows that went well
    (self-starting: Hawkins 1987), so that the reference's luck is not summed up window after window. The sum is
    bounded, so that a recovery is seen as soon as a decline.
    """
    if m.value is None or not m.standard_error:  # gone missing: nothing that can be weighed
        return replace(state, evidence=2 * threshold)
    known = state.offset_error if state.offset_error is not None else DOUBT * (m.reference_error or 0.0)
    error = math.hypot(m.standard_error, known)
    z = (m.value - state.offset) / error
    evidence = min(max(0.0, state.evidence + z - ALLOWANCE), 2 * threshold)
    if evidence >= threshold / 2:
        return replace(state, evidence=evidence, offset_error=known)
    weight = (known / error) ** 2
    return replace(
        state,
        evidence=evidence,
        offset=state.offset + weight * (m.value - state.offset),
        offset_error=known * m.standard_error / error,
    )


def _next_phase(rule: Rule, state: RuleState, breach: bool, cleared: bool, at: datetime) -> Phase:
    if isinstance(rule.sustained, ForEvidence):
        return _phase_of_evidence(rule, state, rule.sustained.threshold, at)
    match state.phase:
        case Phase.FIRING:
            return Phase.INACTIVE if cleared and _quiet(rule, state, at) else Phase.FIRING
        case Phase.INACTIVE | Phase.PENDING:
            assert not isinstance(rule.sustained, ForEvidence)
            if breach and _sustained(rule.sustained, state, at):
                return Phase.FIRING
            return Phase.PENDING if any(state.recent) else Phase.INACTIVE
        case _:
            assert_never(state.phase)


def _phase_of_evidence(rule: Rule, state: RuleState, threshold: float, at: datetime) -> Phase:
    if state.phase is Phase.FIRING:
        return Phase.INACTIVE if state.evidence < threshold / 2 and _quiet(rule, state, at) else Phase.FIRING
    if state.evidence >= threshold:
        return Phase.FIRING
    return Phase.PENDING if state.evidence >= threshold / 2 else Phase.INACTIVE


def _quiet(rule: Rule, state: RuleState, at: datetime) -> bool:
    return state.last_uncleared is None or at - state.last_uncleared >= rule.keep_firing_for


def _sustained(sustained: ForWindows | ForDuration, state: RuleState, at: datetime) -> bool:
    match sustained:
        case ForWindows(breaches=needed):
            return sum(state.recent) >= needed
        case ForDuration(duration=duration):
            return state.breaching_since is not None and at - state.breaching_since >= duration
        case _:
            assert_never(sustained)


def explain(rule: Rule, judged: Judgement, state: RuleState = RuleState()) -> str:
    """One clause with the numbers: `performance_drop roc_auc 0.081 above 0.05 (2 of 3 windows)`."""
    m = judged.worst
    if m is None:
        return f"{rule.measure} {judged.reason}"
    subject = " ".join(filter(None, (m.measure.value, m.feature, m.metric, m.segment)))
    value = "missing" if m.value is None else f"{m.value:.4g}"
    if rule.calibrated:
        limit = "gone missing" if m.p_value is None else f"{_odds(m.p_value)} by chance"
    elif rule.above is not None:
        limit = f"above {rule.above:g}" if judged.verdict is Verdict.BREACH else f"not above {rule.above:g}"
    elif rule.below is not None:
        limit = f"below {rule.below:g}" if judged.verdict is Verdict.BREACH else f"not below {rule.below:g}"
    else:
        limit = f"{'drifted' if m.drifted else 'no drift'} by {m.method} at {m.threshold:g}" if m.threshold else ""
    if isinstance(rule.sustained, ForEvidence):
        return f"{subject} {value}, {limit}; {_evidence(rule.sustained, state)}"
    more = f", {judged.breaching} in breach" if judged.breaching > 1 else ""
    left_out = f"; {judged.reason}" if judged.reason else ""
    return f"{subject} {value} {limit} ({rule.sustained}{more}){left_out}"


def _evidence(sustained: ForEvidence, state: RuleState) -> str:
    since = f" since {state.evidence_since:%Y-%m-%d %H:%M}" if state.evidence_since else ""
    return f"evidence{since} {state.evidence:.1f} of {sustained.threshold:.1f}"


def _odds(p_value: float) -> str:
    """ "1 in 300" says more to people than 0.0033."""
    if p_value >= 0.05:
        return f"expected in {p_value:.0%} of windows"
    return "less than 1 in a million windows" if p_value < 1e-6 else f"1 in {1 / p_value:,.0f} windows"
