"""The columns of an event: as the JSON contract types them, and as the lake stores them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from monitor.base.kinds import Stream
from retrain.terms.names import shown_name
from retrain.terms.schema import LARGEST, Feature, FeatureKind, ModelSchema, Task

UTC_US = pl.Datetime("us", "UTC")


def wire_schema(stream: Stream, schema: ModelSchema) -> dict[str, Any]:
    """Polars types of the JSON contract. A String column takes any scalar and spells it canonically."""
    outcome = pl.Float64 if schema.task is Task.REGRESSION else pl.String
    common = {"prediction_id": pl.String, "model": pl.String, "ts": pl.String}
    if stream is Stream.LABELS:
        return {**common, "label": outcome, "prediction_ts": pl.String}
    kinds = {FeatureKind.NUMBER: pl.Float64, FeatureKind.CATEGORY: pl.String, FeatureKind.BOOL: pl.String}
    wire = {
        **common,
        "model_version": pl.String,
        "features": pl.Struct({f.name: kinds[f.kind] for f in schema.features}),
        "prediction": outcome,
        "latency_ms": pl.Float64,
    }
    if schema.task is Task.BINARY:
        wire["score"] = pl.Float64
    elif schema.task is Task.MULTICLASS:
        wire["score"] = pl.Struct(dict.fromkeys(schema.classes, pl.Float64))
    if schema.segments:
        wire["segment"] = pl.Struct(dict.fromkeys(schema.segments, pl.String))
    return wire


def read_time(column: str) -> pl.Expr:
    """RFC 3339 text or epoch milliseconds -> UTC microseconds; null where it is neither."""
    text = pl.col(column)
    epoch = text.str.extract(r"^(-?\d{1,15})(?:\.\d+)?$").cast(pl.Int64, strict=False)
    return pl.coalesce(
        text.str.to_datetime("%+", time_unit="us", strict=False).cast(UTC_US),
        (epoch * 1000).cast(UTC_US),
    )


def lake_columns(stream: Stream, schema: ModelSchema) -> list[pl.Expr]:
    """From a parsed frame with its times read as `at` and `prediction_at`, what the lake stores of `stream`."""
    columns = [
        pl.col("prediction_id"),
        pl.col("at").alias("ts"),
        pl.col("at").dt.strftime("%Y-%m-%d").alias("date"),
    ]
    if stream is Stream.LABELS:
        columns += [pl.col("label"), pl.col("prediction_at").alias("prediction_ts")]
    else:
        columns += [
            pl.col("model_version").fill_null("unknown"),
            pl.col("prediction"),
            *(representable(score) for score in _score_columns(schema)),
            pl.col("latency_ms"),
            *(pl.col("segment").struct.field(s).alias(f"segment_{s}") for s in schema.segments),
            *(_value(f).alias(f.column) for f in schema.features),
            _invalid(schema),
        ]
    return columns


LONGEST_TEXT = 1024
"""Bytes of an id, a class or a category; what is longer is none."""
TRUE, FALSE = ("true", "1", "1.0"), ("false", "0", "0.0")
"""What stands for a boolean, whatever its case."""


def representable(column: pl.Expr) -> pl.Expr:
    """NaN, infinite and larger than `LARGEST` become null."""
    return pl.when(column.abs() <= LARGEST).then(column)


def short(column: pl.Expr) -> pl.Expr:
    """Text longer than `LONGEST_TEXT` becomes null."""
    return pl.when(column.str.len_bytes() <= LONGEST_TEXT).then(column)


def _value(feature: Feature) -> pl.Expr:
    given = pl.col("features").struct.field(feature.name)
    match feature.kind:
        case FeatureKind.NUMBER:
            return representable(given)
        case FeatureKind.CATEGORY:
            return short(given)
        case FeatureKind.BOOL:
            spelled = given.str.to_lowercase()
            return pl.when(spelled.is_in(TRUE)).then(True).when(spelled.is_in(FALSE)).then(False)


def _invalid(schema: ModelSchema) -> pl.Expr:
    """The features that were given and cannot be read: those the parser has named, and those that become null here."""
    lost = [
        pl.when(pl.col("features").struct.field(f.name).is_not_null() & _value(f).is_null()).then(pl.lit(f.name))
        for f in schema.features
    ]
    known = pl.col("invalid_features")
    more = pl.concat_list(lost).list.drop_nulls()
    both = pl.concat_list([known.fill_null([]), more])
    return pl.when(pl.any_horizontal([name.is_not_null() for name in lost])).then(both).otherwise(known)


def with_names(frame: pl.DataFrame, schema: ModelSchema) -> pl.DataFrame:
    """Parsed predictions, with the text that keys and labels are made of as names
    (`retrain.terms.names.shown_name`)."""
    changed = [c for c in [_renamed(frame["model_version"], shown_name)] if c is not None]
    segments = {s: _renamed(frame["segment"].struct.field(s), shown_name) for s in schema.segments}
    if any(c is not None for c in segments.values()):
        fields = [pl.col("segment").struct.field(s) if c is None else pl.lit(c).alias(s) for s, c in segments.items()]
        frame = frame.with_columns(segment=pl.struct(fields))
    return frame.with_columns(changed) if changed else frame


def with_classes(frame: pl.DataFrame, outcome: str, classes: Sequence[str]) -> pl.DataFrame:
    """The column `outcome` with each value that stands for a declared class as that class; others stay."""
    meant: dict[str, str | None] = {}
    for name in classes:
        meant[_meaning(name)] = None if _meaning(name) in meant else name  # two classes with one meaning: neither
    found = _renamed(frame[outcome], lambda v: v if v in classes else meant.get(_meaning(v)) or v)
    return frame if found is None else frame.with_columns(found)


def _meaning(text: str) -> str:
    """The same for `true`, `1`, `1.0`, and for `false`, `0`, `0.0`; numbers by their value; other text is itself."""
    low = text.strip().lower()
    if low in TRUE or low in FALSE:
        return "1.0" if low in TRUE else "0.0"
    return str(float(low)) if re.fullmatch(r"[+-]?[0-9]{1,15}(\.[0-9]{1,15})?", low, re.ASCII) else text


def _renamed(column: pl.Series, name_of: Callable[[str], str]) -> pl.Series | None:
    """None when nothing changes. Looks at each distinct value once."""
    names = {v: name_of(v) for v in column.unique().drop_nulls()}
    changed = {v: name for v, name in names.items() if v != name}
    return column.replace(changed) if changed else None


def _score_columns(schema: ModelSchema) -> list[pl.Expr]:
    match schema.task:
        case Task.BINARY:
            return [pl.col("score")]
        case Task.MULTICLASS:
            return [pl.col("score").struct.field(c).alias(f"score_{c}") for c in schema.classes]
        case Task.REGRESSION:
            return []
