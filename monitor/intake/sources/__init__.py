"""Where events come from: one `Source` contract, two implementations (Kafka, files).

Invariant: a record is delivered again after a restart unless `commit` covered it, and records of one
partition are delivered in offset order. Delivery is at least once; the lake makes it exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from monitor.base.errors import TransientError
from monitor.base.kinds import Stream


@dataclass(frozen=True, slots=True)
class Records:
    """Consecutive records of one partition, oldest first.

    `partition` is a stable name that is unique over all sources and changes when the partition is recreated
    (for Kafka it carries the topic id, for files a generation), so that an offset under that name always
    means the same record. `offsets` are strictly increasing, not necessarily dense; `values` are the raw
    message bodies (None is a tombstone). `next_offset` is the position to commit once all of these
    are durable.
    """

    stream: Stream
    partition: str
    offsets: Sequence[int]
    values: Sequence[bytes | None]
    next_offset: int


class SourceRefused(TransientError):
    """The source is there but refuses us (credentials, rights, TLS): a person has to act; retried slowly."""


class Source(Protocol):
    """Not thread-safe: every call comes from the thread that polls. Constructing one does no I/O."""

    def poll(self, timeout: float, max_records: int) -> Sequence[Records]:
        """Wait up to `timeout` seconds for records. Raises TransientError when the source is away."""

    def commit(self, positions: Mapping[str, int]) -> None:
        """Remember, per partition name, the next offset to read. Partitions no longer owned are ignored."""

    def pause(self) -> None:
        """Deliver nothing from `poll` until `resume`, while staying a live member of the group."""

    def resume(self) -> None: ...

    def lag(self) -> Mapping[str, int]:
        """Records (Kafka) or bytes/rows (files) not yet delivered, per partition currently owned."""

    def close(self) -> None:
        """Leave the group and release everything. Safe to call twice."""
