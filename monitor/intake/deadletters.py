"""Dead letters: listing them, and replaying those that have become readable since.

Invariant: a dead letter leaves its table only after its event is in the lake. A replay that is cut short and run
again adds nothing twice: its rows keep the origin of their record, and an origin that is stored is not stored again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from monitor.base.kinds import Stream
from monitor.intake.events import Limits, decode
from monitor.intake.sources import Records
from monitor.lake.lake import Conflict, Lake, Table, collect
from retrain.terms.schema import ModelSchema

_CHUNK = 10_000
_ORIGIN = ["source_partition", "source_offset"]
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
    frame = collect(lazy.sort("received_at", descending=True).head(limit))
    return [
        {**row, "received_at": row["received_at"].isoformat(), "payload": _text(row["payload"])}
        for row in frame.drop("date").iter_rows(named=True)
    ]


def count_dead_letters(lake: Lake) -> dict[str, int]:
    """Dead letters by reason."""
    lazy = lake.scan(Table.DEAD_LETTERS)
    if lazy is None:
        return {}
    return dict(collect(lazy.group_by("reason").len().sort("reason")).iter_rows())


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
    letters = collect(lazy.sort(_ORIGIN))
    accepted = 0
    remaining: dict[str, int] = {}
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
    records = [
        Records(stream, str(partition), part["source_offset"].to_list(), part["payload"].to_list(), 0)
        for (partition,), part in letters.group_by(["source_partition"], maintain_order=True)
    ]
    decoded = decode(stream, records, schemas, limits)
    for model, frame in decoded.frames.items():
        _append(lake, _TABLES[stream], frame, model)
    rejected = {(r.partition, r.offset) for r in decoded.rejected}
    accepted = [origin for origin in letters.select(_ORIGIN).iter_rows() if origin not in rejected]
    for partition, offsets in _by_partition(accepted):
        lake.delete_dead_letters(partition, offsets)
    return len(accepted), [r.reason.value for r in decoded.rejected]


def _append(lake: Lake, table: Table, frame: pl.DataFrame, model: str) -> None:
    """Append the rows whose origin is not stored yet. Of two replays at once, one looks again."""
    days = (str(frame["date"].min()), str(frame["date"].max()))
    partitions = frame["source_partition"].unique().to_list()
    while True:
        before = lake.position(table, model, "replay") or 0
        missing = frame
        if (stored := lake.scan(table, model, days)) is not None:
            mine = stored.filter(pl.col("source_partition").is_in(partitions)).select(_ORIGIN)
            missing = frame.join(collect(mine), on=_ORIGIN, how="anti", maintain_order="left")
        if not missing.height:
            return
        try:
            lake.append_next(table, missing, model, {"replay": before}, {"replay": before + 1})
        except Conflict:
            continue
        return


def _by_partition(origins: list[tuple[str, int]]) -> Iterator[tuple[str, list[int]]]:
    grouped: dict[str, list[int]] = {}
    for partition, offset in origins:
        grouped.setdefault(partition, []).append(offset)
    yield from grouped.items()


def _text(payload: bytes) -> str:
    text = payload[:500].decode("utf-8", "replace")
    return text + (" .." if len(payload) > 500 else "")
