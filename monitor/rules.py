"""Measurement x Rule -> Verdict, and the phase machine that turns verdicts into transitions.

Invariant: pure. Time is the window's end, an argument. UNDECIDED changes nothing: it neither advances, fires nor
resolves. Entering or leaving FIRING emits exactly one Transition.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, assert_never

from monitor.measurement import Measure, Measurement
from retrain.config import format_duration, parse_duration


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


Sustained = ForWindows | ForDuration


def parse_for(text: str) -> Sustained:
    """`"3 of 4 windows"` or `"30m"`. Raises ValueError naming both forms."""
    if match := re.fullmatch(r"(\d+) of (\d+)(?: windows?)?", text.strip()):
        breaches, windows = int(match[1]), int(match[2])
        if not 1 <= breaches <= windows <= 1000:
            raise ValueError(f'"{text}": needs 1 <= breaches <= windows <= 1000')
        return ForWindows(breaches, windows)
    try:
        return ForDuration(parse_duration(text.strip()))
    except ValueError as exc:
        raise ValueError('must be "3 of 4 windows" or a duration such as "30m"') from exc


@dataclass(frozen=True, slots=True)
class Rule:
    """What an operator wrote. `feature`, `metric` and `segment` narrow the measure; `segment` "*" means each."""

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
    """Running state of one rule on one model version; JSON-serializable through `to_json`."""

    phase: Phase = Phase.INACTIVE
    recent: tuple[bool, ...] = ()
    breaching_since: datetime | None = None
    last_uncleared: datetime | None = None
    at: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        def text(t: datetime | None) -> str | None:
            return t.isoformat() if t else None

        return {
            "phase": self.phase.value,
            "recent": list(self.recent),
            "breaching_since": text(self.breaching_since),
            "last_uncleared": text(self.last_uncleared),
            "at": text(self.at),
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
    decided = [m for m in matching if m.value is not None or m.drifted is not None]
    if not decided:
        why = next((m.reason for m in matching if m.reason), "not measured")
        return Judgement(Verdict.UNDECIDED, cleared=False, worst=None, breaching=0, reason=why)
    breaching = [m for m in decided if _breaches(rule, m)]
    worst = max(breaching or decided, key=lambda m: _badness(rule, m))
    verdict = Verdict.BREACH if breaching else Verdict.OK
    cleared = all(_clear(rule, m) for m in decided)
    return Judgement(verdict, cleared, worst, len(breaching))


def _breaches(rule: Rule, m: Measurement) -> bool:
    if rule.above is None and rule.below is None:
        return bool(m.drifted)
    if m.value is None:
        return bool(m.drifted)  # a feature gone missing is drift, whatever the threshold
    if rule.above is not None:
        return m.value > rule.above
    assert rule.below is not None
    return m.value < rule.below


def _clear(rule: Rule, m: Measurement) -> bool:
    if rule.clear is None or m.value is None:
        return not _breaches(rule, m)
    return m.value <= rule.clear if rule.above is not None else m.value >= rule.clear


def _badness(rule: Rule, m: Measurement) -> float:
    if m.value is None:
        return float("inf")
    if rule.above is None and rule.below is None:
        distance = m.value - (m.threshold or 0.0)
        return abs(distance) if m.drifted else -abs(distance)
    return m.value if rule.above is not None else -m.value


def step(rule: Rule, state: RuleState, judged: Judgement, at: datetime) -> tuple[RuleState, Transition | None]:
    """Advance one rule by one window that ended at `at` (aware UTC). A window already seen changes nothing."""
    if judged.verdict is Verdict.UNDECIDED or (state.at is not None and at <= state.at):
        return state, None
    breach = judged.verdict is Verdict.BREACH
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
    transition = Transition(rule.name, state.phase, after, at, explain(rule, judged))
    if state.phase is Phase.FIRING:
        state = replace(state, recent=())
    return replace(state, phase=after), transition


def _next_phase(rule: Rule, state: RuleState, breach: bool, cleared: bool, at: datetime) -> Phase:
    match state.phase:
        case Phase.FIRING:
            quiet = state.last_uncleared is None or at - state.last_uncleared >= rule.keep_firing_for
            return Phase.INACTIVE if cleared and quiet else Phase.FIRING
        case Phase.INACTIVE | Phase.PENDING:
            if breach and _sustained(rule.sustained, state, at):
                return Phase.FIRING
            return Phase.PENDING if any(state.recent) else Phase.INACTIVE
        case _:
            assert_never(state.phase)


def _sustained(sustained: Sustained, state: RuleState, at: datetime) -> bool:
    match sustained:
        case ForWindows(breaches=needed):
            return sum(state.recent) >= needed
        case ForDuration(duration=duration):
            return state.breaching_since is not None and at - state.breaching_since >= duration
        case _:
            assert_never(sustained)


def explain(rule: Rule, judged: Judgement) -> str:
    """One clause with the numbers: `performance_drop roc_auc 0.081 above 0.05 (2 of 3 windows)`."""
    m = judged.worst
    if m is None:
        return f"{rule.measure} {judged.reason}"
    subject = " ".join(filter(None, (m.measure.value, m.feature, m.metric, m.segment)))
    value = "missing" if m.value is None else f"{m.value:.4g}"
    if rule.above is not None:
        limit = f"above {rule.above:g}" if judged.verdict is Verdict.BREACH else f"not above {rule.above:g}"
    elif rule.below is not None:
        limit = f"below {rule.below:g}" if judged.verdict is Verdict.BREACH else f"not below {rule.below:g}"
    else:
        limit = f"{'drifted' if m.drifted else 'no drift'} by {m.method} at {m.threshold:g}" if m.threshold else ""
    more = f", {judged.breaching} in breach" if judged.breaching > 1 else ""
    return f"{subject} {value} {limit} ({rule.sustained}{more})"
