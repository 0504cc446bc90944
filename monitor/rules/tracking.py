"""Rules meet the measured windows of one model: which records change, and which phases.

Invariant: pure; judging the same windows from the same records gives the same result, whenever it is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from monitor.rules.measurement import Measure, Measurement, WindowKey
from monitor.rules.phases import Phase, RuleState, Transition, explain, step
from monitor.rules.rules import Rule, Verdict, judge

_COUNTS = (Measure.VOLUME, Measure.LABEL_COVERAGE)
"""Measures that say something about a window however few rows it has."""


@dataclass(frozen=True, slots=True)
class RuleRecord:
    """A rule's running state on one model version and its last judgement, as stored.

    `judged` counts decided windows; `firing_since` is the wall time it began to fire.
    """

    version: str
    rule: str
    state: RuleState
    judged: int
    verdict: Verdict
    value: float | None
    reason: str
    firing_since: datetime | None = None


Records = Mapping[tuple[str, str], RuleRecord]
"""By (version, rule)."""


@dataclass(frozen=True, slots=True)
class Judged:
    """All records after the windows, which of them changed, and the transitions with the window of each."""

    records: Records
    changed: Sequence[tuple[str, str]]
    transitions: Sequence[tuple[Transition, WindowKey]]


def judge_windows(
    rules: Sequence[Rule],
    min_rows: int,
    records: Records,
    windows: Iterable[tuple[WindowKey, Sequence[Measurement]]],
    now: datetime,
) -> Judged:
    """Judge `windows` (in event-time order) by every rule; a measure of fewer than `min_rows` rows is undecided."""
    after = dict(records)
    changed: set[tuple[str, str]] = set()
    transitions = []
    for key, measurements in windows:
        for rule in rules:
            if not any(m.measure is rule.measure for m in measurements):
                continue
            at = (key.version, rule.name)
            old = after.get(at) or RuleRecord(*at, RuleState(), 0, Verdict.UNDECIDED, None, "")
            after[at], transition = _apply(rule, old, key, measurements, min_rows, now)
            changed.add(at)
            if transition is not None:
                transitions.append((transition, key))
    return Judged(after, sorted(changed), transitions)


def _apply(
    rule: Rule, old: RuleRecord, key: WindowKey, measurements: Sequence[Measurement], min_rows: int, now: datetime
) -> tuple[RuleRecord, Transition | None]:
    floor = 0 if rule.measure in _COUNTS else min_rows
    judged = judge(rule, [m if m.rows >= floor else _too_few(m, floor) for m in measurements])
    state, transition = step(rule, old.state, judged, key.end)
    decided = judged.verdict is not Verdict.UNDECIDED and state is not old.state
    since = old.firing_since
    if transition is not None:
        since = now if transition.after is Phase.FIRING else None
    updated = replace(
        old,
        state=state,
        judged=old.judged + decided,
        verdict=judged.verdict,
        value=judged.worst.value if judged.worst else None,
        reason=explain(rule, judged, state),
        firing_since=since,
    )
    return updated, transition


def _too_few(m: Measurement, floor: int) -> Measurement:
    return replace(m, value=None, drifted=None, reason=f"{m.rows} rows, fewer than min_rows = {floor}")


def firing(records: Records) -> list[RuleRecord]:
    return [r for r in records.values() if r.state.phase is Phase.FIRING]
