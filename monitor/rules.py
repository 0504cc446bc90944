"""Measurement x Rule -> Verdict, and the phase machine that turns verdicts into transitions.

Invariant: pure. Time is the window's end, an argument. UNDECIDED changes nothing: it neither advances, fires nor
resolves. Entering or leaving FIRING emits exactly one Transition.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, assert_never

from monitor.measurement import Measure, Measurement
from monitor.significance import ALLOWANCE, evidence_threshold, rejected
from retrain.config import format_duration, parse_duration

DOUBT = 2.0
"""How much less a reference is trusted than its rows alone would justify: that of a promoted version is the holdout on
which it did well, and part of that was luck (the winner's curse)."""


class Verdict(StrEnum):
    OK = "ok"
    BREACH = "breach"
    UNDECIDED = "undecided"


class Phase(StrEnum):
    INACTIVE = "inactive"
    PENDING = "pending"
    FIRING = "firing"


class Severity(StrEnum):
    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class Action(StrEnum):
    ALERT = "alert"
    RETRAIN = "retrain"


@dataclass(frozen=True, slots=True)
class ForWindows:
    """Fire when `breaches` of the last `windows` decided windows breached."""

    breaches: int
    windows: int

    def __str__(self) -> str:
        return f"{self.breaches} of {self.windows} windows"


@dataclass(frozen=True, slots=True)
class ForDuration:
    """Fire when every decided window of this much event time breached."""

    duration: timedelta

    def __str__(self) -> str:
        return format_duration(self.duration)


@dataclass(frozen=True, slots=True)
class ForEvidence:
    """Fire when the evidence summed over windows suffices: one false alarm in `per_windows` windows.

    A large drop fires at once, a small one after as many windows as it takes to tell it from chance.
    """

    per_windows: float = 1000.0

    @property
    def threshold(self) -> float:
        return evidence_threshold(self.per_windows)

    def __str__(self) -> str:
        return "evidence over windows"


Sustained = ForWindows | ForDuration | ForEvidence


def parse_for(text: str) -> Sustained:
    """`"3 of 4 windows"`, `"30m"` or `"auto"`. Raises ValueError naming the forms."""
    if text.strip() == "auto":
        return ForEvidence()
    if match := re.fullmatch(r"(\d+) of (\d+)(?: windows?)?", text.strip()):
        breaches, windows = int(match[1]), int(match[2])
        if not 1 <= breaches <= windows <= 1000:
            raise ValueError(f'"{text}": needs 1 <= breaches <= windows <= 1000')
        return ForWindows(breaches, windows)
    try:
        return ForDuration(parse_duration(text.strip()))
    except ValueError as exc:
        raise ValueError('must be "3 of 4 windows", a duration such as "30m", or "auto"') from exc


@dataclass(frozen=True, slots=True)
class Rule:
    """What an operator wrote. `feature`, `metric` and `segment` narrow the measure; `segment` "*" means each.

    `calibrated`: chance decides instead of a number (`above = "auto"`): a window breaches when its p-value, as one of
    the family that the rule looks at, is at most `level`. `significant`: a number decides, and chance must not be
    able to explain it. `level` is what a window may show by chance, made from the wanted rate of false alarms.
    """

    name: str
    measure: Measure
    above: float | None = None
    below: float | None = None
    clear: float | None = None
    feature: str | None = None
    metric: str | None = None
    segment: str | None = None
    sustained: Sustained = ForWindows(1, 1)
    keep_firing_for: timedelta = timedelta(0)
    severity: Severity = Severity.WARNING
    action: Action = Action.ALERT
    calibrated: bool = False
    significant: bool = False
    level: float = 0.05

    def matches(self, m: Measurement) -> bool:
        return (
            m.measure is self.measure
            and (self.feature is None or m.feature == self.feature)
            and (self.metric is None or m.metric == self.metric)
            and (bool(m.segment) if self.segment == "*" else m.segment == (self.segment or ""))
        )


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict of one rule on one window, with the measurement that decided it.

    `cleared` says whether the value is back beyond the clear threshold (hysteresis).
    """

    verdict: Verdict
    cleared: bool
    worst: Measurement | None
    breaching: int
    reason: str = ""


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


def judge(rule: Rule, measurements: Iterable[Measurement]) -> Judgement:
    """The verdict of `rule` on one window's measurements.

    Several matches (every feature, every segment): BREACH when any breaches, UNDECIDED when none has a value.
    """
    matching = [m for m in measurements if rule.matches(m)]
    decided = [m for m in matching if _decidable(rule, m)]
    if not decided:
        why = next((m.reason for m in matching if m.reason), "not measured")
        if any(m.value is not None for m in matching):
            why = "chance is not known: the reference is too small or of another kind"
        return Judgement(Verdict.UNDECIDED, cleared=False, worst=None, breaching=0, reason=why)
    breaching = _breaching(rule, decided)
    worst = max(breaching or decided, key=lambda m: _badness(rule, m))
    verdict = Verdict.BREACH if breaching else Verdict.OK
    cleared = not breaching and all(_clear(rule, m) for m in decided)
    return Judgement(verdict, cleared, worst, len(breaching))


def _decidable(rule: Rule, m: Measurement) -> bool:
    if m.value is None:
        return m.drifted is not None
    if rule.calibrated and m.p_value is None:
        return False
    return not isinstance(rule.sustained, ForEvidence) or bool(m.standard_error)


def _breaching(rule: Rule, decided: Sequence[Measurement]) -> list[Measurement]:
    if not rule.calibrated:
        return [m for m in decided if _breaches(rule, m)]
    stands_out = rejected([_chance(m) for m in decided], rule.level)
    return [m for m, out in zip(decided, stands_out, strict=True) if out and m.drifted is not False]


def _chance(m: Measurement) -> float:
    """A feature gone missing is nothing that chance does."""
    return 0.0 if m.p_value is None else m.p_value


def _breaches(rule: Rule, m: Measurement) -> bool:
    if rule.significant and not _significant(rule, m):
        return False
    if rule.above is None and rule.below is None:
        return bool(m.drifted)
    if m.value is None:
        return bool(m.drifted)  # a feature gone missing is drift, whatever the threshold
    if rule.above is not None:
        return m.value > rule.above
    assert rule.below is not None
    return m.value < rule.below


def _significant(rule: Rule, m: Measurement) -> bool:
    """The whole interval lies beyond the threshold; without an interval, chance does not give such a value."""
    if m.value is None:
        return True
    if m.interval is not None and rule.above is not None:
        return m.interval[0] > rule.above
    if m.interval is not None and rule.below is not None:
        return m.interval[1] < rule.below
    return m.p_value is not None and m.p_value <= rule.level


def _clear(rule: Rule, m: Measurement) -> bool:
    if rule.clear is None or m.value is None:
        return True
    return m.value <= rule.clear if rule.above is not None else m.value >= rule.clear


def _badness(rule: Rule, m: Measurement) -> float:
    if m.value is None:
        return float("inf")
    if rule.calibrated:
        return -_chance(m)
    if rule.above is None and rule.below is None:
        distance = m.value - (m.threshold or 0.0)
        return abs(distance) if m.drifted else -abs(distance)
    return m.value if rule.above is not None else -m.value


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
            quiet = state.last_uncleared is None or at - state.last_uncleared >= rule.keep_firing_for
            return Phase.INACTIVE if cleared and quiet else Phase.FIRING
        case Phase.INACTIVE | Phase.PENDING:
            assert not isinstance(rule.sustained, ForEvidence)
            if breach and _sustained(rule.sustained, state, at):
                return Phase.FIRING
            return Phase.PENDING if any(state.recent) else Phase.INACTIVE
        case _:
            assert_never(state.phase)


def _phase_of_evidence(rule: Rule, state: RuleState, threshold: float, at: datetime) -> Phase:
    if state.phase is Phase.FIRING:
        quiet = state.last_uncleared is None or at - state.last_uncleared >= rule.keep_firing_for
        return Phase.INACTIVE if state.evidence < threshold / 2 and quiet else Phase.FIRING
    if state.evidence >= threshold:
        return Phase.FIRING
    return Phase.PENDING if state.evidence >= threshold / 2 else Phase.INACTIVE


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
    return f"{subject} {value} {limit} ({rule.sustained}{more})"


def _evidence(sustained: ForEvidence, state: RuleState) -> str:
    since = f" since {state.evidence_since:%Y-%m-%d %H:%M}" if state.evidence_since else ""
    return f"evidence{since} {state.evidence:.1f} of {sustained.threshold:.1f}"


def _odds(p_value: float) -> str:
    """ "1 in 300" says more to people than 0.0033."""
    if p_value >= 0.05:
        return f"expected in {p_value:.0%} of windows"
    return "less than 1 in a million windows" if p_value < 1e-6 else f"1 in {1 / p_value:,.0f} windows"
