"""The rows of the demo: a small made-up payment-fraud world, or any recorded table.

Invariant: pure and seeded; row order is stream order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from monitor.measure.reference import kind_of
from monitor.start.target import UnfitTable, task_of
from retrain.terms.schema import Feature, FeatureKind, ModelSchema, Task


@dataclass(frozen=True, slots=True)
class World:
    """`frame`: one row per prediction in lake columns (`feature_*`, `segment_*`, `label`).

    `label` is null where the truth never became known. `drift_at` is the row where the world is known to change.
    """

    name: str
    frame: pl.DataFrame
    schema: ModelSchema
    metric: str
    notes: tuple[str, ...] = ()
    drift_at: int | None = None


def invented(rows: int = 9000, drift_at: int = 4800, seed: int = 7) -> World:
    """Card payments. At `drift_at` fraud moves from night-time transfers abroad to small daytime web payments."""
    rng = np.random.default_rng(seed)
    after = np.arange(rows) >= drift_at
    amount = rng.lognormal(3.4 - 0.7 * after, 0.9)
    hour = rng.integers(0, 24, rows)
    age = rng.gamma(2.0, 400.0 - 150.0 * after, rows)
    recent = rng.poisson(2.0 + 1.5 * after, rows)
    channel = np.where(rng.random(rows) < 0.35 + 0.3 * after, "web", np.where(rng.random(rows) < 0.6, "card", "wire"))
    country = rng.choice(["de", "fr", "pl", "us"], rows, p=[0.5, 0.2, 0.2, 0.1])
    night = ((hour < 6) | (hour > 21)).astype(float)
    old_way = 1.8 * night + 1.6 * (channel == "wire") + 1.2 * (np.log(amount) - 3.4) + 0.8 * (country == "us") - 2.4
    new_way = 2.4 * (channel == "web") - 1.3 * (np.log(amount) - 2.7) + 0.5 * (recent - 3.5) - 1.2 * night - 2.2
    fraud = rng.random(rows) < 1 / (1 + np.exp(-1.6 * np.where(after, new_way, old_way)))
    missing = rng.random(rows) < 0.03
    frame = pl.DataFrame(
        {
            "feature_amount": amount,
            "feature_hour": hour.astype(float),
            "feature_account_age_days": pl.Series(np.where(missing, np.nan, age)).fill_nan(None),
            "feature_recent_payments": recent.astype(float),
            "feature_channel": channel,
            "feature_country": country,
            "segment_country": country,
            "label": np.where(fraud, "1", "0"),
        }
    )
    kinds = dict.fromkeys(("amount", "hour", "account_age_days", "recent_payments"), FeatureKind.NUMBER)
    kinds |= dict.fromkeys(("channel", "country"), FeatureKind.CATEGORY)
    schema = ModelSchema(
        model="fraud",
        task=Task.BINARY,
        features=tuple(Feature(n, k) for n, k in kinds.items()),
        classes=("0", "1"),
        positive="1",
        segments=("country",),
    )
    return World("payments", frame, schema, "balanced_accuracy", drift_at=drift_at)


def recorded(path: Path, target: str, drop: tuple[str, ...]) -> World:
    """A CSV (also .gz) or Parquet table; classification or regression is found from the target column."""
    frame = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema_length=None)
    for column in (target, *drop):
        if column not in frame.columns:
            raise UnfitTable(f"{path.name} has no column {column!r}; it has {', '.join(frame.columns)}")
    task, label = task_of(frame[target])
    features, columns, notes = [], [], []
    for series in frame.drop(target, *drop):
        kind = kind_of(series.dtype)
        if kind is None or series.null_count() == series.len():
            notes.append(f"column {series.name!r} ({series.dtype}) is no feature: left out")
            continue
        feature = Feature(series.name, kind)
        features.append(feature)
        columns.append(_typed(series, kind).alias(feature.column))
    if not features:
        raise UnfitTable(f"{path.name}: no feature column is left")
    classes = tuple(sorted(label.drop_nulls().unique().to_list())) if task is not Task.REGRESSION else ()
    name = path.name.split(".")[0]
    schema = ModelSchema(
        model=name[:60],
        task=task,
        features=tuple(features),
        classes=classes,
        positive=classes[-1] if task is Task.BINARY else None,
    )
    metric = "mae" if task is Task.REGRESSION else "balanced_accuracy"
    return World(name, pl.DataFrame([*columns, label.alias("label")]), schema, metric, tuple(notes))


def _typed(series: pl.Series, kind: FeatureKind) -> pl.Series:
    match kind:
        case FeatureKind.NUMBER:
            return series.cast(pl.Float64).fill_nan(None)
        case FeatureKind.CATEGORY:
            return series.cast(pl.String)
        case FeatureKind.BOOL:
            return series
