"""Recorded history as one file of rows in order of time, wherever it comes from.

Invariant: bounded memory: rows lie in a Parquet file sorted by `ts` and are read window by window. Each prediction is
there once, with its newest label and the time that label came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from monitor.base.errors import ConfigError
from monitor.base.kinds import Stream
from monitor.demo.world import World
from monitor.intake.event_columns import UTC_US
from monitor.intake.events import Limits, decode, empty_frame
from monitor.intake.sources.files import FileSettings, FileSource
from monitor.lake.join import first_predictions, last_labels
from monitor.lake.lake import Lake, Table
from monitor.rules.windows import window_start
from retrain.terms.schema import ModelSchema, Task

BATCH_ROWS = GROUP_ROWS = 50_000
PART_ROWS = 200_000
"""Rows that are joined and sorted at once."""
TABLE_BEGINS = datetime(2000, 1, 1, tzinfo=UTC)
"""When the first row of a table without times is said to have come."""


@dataclass(frozen=True)
class History:
    """`until`: windows that end later are not complete. `training`: labelled rows from before, that a first model may
    be trained on (tables only; `training_rows` counts those without a label too); a history without it has predictions
    recorded."""

    source: str
    schema: ModelSchema
    path: Path
    times: np.ndarray[Any, Any]
    until: datetime
    labelled: int
    training: pl.DataFrame | None = None
    training_rows: int = 0

    @property
    def rows(self) -> int:
        return len(self.times)

    @property
    def first(self) -> datetime:
        return _utc(self.times[0])

    @property
    def last(self) -> datetime:
        return _utc(self.times[-1])

    def time_of(self, row: int) -> datetime:
        """When a row came, by its number in the stream."""
        return _utc(self.times[row])

    @cached_property
    def label_times(self) -> np.ndarray[Any, Any]:
        """Per row, when its label came (datetime64, NaT: never)."""
        names = pl.scan_parquet(self.path).collect_schema().names()
        if "label_ts" not in names:
            return np.full(self.rows, np.datetime64("NaT"), dtype="datetime64[us]")
        return _numbers(pl.scan_parquet(self.path).select("label_ts").collect()["label_ts"])

    @cached_property
    def labels(self) -> np.ndarray[Any, Any]:
        """Per row, the label that came (number or text, None: never)."""
        kind = pl.Float64 if self.schema.task is Task.REGRESSION else pl.String
        column = pl.scan_parquet(self.path).select(pl.col("label").cast(kind)).collect()["label"]
        return np.array(column.to_list(), dtype=object)

    def slice(self, first: int, last: int) -> pl.DataFrame:
        """Rows by position, `last` exclusive."""
        return pl.scan_parquet(self.path).slice(first, last - first).collect()

    def between(self, start: datetime, end: datetime) -> pl.DataFrame:
        """Rows with `start` <= ts < `end`."""
        return self.slice(*self.positions(start, end))

    def positions(self, start: datetime, end: datetime) -> tuple[int, int]:
        a, b = np.searchsorted(self.times, [naive(start), naive(end)])
        return int(a), int(b)

    def windows(self, size: timedelta) -> Iterator[tuple[datetime, datetime]]:
        """Tumbling windows that hold rows and are complete, oldest first."""
        start = window_start(self.first, size)
        while start + size <= self.until:
            a, b = self.positions(start, start + size)
            if b > a:
                yield start, start + size
                start += size
            elif a < self.rows:
                start = window_start(_utc(self.times[a]), size)
            else:
                return


def from_lake(
    lake: Lake, schema: ModelSchema, since: str | None, until: str | None, lateness: timedelta, folder: Path
) -> History:
    """What the lake holds of a model between two days (`YYYY-MM-DD`, inclusive; None: all there is)."""
    model = schema.model
    days = lake.dates(Table.PREDICTIONS, model)
    if not days:
        raise ConfigError([f"{model}: the lake at {lake.uri} holds no predictions"])
    span = (since or days[-1], until or days[0])
    predictions = lake.scan(Table.PREDICTIONS, model, span)
    assert predictions is not None
    outcomes = lake.scan(Table.OUTCOMES, model, span)

    def labels(during: pl.Expr) -> pl.LazyFrame:
        if outcomes is None:
            return empty_frame(Stream.LABELS, schema).lazy()
        return outcomes.filter(during).select("prediction_id", "label", ts="label_ts")

    return _kept(predictions, labels, schema, f"lake, {span[0]} to {span[1]}", folder, lateness)


def from_events(events: Path, schema: ModelSchema, limits: Limits, lateness: timedelta, folder: Path) -> History:
    """A folder with `predictions/` and `labels/`, read by the daemon's own file source and decoder."""
    parts: dict[Stream, list[Path]] = {Stream.PREDICTIONS: [], Stream.LABELS: []}
    refused = 0
    source = FileSource(FileSettings(events, folder / "positions.db", max_message_bytes=limits.max_bytes))
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    try:
        while records := source.poll(0.0, BATCH_ROWS):
            for stream, mine in parts.items():
                found = decode(stream, [r for r in records if r.stream is stream], {schema.model: schema}, limits)
                refused += len(found.rejected)
                if (frame := found.frames.get(schema.model)) is not None:
                    mine.append(folder / "parts" / f"{stream.value}-{len(mine):06d}.parquet")
                    frame.write_parquet(mine[-1])
            source.commit({r.partition: r.next_offset for r in records})
    finally:
        source.close()
    if not parts[Stream.PREDICTIONS]:
        why = f"; {refused} records were refused" if refused else ""
        raise ConfigError([f"{events}: no prediction of model {schema.model!r} in its folder predictions{why}"])
    predictions = pl.scan_parquet(parts[Stream.PREDICTIONS], missing_columns="insert")
    labels = empty_frame(Stream.LABELS, schema).lazy()
    if parts[Stream.LABELS]:
        labels = pl.scan_parquet(parts[Stream.LABELS], missing_columns="insert")
    return _kept(predictions, lambda _during: labels, schema, str(events), folder, lateness)


def from_table(
    world: World, first_row: int, window_rows: int, label_delay: int, size: timedelta, folder: Path
) -> History:
    """A table in stream order: a window is `window_rows` rows, a label comes `label_delay` rows after its prediction.

    Rows before `first_row` are what the first model is trained on.
    """
    stream = world.frame[first_row:]
    stream = stream.head(stream.height // window_rows * window_rows)
    begins, step = window_start(TABLE_BEGINS, size), size / window_rows
    times = pl.Series("ts", _row_times(begins, size, window_rows, stream.height), dtype=UTC_US)
    ids = pl.Series("prediction_id", [f"p-{row:08d}" for row in range(first_row, first_row + stream.height)])
    rows = stream.with_columns(
        ids, times, label_ts=pl.when(pl.col("label").is_not_null()).then(times + step * label_delay)
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "history.parquet"
    rows.write_parquet(path, row_group_size=GROUP_ROWS)
    training = world.frame[:first_row].drop_nulls("label")
    before = pl.Series("ts", [begins - step * (training.height - n) for n in range(training.height)], dtype=UTC_US)
    training = training.with_columns(before, prediction_id=pl.Series([f"t-{n:08d}" for n in range(training.height)]))
    until = begins + size * (stream.height // window_rows)
    labelled = stream.height - stream["label"].null_count()
    return History(world.name, world.schema, path, _numbers(rows["ts"]), until, labelled, training, first_row)


def _row_times(begins: datetime, size: timedelta, window_rows: int, rows: int) -> list[datetime]:
    """Evenly spaced within each window, so that rounding never moves a row into its neighbour."""
    microseconds = size // timedelta(microseconds=1)
    return [
        begins + size * (row // window_rows) + timedelta(microseconds=row % window_rows * microseconds // window_rows)
        for row in range(rows)
    ]


LabelsOf = Callable[[pl.Expr], pl.LazyFrame]
"""A condition on `ts` of predictions -> their labels with the time they came as `ts`; several of one, and others among
them."""


def _kept(
    predictions: pl.LazyFrame, labels_of: LabelsOf, schema: ModelSchema, source: str, folder: Path, lateness: timedelta
) -> History:
    """Write the history part after part: but for a time and a hash per row, memory does not grow with it."""
    times = predictions.select("ts").collect()["ts"].sort()
    if not times.len():
        raise ConfigError([f"{source}: no predictions of {schema.model}"])
    starts = times.gather_every(PART_ROWS).unique(maintain_order=True).to_list()
    known = set(predictions.collect_schema().names())
    wanted = ["prediction_id", "model_version", "ts", "prediction", *schema.score_columns, *schema.feature_columns]
    wanted += [*schema.segment_columns, "latency_ms", "invalid_features"]
    columns = [c for c in wanted if c in known]
    folder.mkdir(parents=True, exist_ok=True)
    path, kept, labelled = folder / "history.parquet", [], 0
    seen = pl.Series(dtype=pl.UInt64)
    with ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for start, end in zip(starts, [*starts[1:], None], strict=True):
            during = pl.col("ts") >= start if end is None else pl.col("ts").is_between(start, end, closed="left")
            mine = predictions.filter(during & ~pl.col("prediction_id").hash().is_in(seen.implode()))
            part = _joined(mine.select(*columns, "source_offset"), labels_of(during))
            seen.append(part["prediction_id"].hash())
            kept.append(part["ts"])
            labelled += part.height - part["label"].null_count()
            rows = part.select(*columns, "label", "label_ts").to_arrow(compat_level=pl.CompatLevel.oldest())
            writer = writer or stack.enter_context(pq.ParquetWriter(path, rows.schema))
            writer.write_table(rows, row_group_size=GROUP_ROWS)
    numbers = _numbers(pl.concat(kept))
    return History(source, schema, path, numbers, _utc(numbers[-1]) - lateness, labelled)


def _joined(predictions: pl.LazyFrame, labels: pl.LazyFrame) -> pl.DataFrame:
    """Each prediction once, with its newest label, in order of time."""
    first = first_predictions(predictions.collect())
    mine = labels.join(first.lazy().select("prediction_id"), on="prediction_id", how="semi").collect(engine="streaming")
    newest = last_labels(mine).select("prediction_id", "label", label_ts="ts")
    return first.join(newest, on="prediction_id", how="left").sort("ts", "prediction_id")


def _numbers(times: pl.Series) -> np.ndarray[Any, Any]:
    return times.cast(UTC_US).dt.replace_time_zone(None).to_numpy()


def naive(time: datetime) -> np.datetime64:
    return np.datetime64(time.astimezone(UTC).replace(tzinfo=None), "us")


def _utc(number: Any) -> datetime:
    return number.astype("datetime64[us]").item().replace(tzinfo=UTC)  # type: ignore[no-any-return]
