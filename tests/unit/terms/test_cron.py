"""Weekdays by number mean what they mean to cron: Sunday is 0 and 7."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from retrain.terms.cron import cron_trigger

SUNDAY = datetime(2026, 3, 1, tzinfo=UTC)
NAMES = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def days(field: str) -> list[str]:
    """On which days of a week that begins on Sunday it fires."""
    trigger, found = cron_trigger(f"0 12 * * {field}", UTC), []
    at = trigger.get_next_fire_time(None, SUNDAY)
    while at < SUNDAY + timedelta(days=7):
        found.append(NAMES[(at - SUNDAY).days])
        at = trigger.get_next_fire_time(at, at)
    return found


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("0", ["sun"]),
        ("7", ["sun"]),
        ("1", ["mon"]),
        ("5", ["fri"]),
        ("1-5", ["mon", "tue", "wed", "thu", "fri"]),
        ("5-7", ["sun", "fri", "sat"]),
        ("0-2", ["sun", "mon", "tue"]),
        ("1,3", ["mon", "wed"]),
        ("*/2", ["sun", "tue", "thu", "sat"]),
        ("1-5/2", ["mon", "wed", "fri"]),
        ("3/2", ["wed", "fri"]),
        ("fri", ["fri"]),
        ("MON-wed", ["mon", "tue", "wed"]),
        ("sat,1", ["mon", "sat"]),
        ("mon-5", ["mon", "tue", "wed", "thu", "fri"]),
        ("fri-sun", ["sun", "fri", "sat"]),
        ("mon-fri/2", ["mon", "wed", "fri"]),
        ("*", list(NAMES)),
    ],
)
def test_weekdays(field: str, expected: list[str]) -> None:
    assert days(field) == expected


@pytest.mark.parametrize(
    "expression",
    [
        "0 12 * * 8",
        "0 12 * * 5-1",
        "0 12 * * 1/0",
        "0 12 * *",
        "0 25 * * 1",
        "x",
        "0 12 * * 05",
        "0 12 * * fri-",
        "0 12 1 * 1",
    ],
)
def test_what_is_no_expression_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        cron_trigger(expression, UTC)
