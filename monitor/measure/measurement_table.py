"""Measurements as rows of the lake's `measurements` table, and back."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import polars as pl

from monitor.lake.lake import day
from monitor.lake.progress import DRIFT
from monitor.measure.worker import MeasureResult
from monitor.rules.measurement import Measure, Measurement, WindowKey

SCHEMA: dict[str, Any] = {
    "model_version": pl.String,
    "window_start": pl.Datetime("us", "UTC"),
    "window_end": pl.Datetime("us", "UTC"),
    "date": pl.String,
    "kind": pl.String,
    "final": pl.Boolean,
    "measured_at": pl.Datetime("us", "UTC"),
    "window_rows": pl.Int64,
    "labelled": pl.Int64,
    "coverage": pl.Float64,
    "reference": pl.String,
    "measure": pl.String,
    "feature": pl.String,
    "metric": pl.String,
    "segment": pl.String,
    "value": pl.Float64,
    "rows": pl.Int64,
    "method": pl.String,
    "threshold": pl.Float64,
    "drifted": pl.Boolean,
    "reason": pl.String,
    "lower": pl.Float64,
    "upper": pl.Float64,
    "p_value": pl.Float64,
    "standard_error": pl.Float64,
    "reference_error": pl.Float64,
}


def to_rows(result: MeasureResult, kind: str, final: bool, now: datetime) -> pl.DataFrame:
    key = result.key
    coverage = min(1.0, result.labelled / result.rows) if result.rows else 0.0
    window = (
        key.version, key.start, key.end, day(key.start), kind, final, now,
        result.rows, result.labelled, coverage, result.reference,
    )  # fmt: skip
    return pl.DataFrame(
        [
            (
                *window, m.measure.value, m.feature, m.metric, m.segment, m.value, m.rows, m.method,
                m.threshold, m.drifted, m.reason, *(m.interval or (None, None)),
                m.p_value, m.standard_error, m.reference_error,
            )
            for m in result.measurements
        ],
        schema=SCHEMA,
        orient="row",
    )  # fmt: skip


def windows_in(rows: pl.DataFrame | None, model: str) -> Iterable[tuple[WindowKey, list[Measurement]]]:
    """Measured windows that rules may act on, in event-time order; provisional performance is left out."""
    if rows is None:
        return
    known = pl.col("measure").is_in([m.value for m in Measure])  # a newer replica may measure more
    acting = rows.filter(known, (pl.col("kind") == DRIFT) | pl.col("final")).sort("window_end", "kind", "model_version")
    keys = ["model_version", "window_start", "window_end", "kind"]
    for (version, start, end, _kind), part in acting.group_by(keys, maintain_order=True):
        yield (
            WindowKey(model, str(version), start, end),
            [_measurement(r) for r in part.iter_rows(named=True)],
        )


def _measurement(row: dict[str, Any]) -> Measurement:
    fields = ("rows", "feature", "metric", "segment", "method", "value", "threshold", "drifted", "reason")
    given: dict[str, Any] = {f: row[f] for f in fields}
    given |= {f: row.get(f) for f in ("p_value", "standard_error", "reference_error")}  # rows of before have none
    interval = (row["lower"], row["upper"]) if row.get("lower") is not None else None
    return Measurement(measure=Measure(str(row["measure"])), interval=interval, **given)
