"""How far each window of one model has come, followed from the lake's new rows.

Invariant: derived state only. It can be dropped and rebuilt from the lake at any time, and counts every window that
holds rows, so no window is measured twice or forgotten over a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import polars as pl

from monitor.lake.lake import HistoryGone, Lake, Table, collect
from monitor.lake.live_versions import LiveVersions
from monitor.rules.measurement import WindowKey
from monitor.rules.windows import (
    EPOCH,
    Maturity,
    PartitionClock,
    WindowPolicy,
    WindowState,
    advance,
    observe,
    watermark,
)

DRIFT, PERFORMANCE = "drift", "performance"
_GROWTH = 0.1 - 1e-9  # a tenth, whatever floats make of it


@dataclass(frozen=True, slots=True)
class Followed:
    """Rows that came after their window was closed, and those of versions that are not measured."""

    late: int = 0
    others: int = 0


class Progress:
    """Open and closed windows of one model; final ones are only remembered by their key."""

    def __init__(self, lake: Lake, model: str, policy: WindowPolicy):
        self._lake = lake
        self._model = model
        self._policy = policy
        self.reset()

    def reset(self) -> None:
        self._at: tuple[int, int] | None = None
        self._clocks: dict[str, PartitionClock] = {}
        self.mark: datetime | None = None
        self.windows: dict[WindowKey, WindowState] = {}
        self.live = LiveVersions(self._policy.max_versions, self._policy.size)
        self.final: set[WindowKey] = set()
        self.drift_measured: dict[WindowKey, int] = {}
        self.coverage_measured: dict[WindowKey, float] = {}
        self.sequence = 0

    def follow(self, now: datetime, serving: Callable[[], Collection[str]] = frozenset) -> Followed:
        """Take in new predictions and outcomes, and move the watermark. `serving` is asked for the versions that serve
        when there are too many to measure."""
        target = (
            self._lake.version(Table.PREDICTIONS, self._model),
            self._lake.version(Table.OUTCOMES, self._model),
        )
        if self.live.crowded:
            self.live.favoured = frozenset(serving())
        try:
            followed = self._incremental(self._at, target, now) if self._at else self._rebuild(target, now)
        except HistoryGone:
            self.reset()
            followed = self._rebuild(target, now)
        self._at = target
        self.mark = watermark(self._clocks, self._policy, now, self.mark)
        self.windows = {k: advance(s, self.mark, self._policy) for k, s in self.windows.items()}
        return followed

    def to_measure(self) -> Iterator[tuple[WindowKey, str]]:
        """Windows that are due, oldest first, of those the largest: once for drift, and for performance when labels
        have come.

        Provisional performance is measured again only after coverage has grown by a tenth.
        """
        for key in sorted(self.windows, key=lambda k: (k.start, -self.windows[k].rows, k.version)):
            state = self.windows[key]
            if state.maturity is Maturity.OPEN:
                continue
            if key not in self.drift_measured:
                yield key, DRIFT
            known = self.coverage_measured.get(key, 0.0)
            if state.maturity is Maturity.FINAL or state.coverage - known > _GROWTH:
                yield key, PERFORMANCE

    def measured(self, key: WindowKey, kind: str, rows: int, labelled: int) -> bool:
        """Note a measurement with its exact counts. True when performance of this window is now final."""
        if kind == DRIFT:
            self.drift_measured[key] = rows
            self.windows[key] = replace(self.windows[key], rows=rows)
            return False
        exact = replace(self.windows[key], rows=rows, labelled=labelled, maturity=Maturity.CLOSED)
        exact = advance(exact, self.mark, self._policy)
        self.coverage_measured[key] = exact.coverage
        if exact.maturity is not Maturity.FINAL:
            self.windows[key] = exact
            return False
        del self.windows[key]
        self.final.add(key)
        return True

    def versions(self) -> dict[str, datetime]:
        """Model versions with the end of their newest window."""
        newest: dict[str, datetime] = {}
        for key in (*self.windows, *self.final):
            newest[key.version] = max(key.end, newest.get(key.version, EPOCH))
        return newest

    def _rebuild(self, target: tuple[int, int], now: datetime) -> Followed:
        self._read_measured()
        predictions = self._lake.scan(Table.PREDICTIONS, self._model, version=max(target[0], 0))
        if predictions is not None and target[0] >= 0:
            self._count_predictions(collect(_by_window(predictions, self._policy)), now, rebuilding=True)
        outcomes = self._lake.scan(Table.OUTCOMES, self._model, version=max(target[1], 0))
        if outcomes is not None and target[1] >= 0:
            self._count_outcomes(collect(_by_window(outcomes, self._policy)))
        return Followed()

    def _read_measured(self) -> None:
        self.sequence = self._lake.position(Table.MEASUREMENTS, self._model, "sequence") or 0
        lazy = self._lake.scan(Table.MEASUREMENTS, self._model)
        if lazy is None:
            return
        columns = ("model_version", "window_start", "window_end", "kind", "final", "coverage", "window_rows")
        for version, start, end, kind, final, coverage, rows in collect(lazy.select(columns).unique()).iter_rows():
            key = WindowKey(self._model, version, start, end)
            if kind == DRIFT:
                self.drift_measured[key] = rows
            elif final:
                self.final.add(key)
            else:
                self.coverage_measured[key] = max(coverage, self.coverage_measured.get(key, 0.0))

    def _incremental(self, at: tuple[int, int], target: tuple[int, int], now: datetime) -> Followed:
        followed = Followed()
        columns = ["prediction_id", "model_version", "ts", "source_partition"]
        fresh = self._lake.new_rows(Table.PREDICTIONS, self._model, at[0], target[0], columns)
        if fresh is not None:
            followed = self._count_predictions(_by_window(fresh.lazy(), self._policy).collect(), now, rebuilding=False)
        labelled = self._lake.new_rows(Table.OUTCOMES, self._model, at[1], target[1], columns[:3])
        if labelled is not None:
            self._count_outcomes(_by_window(labelled.lazy(), self._policy).collect())
        return followed

    def _count_predictions(self, counts: pl.DataFrame, now: datetime, *, rebuilding: bool) -> Followed:
        late, others = 0, 0
        for version, start, rows in counts.select("model_version", "start", "rows").iter_rows():
            self.live.observe(version, start, rows)
        self.live.settle()
        for key, row in self._keyed(counts):
            if key.version not in self.live:
                others += row["rows"]
                continue
            closed = key in self.final or (not rebuilding and self._closed(key))
            late += row["rows"] if closed else 0
            if closed and (key in self.final or key in self.windows):
                continue
            state = self.windows.get(key, WindowState(key))  # a stranger that comes late is measured all the same
            self.windows[key] = replace(state, rows=state.rows + row["rows"])
        seen = [(r["source_partition"], r["newest"]) for r in counts.iter_rows(named=True)]
        self._clocks = observe(self._clocks, seen, now)
        return Followed(late, others)

    def _closed(self, key: WindowKey) -> bool:
        """Closed as of the last look; a stranger that would be closed at once is late as well."""
        state = self.windows.get(key)
        return state.maturity is not Maturity.OPEN if state else bool(self.mark and key.end <= self.mark)

    def _count_outcomes(self, counts: pl.DataFrame) -> None:
        for key, row in self._keyed(counts):
            if (state := self.windows.get(key)) is not None:
                self.windows[key] = replace(state, labelled=state.labelled + row["rows"])

    def _keyed(self, counts: pl.DataFrame) -> Iterator[tuple[WindowKey, dict[str, Any]]]:
        for row in counts.iter_rows(named=True):
            start = row["start"]
            yield WindowKey(self._model, row["model_version"], start, start + self._policy.size), row


def _by_window(rows: pl.LazyFrame, policy: WindowPolicy) -> pl.LazyFrame:
    """Rows and newest event time per version, window (and source partition, where there is one)."""
    size = int(policy.size.total_seconds() * 1_000_000)
    ts = pl.col("ts").dt.epoch("us")
    start = (ts // size * size).cast(pl.Datetime("us", "UTC"))
    groups = ["model_version", "start"]
    if "source_partition" in rows.collect_schema().names():
        groups.append("source_partition")
    return (
        rows.with_columns(start=start)
        .group_by(groups)
        .agg(rows=pl.col("prediction_id").n_unique(), newest=pl.col("ts").max())
        .sort("start", "model_version")
    )
