"""The audit log: every decision and every human action, appended in the transaction that makes it true.

Invariant: entries are numbered 1, 2, 3, .. without a gap, and each one's digest covers the entry and the digest before
it, so whoever knows the newest digest can tell whether anything before it was changed, removed or inserted. The
database itself refuses to change or remove an entry. What looks like a secret is not written down. Of one that
was, `redact` takes `detail` and `body` away: the digest stays, and an entry says who did it and why. That entry holds
the digest of what is left and of the entry before, so they are covered still.

The digest is sha256, in hex, of the line

    previous digest + " " + JSON of {actor, at, body, detail, kind, model, number, subject}

where the JSON has sorted keys, no spaces between tokens, no escapes but those that JSON demands, and `at` is ISO 8601
in UTC with six decimals. The first entry's previous digest is 64 zeros.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    DDL,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Integer,
    RowMapping,
    String,
    Table,
    Text,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError

from retrain.base.redaction import REDACTED, redacted
from retrain.base.redaction import redact as without_secrets
from retrain.control.database import UtcDateTime, metadata, reading, writing
from retrain.terms.errors import Refused

DRIFTD = "driftd"
"""The actor of what nobody asked for."""
BEGINNING = "0" * 64
_PAGE = 1000

_entries = Table(
    "audit_log",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False, index=True),
    Column("model", String(200), nullable=False),
    Column("kind", String(40), nullable=False),
    Column("actor", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
)
_head = Table(
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
)


_redactions = Table("audit_redactions", metadata, Column("number", Integer, primary_key=True, autoincrement=False))
"""Entries whose text may be taken away."""

_newest = select(_head.c.number, _head.c.digest)


@event.listens_for(_head, "after_create")
def _begin(_table: Table, connection: Connection, **_: Any) -> None:
    connection.execute(insert(_head).values(id=1, number=0, digest=BEGINNING))


_IS_REDACTION = (
    "EXISTS (SELECT 1 FROM audit_redactions r WHERE r.number = OLD.number) AND NEW.number = OLD.number "
    "AND NEW.at = OLD.at AND NEW.model = OLD.model AND NEW.kind = OLD.kind AND NEW.actor = OLD.actor "
    "AND NEW.subject = OLD.subject AND NEW.previous = OLD.previous AND NEW.digest = OLD.digest "
    "AND NEW.detail = '(redacted)' AND NEW.body = '{}'"
)
_REFUSE = "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
_POSTGRES_REDACTS_ONLY = (
    "CREATE FUNCTION audit_log_redacts_only() RETURNS trigger LANGUAGE plpgsql AS "
    f"$$ BEGIN IF {_IS_REDACTION} THEN RETURN NEW; END IF; RAISE EXCEPTION 'the audit log is append-only'; END $$; "
    "CREATE TRIGGER audit_log_redacts_only BEFORE UPDATE ON audit_log "
    "FOR EACH ROW EXECUTE FUNCTION audit_log_redacts_only()"
)
_GUARDS = {
    (_entries, "sqlite"): [
        f"CREATE TRIGGER audit_log_redacts_only BEFORE UPDATE ON audit_log WHEN NOT ({_IS_REDACTION}) {_REFUSE}",
        f"CREATE TRIGGER audit_log_no_delete BEFORE DELETE ON audit_log {_REFUSE}",
        "CREATE TRIGGER audit_log_no_replace BEFORE INSERT ON audit_log "  # noqa: S608 - nothing from outside
        f"WHEN EXISTS (SELECT 1 FROM audit_log WHERE number = NEW.number) {_REFUSE}",
    ],
    (_head, "sqlite"): [
        f"CREATE TRIGGER audit_head_no_delete BEFORE DELETE ON audit_head {_REFUSE}",
        f"CREATE TRIGGER audit_head_forward BEFORE UPDATE ON audit_head WHEN NEW.number <> OLD.number + 1 {_REFUSE}",
    ],
    (_entries, "postgresql"): [
        "CREATE FUNCTION audit_log_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$",
        "CREATE TRIGGER audit_log_stays BEFORE DELETE OR TRUNCATE ON audit_log "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_log_refuse()",
        _POSTGRES_REDACTS_ONLY,
    ],
    (_head, "postgresql"): [
        "CREATE FUNCTION audit_head_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$",
        "CREATE TRIGGER audit_head_stays BEFORE DELETE OR TRUNCATE ON audit_head "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_head_refuse()",
        "CREATE TRIGGER audit_head_forward BEFORE UPDATE ON audit_head FOR EACH ROW "
        "WHEN (NEW.number <> OLD.number + 1) EXECUTE FUNCTION audit_head_refuse()",
    ],
}
for (_table, _dialect), _statements in _GUARDS.items():
    for _statement in _statements:
        event.listen(_table, "after_create", DDL(_statement).execute_if(dialect=_dialect))  # type: ignore[no-untyped-call]


_FORMER_GUARDS = {
    "sqlite": (
        "SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND name = 'audit_log_no_update'",
        ["DROP TRIGGER audit_log_no_update", _GUARDS[_entries, "sqlite"][0]],
    ),
    "postgresql": (
        "SELECT 1 FROM pg_trigger WHERE tgname = 'audit_log_append_only' AND tgrelid = 'audit_log'::regclass",
        ["DROP TRIGGER audit_log_append_only ON audit_log", *_GUARDS[_entries, "postgresql"][1:]],
    ),
}
"""How to know a log of 0.1.0, which refuses redactions too, and what makes it one of today."""


@event.listens_for(metadata, "after_create")
def _renew_guards(_metadata: Any, connection: Connection, **_: Any) -> None:
    is_former, statements = _FORMER_GUARDS.get(connection.dialect.name, ("", []))
    if is_former and connection.scalar(text(is_former)) is not None:
        for statement in statements:
            connection.exec_driver_sql(statement)


class AuditKind(StrEnum):
    RULE_CHANGED = "rule_changed"
    RETRAIN_REQUESTED = "retrain_requested"
    RETRAIN_SUPPRESSED = "retrain_suppressed"
    REQUEST_DROPPED = "request_dropped"
    JOB_MOVED = "job_moved"
    JOB_APPROVED = "job_approved"
    ALIAS_MOVED = "alias_moved"
    TRAFFIC_CHANGED = "traffic_changed"
    CONFIGURED = "configured"
    PAUSED = "paused"
    RESUMED = "resumed"
    ROWS_FORGOTTEN = "rows_forgotten"
    DEAD_LETTERS_REPLAYED = "dead_letters_replayed"
    REDACTED = "redacted"


@dataclass(frozen=True, slots=True)
class Entry:
    """`model` is empty where an entry is about none or all; `subject` names what it is about (a job, a rule, an alias);
    `detail` is for people; `body` holds the facts, as JSON values."""

    at: datetime
    kind: AuditKind
    model: str
    actor: str
    subject: str
    detail: str
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recorded:
    """An entry as it stands in the log; `kind` is text, so that logs of other versions can be read."""

    number: int
    at: datetime
    model: str
    kind: str
    actor: str
    subject: str
    detail: str
    body: Mapping[str, Any]
    previous: str
    digest: str

    def to_json(self) -> dict[str, Any]:
        """What the digest covers, with `previous` and `digest`."""
        return {**_covered(self), "previous": self.previous, "digest": self.digest}

    def digest_after(self, previous: str) -> str:
        return hashlib.sha256(f"{previous} {_canonical(_covered(self))}".encode()).hexdigest()


def append(connection: Connection, entry: Entry) -> None:
    """Append one entry in the caller's transaction.

    Takes the lock of the log's head until that transaction ends: it comes after the locks the caller takes itself.
    Secrets in its texts become `(redacted)`.
    """
    number, previous = lock(connection)
    recorded = Recorded(
        number=number + 1,
        at=entry.at,
        model=entry.model,
        kind=entry.kind.value,
        actor=without_secrets(entry.actor),
        subject=without_secrets(entry.subject),
        detail=without_secrets(entry.detail),
        body=redacted(_finite(entry.body)),
        previous=previous,
        digest="",
    )
    digest = recorded.digest_after(previous)
    values = {**asdict(recorded), "body": _canonical(recorded.body), "digest": digest}
    try:
        connection.execute(insert(_entries).values(values))
    except IntegrityError as exc:  # callers take theirs for "recorded before"
        raise RuntimeError(f"the audit log has an entry {recorded.number} that its head does not know") from exc
    connection.execute(update(_head).values(number=recorded.number, digest=digest))


def lock(connection: Connection) -> tuple[int, str]:
    """Number and digest of the newest entry, which stays the newest until the caller's transaction ends."""
    found = connection.execute(_newest.with_for_update()).first()
    if found is None:
        raise RuntimeError("the audit log has lost its head: restore the control database")
    return found.number, found.digest


def note(engine: Engine, entry: Entry) -> None:
    """Append one entry in a transaction of its own: before an effect that no transaction can hold."""
    with writing(engine) as connection:
        append(connection, entry)


def redact(engine: Engine, number: int, actor: str, reason: str, now: datetime) -> bool:
    """Take `detail` and `body` of an entry away. Answers whether they are gone from the database's file too, as far as
    that can be told. Raises Refused when there is no such entry, or nothing to take."""
    with writing(engine) as connection:
        lock(connection)
        row = connection.execute(select(_entries).where(_entries.c.number == number)).mappings().first()
        if row is None:
            raise Refused(f"the audit log has no entry {number}")
        if row["kind"] == AuditKind.REDACTED or (row["detail"], row["body"]) == (REDACTED, "{}"):
            raise Refused(f"entry {number} holds nothing that could be taken away")
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA secure_delete = ON")  # not only unlinked: overwritten
        connection.execute(insert(_redactions).values(number=number))
        connection.execute(update(_entries).where(_entries.c.number == number).values(detail=REDACTED, body="{}"))
        left = replace(_recorded(row), detail=REDACTED, body={})
        body = {"number": number, "digest": row["digest"], "left": left.digest_after(row["previous"])}
        append(connection, Entry(now, AuditKind.REDACTED, row["model"], actor, f"entry {number}", reason, body))
    return _emptied(engine) if engine.dialect.name == "sqlite" else False


def _emptied(engine: Engine) -> bool:
    """Whether SQLite's journal, which holds what was overwritten, is empty now; a reader may be in the way."""
    raw = engine.raw_connection()
    try:
        for _ in range(20):
            busy = raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if not busy:
                return True
            time.sleep(0.1)
        return False
    finally:
        raw.close()


def entries(
    engine: Engine,
    *,
    model: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    after: int = 0,
) -> Iterator[Recorded]:
    """Oldest first, read page by page, those with a number above `after`; `since` <= at < `until`. With `model` also
    the entries about all models."""
    where: list[ColumnElement[bool]] = []
    if model is not None:
        where.append(_entries.c.model.in_([model, ""]))
    if since is not None:
        where.append(_entries.c.at >= since)
    if until is not None:
        where.append(_entries.c.at < until)
    while True:
        page = select(_entries).where(_entries.c.number > after, *where).order_by(_entries.c.number).limit(_PAGE)
        with reading(engine) as connection:
            rows = connection.execute(page).mappings().all()
        yield from map(_recorded, rows)
        if len(rows) < _PAGE:
            return
        after = rows[-1]["number"]


def recent(engine: Engine, model: str | None, before: int | None, limit: int) -> list[Recorded]:
    """The newest entries first, those with a number below `before`; with `model` also the entries about all models."""
    query = select(_entries).order_by(_entries.c.number.desc()).limit(limit)
    if model is not None:
        query = query.where(_entries.c.model.in_([model, ""]))
    if before is not None:
        query = query.where(_entries.c.number < before)
    with reading(engine) as connection:
        return [_recorded(row) for row in connection.execute(query).mappings()]


def newest_number(engine: Engine) -> int:
    """0 before the first entry."""
    with reading(engine) as connection:
        return int(connection.scalar(_newest) or 0)


def newest(engine: Engine, kind: AuditKind) -> Recorded | None:
    query = select(_entries).where(_entries.c.kind == kind.value).order_by(_entries.c.number.desc()).limit(1)
    with reading(engine) as connection:
        found = connection.execute(query).mappings().first()
    return None if found is None else _recorded(found)


@dataclass(frozen=True, slots=True)
class Verified:
    """`number` and `digest` of the newest entry, and what is wrong with the log, if anything is."""

    number: int
    digest: str
    problem: str = ""


def verify(engine: Engine, anchors: Mapping[int, str]) -> Verified:
    """Recompute every digest. `anchors`: digests (or their beginnings) by number, kept elsewhere: without one, a log
    that somebody has rewritten from some entry to its end looks whole."""
    with reading(engine) as connection:
        head = connection.execute(_newest).first()
    if head is None:
        return Verified(0, BEGINNING, "its head is missing")
    try:
        return _verify(engine, anchors, head.number, head.digest)
    except DamagedEntry as exc:
        return Verified(0, BEGINNING, str(exc))


def _verify(engine: Engine, anchors: Mapping[int, str], head_number: int, head_digest: str) -> Verified:
    number, digest = 0, BEGINNING
    taken = _redacted_entries(engine)
    for entry in entries(engine):
        if entry.number > head_number:
            break  # appended meanwhile
        if entry.number != number + 1:
            return Verified(number, digest, f"entries {number + 1} to {entry.number - 1} are missing")
        if entry.previous != digest:
            return Verified(number, digest, f"entry {entry.number} does not follow entry {number}: one was replaced")
        number, digest = entry.number, entry.digest_after(digest)
        if (entry.detail, entry.body) == (REDACTED, {}) and taken.get(number) == (entry.digest, digest):
            digest = entry.digest  # what it was of cannot be seen any more; that it was taken away is an entry
        if entry.digest != digest:
            return Verified(number, digest, f"entry {number} ({entry.at:%Y-%m-%d %H:%M} UTC) was changed")
        if number in anchors and not (anchors[number] and digest.startswith(anchors[number])):
            return Verified(number, digest, f"entry {number} is not the one that was noted: history was rewritten")
    if (number, digest) != (head_number, head_digest):
        return Verified(number, digest, f"entries {number + 1} to {head_number} are missing at the end")
    if lost := [n for n in anchors if n > number]:
        return Verified(number, digest, f"entry {max(lost)} was noted and is not there: the end was cut off")
    return Verified(number, digest)


def _redacted_entries(engine: Engine) -> dict[int, tuple[str, str]]:
    """(digest, digest of what is left) by number, as the entries say that have taken them away."""
    query = select(_entries).where(_entries.c.kind == AuditKind.REDACTED.value)
    with reading(engine) as connection:
        found = [_recorded(row) for row in connection.execute(query).mappings()]
    return {
        int(e.body["number"]): (str(e.body["digest"]), str(e.body["left"]))
        for e in found
        if {"number", "digest", "left"} <= set(e.body)
    }


class DamagedEntry(ValueError):
    """An entry whose body is not the text that was written."""


def _recorded(row: RowMapping) -> Recorded:
    try:
        body = json.loads(row["body"])
    except ValueError as exc:
        raise DamagedEntry(f"the body of entry {row['number']} is no JSON") from exc
    if _canonical(body) != row["body"]:
        raise DamagedEntry(f"the body of entry {row['number']} is not as it was written")
    return Recorded(**{**row, "body": body})


def _covered(entry: Recorded) -> dict[str, Any]:
    """JSON values only."""
    fields = {**asdict(entry), "at": entry.at.astimezone(UTC).isoformat(timespec="microseconds")}
    return {name: value for name, value in fields.items() if name not in ("previous", "digest")}


def _finite(value: Any) -> Any:
    """With words for the numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {str(name): _finite(of) for name, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(of) for of in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
