"""Model quality on labelled rows, overall and per segment, and how much worse than the reference it is.

Invariant: scikit-learn's numbers, equal to Evidently's; an undefined one is None with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import polars as pl

from monitor.measure._evidently import quiet
from monitor.measure._scored import Scored, Undefined, compute, scored_rows
from monitor.measure.intervals import interval
from monitor.measure.scores import drop
from monitor.measurement import Measure, Measurement
from monitor.reference import Reference, prepare
from retrain.schema import ModelSchema

MAX_SEGMENTS = 50  # per segment column, the largest ones: what is measured must stay bounded


def measure_performance(
    outcomes: pl.DataFrame,
    reference: Reference,
    schema: ModelSchema,
    metrics: Sequence[str],
    segment_min_rows: int,
) -> list[Measurement]:
    """`performance`, `performance_drop`, `performance_drop_ratio` per metric, of all rows (segment "") and each segment
    ("region=eu").

    Segments known to the reference are always there, so that their series do not vanish; with fewer than
    `segment_min_rows` scored rows they are undefined.
    """
    segments = {**_segments(outcomes, schema), **dict.fromkeys(s for _, s in reference.performance if s)}
    found: list[Measurement] = []
    for segment in ("", *sorted(segments)):
        rows = scored_rows(_rows_of(outcomes, segment), schema)
        for metric in metrics:
            found += _measured(metric, segment, rows, reference.performance, segment_min_rows)
    return found


def reference_performance(
    frame: pl.DataFrame, schema: ModelSchema, metrics: Sequence[str], segment_min_rows: int
) -> dict[tuple[str, str], float]:
    """(metric, segment) -> value on the reference's labelled rows; undefined ones are left out."""
    found: dict[tuple[str, str], float] = {}
    for segment in ("", *_segments(frame, schema)):
        rows = scored_rows(_rows_of(frame, segment), schema)
        for metric in metrics:
            value = _value(metric, segment, rows, segment_min_rows)
            if isinstance(value, float):
                found[metric, segment] = value
    return found


def prepare_reference(
    frame: pl.DataFrame,
    schema: ModelSchema,
    metrics: Sequence[str],
    segment_min_rows: int,
    *,
    max_rows: int = 10_000,
    seed: int = 0,
) -> Reference:
    """`monitor.reference.prepare`, with the performance of all labelled rows given (before sampling)."""
    performance = reference_performance(frame, schema, metrics, segment_min_rows)
    return prepare(frame, schema, max_rows=max_rows, seed=seed, performance=performance)


def _measured(
    metric: str,
    segment: str,
    rows: Scored,
    reference: Mapping[tuple[str, str], float],
    segment_min_rows: int,
) -> list[Measurement]:
    value = _value(metric, segment, rows, segment_min_rows)
    before = reference.get((metric, segment))
    known = value if isinstance(value, float) else None
    around = _interval(metric, rows, known) if known is not None else None
    reason = value if isinstance(value, str) else ""
    worse = None if known is None or before is None else drop(metric, known, before)
    ratio = None if worse is None or not before else worse / abs(before)
    no_drop = reason or ("the reference has no such performance" if before is None else "")
    no_ratio = no_drop or ("the reference's value is zero" if ratio is None else "")

    def measured(measure: Measure, number: float | None, why: str) -> Measurement:
        return Measurement(measure, number, rows.count, metric=metric, segment=segment, reason=why)

    return [
        replace(measured(Measure.PERFORMANCE, known, reason), interval=around),
        measured(Measure.PERFORMANCE_DROP, worse, no_drop),
        measured(Measure.PERFORMANCE_DROP_RATIO, ratio, no_ratio),
    ]


def _interval(metric: str, rows: Scored, value: float) -> tuple[float, float] | None:
    try:
        with quiet():
            return interval(metric, rows, value)
    except (ValueError, ArithmeticError):
        return None


def _value(metric: str, segment: str, rows: Scored, segment_min_rows: int) -> float | str:
    """The value, or why there is none."""
    if rows.count == 0:
        return "no labelled rows"
    if segment and rows.count < segment_min_rows:
        return f"{rows.count} labelled rows, fewer than {segment_min_rows}"
    try:
        with quiet():
            value = compute(metric, rows)
    except Undefined as exc:
        return str(exc)
    except (ValueError, ArithmeticError) as exc:
        return f"{metric} failed: {exc}"[:300]
    return value if math.isfinite(value) else f"{metric} is undefined on these rows"


def _segments(frame: pl.DataFrame, schema: ModelSchema) -> dict[str, None]:
    names: dict[str, None] = {}
    for segment, name in zip(schema.segments, schema.segment_columns, strict=True):
        if name in frame.columns:
            counts = (
                frame[name].drop_nulls().cast(pl.String).value_counts().sort(["count", name], descending=[True, False])
            )
            names |= dict.fromkeys(f"{segment}={value}" for value in counts[name].head(MAX_SEGMENTS))
    return names


def _rows_of(frame: pl.DataFrame, segment: str) -> pl.DataFrame:
    if not segment:
        return frame
    name, _, value = segment.partition("=")
    name = f"segment_{name}"
    if name not in frame.columns:
        return frame.clear()
    return frame.filter(pl.col(name).cast(pl.String) == value)
