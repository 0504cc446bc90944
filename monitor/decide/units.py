"""Units of work that fail: put on record, tried again with growing pauses, given up in the end; all else goes on.

Invariant: the one place where an unexpected error ends up. A unit is one window of one version, one reference, one
model's evaluation, or one of the daemon's own periodic jobs. Fatal, and passed on, is only what no unit can be blamed
for: trouble of the lake or the control database (`TransientError`, it ends a tick), and what is no `Exception`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, TypeVar

import structlog
from sqlalchemy import Boolean, Column, Engine, Integer, String, Table, Text, delete, insert, select

from monitor.base.errors import TransientError
from monitor.base.faults import Failed, Fault, Unit, UnitKind
from monitor.metrics import Metrics
from retrain.control.database import UtcDateTime, metadata, reading, writing

T = TypeVar("T")
log = structlog.get_logger()

MOST_TRIES = 5
"""A window that has failed so often is given up: UNDECIDED for ever."""
REMEMBERED = timedelta(days=1)
"""What was given up stays on record so long."""

_faults = Table(
    "monitor_faults",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("kind", String(40), primary_key=True),
    Column("subject", String(300), primary_key=True),
    Column("tries", Integer, nullable=False),
    Column("since", UtcDateTime, nullable=False),
    Column("failed_at", UtcDateTime, nullable=False),
    Column("given_up", Boolean, nullable=False),
    Column("passing", Boolean, nullable=False),
    Column("error", Text, nullable=False),
)


class Units:
    """What has failed and not succeeded since, kept in the control database for whoever leads next."""

    def __init__(self, engine: Engine, metrics: Metrics):
        self._engine = engine
        self._metrics = metrics
        self._known: dict[Unit, Fault] = {}

    def load(self) -> None:
        """What is on record: another replica may have led. Raises TransientError."""
        self._known = {fault.unit: fault for fault in recorded(self._engine)}
        self._export()

    def faults(self) -> list[Fault]:
        """Newest first."""
        return sorted(self._known.values(), key=lambda f: f.failed_at, reverse=True)

    def due(self, unit: Unit, now: datetime) -> bool:
        """Not failed, or its pause is over."""
        fault = self._known.get(unit)
        return fault is None or (not fault.given_up and now >= fault.again_at)

    def run(self, unit: Unit, work: Callable[[], T], now: datetime) -> T | None:
        """Do the work, unless its unit has failed a moment ago. None: it did not come to its end. Raises
        TransientError."""
        if not self.due(unit, now):
            return None
        try:
            result = work()
        except TransientError:
            raise
        except Exception as exc:  # noqa: BLE001 - the place for it: see the module's invariant
            self.failed(unit, Failed.of(exc), now)
            return None
        self.done(unit)
        return result

    def failed(self, unit: Unit, how: Failed, now: datetime, *, may_give_up: bool = False) -> Fault:
        """Put a failure on record. Raises TransientError."""
        before = self._known.get(unit)
        tries, since = (1, now) if before is None else (before.tries + 1, before.since)
        given_up = may_give_up and not how.passing and tries >= MOST_TRIES
        fault = Fault(unit, tries, since, now, given_up, how.passing, how.error)
        self._known[unit] = fault
        self._metrics.unit_failures.labels(unit.kind.value).inc()
        log.error(
            "unit_given_up" if given_up else "unit_failed",
            model=unit.model or None, kind=unit.kind.value, subject=unit.subject, tries=tries, error=how.error,
            **({"trace": how.trace} if how.trace and tries == 1 else {}),
        )  # fmt: skip
        _keep(self._engine, fault)
        self._export()
        return fault

    def done(self, unit: Unit) -> None:
        """It succeeded, or is not wanted any more. Raises TransientError."""
        if self._known.pop(unit, None) is not None:
            _drop(self._engine, [unit])
            self._export()

    def forget(self, now: datetime, models: Iterable[str]) -> None:
        """What was given up long ago, and what is of models that are no longer there. Raises TransientError."""
        known = {"", *models}
        old = [
            fault.unit
            for fault in list(self._known.values())
            if fault.unit.model not in known or (fault.given_up and now - fault.failed_at > REMEMBERED)
        ]
        for unit in old:
            self._known.pop(unit, None)
        if old:
            _drop(self._engine, old)
            self._export()

    def _export(self) -> None:
        known = list(self._known.values())  # in one go: several threads do work
        self._metrics.set_faults(Counter((f.unit.model, f.given_up) for f in known))


def recorded(engine: Engine, model: str | None = None) -> list[Fault]:
    """All that is on record, newest first; of one model, or ("") of none. Raises TransientError."""
    wanted = select(_faults).order_by(_faults.c.failed_at.desc(), _faults.c.subject)
    with reading(engine) as db:
        rows = db.execute(wanted if model is None else wanted.where(_faults.c.model == model)).mappings().all()
    return [
        Fault(
            Unit(UnitKind(r["kind"]), r["model"], r["subject"]),
            r["tries"], r["since"], r["failed_at"], r["given_up"], r["passing"], r["error"],
        )
        for r in rows
        if r["kind"] in set(UnitKind)
    ]  # fmt: skip


def _where(unit: Unit) -> tuple[Any, ...]:
    return (
        _faults.c.model == unit.model,
        _faults.c.kind == unit.kind.value,
        _faults.c.subject == unit.subject,
    )


def _keep(engine: Engine, fault: Fault) -> None:
    with writing(engine) as db:
        db.execute(delete(_faults).where(*_where(fault.unit)))
        db.execute(
            insert(_faults).values(
                model=fault.unit.model,
                kind=fault.unit.kind.value,
                subject=fault.unit.subject,
                tries=fault.tries,
                since=fault.since,
                failed_at=fault.failed_at,
                given_up=fault.given_up,
                passing=fault.passing,
                error=fault.error,
            )
        )


def _drop(engine: Engine, units: Iterable[Unit]) -> None:
    with writing(engine) as db:
        for unit in units:
            db.execute(delete(_faults).where(*_where(unit)))
