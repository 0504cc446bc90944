"""Watermark, closing and maturity."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.rules.measurement import WindowKey
from monitor.rules.windows import (
    EPOCH,
    Maturity,
    PartitionClock,
    WindowPolicy,
    WindowState,
    advance,
    observe,
    superseded,
    watermark,
    window_start,
)
from tests.builders import DAY, HOUR, MINUTE, NOW

POLICY = WindowPolicy(HOUR, 5 * MINUTE, 10 * MINUTE, min_coverage=0.9, max_delay=7 * DAY)
KEY = WindowKey("fraud", "1", NOW - HOUR, NOW)


@given(st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)), st.integers(1, 10**9))
def test_window_holds_its_event(naive: datetime, seconds: int) -> None:
    ts, size = naive.replace(tzinfo=UTC), timedelta(seconds=seconds)
    start = window_start(ts, size)
    assert start <= ts < start + size
    assert (start - EPOCH) % size == timedelta(0)


def test_watermark_is_the_slowest_active_partition_minus_lateness() -> None:
    clocks = observe({}, [("a", NOW - HOUR), ("b", NOW - 2 * HOUR)], NOW)
    assert watermark(clocks, POLICY, NOW, None) == NOW - 2 * HOUR - 5 * MINUTE


def test_idle_partition_does_not_hold_windows_back() -> None:
    clocks = observe({}, [("slow", NOW - DAY)], NOW - 10 * MINUTE)
    clocks = observe(clocks, [("fast", NOW - HOUR)], NOW)
    assert watermark(clocks, POLICY, NOW, None) == NOW - HOUR - 5 * MINUTE


def test_partition_is_active_until_idle_after_has_passed() -> None:
    clocks = observe({}, [("slow", NOW - DAY)], NOW - 10 * MINUTE + timedelta(seconds=1))
    clocks = observe(clocks, [("fast", NOW - HOUR)], NOW)
    assert watermark(clocks, POLICY, NOW, None) == NOW - DAY - 5 * MINUTE


def test_when_all_are_silent_the_furthest_counts() -> None:
    clocks = {"a": PartitionClock(NOW - DAY, NOW - HOUR), "b": PartitionClock(NOW - HOUR, NOW - HOUR)}
    assert watermark(clocks, POLICY, NOW, None) == NOW - HOUR - 5 * MINUTE


def test_nothing_seen_leaves_the_watermark() -> None:
    assert watermark({}, POLICY, NOW, None) is None
    assert watermark({}, POLICY, NOW, NOW) == NOW


def test_producer_with_a_fast_clock_does_not_close_the_present_window() -> None:
    clocks = observe({}, [("a", NOW + 59 * MINUTE)], NOW)
    assert watermark(clocks, POLICY, NOW, None) == NOW - 5 * MINUTE


minutes = st.integers(-500, 60)


@given(st.lists(st.tuples(st.sampled_from("abc"), minutes, st.integers(0, 30)), max_size=20))
def test_watermark_never_moves_backwards(arrivals: list[tuple[str, int, int]]) -> None:
    clocks: dict[str, PartitionClock] = {}
    mark, now = None, NOW
    for partition, event, pause in arrivals:
        now += pause * MINUTE
        clocks = observe(clocks, [(partition, NOW + event * MINUTE)], now)
        after = watermark(clocks, POLICY, now, mark)
        assert after is not None
        assert mark is None or after >= mark
        assert after <= now
        mark = after


@pytest.mark.parametrize(
    ("mark", "rows", "labelled", "maturity"),
    [
        (None, 10, 10, Maturity.OPEN),
        (NOW - MINUTE, 10, 10, Maturity.OPEN),
        (NOW, 10, 8, Maturity.CLOSED),
        (NOW, 10, 9, Maturity.FINAL),
        (NOW + 7 * DAY - MINUTE, 10, 0, Maturity.CLOSED),
        (NOW + 7 * DAY, 10, 0, Maturity.FINAL),
        (NOW, 0, 0, Maturity.CLOSED),
        (NOW, 10, 25, Maturity.FINAL),
    ],
)
def test_maturity(mark: datetime | None, rows: int, labelled: int, maturity: Maturity) -> None:
    assert advance(WindowState(KEY, rows, labelled), mark, POLICY).maturity is maturity


def test_final_window_stays_final() -> None:
    final = WindowState(KEY, 10, 0, Maturity.FINAL)
    assert advance(final, NOW, POLICY) == final


def test_version_that_others_left_two_windows_behind_is_superseded() -> None:
    newest = {"1": NOW - 3 * HOUR, "2": NOW - 2 * HOUR, "3": NOW}
    assert superseded(newest, HOUR) == {"1"}
    assert superseded({"1": NOW - 9 * HOUR}, HOUR) == set()
    assert superseded({}, HOUR) == set()
