"""The tables of the acting half.

Invariant: `job_history` and `alias_history` are only appended to; the partial unique index on `jobs` is what makes
"one job in flight per model" true, whatever the callers do: `ended_at` is set when a job leaves the states in flight.
"""

from __future__ import annotations

from sqlalchemy import JSON, Column, ForeignKey, Index, Integer, String, Table, Text, UniqueConstraint, text

from retrain.control.database import UtcDateTime, metadata

_in_flight = text("ended_at IS NULL")

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("model", String(200), nullable=False),
    Column("state", String(30), nullable=False),
    Column("spec", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),  # when it left the in-flight states
    Column("attempt", Integer, nullable=False, server_default="0"),  # processes started since the last step
    Column("lease_owner", String(200)),
    Column("lease_until", UtcDateTime),
    Column("fingerprint", String(64)),  # set once the snapshot is taken
    Column("waiting", Text),  # what the job waits for outside, for people
    Column("approved_by", String(200)),
    Column("result", JSON),
    Column("error", Text),
    Index("jobs_in_flight", "model", unique=True, sqlite_where=_in_flight, postgresql_where=_in_flight),
    Index("jobs_by_model", "model", "created_at"),
)

job_history = Table(
    "job_history",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("from_state", String(30)),
    Column("to_state", String(30), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("detail", Text, nullable=False),
)

alias_history = Table(
    "alias_history",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("model", String(200), nullable=False, index=True),
    Column("alias", String(50), nullable=False),
    Column("version", String(50)),  # NULL: the alias was removed
    Column("previous_version", String(50)),
    Column("job_id", String(200)),
    Column("actor", String(200), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("reason", Text, nullable=False),
    UniqueConstraint("job_id", "alias", "version"),  # a resumed job records a move once
)
