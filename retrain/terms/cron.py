"""Cron expressions as cron means them.

Invariant: pure. APScheduler counts weekdays from Monday = 0, everybody else from Sunday = 0 (and 7), and it wants both
days to be right where cron takes either: so weekdays are spelled out before it sees them, and both days are refused.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apscheduler.triggers.cron import CronTrigger

_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = r"\d|sun|mon|tue|wed|thu|fri|sat"


@lru_cache
def cron_trigger(expression: str, zone: tzinfo) -> CronTrigger:
    """The trigger of five fields: minute, hour, day of the month, month, weekday. Raises ValueError."""
    from apscheduler.triggers.cron import CronTrigger  # takes a while to import: only where it is needed

    fields = expression.split()
    if len(fields) != 5:
        raise ValueError(f"five fields are needed: minute, hour, day of the month, month, weekday (got {len(fields)})")
    if fields[4] != "*":
        if fields[2] != "*":
            raise ValueError("give a day of the month or a weekday, not both")
        fields[4] = ",".join(map(_spelled_out, fields[4].lower().split(",")))
    return CronTrigger.from_crontab(" ".join(fields), timezone=zone)


def last_time(expression: str, zone: tzinfo, now: datetime, within: timedelta) -> datetime | None:
    """The newest time of the expression that is not later than `now` (aware) and at most `within` before it. Wall times
    that a change of the clock leaves out are none."""
    trigger, found = cron_trigger(expression, zone), None
    at = trigger.get_next_fire_time(None, now - within)
    while at is not None and at <= now:
        if at.astimezone(UTC).astimezone(at.tzinfo).replace(tzinfo=None) == at.replace(tzinfo=None):
            found = at
        at = trigger.get_next_fire_time(at, at)
    return found


def _spelled_out(part: str) -> str:
    """One part of the weekday field as a list of names."""
    match = re.fullmatch(rf"(?:\*|(?P<first>{_DAY})(?:-(?P<last>{_DAY}))?)(?:/(?P<step>\d+))?", part)
    if match is None:
        raise ValueError(f"{part!r} is no weekday: 0 to 7 (Sunday is 0 and 7) or sun to sat")
    first, last, step = match["first"], match["last"], int(match["step"] or 1)
    begin = _number(first) if first else 0
    end = _number(last) if last else begin if first and not match["step"] else 6
    if last in ("sun", "0") and begin > 0:
        end = 7
    if not 0 <= begin <= end <= 7 or step == 0:
        raise ValueError(f"{part!r} is no range of weekdays: 0 to 7, Sunday is 0 and 7")
    return ",".join(dict.fromkeys(_DAYS[day] for day in range(begin, end + 1, step)))


def _number(day: str) -> int:
    return int(day) if day.isdigit() else _DAYS.index(day)
