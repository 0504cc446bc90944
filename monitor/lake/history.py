"""Measured windows as columns over time: what charts are drawn from.

Invariant: derived from the `measurements` table alone, and bounded: the overview keeps a few numbers per window of the
last days, and of one model at a time the detail is kept until its table changes.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from monitor.lake.lake import HistoryGone, Lake, Table, collect, day
from monitor.rules.measurement import Measure

SPAN = timedelta(days=30)
"""How far back the overview goes, and a detail at most."""

_WINDOW = ("model_version", "window_start", "window_end")
_SUBJECT = ("measure", "feature", "metric", "segment")
_REPEATED = ("kind", *_SUBJECT, "method", "reason")  # text that is kept as numbers
_COLUMNS = (*_WINDOW, "final", "measured_at", "value", "rows", "threshold", "drifted", "lower", "upper", "p_value")
_OVERVIEW: Mapping[str, pl.Expr] = {
    "value": pl.col("measure") == Measure.PERFORMANCE.value,
    "drop": pl.col("measure") == Measure.PERFORMANCE_DROP.value,
    "drift_share": pl.col("measure") == Measure.DRIFT_SHARE.value,
    "coverage": pl.col("measure") == Measure.LABEL_COVERAGE.value,
    "volume": pl.col("measure") == Measure.VOLUME.value,
}
_OF_PERFORMANCE = ("value", "lower", "upper", "drop", "final")
_COMPACT: Mapping[str, Any] = {
    "model_version": pl.String,
    "window_end": pl.Datetime("us", "UTC"),
    **dict.fromkeys(("value", "lower", "upper", "drop", "drift_share", "coverage", "volume"), pl.Float64),
    "final": pl.Boolean,
    "performed": pl.Boolean,
}


@dataclass(slots=True)
class _Kept:
    """What was read of one model, and what it was read for. `lock`: one reader of a model at a time."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    version: int | None = None
    metric: str = ""
    frame: pl.DataFrame = field(default_factory=pl.DataFrame)


class History:
    """One per daemon; safe to use from several threads. Raises TransientError while the lake is away."""

    def __init__(self, lake: Lake):
        self._lake = lake
        self._overviews: dict[str, _Kept] = {}
        self._details: dict[tuple[str, int], _Kept] = {}
        self._lock = threading.Lock()

    def overview(self, model: str, metric: str, now: datetime) -> pl.DataFrame:
        """A row per window of the last days, oldest first.

        Columns: model_version, window_end, value, lower, upper and drop (of `metric`, all rows; the newest
        measurement of each window), final, drift_share, coverage, volume.
        """
        with self._lock:
            kept = self._overviews.setdefault(model, _Kept())
        with kept.lock:
            newest = self._lake.version(Table.MEASUREMENTS, model)
            if (kept.version, kept.metric) != (newest, metric):
                rows = self._new_rows(model, kept, metric, newest)
                if rows is None:
                    kept.frame, rows = pl.DataFrame(schema=_COMPACT), self._all_rows(model, now)
                kept.frame = _compact(rows, metric, kept.frame, now)
                kept.version, kept.metric = newest, metric
            return kept.frame

    def _new_rows(self, model: str, kept: _Kept, metric: str, newest: int) -> pl.DataFrame | None:
        """What came since the last look; None when everything has to be read."""
        if kept.version is None or kept.metric != metric:
            return None
        try:
            rows = self._lake.new_rows(Table.MEASUREMENTS, model, kept.version, newest)
        except HistoryGone:
            return None
        return pl.DataFrame() if rows is None else rows

    def _all_rows(self, model: str, now: datetime) -> pl.DataFrame:
        lazy = self._lake.scan(Table.MEASUREMENTS, model, (day(now - SPAN), day(now)))
        return pl.DataFrame() if lazy is None else collect(lazy.filter(pl.any_horizontal(*_OVERVIEW.values())))

    def detail(self, model: str, days: int, now: datetime) -> pl.DataFrame:
        """Every measurement of the windows that ended in the last `days`, each by its newest value, oldest first."""
        with self._lock:
            if (model, days) not in self._details:
                self._details = {(model, days): _Kept()}
            kept = self._details[model, days]
        with kept.lock:
            newest = self._lake.version(Table.MEASUREMENTS, model)
            if kept.version != newest:
                kept.frame = self._read(model, now - min(timedelta(days=days), SPAN), now + timedelta(days=1))
                kept.version = newest
            return kept.frame

    def window(self, model: str, version: str, end: datetime, size: timedelta) -> pl.DataFrame:
        """Every measurement of one window, each by its newest value."""
        found = self._read(model, end, end, reach=size + timedelta(days=1))
        return found.filter(pl.col("model_version") == version) if found.height else found

    def _read(self, model: str, first: datetime, last: datetime, reach: timedelta = timedelta(days=1)) -> pl.DataFrame:
        """Windows that ended from `first` to `last` and began at most `reach` before."""
        lazy = self._lake.scan(Table.MEASUREMENTS, model, (day(first - reach), day(last)))
        if lazy is None:
            return pl.DataFrame()
        known = lazy.collect_schema().names()
        lean = lazy.filter(pl.col("window_end").is_between(first, last)).select(
            *(_optional(c, known) for c in _COLUMNS), *(pl.col(c).cast(pl.Categorical) for c in _REPEATED)
        )
        return _newest(collect(lean))


def _optional(column: str, known: list[str]) -> pl.Expr:
    """Tables written before intervals or p-values were measured have no such columns."""
    return pl.col(column) if column in known else pl.lit(None, dtype=pl.Float64).alias(column)


def _newest(frame: pl.DataFrame) -> pl.DataFrame:
    """A window is measured again as labels come: the newest measurement of each thing counts."""
    if not frame.height:
        return frame
    kept = frame.sort("measured_at").unique([*_WINDOW, "kind", *_SUBJECT], keep="last", maintain_order=True)
    return kept.sort("window_end", "model_version", maintain_order=True)


def _compact(rows: pl.DataFrame, metric: str, before: pl.DataFrame, now: datetime) -> pl.DataFrame:
    if not rows.height:
        return before
    overall = rows.with_columns(_optional(c, rows.columns) for c in ("lower", "upper")).filter(
        pl.any_horizontal(*_OVERVIEW.values()), pl.col("segment") == "", pl.col("metric").is_in(["", metric])
    )
    performance = _OVERVIEW["value"]
    windows = (
        overall.sort("measured_at")
        .group_by("model_version", "window_end")
        .agg(
            *(pl.col("value").filter(test).last().alias(name) for name, test in _OVERVIEW.items()),
            *(pl.col(c).filter(performance).last() for c in ("lower", "upper", "final")),
            performance.any().alias("performed"),
        )
        .select(*_COMPACT)
    )
    windows = _merged(before, windows) if before.height else windows
    return windows.filter(pl.col("window_end") >= now - SPAN).sort("window_end", "model_version")


def _merged(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Labels come later than drift: what `after` does not speak of stays as it was."""
    on = ("model_version", "window_end")
    both = before.join(after, on=list(on), how="full", coalesce=True, suffix="_new")
    again = pl.col("performed_new").fill_null(value=False)  # measured again, and be it as undefined
    merged = [
        pl.when(again).then(f"{c}_new").otherwise(c).alias(c)
        if c in _OF_PERFORMANCE
        else pl.coalesce(f"{c}_new", c).alias(c)
        for c in _COMPACT
        if c not in on
    ]
    return both.select(*on, *merged).select(*_COMPACT)
