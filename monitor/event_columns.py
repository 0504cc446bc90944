"""The columns of an event: as the JSON contract types them, and as the lake stores them."""

from __future__ import annotations

from typing import Any

import polars as pl

from monitor.sources import Stream
from retrain.schema import FeatureKind, ModelSchema, Task

UTC_US = pl.Datetime("us", "UTC")


def wire_schema(stream: Stream, schema: ModelSchema) -> dict[str, Any]:
    """Polars types of the JSON contract. A String column takes any scalar and spells it canonically."""
    outcome = pl.Float64 if schema.task is Task.REGRESSION else pl.String
    common = {"prediction_id": pl.String, "model": pl.String, "ts": pl.String}
    if stream is Stream.LABELS:
        return {**common, "label": outcome, "prediction_ts": pl.String}
    kinds = {FeatureKind.NUMBER: pl.Float64, FeatureKind.CATEGORY: pl.String, FeatureKind.BOOL: pl.Boolean}
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
            *_score_columns(schema),
            pl.col("latency_ms"),
            *(pl.col("segment").struct.field(s).alias(f"segment_{s}") for s in schema.segments),
            *(_finite(pl.col("features").struct.field(f.name), f.kind).alias(f.column) for f in schema.features),
            pl.col("invalid_features"),
        ]
    return columns


def _finite(column: pl.Expr, kind: FeatureKind) -> pl.Expr:
    return column if kind is not FeatureKind.NUMBER else column.fill_nan(None)


def _score_columns(schema: ModelSchema) -> list[pl.Expr]:
    match schema.task:
        case Task.BINARY:
            return [pl.col("score")]
        case Task.MULTICLASS:
            return [pl.col("score").struct.field(c).alias(f"score_{c}") for c in schema.classes]
        case Task.REGRESSION:
            return []
