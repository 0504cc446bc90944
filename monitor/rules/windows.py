"""Watermark, closing and maturity of tumbling event-time windows.

Invariant: pure. Event time closes windows; wall time (`now`) only tells which partitions are idle, and that nobody is
ahead of it. A watermark never moves backwards, and a closed window never opens again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from monitor.rules.measurement import WindowKey

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Maturity(StrEnum):
    OPEN = "open"
    CLOSED = "closed"
    FINAL = "final"


@dataclass(frozen=True, slots=True)
class WindowPolicy:
    size: timedelta
    lateness: timedelta
    idle_after: timedelta
    min_coverage: float
    max_delay: timedelta
    max_versions: int = 50


@dataclass(frozen=True, slots=True)
class PartitionClock:
    """Greatest event time seen in a source partition, and the wall time it last brought anything."""

    event_time: datetime
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class WindowState:
    """How far one window has come. `labelled` counts distinct labelled predictions of its `rows`."""

    key: WindowKey
    rows: int = 0
    labelled: int = 0
    maturity: Maturity = Maturity.OPEN

    @property
    def coverage(self) -> float:
        return min(1.0, self.labelled / self.rows) if self.rows else 0.0


def superseded(newest: Mapping[str, datetime], size: timedelta) -> set[str]:
    """Of the versions with the end of their newest window, those that others have left two windows behind.

    What a rule says of them is still true, and nothing that anybody can act on.
    """
    last = max(newest.values(), default=EPOCH)
    return {version for version, end in newest.items() if last - end > 2 * size}


def window_start(ts: datetime, size: timedelta) -> datetime:
    """Start of the tumbling window that holds `ts`; windows are aligned to the Unix epoch."""
    return EPOCH + (ts - EPOCH) // size * size


def observe(
    clocks: Mapping[str, PartitionClock], seen: Iterable[tuple[str, datetime]], now: datetime
) -> dict[str, PartitionClock]:
    """Clocks after `seen` (partition, greatest event time) arrived at wall time `now`."""
    after = dict(clocks)
    for partition, event_time in seen:
        before = after.get(partition)
        greatest = max(event_time, before.event_time) if before else event_time
        after[partition] = PartitionClock(greatest, now)
    return after


def watermark(
    clocks: Mapping[str, PartitionClock], policy: WindowPolicy, now: datetime, previous: datetime | None
) -> datetime | None:
    """Event time up to which all windows are complete: the slowest active partition minus `lateness`.

    Partitions silent for `idle_after` do not hold it back; when all are silent, the furthest one counts. A producer
    whose clock is fast does not close windows that others still fill: no partition is further than `now`.
    """
    if not clocks:
        return previous
    active = [c.event_time for c in clocks.values() if now - c.seen_at < policy.idle_after]
    slowest = min(active) if active else max(c.event_time for c in clocks.values())
    mark = min(slowest, now) - policy.lateness
    return mark if previous is None else max(mark, previous)


def advance(state: WindowState, mark: datetime | None, policy: WindowPolicy) -> WindowState:
    """The window's maturity under watermark `mark`."""
    if mark is None or state.maturity is Maturity.FINAL or mark < state.key.end:
        return state
    complete = state.coverage >= policy.min_coverage or mark >= state.key.end + policy.max_delay
    return replace(state, maturity=Maturity.FINAL if complete else Maturity.CLOSED)
