"""Cron expressions as cron means them.

Invariant: pure. APScheduler reads the numbers of weekdays from Monday = 0 on; everybody else from Sunday = 0 on (and
Sunday = 7), so they are turned into names before it sees them.
"""

from __future__ import annotations

import re
from datetime import tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apscheduler.triggers.cron import CronTrigger

_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")


@lru_cache
def cron_trigger(expression: str, zone: tzinfo) -> CronTrigger:
    """The trigger of five fields: minute, hour, day of the month, month, weekday. Raises ValueError."""
    from apscheduler.triggers.cron import CronTrigger  # takes a while to import: only where it is needed

    fields = expression.split()
    if len(fields) == 5:
        fields[4] = ",".join(map(_named, fields[4].lower().split(",")))
    return CronTrigger.from_crontab(" ".join(fields), timezone=zone)


def _named(part: str) -> str:
    """One part of the weekday field with names for numbers; a range becomes the list of its days."""
    match = re.fullmatch(r"(?:(\d)(?:-(\d))?|\*)(?:/(\d+))?", part)
    if match is None or part == "*":
        return part
    first, last, step = match.groups()
    begin = int(first or 0)
    end = int(last) if last else begin if first and not step else 6
    if not begin <= end <= 7 or step == "0":
        raise ValueError(f"{part!r} is no weekday: 0 to 7, Sunday is 0 and 7")
    return ",".join(dict.fromkeys(_DAYS[day] for day in range(begin, end + 1, int(step or 1))))
