"""Dead letters: listing them, and replaying those that have become readable since.

Invariant: a dead letter leaves its table only after its event is in the lake. A replay that is cut short and run
again adds nothing twice: its rows carry a source partition made from the very records replayed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from monitor.events import Limits, decode
from monitor.lake import Lake, Table
from monitor.sources import Records, Stream
from retrain.schema import ModelSchema

_CHUNK = 10_000
_TABLES = {Stream.PREDICTIONS: Table.PREDICTIONS, Stream.LABELS: Table.LABELS}


@dataclass(frozen=True, slots=True)
class Replayed:
    """How many dead letters were looked at, became events, and remain (by reason)."""

    seen: int
    accepted: int
    remaining: Mapping[str, int]


def list_dead_letters(lake: Lake, limit: int, reason: str | None = None) -> list[dict[str, Any]]:
    """Newest first; payloads as text, cut to 500 characters."""
    lazy = lake.scan(Table.DEAD_LETTERS)
    if lazy is None:
        return []
    if reason is not None:
        lazy = lazy.filter(pl.col("reason") == reason)
    frame = lazy.sort("received_at", descending=True).head(limit).collect()
    return [
        {**row, "received_at": row["received_at"].isoformat(), "payload": _text(row["payload"])}
        for row in frame.drop("date").iter_rows(named=True)
    ]


def count_dead_letters(lake: Lake) -> dict[str, int]:
    """Dead letters by reason."""
    lazy = lake.scan(Table.DEAD_LETTERS)
    if lazy is None:
        return {}
    return dict(lazy.group_by("reason").len().sort("reason").collect().iter_rows())


def replay(
    lake: Lake,
    schemas: Mapping[str, ModelSchema],
    limits: Callable[[datetime], Limits],
    now: datetime,
    reason: str | None = None,
    on_progress: Callable[[int], None] = lambda _done: None,
) -> Replayed:
    """Decode dead letters again with the configuration in force and append what is an event now."""
    lazy = lake.scan(Table.DEAD_LETTERS)
    if lazy is None:
        return Replayed(0, 0, {})
    if reason is not None:
        lazy = lazy.filter(pl.col("reason") == reason)
    letters = lazy.sort("source_partition", "source_offset").collect()
    accepted, remaining = 0, {}
    for chunk in letters.iter_slices(_CHUNK):
        for stream in Stream:
            mine = chunk.filter(pl.col("stream") == stream.value)
            if not mine.height:
                continue
            done, rejected = _replay_chunk(lake, stream, mine, schemas, limits(now))
            accepted += done
            for why in rejected:
                remaining[why] = remaining.get(why, 0) + 1
        on_progress(chunk.height)
    return Replayed(letters.height, accepted, remaining)


def _replay_chunk(
    lake: Lake, stream: Stream, letters: pl.DataFrame, schemas: Mapping[str, ModelSchema], limits: Limits
) -> tuple[int, list[str]]:
    origins = letters.select("source_partition", "source_offset")
    name = f"replay:{hashlib.sha256(repr(origins.rows()).encode()).hexdigest()[:24]}"
    values = letters["payload"].to_list()
    records = Records(stream, name, range(1, len(values) + 1), values, len(values) + 1)
    decoded = decode(stream, [records], schemas, limits)
    for model, frame in decoded.frames.items():
        lake.append(_TABLES[stream], frame, model)
    rejected = {r.offset for r in decoded.rejected}
    accepted = [origin for at, origin in enumerate(origins.iter_rows(), start=1) if at not in rejected]
    for partition, offsets in _by_partition(accepted):
        lake.delete_dead_letters(partition, offsets)
    return len(accepted), [r.reason.value for r in decoded.rejected]


def _by_partition(origins: list[tuple[str, int]]) -> Iterator[tuple[str, list[int]]]:
    grouped: dict[str, list[int]] = {}
    for partition, offset in origins:
        grouped.setdefault(partition, []).append(offset)
    yield from grouped.items()


def _text(payload: bytes) -> str:
    text = payload[:500].decode("utf-8", "replace")
    return text + (" .." if len(payload) > 500 else "")
