"""Measured windows as columns over time: what charts are drawn from.

Invariant: derived from the `measurements` table alone, and bounded: the overview keeps a few numbers per window of the
last days, a model's detail is read when asked for and kept until the table changes.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from monitor.lake import HistoryGone, Lake, Table, collect, day
from monitor.measurement import Measure

SPAN = timedelta(days=30)
"""How far back the overview goes, and a detail at most."""

_WINDOW = ["model_version", "window_start", "window_end"]
_SUBJECT = ["measure", "feature", "metric", "segment"]
_OVERVIEW: Mapping[str, pl.Expr] = {
    "value": pl.col("measure") == Measure.PERFORMANCE.value,
    "drop": pl.col("measure") == Measure.PERFORMANCE_DROP.value,
    "drift_share": pl.col("measure") == Measure.DRIFT_SHARE.value,
    "coverage": pl.col("measure") == Measure.LABEL_COVERAGE.value,
    "volume": pl.col("measure") == Measure.VOLUME.value,
}
_COLUMNS = [
    *_WINDOW, "kind", "final", "measured_at", "measure", "feature", "metric", "segment", "value", "rows", "method",
    "threshold", "drifted", "reason", "reference",
]  # fmt: skip


@dataclass(slots=True)
class _Kept:
    version: int
    frame: pl.DataFrame


class History:
    """One per daemon; safe to use from several threads."""

    def __init__(self, lake: Lake):
        self._lake = lake
        self._overviews: dict[str, _Kept] = {}
        self._details: dict[tuple[str, int], _Kept] = {}
        self._lock = threading.Lock()

    def overview(self, model: str, metric: str, now: datetime) -> pl.DataFrame:
        """A row per window of the last days, oldest first.

        Columns: model_version, window_end, value, lower, upper and drop (of `metric`, all rows; the newest
        measurement of each window), final, drift_share, coverage, volume. Raises TransientError.
        """
        with self._lock:
            kept = self._overviews.get(model)
            newest = self._lake.version(Table.MEASUREMENTS, model)
            if kept is None or kept.version != newest:
                rows = self._rows_since(model, kept, newest, now)
                kept = self._overviews[model] = _Kept(newest, _compact(rows, metric, kept, now))
            return kept.frame

    def _rows_since(self, model: str, kept: _Kept | None, newest: int, now: datetime) -> pl.DataFrame | None:
        if kept is not None:
            try:
                return self._lake.new_rows(Table.MEASUREMENTS, model, kept.version, newest)
            except HistoryGone:
                kept.frame = kept.frame.clear()
        lazy = self._lake.scan(Table.MEASUREMENTS, model, (day(now - SPAN), day(now)))
        return None if lazy is None else collect(lazy.filter(pl.any_horizontal(*_OVERVIEW.values())))

    def detail(self, model: str, days: int, now: datetime) -> pl.DataFrame:
        """Every measurement of the windows that ended in the last `days`, each by its newest value, oldest first."""
        with self._lock:
            newest = self._lake.version(Table.MEASUREMENTS, model)
            kept = self._details.get((model, days))
            if kept is None or kept.version != newest:
                since = now - min(timedelta(days=days), SPAN)
                lazy = self._lake.scan(Table.MEASUREMENTS, model, (day(since), day(now + timedelta(days=1))))
                frame = pl.DataFrame() if lazy is None else collect(lazy.filter(pl.col("window_end") >= since))
                if frame.height:
                    frame = _newest(_with_interval(frame))
                while len(self._details) > 3:
                    self._details.pop(next(iter(self._details)))
                kept = self._details[model, days] = _Kept(newest, frame)
            return kept.frame


def _with_interval(frame: pl.DataFrame) -> pl.DataFrame:
    """Tables written before intervals were measured have no such columns."""
    missing = [pl.lit(None, dtype=pl.Float64).alias(c) for c in ("lower", "upper") if c not in frame.columns]
    return frame.with_columns(missing).select(*_COLUMNS, "lower", "upper")


def _newest(frame: pl.DataFrame) -> pl.DataFrame:
    """A window is measured again as labels come: the newest measurement of each thing counts."""
    kept = frame.sort("measured_at").unique([*_WINDOW, "kind", *_SUBJECT], keep="last", maintain_order=True)
    return kept.sort("window_end", "model_version", maintain_order=True)


def _compact(rows: pl.DataFrame | None, metric: str, kept: _Kept | None, now: datetime) -> pl.DataFrame:
    before = kept.frame if kept is not None else None
    if rows is None or not rows.height:
        return before if before is not None else pl.DataFrame(schema=_COMPACT)
    overall = _with_interval(rows).filter(
        pl.any_horizontal(*_OVERVIEW.values()), pl.col("segment") == "", pl.col("metric").is_in(["", metric])
    )
    picked = {name: pl.col("value").filter(test).last().alias(name) for name, test in _OVERVIEW.items()}
    performance = _OVERVIEW["value"]
    windows = (
        overall.sort("measured_at")
        .group_by("model_version", "window_end")
        .agg(
            *picked.values(),
            *(pl.col(c).filter(performance).last() for c in ("lower", "upper")),
            pl.col("final").filter(pl.col("kind") == "performance").last(),
        )
        .select(*_COMPACT)
    )
    if before is not None and before.height:
        windows = _merged(before, windows)
    return windows.filter(pl.col("window_end") >= now - SPAN).sort("window_end", "model_version")


def _merged(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Labels come later than drift: what `after` does not speak of stays as it was."""
    on = ["model_version", "window_end"]
    both = before.join(after, on=on, how="full", coalesce=True, suffix="_new")
    values = [c for c in _COMPACT if c not in on]
    return both.select(*on, *(pl.coalesce(f"{c}_new", c).alias(c) for c in values)).select(*_COMPACT)


_COMPACT: dict[str, Any] = {
    "model_version": pl.String,
    "window_end": pl.Datetime("us", "UTC"),
    **dict.fromkeys(("value", "lower", "upper", "drop", "drift_share", "coverage", "volume"), pl.Float64),
    "final": pl.Boolean,
}
