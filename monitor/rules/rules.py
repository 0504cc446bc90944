"""Measurement x Rule -> Verdict on one window.

Invariant: pure; nothing is remembered. What a rule makes of verdicts over time is `phases`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from monitor.rules.measurement import Measure, Measurement
from monitor.rules.significance import evidence_threshold, rejected
from retrain.terms.fields import format_duration, parse_duration


class Verdict(StrEnum):
    OK = "ok"
    BREACH = "breach"
    UNDECIDED = "undecided"


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
class Combination:
    """What retrains together: `at_least` so many of the rules (on one version at once), so many `new_labels` since the
    last request, and a time of a `schedule` (cron, UTC)."""

    name: str
    rules: frozenset[str]
    at_least: int
    new_labels: int | None = None
    schedule: str | None = None


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

    `cleared` says whether the value is back beyond the clear threshold (hysteresis); `reason` why nothing could be
    decided, or what was left out.
    """

    verdict: Verdict
    cleared: bool
    worst: Measurement | None
    breaching: int
    reason: str = ""


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
    return Judgement(verdict, cleared, worst, len(breaching), _left_out(matching))


def _left_out(matching: Sequence[Measurement]) -> str:
    """Features that cannot be compared, in words; empty: all can."""
    found = [m for m in matching if m.measure is Measure.FEATURE_DRIFT and m.value is None and m.drifted is None]
    if not found:
        return ""
    named = ", ".join(m.feature for m in found[:3]) + (", .." if len(found) > 3 else "")
    return f"not compared: {named} ({found[0].reason or 'not measured'})"


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
