"""The model and the events that the benchmarks speak of: 10 features, about 400 bytes of JSON each.

Invariant: the same (first, count, start) gives the same bytes, and no two events share a prediction id.
"""

from __future__ import annotations

import io
from datetime import datetime, timedelta

import numpy as np
import polars as pl

from retrain.terms.schema import Feature, FeatureKind, ModelSchema, Task

MODEL, VERSION = "bench", "7"
NUMBERS = ("amount", "balance", "hour", "age_days", "velocity", "distance", "tenure", "risk")
CATEGORIES = {"channel": ("web", "app", "pos", "phone"), "country": ("de", "fr", "it", "es", "pl", "nl")}

SCHEMA = ModelSchema(
    MODEL,
    Task.BINARY,
    tuple(Feature(name, FeatureKind.NUMBER) for name in NUMBERS)
    + tuple(Feature(name, FeatureKind.CATEGORY) for name in CATEGORIES),
    classes=("0", "1"),
    positive="1",
)


def columns(first: int, count: int, start: datetime, span: timedelta) -> pl.DataFrame:
    """`count` predictions, numbered from `first`, evenly over `span` from `start` (aware UTC); one column a field."""
    rng = np.random.default_rng(first)
    noise = rng.bytes(12 * count).hex()  # ids that do not compress, as UUIDs do not
    step = span / count
    return pl.DataFrame(
        {
            "prediction_id": [f"{first + i:08x}{noise[24 * i : 24 * i + 24]}" for i in range(count)],
            "model": MODEL,
            "model_version": VERSION,
            "ts": pl.datetime_range(start, start + span - step / 2, step, time_unit="us", eager=True)[:count],
            **{name: rng.normal(50, 20, count).round(6) for name in NUMBERS},
            **{name: rng.choice(values, count) for name, values in CATEGORIES.items()},
            "prediction": rng.choice(["0", "1"], count),
            "score": rng.random(count).round(6),
            "latency_ms": rng.gamma(4, 3, count).round(3),
        }
    )


def predictions(first: int, count: int, start: datetime, span: timedelta) -> list[bytes]:
    """The same as JSON events."""
    events = columns(first, count, start, span).select(
        "prediction_id",
        "model",
        "model_version",
        pl.col("ts").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"),
        pl.struct(*NUMBERS, *CATEGORIES).alias("features"),
        "prediction",
        "score",
        "latency_ms",
    )
    text = io.BytesIO()
    events.write_ndjson(text)
    return text.getvalue().splitlines()
