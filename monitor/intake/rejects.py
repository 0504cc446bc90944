"""Records that are no events: why, where they came from, and how they are kept as dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

from monitor.base.kinds import RejectReason, Stream


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that is no event, kept with its payload and origin as a dead letter."""

    stream: Stream
    partition: str
    offset: int
    reason: RejectReason
    detail: str
    payload: bytes


def dead_letter_frame(rejected: Sequence[Rejected], now: datetime) -> pl.DataFrame:
    """Rejects as rows of the dead-letter table; also its table schema when `rejected` is empty."""
    return pl.DataFrame(
        {
            "received_at": [now.astimezone(UTC)] * len(rejected),
            "date": [f"{now:%Y-%m-%d}"] * len(rejected),
            "stream": [r.stream.value for r in rejected],
            "reason": [r.reason.value for r in rejected],
            "detail": [r.detail for r in rejected],
            "payload": [r.payload for r in rejected],
            "source_partition": [r.partition for r in rejected],
            "source_offset": [r.offset for r in rejected],
        },
        schema={
            "received_at": pl.Datetime("us", "UTC"),
            "date": pl.String,
            "stream": pl.String,
            "reason": pl.String,
            "detail": pl.String,
            "payload": pl.Binary,
            "source_partition": pl.String,
            "source_offset": pl.Int64,
        },
    )
