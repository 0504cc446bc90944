"""Labels find their predictions in the lake, incrementally, and become outcomes.

Invariant: what has been joined is recorded in the outcomes table itself, in the commit that adds the rows, so a
restart or a second leader joins nothing twice. Costs what is new; a label is looked for newest day first.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import polars as pl

from monitor.base.errors import TransientError
from monitor.lake.join import join, last_labels, last_outcomes
from monitor.lake.lake import HistoryGone, Lake, Table, collect, day

LABELS, PREDICTIONS, ROWS = "labels", "predictions", "rows"
_SLACK = timedelta(days=1)
"""A label's `prediction_ts` may be a little off: the day before and after are looked through as well."""


class OutcomeWriter:
    """Joins one model's labels. `pending` holds labels that have not met their prediction yet.

    A label is looked for among all stored predictions when it comes, and then waits until predictions have got
    `max_delay` further than it.
    """

    def __init__(self, lake: Lake, model: str, max_delay: timedelta, on_orphans: Callable[[int], None]):
        self._lake = lake
        self._model = model
        self._max_delay = max_delay
        self._on_orphans = on_orphans
        self._at: dict[str, int] | None = None
        self._recorded: dict[str, int] = {}
        self.pending: pl.DataFrame | None = None

    def advance(self) -> int:
        """Join whatever is new. Returns the outcomes appended.

        Raises Conflict when another leader did so first (call `reset`), TransientError when the lake is away.
        """
        target = {
            LABELS: self._lake.version(Table.LABELS, self._model),
            PREDICTIONS: self._lake.version(Table.PREDICTIONS, self._model),
        }
        if target == self._at:
            return 0
        waiting = self.pending
        try:
            outcomes = self._new_outcomes(target)
            if outcomes.height:
                self._append(outcomes, target)
        except TransientError:
            self.pending = waiting  # those that have met their prediction will meet it again
            raise
        self._at = target
        self._expire()
        return outcomes.height

    def reset(self) -> None:
        """Forget what was read, so that the next `advance` starts from what is recorded."""
        self._at, self.pending = None, None

    def _new_outcomes(self, target: dict[str, int]) -> pl.DataFrame:
        try:
            found = self._incremental(self._at, target) if self._at else self._from_scratch(target)
        except HistoryGone:
            found = self._from_scratch(target)
        return pl.concat(found, how="diagonal_relaxed") if found else pl.DataFrame()

    def _append(self, outcomes: pl.DataFrame, target: dict[str, int]) -> None:
        rows = self._recorded.get(ROWS, 0) + outcomes.height
        after = {**_one_based(target), ROWS: rows}
        outcomes = outcomes.drop("source_partition", "source_offset")
        self._lake.append_next(Table.OUTCOMES, outcomes, self._model, self._recorded, after)
        self._recorded = after

    def _from_scratch(self, target: dict[str, int]) -> list[pl.DataFrame]:
        """Every label that may still wait or has not been looked at, and has no outcome at least as new."""
        self.pending = None
        names = (LABELS, PREDICTIONS, ROWS)
        self._recorded = {n: self._lake.position(Table.OUTCOMES, self._model, n) or 0 for n in names}
        days = self._lake.dates(Table.LABELS, self._model)
        if not days:
            return []
        lazy = self._lake.scan(Table.LABELS, self._model, (self._earliest(target), days[0]), target[LABELS])
        assert lazy is not None
        labels = last_labels(collect(lazy))
        if (outcomes := self._lake.scan(Table.OUTCOMES, self._model)) is not None:
            columns = ("prediction_id", pl.col("label_ts").alias("known_ts"), pl.col("label").alias("known"))
            known = last_outcomes(collect(outcomes.select("prediction_id", "label_ts", "label", "ts"))).select(columns)
            same_time = pl.col("known_ts") == pl.col("ts")
            newer = (
                pl.col("known_ts").is_null()
                | (pl.col("known_ts") < pl.col("ts"))
                | (same_time & (pl.col("known") < pl.col("label")))
            )
            labels = labels.join(known, on="prediction_id", how="left").filter(newer).drop("known_ts", "known")
        return self._search(labels)

    def _earliest(self, target: dict[str, int]) -> str:
        """The first day of labels that may still wait, or that came after the last recorded join."""
        waiting = day(horizon) if (horizon := self._horizon()) else ""
        try:
            unread = self._lake.new_rows(
                Table.LABELS, self._model, self._recorded[LABELS] - 1, target[LABELS], ["date"]
            )
        except HistoryGone:
            return ""
        unread_days: list[str] = unread["date"].unique().to_list() if unread is not None else []
        return min([waiting, *unread_days])

    def _horizon(self) -> datetime | None:
        """Labels from before have waited long enough; None while there are no predictions."""
        days = self._lake.dates(Table.PREDICTIONS, self._model)
        return datetime.fromisoformat(days[0]).replace(tzinfo=UTC) - self._max_delay if days else None

    def _incremental(self, at: dict[str, int], target: dict[str, int]) -> list[pl.DataFrame]:
        labels = self._lake.new_rows(Table.LABELS, self._model, at[LABELS], target[LABELS])
        found = self._matching_arrivals(at[PREDICTIONS], target[PREDICTIONS])
        return found if labels is None else found + self._search(last_labels(labels))

    def _matching_arrivals(self, since: int, until: int) -> list[pl.DataFrame]:
        """Outcomes of pending labels whose prediction has arrived since."""
        if self.pending is None or not self.pending.height:
            return []
        ids = self._lake.new_rows(Table.PREDICTIONS, self._model, since, until, ["prediction_id"])
        if ids is None or not ids.join(self.pending, on="prediction_id", how="semi").height:
            return []
        fresh = self._lake.new_rows(Table.PREDICTIONS, self._model, since, until)
        assert fresh is not None
        outcomes, self.pending = join(fresh, self.pending)
        return [outcomes]

    def _search(self, labels: pl.DataFrame) -> list[pl.DataFrame]:
        """Look for stored predictions of `labels`, newest day first; what is not found becomes pending."""
        remaining, found = labels, []
        if not labels.height:
            return []
        oldest = pl.coalesce(pl.col("prediction_ts") - _SLACK, pl.col("ts") - self._max_delay)
        newest = pl.coalesce("prediction_ts", "ts") + _SLACK
        first, last = labels.select(oldest.min().alias("a"), newest.max().alias("b")).row(0)
        for date in self._lake.dates(Table.PREDICTIONS, self._model):
            if date > day(last) or not remaining.height:
                continue
            if date < day(first):
                break
            lazy = self._lake.scan(Table.PREDICTIONS, self._model, (date, date))
            assert lazy is not None
            hits = collect(lazy.join(remaining.lazy().select("prediction_id"), on="prediction_id", how="semi"))
            if hits.height:
                outcomes, remaining = join(hits, remaining)
                found.append(outcomes)
        self._wait(remaining)
        return found

    def _wait(self, labels: pl.DataFrame) -> None:
        if labels.height:
            both = [self.pending, labels] if self.pending is not None else [labels]
            self.pending = last_labels(pl.concat(both, how="diagonal_relaxed"))

    def _expire(self) -> None:
        if self.pending is None or not self.pending.height or (horizon := self._horizon()) is None:
            return
        kept = self.pending.filter(pl.col("ts") >= horizon)
        if orphans := self.pending.height - kept.height:
            self._on_orphans(orphans)
            self.pending = kept


def _one_based(versions: dict[str, int]) -> dict[str, int]:
    """Table versions start at 0, positions at 1, so that -1 (no table) is a position too."""
    return {name: version + 1 for name, version in versions.items()}
