"""The one place that retries: jittered back-off on `TransientError` until a deadline, visible while it lasts.

Invariant: nothing but `TransientError` is retried; a set `stopping` event ends the waiting at once.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

import structlog

from retrain.terms.errors import TransientError

T = TypeVar("T")
log = structlog.get_logger()


class Stopped(Exception):
    """The process was asked to end; the job stays where it is and is resumed later."""


@dataclass(frozen=True, slots=True)
class Backoff:
    first: float = 1.0
    most: float = 60.0
    deadline: timedelta = timedelta(hours=24)


class Retry:
    """`on_waiting(text)` is told what is waited for, and None when it is over."""

    def __init__(
        self,
        backoff: Backoff,
        clock: Callable[[], datetime],
        stopping: threading.Event,
        on_waiting: Callable[[str | None], None],
        jitter: random.Random,
    ) -> None:
        self._backoff = backoff
        self._clock = clock
        self._stopping = stopping
        self._on_waiting = on_waiting
        self._jitter = jitter

    def __call__(self, what: str, action: Callable[[], T]) -> T:
        """Runs `action`; raises its last TransientError once the deadline has passed."""
        since: datetime | None = None
        attempt = 0
        while True:
            if self._stopping.is_set():
                raise Stopped(what)
            try:
                result = action()
            except TransientError as exc:
                now = self._clock()
                since = since or now
                if now - since >= self._backoff.deadline:
                    raise
                text = f"{what} away since {since.isoformat(timespec='seconds')}: {str(exc)[:300]}"
                self._tell(text)
                if attempt == 0:
                    log.warning("job_waiting", on=what, error=str(exc)[:300])
                ceiling = min(self._backoff.most, self._backoff.first * 2**attempt)
                self._stopping.wait(self._jitter.uniform(ceiling / 2, ceiling))
                attempt = min(attempt + 1, 30)
            else:
                if since is not None:
                    self._tell(None)
                    log.info("job_went_on", on=what, attempts=attempt)
                return result

    def _tell(self, text: str | None) -> None:
        try:
            self._on_waiting(text)
        except TransientError:  # what is away may be the very database it would be written to
            log.warning("waiting_not_recorded", text=text)
