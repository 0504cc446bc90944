"""Model quality on labelled rows, overall and per segment, and how much worse than the reference it is.

Invariant: scikit-learn's numbers, equal to Evidently's; an undefined one is None with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import assert_never

import polars as pl

from monitor.measure._evidently import quiet
from monitor.measure.performance._scored import Scored, Undefined, compute, recalls, scored_rows
from monitor.measure.performance.intervals import Z, interval, mean_of_shares
from monitor.measure.performance.scores import SCORES, Better, drop
from monitor.measure.reference import Reference, prepare
from monitor.rules.measurement import Measure, Measurement
from monitor.rules.significance import surprise
from retrain.terms.schema import ModelSchema

MAX_SEGMENTS = 50  # per segment column, the largest ones: what is measured must stay bounded


def measure_performance(
    outcomes: pl.DataFrame,
    reference: Reference,
    schema: ModelSchema,
    metrics: Sequence[str],
    segment_min_rows: int,
    error_inflation: float = 1.0,
) -> list[Measurement]:
    """`performance`, `performance_drop`, `performance_drop_ratio` per metric, of all rows (segment "") and each segment
    ("region=eu").

    Segments known to the reference are always there, so that their series do not vanish; with fewer than
    `segment_min_rows` scored rows they are undefined. Standard errors are those of independent rows times
    `error_inflation`.
    """
    segments = {**_segments(outcomes, schema), **dict.fromkeys(s for _, s in reference.performance if s)}
    found: list[Measurement] = []
    for segment in ("", *sorted(segments)):
        rows = scored_rows(_rows_of(outcomes, segment), schema)
        for metric in metrics:
            value = _value(metric, segment, rows, segment_min_rows)
            found += _measured(metric, segment, rows, value, reference, error_inflation)
    return found


def reference_performance(
    frame: pl.DataFrame, schema: ModelSchema, metrics: Sequence[str], segment_min_rows: int
) -> dict[tuple[str, str], float]:
    """(metric, segment) -> value on the reference's labelled rows; undefined ones are left out."""
    return {at: value for at, value, _ in _performances(frame, schema, metrics, segment_min_rows)}


def _performances(
    frame: pl.DataFrame, schema: ModelSchema, metrics: Sequence[str], segment_min_rows: int
) -> Iterator[tuple[tuple[str, str], float, Scored]]:
    for segment in ("", *_segments(frame, schema)):
        rows = scored_rows(_rows_of(frame, segment), schema)
        for metric in metrics:
            value = _value(metric, segment, rows, segment_min_rows)
            if isinstance(value, float):
                yield (metric, segment), value, rows


def prepare_reference(
    frame: pl.DataFrame,
    schema: ModelSchema,
    metrics: Sequence[str],
    segment_min_rows: int,
    *,
    max_rows: int = 10_000,
    seed: int = 0,
) -> Reference:
    """`monitor.measure.reference.prepare`, with the performance of all labelled rows given (before sampling)."""
    found = list(_performances(frame, schema, metrics, segment_min_rows))
    around = {at: _interval(at[0], rows, value) for at, value, rows in found}
    prepared = prepare(frame, schema, max_rows=max_rows, seed=seed, performance={at: v for at, v, _ in found})
    return replace(
        prepared,
        intervals={at: i for at, i in around.items() if i is not None},
        recalls={segment: recalls(rows) for segment, rows in {at[1]: rows for at, _, rows in found}.items()},
    )


def _measured(
    metric: str, segment: str, rows: Scored, value: float | str, reference: Reference, inflation: float
) -> list[Measurement]:
    at = (metric, segment)
    before = reference.performance.get(at)
    known = value if isinstance(value, float) else None
    around = _interval(metric, rows, known) if known is not None else None
    reason = value if isinstance(value, str) else ""
    no_drop = reason or ("the reference has no such performance" if before is None else "")

    def measured(measure: Measure, number: float | None, why: str) -> Measurement:
        return Measurement(measure, number, rows.count, metric=metric, segment=segment, reason=why)

    found = [replace(measured(Measure.PERFORMANCE, known, reason), interval=around)]
    if metric == "balanced_accuracy" and (common := _on_common_classes(rows, reference, segment)) is not None:
        ours, theirs, some = common
        worse = measured(Measure.PERFORMANCE_DROP, theirs[0] - ours[0], some)
        worse = with_errors(worse, metric, ours, theirs, inflation)
        return [*found, worse, _ratio(worse, theirs[0])]
    if known is None or before is None:
        return [*found, *(measured(m, None, no_drop) for m in _DROPS)]
    worse = measured(Measure.PERFORMANCE_DROP, drop(metric, known, before), "")
    if around is not None and (before_around := reference.intervals.get(at)) is not None:
        worse = with_errors(worse, metric, (known, around), (before, before_around), inflation)
    return [*found, worse, _ratio(worse, before)]


MIN_OF_CLASS = 10
"""Rows of a class below which its recall is not compared."""


def _on_common_classes(rows: Scored, reference: Reference, segment: str) -> tuple[Valued, Valued, str] | None:
    """The mean recall of the window and of the reference over the classes that the window holds.

    Where all classes occur that is balanced accuracy; where some do not, it is what can still be compared.
    None when there is none, or nothing is said of the reference's.
    """
    theirs = {c: found for c, found in reference.recalls.get(segment, {}).items() if found[1] >= MIN_OF_CLASS}
    ours = {c: found for c, found in recalls(rows).items() if found[1] >= MIN_OF_CLASS and c in theirs}
    if not ours or ("balanced_accuracy", segment) not in reference.performance:
        return None
    some = "" if len(ours) == len(theirs) else f"over {len(ours)} of {len(theirs)} classes: the others do not occur"
    return mean_of_shares(list(ours.values())), mean_of_shares([theirs[c] for c in ours]), some


_DROPS = (Measure.PERFORMANCE_DROP, Measure.PERFORMANCE_DROP_RATIO)
Valued = tuple[float, tuple[float, float]]
"""A value with its interval."""


def with_errors(worse: Measurement, metric: str, now: Valued, before: Valued, inflation: float = 1.0) -> Measurement:
    """A drop with what chance has to do with it: its standard errors, its interval and its p-value.

    The interval is that of a difference, from the intervals of both sides (MOVER: Zou and Donner 2008), so that it is
    as lopsided as they are; the standard errors are those of the side that matters when the drop is real.
    """
    assert worse.value is not None
    ours, theirs = _sides(metric, *now), _sides(metric, *before)
    ours, theirs = (ours[0] * inflation, ours[1] * inflation), (theirs[0] * inflation, theirs[1] * inflation)
    error, reference_error = ours[0] / Z, theirs[1] / Z
    around = worse.value - math.hypot(ours[0], theirs[1]), worse.value + math.hypot(ours[1], theirs[0])
    both = math.hypot(error, reference_error)
    p_value = surprise(worse.value / both) if both else None
    return replace(worse, interval=around, p_value=p_value, standard_error=error, reference_error=reference_error)


def _sides(metric: str, value: float, around: tuple[float, float]) -> tuple[float, float]:
    """How far the value reaches towards better, and towards worse."""
    low, high = value - around[0], around[1] - value
    match SCORES[metric].better:
        case Better.HIGHER:
            return high, low
        case Better.LOWER:
            return low, high
        case Better.NEAR_ZERO:
            return max(low, high), max(low, high)
        case unreachable:
            assert_never(unreachable)


def _ratio(worse: Measurement, before: float) -> Measurement:
    if not before or worse.value is None:
        why = "the reference's value is zero"
        return replace(
            worse, measure=Measure.PERFORMANCE_DROP_RATIO, value=None, reason=why, interval=None, p_value=None,
            standard_error=None, reference_error=None,
        )  # fmt: skip
    scale = abs(before)
    return replace(
        worse,
        measure=Measure.PERFORMANCE_DROP_RATIO,
        value=worse.value / scale,
        interval=None if worse.interval is None else (worse.interval[0] / scale, worse.interval[1] / scale),
        standard_error=None if worse.standard_error is None else worse.standard_error / scale,
        reference_error=None if worse.reference_error is None else worse.reference_error / scale,
    )


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
