"""Small valid things for tests: schemas, events, records, lake rows. Every argument has a sensible default."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from monitor.base.kinds import Stream
from monitor.intake.events import Decoded, Limits, decode
from monitor.intake.sources import Records
from monitor.lake.lake import Lake, Table
from retrain.terms.schema import Feature, FeatureKind, ModelSchema, Task

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
FEATURES = (
    Feature("amount", FeatureKind.NUMBER),
    Feature("country", FeatureKind.CATEGORY),
    Feature("is new (y/n)", FeatureKind.BOOL),
)
BINARY = ModelSchema("fraud", Task.BINARY, FEATURES, ("0", "1"), "1", ("region",))
MULTICLASS = ModelSchema("topic", Task.MULTICLASS, FEATURES, ("a", "b", "c"))
REGRESSION = ModelSchema("price", Task.REGRESSION, FEATURES)


def limits(now: datetime = NOW, max_bytes: int = 1 << 20) -> Limits:
    return Limits(now, max_age=timedelta(days=400), max_future=HOUR, max_bytes=max_bytes)


def prediction(**changes: Any) -> dict[str, Any]:
    """A valid prediction event; `changes` replace or add fields."""
    return {
        "prediction_id": "p1",
        "model": "fraud",
        "model_version": "3",
        "ts": "2026-03-02T11:00:00Z",
        "features": {"amount": 12.5, "country": "de", "is new (y/n)": True},
        "prediction": "1",
        "score": 0.7,
        "latency_ms": 3.5,
        "segment": {"region": "eu"},
    } | changes


def label(**changes: Any) -> dict[str, Any]:
    return {"prediction_id": "p1", "model": "fraud", "ts": "2026-03-02T11:30:00Z", "label": "0"} | changes


def message(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode()


def records(
    values: Sequence[bytes | None], stream: Stream = Stream.PREDICTIONS, partition: str = "t:0", start: int = 0
) -> Records:
    end = start + len(values)
    return Records(stream, partition, range(start, end), values, end)


def decoded(
    values: Sequence[bytes | None],
    stream: Stream = Stream.PREDICTIONS,
    schemas: Sequence[ModelSchema] = (BINARY,),
    bounds: Limits | None = None,
) -> Decoded:
    return decode(stream, [records(values, stream)], {s.model: s for s in schemas}, bounds or limits())


def prediction_rows(
    ids: Sequence[str],
    ts: datetime = NOW,
    *,
    partition: str = "t:0",
    start: int = 0,
    version: str = "1",
    **columns: Any,
) -> pl.DataFrame:
    """Lake rows of the predictions table with the columns that windows and joins look at."""
    n = len(ids)
    return pl.DataFrame(
        {
            "prediction_id": list(ids),
            "ts": [ts] * n,
            "date": [f"{ts:%Y-%m-%d}"] * n,
            "model_version": [version] * n,
            **{name: [value] * n for name, value in columns.items()},
            "source_partition": [partition] * n,
            "source_offset": list(range(start, start + n)),
        },
        schema_overrides={"ts": pl.Datetime("us", "UTC"), "source_offset": pl.Int64},
    )


def label_rows(
    labels: Sequence[tuple[str, str, datetime]],
    *,
    partition: str = "l:0",
    start: int = 0,
    prediction_ts: datetime | None = None,
) -> pl.DataFrame:
    """Lake rows of the labels table from (prediction_id, label, ts)."""
    n = len(labels)
    return pl.DataFrame(
        {
            "prediction_id": [i for i, _, _ in labels],
            "ts": [t for _, _, t in labels],
            "date": [f"{t:%Y-%m-%d}" for _, _, t in labels],
            "label": [text for _, text, _ in labels],
            "prediction_ts": [prediction_ts] * n,
            "source_partition": [partition] * n,
            "source_offset": list(range(start, start + n)),
        },
        schema_overrides={
            "ts": pl.Datetime("us", "UTC"),
            "prediction_ts": pl.Datetime("us", "UTC"),
            "source_offset": pl.Int64,
        },
    )


def stored(lake: Lake, table: Table, model: str = "fraud") -> pl.DataFrame:
    """All rows of a table, by id and origin; no rows when there is no table."""
    lazy = lake.scan(table, model)
    return pl.DataFrame() if lazy is None else lazy.collect()


def config(**models: Any) -> dict[str, Any]:
    """A minimal configuration document; `models` replace the one model."""
    one = {"task": "binary", "features": {"amount": "number", "country": "category"}}
    return {"models": models or {"fraud": one}}
