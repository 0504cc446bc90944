"""Data quality of a window: missing, unseen, out-of-range, broken values, volume, latency.

Invariant: one pass of vectorized expressions over the window; needs neither Evidently nor pandas.
"""

from __future__ import annotations

import polars as pl

from monitor.measure.reference import Reference, ReferenceColumn, column
from monitor.rules.measurement import Measure, Measurement
from retrain.terms.schema import Feature, FeatureKind, ModelSchema

_QUANTILES = (
    (Measure.LATENCY_P50, 0.50),
    (Measure.LATENCY_P95, 0.95),
    (Measure.LATENCY_P99, 0.99),
)


def measure_quality(window: pl.DataFrame, reference: Reference, schema: ModelSchema) -> list[Measurement]:
    """Shares per feature, `volume`, and latency quantiles in seconds.

    `missing_share`: rows without a usable value (null, NaN, infinite) over rows. `invalid_share`: rows
    whose value was broken (named in `invalid_features`) or is infinite, over rows. `unseen_share`: labels
    the reference does not know, and `out_of_range_share`: numbers outside the reference's [min, max], both
    over the usable values.
    """
    rows = window.height
    invalid = _invalid_counts(window)
    typed = pl.DataFrame([column(window, f.column, f.kind) for f in schema.features])
    expressions = [e for f in schema.features for e in _counts(f, reference.features[f.name])]
    counts = typed.select(expressions).row(0, named=True) if expressions else {}
    found = [Measurement(Measure.VOLUME, float(rows), rows)]
    for feature in schema.features:
        found += _shares(feature, reference.features[feature.name], counts, invalid.get(feature.name, 0), rows)
    return found + _latency(window)


def _counts(feature: Feature, reference: ReferenceColumn) -> list[pl.Expr]:
    name = feature.column
    values = pl.col(name)
    if feature.kind is FeatureKind.NUMBER:
        fine = values.is_finite().fill_null(value=False)
        known = reference.low is not None and reference.high is not None
        outside = fine & ~values.is_between(pl.lit(reference.low), pl.lit(reference.high)) if known else ~fine
        infinite = values.is_infinite().fill_null(value=False)
        return [
            fine.sum().alias(f"{name}:usable"),
            infinite.sum().alias(f"{name}:infinite"),
            outside.sum().alias(f"{name}:strange"),
        ]
    unseen = values.is_not_null() & ~values.is_in(pl.lit(reference.categories).implode())
    return [values.count().alias(f"{name}:usable"), unseen.sum().alias(f"{name}:strange")]


def _shares(
    feature: Feature, reference: ReferenceColumn, counts: dict[str, int], invalid: int, rows: int
) -> list[Measurement]:
    name = feature.name
    strange = Measure.OUT_OF_RANGE_SHARE if feature.kind is FeatureKind.NUMBER else Measure.UNSEEN_SHARE
    usable = counts[f"{feature.column}:usable"]
    invalid += counts.get(f"{feature.column}:infinite", 0)
    found = [
        _share(Measure.MISSING_SHARE, name, rows - usable, rows, "the window has no rows"),
        _share(Measure.INVALID_SHARE, name, invalid, rows, "the window has no rows"),
    ]
    if reference.values.len() == 0:
        return [
            *found,
            Measurement(strange, None, usable, feature=name, reason="no usable value in the reference"),
        ]
    count = counts[f"{feature.column}:strange"]
    return [*found, _share(strange, name, count, usable, "no usable value in the window")]


def _share(measure: Measure, feature: str, count: int, rows: int, reason: str) -> Measurement:
    if rows == 0:
        return Measurement(measure, None, 0, feature=feature, reason=reason)
    return Measurement(measure, min(count / rows, 1.0), rows, feature=feature)


def _invalid_counts(window: pl.DataFrame) -> dict[str, int]:
    if "invalid_features" not in window.columns or window["invalid_features"].dtype != pl.List(pl.String):
        return {}
    names = window["invalid_features"].drop_nulls().list.unique().explode().drop_nulls()
    return dict(names.value_counts().iter_rows())


def _latency(window: pl.DataFrame) -> list[Measurement]:
    series = column(window, "latency_ms", FeatureKind.NUMBER)
    known = series.filter((series.is_finite() & (series >= 0)).fill_null(value=False)) / 1000
    if known.len() == 0:
        return [Measurement(m, None, 0, reason="no latency in the window") for m, _ in _QUANTILES]
    return [Measurement(m, known.quantile(q, interpolation="linear"), known.len()) for m, q in _QUANTILES]
