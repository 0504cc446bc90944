"""Bytes -> typed columns, or rejects with a reason: the decoder of the event contract (docs/events.md).

Invariant: every record that goes in comes out exactly once, as a row of a frame or as a `Rejected`; no input raises.
Whole batches are parsed at once; only the neighbourhood of a bad record is looked at record by record.
"""

from __future__ import annotations

import io
import re
import traceback
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import chain
from typing import Any

import numpy as np
import orjson
import polars as pl

from monitor.base.kinds import RejectReason, Stream
from monitor.intake import tolerant
from monitor.intake.event_columns import (
    LONGEST_TEXT,
    UTC_US,
    lake_columns,
    read_time,
    representable,
    short,
    wire_schema,
    with_classes,
    with_names,
)
from monitor.intake.rejects import Rejected
from monitor.intake.sources import Records
from retrain.terms.schema import FeatureKind, ModelSchema, Task

LEAF = 64
"""Batches this small are decoded record by record when the fast parser refuses them."""
SAMPLE_EVERY = 64
"""One record in this many is looked at for fields that the contract does not know."""

_PANICS: tuple[type[BaseException], ...] = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
_LONE_SURROGATE = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|[c-fC-F](?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F]))"
)
"""Half a character: the fast parser turns it into something else without saying so."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what is believable, with the wall time `now` (aware UTC) they are counted from."""

    now: datetime
    max_age: timedelta
    max_future: timedelta
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """`frames` maps a model to its rows in lake columns, in arrival order.

    `unknown_fields` counts, per model, unknown fields seen in the sampled records (one in `SAMPLE_EVERY`).
    """

    frames: Mapping[str, pl.DataFrame]
    rejected: Sequence[Rejected]
    unknown_fields: Mapping[str, int]


@dataclass(slots=True)
class _Batch:
    """The records of one stream as one list, and where each came from."""

    stream: Stream
    groups: list[Records] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # row of each group's first record
    lines: list[bytes] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)

    def reject(self, row: int, reason: RejectReason, detail: str = "") -> None:
        at = bisect_right(self.starts, row) - 1
        group, offset = self.groups[at], self.groups[at].offsets[row - self.starts[at]]
        self.rejected.append(Rejected(self.stream, group.partition, offset, reason, detail, self.lines[row]))

    def origins(self) -> pl.DataFrame:
        """Where each line came from, as lake columns."""
        names = pl.Series("source_partition", [g.partition for g in self.groups], dtype=pl.String)
        lengths = [len(g.values) for g in self.groups]
        offsets = list(chain.from_iterable(g.offsets for g in self.groups))
        return pl.DataFrame(
            [
                names.gather(np.repeat(np.arange(len(lengths)), lengths)),
                pl.Series("source_offset", offsets, dtype=pl.Int64),
            ]
        )


Canonical = Callable[[dict[str, Any]], tuple[dict[str, Any], list[str]]]
"""A JSON object -> the strict shape of one wire schema, and the names of its broken features."""


def decode(stream: Stream, records: Sequence[Records], schemas: Mapping[str, ModelSchema], limits: Limits) -> Decoded:
    """Decode records of one stream for the models in `schemas`. A record that this module has a bug with is found by
    halving, and rejected: one record must not stop all."""
    try:
        return _decode(stream, records, schemas, limits)
    except Exception as exc:  # noqa: BLE001 - whatever it is, one record is to blame
        groups = [group for group in records if group.values]
        if sum(len(group.values) for group in groups) == 1:
            (group,) = groups
            why = "".join(traceback.format_exception_only(exc)).strip()[:200]
            value = group.values[0] or b""
            rejected = Rejected(stream, group.partition, group.offsets[0], RejectReason.UNREADABLE, why, value)
            return Decoded({}, [rejected], {})
        return _together([decode(stream, half, schemas, limits) for half in _halves(groups)])


def _halves(groups: Sequence[Records]) -> Iterator[list[Records]]:
    """The same records in two parts; positions to commit are not looked at here."""
    if len(groups) > 1:
        yield list(groups[: len(groups) // 2])
        yield list(groups[len(groups) // 2 :])
        return
    (group,) = groups
    middle = len(group.values) // 2
    for part in (slice(None, middle), slice(middle, None)):
        yield [replace(group, offsets=group.offsets[part], values=group.values[part])]


def _together(parts: Sequence[Decoded]) -> Decoded:
    frames: dict[str, list[pl.DataFrame]] = {}
    unknown: Counter[str] = Counter()
    for part in parts:
        for model, frame in part.frames.items():
            frames.setdefault(model, []).append(frame)
        unknown.update(part.unknown_fields)
    rejected = [r for part in parts for r in part.rejected]
    return Decoded({model: pl.concat(found) for model, found in frames.items()}, rejected, unknown)


def _decode(stream: Stream, records: Sequence[Records], schemas: Mapping[str, ModelSchema], limits: Limits) -> Decoded:
    batch = _gather(stream, records)
    rows = _screen(batch, limits)
    frames: dict[str, pl.DataFrame] = {}
    unknown: Counter[str] = Counter()
    for model, members in _route(batch, rows, schemas).items():
        schema = schemas[model]
        frame = _typed(batch, members, schema)
        frame = _check(batch, frame, schema, limits)
        if frame.height:
            frames[model] = _lake_frame(batch, frame, schema)
            unknown[model] += _unknown_fields(batch, frame["row"].gather_every(SAMPLE_EVERY).to_list(), schema)
    return Decoded(frames, batch.rejected, unknown)


def empty_frame(stream: Stream, schema: ModelSchema) -> pl.DataFrame:
    """No rows, all lake columns: the table schema of `stream`."""
    batch = _Batch(stream)
    wire = wire_schema(stream, schema)
    frame = pl.DataFrame(schema={**wire, "row": pl.UInt32, "invalid_features": pl.List(pl.String)})
    never = pl.lit(None, dtype=UTC_US)
    return _lake_frame(batch, frame.with_columns(at=never, prediction_at=never), schema)


def _gather(stream: Stream, records: Sequence[Records]) -> _Batch:
    batch = _Batch(stream)
    for group in filter(lambda g: g.values, records):
        batch.groups.append(group)
        batch.starts.append(len(batch.lines))
        batch.lines += [value or b"" for value in group.values]
    return batch


def _screen(batch: _Batch, limits: Limits) -> Sequence[int]:
    """Rows worth parsing."""
    lines = batch.lines
    if all(lines) and not any(map(bytes.isspace, lines)) and max(map(len, lines), default=0) <= limits.max_bytes:
        return range(len(lines))  # nearly always, and several times faster than one by one
    rows = []
    for row, line in enumerate(batch.lines):
        if not line or line.isspace():
            batch.reject(row, RejectReason.EMPTY)
        elif len(line) > limits.max_bytes:
            batch.reject(row, RejectReason.TOO_LARGE, f"{len(line)} bytes, source.max_bytes is {limits.max_bytes}")
        else:
            rows.append(row)
    return rows


def _route(batch: _Batch, rows: Sequence[int], schemas: Mapping[str, ModelSchema]) -> dict[str, Sequence[int]]:
    """Rows per configured model. With one model the typed parse itself finds strangers."""
    if len(schemas) == 1:
        return {next(iter(schemas)): rows}
    wire = {"model": pl.String}
    odd = _spelled_out([pl.col("model")])
    parts = _settled(batch, rows, wire, lambda obj: ({"model": tolerant.text(obj.get("model"))}, []), odd)
    if not parts:
        return {}
    frame = pl.concat(parts).sort("row")
    routed: dict[str, Sequence[int]] = {}
    for (model,), part in frame.group_by(["model"], maintain_order=True):
        members = part["row"].to_list()
        if model in schemas:
            routed[str(model)] = members
        else:
            _reject_model(batch, members, model)
    return routed


def _reject_model(batch: _Batch, rows: list[int], model: object) -> None:
    for row in rows:
        if model is None or model == "":
            batch.reject(row, RejectReason.NO_MODEL)
        else:
            batch.reject(row, RejectReason.UNKNOWN_MODEL, f"{str(model)[:80]!r} is not in the configuration")


def _typed(batch: _Batch, rows: Sequence[int], schema: ModelSchema) -> pl.DataFrame:
    wire = wire_schema(batch.stream, schema)

    def canonical(obj: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        return tolerant.read_event(obj, batch.stream, schema)

    parts = _settled(batch, rows, wire, canonical, _suspicious(batch.stream, schema))
    if not parts:
        return pl.DataFrame(schema={**wire, "row": pl.UInt32, "invalid_features": pl.List(pl.String)})
    return pl.concat(parts).sort("row") if len(parts) > 1 else parts[0]


def _settled(
    batch: _Batch, rows: Sequence[int], wire: dict[str, Any], canonical: Canonical, suspicious: pl.Expr
) -> list[pl.DataFrame]:
    """Parsed rows, the suspicious ones among them looked at one by one."""
    parts = []
    for part in _parse(batch, rows, wire, canonical):
        odd = part.filter(suspicious)["row"].to_list() if part.height else []
        if odd:
            part = part.filter(~pl.col("row").is_in(odd))
            parts += list(_one_by_one(batch, odd, wire, canonical))
        parts.append(part)
    return parts


def _suspicious(stream: Stream, schema: ModelSchema) -> pl.Expr:
    columns = [pl.col("prediction_id"), pl.col("model")]
    if stream is Stream.PREDICTIONS:
        columns.append(pl.col("model_version"))
        columns += [
            pl.col("features").struct.field(f.name) for f in schema.features if f.kind is not FeatureKind.NUMBER
        ]
        columns += [pl.col("segment").struct.field(s) for s in schema.segments]
    if schema.task is not Task.REGRESSION:
        columns.append(pl.col("prediction" if stream is Stream.PREDICTIONS else "label"))
    return _spelled_out(columns)


def _spelled_out(columns: Sequence[pl.Expr]) -> pl.Expr:
    """Rows where a String column may hold an object or list that the parser spelled out: look again."""
    tests = [c.str.starts_with("{") | c.str.starts_with("[") for c in columns]
    return pl.any_horizontal(*tests).fill_null(value=False)


def _parse(batch: _Batch, rows: Sequence[int], wire: dict[str, Any], canonical: Canonical) -> Iterator[pl.DataFrame]:
    """Parse rows at once; where the parser refuses, halve, down to record by record."""
    if not rows:
        return
    lines = batch.lines if len(rows) == len(batch.lines) else [batch.lines[row] for row in rows]
    frame = _read(lines, wire, canonical=False)
    if frame is not None:
        yield frame.with_columns(
            row=pl.Series(rows, dtype=pl.UInt32), invalid_features=pl.lit(None, dtype=pl.List(pl.String))
        )
    elif len(rows) <= LEAF:
        yield from _one_by_one(batch, rows, wire, canonical)
    else:
        middle = len(rows) // 2
        yield from _parse(batch, rows[:middle], wire, canonical)
        yield from _parse(batch, rows[middle:], wire, canonical)


def _read(lines: list[bytes], wire: dict[str, Any], *, canonical: bool) -> pl.DataFrame | None:
    """All lines or None. Line breaks inside a record become spaces: one record is one line for the parser."""
    text = b"\n".join(lines)
    if text.count(b"\n") != len(lines) - 1 or b"\r" in text:
        text = b"\n".join(line.replace(b"\n", b" ").replace(b"\r", b" ") for line in lines)
    escaped = not canonical and (b"\\ud" in text or b"\\uD" in text)  # the search alone costs more than all
    if escaped and _LONE_SURROGATE.search(text):
        return None
    try:
        frame = pl.read_ndjson(io.BytesIO(text), schema=wire)
    except _PANICS:
        return None
    return frame if frame.height == len(lines) else None


def _one_by_one(
    batch: _Batch, rows: Sequence[int], wire: dict[str, Any], canonical: Canonical
) -> Iterator[pl.DataFrame]:
    kept, lines, invalid = [], [], []
    for row in rows:
        obj = _load(batch, row)
        if obj is None:
            continue
        clean, broken = canonical(obj)
        kept.append(row)
        lines.append(orjson.dumps(clean))
        invalid.append(broken or None)
    if not kept:
        return
    frame = _read(lines, wire, canonical=True)
    if frame is None:
        if len(kept) == 1:
            batch.reject(kept[0], RejectReason.NOT_JSON, "cannot be read by the typed parser")
        else:
            for row in kept:
                yield from _one_by_one(batch, [row], wire, canonical)
        return
    yield frame.with_columns(
        row=pl.Series(kept, dtype=pl.UInt32),
        invalid_features=pl.Series(invalid, dtype=pl.List(pl.String)),
    )


def _load(batch: _Batch, row: int) -> dict[str, Any] | None:
    try:
        obj = tolerant.load(batch.lines[row])
    except (ValueError, RecursionError) as exc:
        batch.reject(row, RejectReason.NOT_JSON, str(exc)[:200])
        return None
    if not isinstance(obj, dict):
        batch.reject(row, RejectReason.NOT_AN_OBJECT, f"a JSON {type(obj).__name__}")
        return None
    return obj


def _check(batch: _Batch, frame: pl.DataFrame, schema: ModelSchema, limits: Limits) -> pl.DataFrame:
    """Drop and record what breaks the contract; the first reason of each row counts."""
    outcome = "prediction" if batch.stream is Stream.PREDICTIONS else "label"
    missing = RejectReason.NO_PREDICTION if outcome == "prediction" else RejectReason.NO_LABEL
    earliest, latest = limits.now - limits.max_age, limits.now + limits.max_future
    if schema.task is Task.REGRESSION:
        wrong_outcome = representable(pl.col(outcome)).is_null()
    else:
        wrong_outcome = short(pl.col(outcome)).fill_null("") == ""
        frame = with_classes(frame, outcome, schema.classes)
    if batch.stream is Stream.LABELS:  # only a hint: an absurd one is no hint, not a reason to refuse the label
        hint = read_time("prediction_ts")
        frame = frame.with_columns(prediction_at=pl.when(hint.is_between(earliest, latest)).then(hint))
    frame = frame.with_columns(at=read_time("ts")).with_columns(
        why=pl.when(short(pl.col("prediction_id")).fill_null("") == "")
        .then(pl.lit(RejectReason.NO_ID.value))
        .when(pl.col("model").fill_null("") != schema.model)
        .then(pl.lit(RejectReason.UNKNOWN_MODEL.value))
        .when(pl.col("at").is_null())
        .then(pl.lit(RejectReason.NO_TIMESTAMP.value))
        .when(pl.col("at") < earliest)
        .then(pl.lit(RejectReason.TOO_OLD.value))
        .when(pl.col("at") > latest)
        .then(pl.lit(RejectReason.IN_FUTURE.value))
        .when(wrong_outcome)
        .then(pl.lit(missing.value))
    )
    if frame["why"].null_count() == frame.height:
        return frame.drop("why")
    bad = frame.filter(pl.col("why").is_not_null())
    for row, why, model, ts in bad.select("row", "why", "model", "ts").iter_rows():
        if why == RejectReason.UNKNOWN_MODEL.value:
            _reject_model(batch, [row], model)
        else:
            reason = RejectReason(why)
            batch.reject(row, reason, f"ts {ts!r}"[:120] if reason in _ABOUT_TIME else _ABOUT_TEXT.get(reason, ""))
    return frame.filter(pl.col("why").is_null()).drop("why")


_ABOUT_TIME = frozenset({RejectReason.NO_TIMESTAMP, RejectReason.TOO_OLD, RejectReason.IN_FUTURE})
_ABOUT_TEXT = {
    RejectReason.NO_ID: f"prediction_id: a text of 1 to {LONGEST_TEXT} bytes, or a number",
    RejectReason.NO_PREDICTION: f"prediction: a class of 1 to {LONGEST_TEXT} bytes; for a regression a finite number",
    RejectReason.NO_LABEL: f"label: a class of 1 to {LONGEST_TEXT} bytes; for a regression a finite number",
}


_FIELDS = {
    Stream.PREDICTIONS: {
        "prediction_id", "model", "model_version", "ts", "features", "prediction", "score", "latency_ms", "segment",
    },
    Stream.LABELS: {"prediction_id", "model", "ts", "label", "prediction_ts"},
}  # fmt: skip


def _lake_frame(batch: _Batch, frame: pl.DataFrame, schema: ModelSchema) -> pl.DataFrame:
    origins = batch.origins()
    if batch.stream is Stream.PREDICTIONS:
        frame = with_names(frame, schema)
    if frame.height != origins.height:
        origins = origins[frame["row"]]
    return frame.select(*lake_columns(batch.stream, schema)).hstack(origins)


def _unknown_fields(batch: _Batch, rows: list[int], schema: ModelSchema) -> int:
    known_features = {f.name for f in schema.features}
    count = 0
    for row in rows:
        try:
            obj = orjson.loads(batch.lines[row])
        except orjson.JSONDecodeError:
            continue
        count += len(obj.keys() - _FIELDS[batch.stream])
        features = obj.get("features")
        if batch.stream is Stream.PREDICTIONS and isinstance(features, dict):
            count += len(features.keys() - known_features)
    return count
