"""Tells an outlet what happened: entries of the audit log, in their order, each at least once.

Invariant: the log is the queue and a cursor per outlet, in the control database, is how far it has come; it moves only
after the receiver has taken an entry, or will never take it. Each outlet has a thread of its own, so one that is away
or slow keeps nobody waiting but itself. What is older than its first start is never sent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

import structlog
from sqlalchemy import Column, Engine, Integer, String, Table, insert, select, update
from sqlalchemy.exc import IntegrityError

from monitor.base.errors import TransientError
from monitor.config.outside_events import OutsideEvent
from monitor.metrics import Metrics
from monitor.outlets.document import event_of
from retrain.control import audit
from retrain.control.audit import Recorded
from retrain.control.database import metadata, reading, writing

log = structlog.get_logger()

MAX_AGE = timedelta(days=7)
"""Older entries are passed over: after a long time away a flood helps nobody."""
ROUND = 100
"""Deliveries to one outlet in one round at most."""
_FIRST_WAIT, _LONGEST_WAIT = timedelta(seconds=5), timedelta(minutes=5)

_cursors = Table(
    "webhook_cursors",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("number", Integer, nullable=False),  # the audit log's entry that was dealt with last
)


class Taken(StrEnum):
    """`REFUSED`: it will never be taken; what follows is sent."""

    YES = "sent"
    REFUSED = "failed"


class NotTaken(Exception):
    """It was not taken this time; the text says why, without a secret."""


class Outlet(Protocol):
    """`name` is unique among a daemon's outlets."""

    @property
    def name(self) -> str: ...

    @property
    def events(self) -> Collection[OutsideEvent]: ...

    def deliver(self, entry: Recorded, event: OutsideEvent) -> Taken:
        """Raises NotTaken."""


class Sender:
    """Of one outlet: call `begin` once, then `send` now and then, in one thread at a time. Only while `leads` answers
    True is anything sent."""

    def __init__(
        self, outlet: Outlet, engine: Engine, metrics: Metrics, stop: threading.Event, leads: Callable[[], bool]
    ):
        self.outlet = outlet
        self._engine = engine
        self._deliveries = metrics.deliveries
        self._stop = stop
        self._leads = leads
        self._failures = 0
        self._not_before: datetime | None = None

    def begin(self) -> None:
        """From here on everything is told. Raises TransientError when the control database is away."""
        self._cursor()

    def send(self, now: datetime) -> None:
        """Deliver what is due."""
        if self._not_before is not None and now < self._not_before:
            return
        try:
            problem = self._send(now)
        except (TransientError, audit.DamagedEntry) as exc:
            problem = str(exc)
        if problem:
            self._wait(problem, now)

    def _send(self, now: datetime) -> str:
        """What stood in the way, empty if nothing did."""
        begun = dealt_with = self._cursor()
        delivered = 0
        for entry in audit.entries(self._engine, after=begun):
            event = event_of(entry)
            if event is not None and event in self.outlet.events and entry.at > now - MAX_AGE:
                if delivered == ROUND or self._stop.is_set() or not self._leads():
                    break
                if problem := self._deliver(entry, event):
                    self._move(dealt_with)
                    return problem
                self._move(entry.number)
                self._failures, delivered = 0, delivered + 1
            dealt_with = entry.number
        if dealt_with > begun:
            self._move(dealt_with)
        self._failures, self._not_before = 0, None
        return ""

    def _deliver(self, entry: Recorded, event: OutsideEvent) -> str:
        """What kept the receiver from taking it; empty: it is done with."""
        try:
            taken = self.outlet.deliver(entry, event)
        except NotTaken as exc:
            self._deliveries.labels(self.outlet.name, Taken.REFUSED.value).inc()
            return str(exc)
        self._deliveries.labels(self.outlet.name, taken.value).inc()
        if taken is Taken.REFUSED:
            log.warning("delivery_refused", outlet=self.outlet.name, number=entry.number)
        return ""

    def _wait(self, problem: str, now: datetime) -> None:
        self._not_before = now + min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(self._failures, 10))
        self._failures += 1
        if self._failures == 1:
            log.warning("delivery_failed", outlet=self.outlet.name, detail=problem)

    def _cursor(self) -> int:
        with reading(self._engine) as db:
            found = db.scalar(select(_cursors.c.number).where(_cursors.c.name == self.outlet.name))
        if found is not None:
            return int(found)
        newest = audit.newest_number(self._engine)
        try:
            with writing(self._engine) as db:
                db.execute(insert(_cursors).values(name=self.outlet.name, number=newest))
        except IntegrityError:  # another replica began at this moment
            return self._cursor()
        return newest

    def _move(self, number: int) -> None:
        mine = (_cursors.c.name == self.outlet.name, _cursors.c.number < number)
        with writing(self._engine) as db:
            db.execute(update(_cursors).where(*mine).values(number=number))
