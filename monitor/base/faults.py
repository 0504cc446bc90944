"""What failed, how often, why, and when it is tried again: values of `monitor.decide.units`.

Invariant: pure; texts are bounded.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from monitor.base.errors import TransientError

PAUSES = tuple(timedelta(seconds=s) for s in (10, 60, 600, 1800, 3600))
"""After the first failure, the second, ..; the last one then stays."""
_ERROR = 500


class UnitKind(StrEnum):
    WINDOW = "window"
    REFERENCE = "reference"
    MODEL = "model"
    SUPERVISION = "supervision"
    MAINTENANCE = "maintenance"
    CHAMPIONS = "champions"
    ANNOTATIONS = "annotations"
    OUTLET = "outlet"
    PAGE = "page"
    SCHEDULE = "schedule"


@dataclass(frozen=True, slots=True)
class Unit:
    """`model` is empty where it is the daemon's own; `subject` tells it from others of its kind (bounded text)."""

    kind: UnitKind
    model: str = ""
    subject: str = ""

    def to_words(self) -> str:
        return " ".join(filter(None, (self.model, self.kind.value, self.subject)))


@dataclass(frozen=True, slots=True)
class Fault:
    """A unit that has failed `tries` times since `since`, the last time at `failed_at`."""

    unit: Unit
    tries: int
    since: datetime
    failed_at: datetime
    given_up: bool
    passing: bool
    error: str

    @property
    def again_at(self) -> datetime:
        """Soon, for as long as it is something outside that is away."""
        return self.failed_at + PAUSES[0 if self.passing else min(self.tries, len(PAUSES)) - 1]

    def to_json(self) -> dict[str, Any]:
        again = None if self.given_up else self.again_at.isoformat(timespec="seconds")
        return {
            "model": self.unit.model,
            "kind": self.unit.kind.value,
            "subject": self.unit.subject,
            "tries": self.tries,
            "since": self.since.isoformat(timespec="seconds"),
            "again_at": again,
            "given_up": self.given_up,
            "error": self.error,
        }

    def to_words(self) -> str:
        then = "given up" if self.given_up else f"again at {self.again_at:%Y-%m-%d %H:%M:%S} UTC"
        times = "once" if self.tries == 1 else f"{self.tries} times"
        return f"{self.unit.to_words()}: failed {times} since {self.since:%Y-%m-%d %H:%M} UTC, {then}: {self.error}"


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a task gave no result, as a value. `passing`: something outside is away, so it is never given up. `lost`: it
    took its process with it."""

    error: str
    passing: bool = False
    lost: bool = False
    trace: str = ""

    @classmethod
    def of(cls, exc: BaseException) -> Failed:
        words = traceback.format_exception_only(exc)[-1].strip()[:_ERROR]
        return cls(words, isinstance(exc, TransientError), trace="".join(traceback.format_exception(exc)))
