"""The control database: one engine factory, shared by both halves of driftd.

Invariant: every write transaction on SQLite takes the write lock when it begins, so it never fails half way for
lock reasons; every trouble of the connection leaves here as `TransientError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Connection,
    DateTime,
    Dialect,
    Engine,
    MetaData,
    TypeDecorator,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError

from retrain.terms.errors import TransientError

BUSY_TIMEOUT_S = 15.0
_PASSING = frozenset({"25P03", "25006"})
"""SQLSTATEs: the transaction was idle for too long (its process was frozen); the server is a standby now."""
metadata = MetaData()
"""Tables of both halves may register here; `create_tables` makes what is missing."""


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in and out, in UTC; a naive one is a bug and raises."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive datetime reached the control database")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def open_engine(url: str) -> Engine:
    """An engine for `sqlite:///path` (WAL, busy timeout) or any other SQLAlchemy URL. Connects on first use."""
    backend = make_url(url).get_backend_name()
    if backend == "postgresql":
        return _postgres(url)
    if backend != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy's BEGIN below, not the driver's late one
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _postgres(url: str) -> Engine:
    """With an end to waiting for a lock, and to a transaction whose process is frozen or gone and holds one."""
    engine = create_engine(url, pool_pre_ping=True)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = '{BUSY_TIMEOUT_S:.0f}s'")
            cursor.execute(f"SET idle_in_transaction_session_timeout = '{2 * BUSY_TIMEOUT_S:.0f}s'")
        connection.commit()

    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One write transaction. Raises TransientError when the database cannot be reached or stays locked."""
    try:
        with engine.begin() as connection:
            yield connection
    except (OperationalError, InterfaceError) as exc:
        raise TransientError(f"control database: {exc.orig}") from exc
    except DBAPIError as exc:
        if exc.connection_invalidated or getattr(exc.orig, "sqlstate", None) in _PASSING:
            raise TransientError(f"control database: {exc.orig}") from exc
        raise


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One read-only transaction, which on SQLite waits for no writer."""
    with writing(engine.execution_options(read_only=True)) as connection:
        yield connection


def create_tables(engine: Engine) -> None:
    """Creates what is missing, indexes of older databases too; two processes may do so at once."""
    try:
        _create(engine)
    except (DBAPIError, ProgrammingError):  # the other one was faster: look again
        _create(engine)


def _create(engine: Engine) -> None:
    with writing(engine) as connection:
        metadata.create_all(connection)
        for table in metadata.tables.values():
            for index in table.indexes:
                index.create(connection, checkfirst=True)
