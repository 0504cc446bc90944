"""When a model must be left as it is: pauses that people order, and the maintenance windows of its configuration.

Invariant: while a model is held, driftd asks for no job of its own accord and no job promotes; training and evaluation
under way go on, and rolling back is always allowed. A pause is a row that stands until its time or `resume`, and an
entry of the audit log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import Column, ColumnElement, Engine, String, Table, Text, delete, insert, or_, select

from retrain.config.settings import MaintenanceConfig, RetrainConfig
from retrain.control import audit
from retrain.control.audit import AuditKind, Entry
from retrain.control.database import UtcDateTime, metadata, reading, writing
from retrain.terms.cron import last_time
from retrain.terms.fields import parse_duration

MAINTENANCE_VARIABLE = "DRIFTD_MAINTENANCE"
ALL = ""
"""In place of a model: every one."""

_pauses = Table(
    "pauses",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("since", UtcDateTime, nullable=False),
    Column("until", UtcDateTime),  # NULL: until somebody resumes
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Pause:
    """`model` may be `ALL`; `until` None: until somebody resumes."""

    model: str
    since: datetime
    until: datetime | None
    actor: str
    reason: str

    def to_words(self) -> str:
        what = "all models are paused" if self.model == ALL else "paused"
        until = f"until {self.until:%Y-%m-%d %H:%M} UTC" if self.until else "until `driftd resume`"
        return f"{what} by {self.actor} {until}" + (f": {self.reason}" if self.reason else "")


def pause_until(length: str | None, now: datetime) -> datetime | None:
    """When a pause of this length ("2h") is over; None: until somebody resumes. Raises ValueError."""
    if length is None:
        return None
    if (duration := parse_duration(length)) <= timedelta(0):
        raise ValueError("must be longer than nothing")
    return now + duration


def pause(engine: Engine, wanted: Pause) -> None:
    """Record a pause; one that the model has already is replaced."""
    until = wanted.until.astimezone(UTC).isoformat() if wanted.until else None
    with writing(engine) as connection:
        audit.lock(connection)  # two who pause at once: one after the other
        connection.execute(delete(_pauses).where(_pauses.c.model == wanted.model))
        connection.execute(insert(_pauses).values(asdict(wanted)))
        entry = Entry(
            wanted.since, AuditKind.PAUSED, wanted.model, wanted.actor, "retraining", wanted.reason, {"until": until}
        )
        audit.append(connection, entry)


def resume(engine: Engine, model: str, actor: str, reason: str, now: datetime) -> bool:
    """End the pause of `model`, or the one of `ALL`; False when there is none."""
    with writing(engine) as connection:
        audit.lock(connection)
        if connection.execute(delete(_pauses).where(_pauses.c.model == model, _standing(now))).rowcount == 0:
            return False
        audit.append(connection, Entry(now, AuditKind.RESUMED, model, actor, "retraining", reason))
        return True


def paused(engine: Engine, model: str, now: datetime) -> Pause | None:
    """The pause that holds `model` now: that of all models, or its own."""
    return _first(engine, [ALL, model], now)


def own_pause(engine: Engine, model: str, now: datetime) -> Pause | None:
    """The model's own, whatever holds all of them."""
    return _first(engine, [model], now)


def _first(engine: Engine, models: list[str], now: datetime) -> Pause | None:
    query = select(_pauses).where(_pauses.c.model.in_(models), _standing(now)).order_by(_pauses.c.model)
    with reading(engine) as connection:
        found = connection.execute(query).mappings().first()
    return None if found is None else Pause(**found)


def maintenance_until(windows: Sequence[MaintenanceConfig], now: datetime) -> datetime | None:
    """When the maintenance that is under way is over; None when there is none. One that begins before another has ended
    prolongs it."""
    until = None
    for window in windows:
        begun = last_time(window.cron, ZoneInfo(window.timezone), now, window.duration)
        if begun is not None and (end := begun.astimezone(UTC) + window.duration) > now:
            until = max(end, until or end)
    return until


def why_held(engine: Engine, model: str, windows: Sequence[MaintenanceConfig], now: datetime) -> str:
    """Why the model must be left as it is, in words; empty when it need not."""
    if (found := paused(engine, model, now)) is not None:
        return found.to_words()
    return maintenance_words(windows, now)


def maintenance_of(config: RetrainConfig, environ: Mapping[str, str]) -> tuple[MaintenanceConfig, ...]:
    """The windows that a job's process goes by: those the daemon has in force, else those of its submission."""
    if (told := environ.get(MAINTENANCE_VARIABLE)) is None:
        return config.maintenance
    return tuple(MaintenanceConfig.model_validate(window) for window in json.loads(told))


def told_to_job(windows: Sequence[MaintenanceConfig]) -> dict[str, str]:
    """The variable that `maintenance_of` reads: a job may have been submitted before a reload."""
    return {MAINTENANCE_VARIABLE: json.dumps([window.model_dump(mode="json") for window in windows])}


def maintenance_words(windows: Sequence[MaintenanceConfig], now: datetime) -> str:
    until = maintenance_until(windows, now)
    return f"maintenance until {until:%Y-%m-%d %H:%M} UTC" if until else ""


def _standing(now: datetime) -> ColumnElement[bool]:
    return or_(_pauses.c.until.is_(None), _pauses.c.until > now)
