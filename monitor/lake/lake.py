"""The lake: Delta tables, appended to exactly once, read by what is new or by time.

Invariant: an append and the position it came from are one commit (Delta app transactions), so a replay after a crash
or by a replica that lost its partitions appends nothing twice. Committed rows are never changed in place; only
`forget` and retention delete.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import polars as pl
import pyarrow as pa
from deltalake import ColumnProperties, CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from monitor.base.errors import TransientError
from retrain.data.delta import address, open_delta

_CONFIGURATION = {
    "delta.enableChangeDataFeed": "true",  # lets `new_rows` read single versions
    "delta.checkpointInterval": "10",  # a client replays what came since the last one, at every look (default: 100)
}
_ATTEMPTS = 20
_DATA_OPERATIONS = ("WRITE", "CREATE TABLE")


class Table(StrEnum):
    PREDICTIONS = "predictions"
    LABELS = "labels"
    OUTCOMES = "outcomes"
    MEASUREMENTS = "measurements"
    DEAD_LETTERS = "dead_letters"


class HistoryGone(Exception):
    """The versions asked for have been cleaned away: read the table by time instead."""


class Conflict(Exception):
    """Another process advanced the same sequence first; nothing was written."""


class Lake:
    """One client of the lake. Not for use from several threads at once (`clone` it)."""

    def __init__(self, uri: str, options: Mapping[str, str] | None = None):
        self.uri = uri.rstrip("/")
        self.options = dict(options or {})
        self._tables: dict[str, DeltaTable] = {}
        self._lock = threading.RLock()

    def clone(self) -> Lake:
        return Lake(self.uri, self.options)

    def table_uri(self, table: Table, model: str = "") -> str:
        return "/".join(filter(None, (self.uri, model, table.value)))

    def append(self, table: Table, frame: pl.DataFrame, model: str = "") -> int:
        """Append rows that carry `source_partition` and `source_offset`, each at most once ever.

        Rows at or before the last offset appended for their partition are dropped. Returns the rows appended.
        Raises TransientError when the store is away or full.
        """
        for _ in range(_ATTEMPTS):
            delta = self._open(table, model, create=frame)
            last = {p: delta.transaction_version(p) for p in frame["source_partition"].unique().to_list()}
            fresh = _after(frame, last)
            if not fresh.height:
                return 0
            ends = fresh.group_by("source_partition").agg(pl.col("source_offset").max())
            try:
                self._write(delta, fresh, [Transaction(p, o) for p, o in ends.iter_rows()])
            except CommitFailedError:
                continue  # another replica appended from one of these partitions: look again at what is new
            return fresh.height
        raise TransientError(f"{self.table_uri(table, model)}: lost {_ATTEMPTS} commit races in a row")

    def append_next(
        self,
        table: Table,
        frame: pl.DataFrame,
        model: str,
        before: Mapping[str, int],
        positions: Mapping[str, int],
    ) -> None:
        """Append rows and move the table's own named positions (counted from 1) forward, in one commit.

        Raises Conflict, having written nothing, unless the table is exactly at `before` (0: never moved): somebody
        else did this work, or part of it.
        """
        delta = self._open(table, model, create=frame)
        current = {name: delta.transaction_version(name) or 0 for name in positions}
        if current != {name: before.get(name, 0) for name in positions}:
            raise Conflict(f"{table} of {model}: is at {current}, not at {dict(before)}")
        try:
            self._write(delta, frame, [Transaction(n, v) for n, v in positions.items()])
        except CommitFailedError as exc:
            raise Conflict(f"{table} of {model}: {exc}") from exc

    def position(self, table: Table, model: str, name: str) -> int | None:
        """The table's own named position, as left by `append_next`; None before the first."""
        delta = self._find(table, model)
        return delta.transaction_version(name) if delta else None

    def version(self, table: Table, model: str = "") -> int:
        """Newest version, -1 when the table does not exist yet."""
        delta = self._find(table, model)
        return delta.version() if delta else -1

    def new_rows(
        self, table: Table, model: str, since: int, until: int, columns: Sequence[str] | None = None
    ) -> pl.DataFrame | None:
        """Rows appended by versions `since` < v <= `until`; costs what was appended, not what is stored.

        None when there are none. Raises HistoryGone when those versions can no longer be read.
        """
        delta = self._find(table, model)
        if delta is None or until <= since:
            return None
        try:
            versions = _appending_versions(delta, since, until)
            parts = [
                _from_arrow(delta.load_cdf(a, b, columns=list(columns) if columns else None))
                for a, b in _runs(versions)
            ]
        except (DeltaError, OSError, pa.ArrowException) as exc:
            raise HistoryGone(f"{self.table_uri(table, model)}: versions {since + 1}..{until}: {exc}") from exc
        rows = pl.concat(parts, how="diagonal_relaxed") if parts else pl.DataFrame()
        rows = rows.drop("_change_type", "_commit_version", "_commit_timestamp", strict=False)
        return rows if rows.height else None

    def scan(
        self,
        table: Table,
        model: str = "",
        dates: tuple[str, str] | None = None,
        version: int | None = None,
    ) -> pl.LazyFrame | None:
        """Rows lazily, pruned to days `dates[0]..dates[1]` (inclusive, `YYYY-MM-DD`); None without a table."""
        delta = self._find(table, model)
        if delta is None:
            return None
        if version is not None and version != delta.version():
            delta = open_delta(self.table_uri(table, model), self.options, version)
        lazy = pl.scan_delta(delta)
        if dates is not None:
            lazy = lazy.filter(pl.col("date").is_between(pl.lit(dates[0]), pl.lit(dates[1])))
        return lazy

    def mismatches(self, table: Table, model: str, frame: pl.DataFrame) -> list[str]:
        """Columns that the table holds in another type than `frame`: rows of one do not fit into the other."""
        lazy = self.scan(table, model)
        stored = lazy.collect_schema() if lazy is not None else pl.Schema()
        return [
            f"column {name} is stored as {stored[name]}, the configuration makes it {dtype}"
            for name, dtype in frame.schema.items()
            if name in stored and stored[name] != dtype
        ]

    def count_outcomes(self, model: str, version: str, after: datetime) -> int:
        """Predictions of one model version, later than `after`, whose label is known; reads the days since."""
        lazy = self.scan(Table.OUTCOMES, model, dates=(day(after), LAST_DAY))
        if lazy is None:
            return 0
        wanted = (pl.col("model_version") == version) & (pl.col("ts") > after)
        return int(collect(lazy.filter(wanted).select(pl.col("prediction_id").n_unique())).item())

    def dates(self, table: Table, model: str) -> list[str]:
        """The days that hold rows, newest first."""
        delta = self._find(table, model)
        if delta is None:
            return []
        return sorted({p["date"] for p in delta.partitions() if p.get("date")}, reverse=True)

    def maintain(self, table: Table, model: str, keep_since: str, keep_versions_for: timedelta) -> dict[str, int]:
        """Expire days before `keep_since`, compact small files, vacuum old versions. Returns what was done."""
        delta = self._find(table, model)
        if delta is None:
            return {}
        expired = [d for d in self.dates(table, model) if d < keep_since]
        if expired:
            self._retry(lambda: delta.delete(f"date < '{keep_since}'"), delta)
        compacted = self._retry(lambda: delta.optimize.compact(), delta)
        hours = int(keep_versions_for.total_seconds() // 3600)
        removed = self._retry(
            lambda: delta.vacuum(retention_hours=hours, dry_run=False, enforce_retention_duration=False),
            delta,
        )
        self._retry(delta.create_checkpoint, delta)
        done = {"days_expired": len(expired), "files_vacuumed": len(removed or ())}
        return done | {"files_compacted": (compacted or {}).get("numFilesRemoved", 0)}

    def forget(self, model: str, prediction_ids: Sequence[str]) -> dict[str, int]:
        """Delete every row of these predictions from all tables. Returns rows deleted per table.

        The rows leave older versions when the next vacuum passes `lake.keep_versions_for`.
        """
        listed = ", ".join(map(_quoted, prediction_ids))
        deleted = {}
        for table in (Table.PREDICTIONS, Table.LABELS, Table.OUTCOMES):
            if (delta := self._find(table, model)) is not None:
                metrics = self._retry(lambda d=delta: d.delete(f"prediction_id IN ({listed})"), delta)  # type: ignore[misc]
                deleted[table.value] = int((metrics or {}).get("num_deleted_rows") or 0)
        return deleted

    def delete_dead_letters(self, partition: str, offsets: Sequence[int]) -> None:
        """Drop dead letters that have become events."""
        if (delta := self._find(Table.DEAD_LETTERS, "")) is not None:
            listed = ", ".join(map(str, offsets))
            predicate = f"source_partition = {_quoted(partition)} AND source_offset IN ({listed})"
            self._retry(lambda: delta.delete(predicate), delta)

    def _retry(self, action: Callable[[], Any], delta: DeltaTable) -> Any:
        for _ in range(_ATTEMPTS):
            try:
                return action()
            except CommitFailedError:
                delta.update_incremental()
            except (DeltaError, OSError) as exc:
                raise TransientError(f"{delta.table_uri}: {exc}") from exc
        raise TransientError(f"{delta.table_uri}: lost {_ATTEMPTS} commit races in a row")

    def _write(self, delta: DeltaTable, frame: pl.DataFrame, transactions: list[Transaction]) -> None:
        known = {f.name for f in delta.schema().fields}
        try:
            write_deltalake(
                delta,
                frame,
                mode="append",
                schema_mode="merge" if set(frame.columns) != known else None,  # features come and go
                writer_properties=_writer(frame.schema),
                commit_properties=CommitProperties(app_transactions=transactions),
            )
        except CommitFailedError:
            raise
        except (DeltaError, OSError) as exc:
            raise TransientError(f"{delta.table_uri}: {exc}") from exc

    def _find(self, table: Table, model: str) -> DeltaTable | None:
        uri = self.table_uri(table, model)
        with self._lock:
            try:
                if (delta := self._tables.get(uri)) is None:
                    delta = self._tables[uri] = open_delta(uri, self.options)
                else:
                    delta.update_incremental()
            except TableNotFoundError:
                return None
            except (DeltaError, OSError) as exc:
                self._tables.pop(uri, None)
                raise TransientError(f"{uri}: {exc}") from exc
            return delta

    def _open(self, table: Table, model: str, create: pl.DataFrame) -> DeltaTable:
        if (delta := self._find(table, model)) is not None:
            return delta
        uri = self.table_uri(table, model)
        arrow = create.clear().to_arrow(compat_level=pl.CompatLevel.oldest())
        try:
            DeltaTable.create(
                address(uri),
                arrow.schema,
                mode="ignore",
                partition_by=["date"],
                configuration=_CONFIGURATION,
                storage_options=self.options,
            )
        except CommitFailedError:
            pass  # created by another process at this moment
        except (DeltaError, OSError) as exc:
            raise TransientError(f"{uri}: {exc}") from exc
        if (delta := self._find(table, model)) is None:
            raise TransientError(f"{uri}: vanished right after it was created")
        return delta


def collect(lazy: pl.LazyFrame) -> pl.DataFrame:
    """The rows of a `scan`. Raises TransientError when the store is away or a file has just been vacuumed."""
    try:
        return lazy.collect()
    except (OSError, pl.exceptions.ComputeError) as exc:
        raise TransientError(f"lake: {exc}") from exc


def _writer(schema: Mapping[str, pl.DataType]) -> WriterProperties:
    """Fast to write: compaction packs tighter. Dictionaries serve text that repeats; elsewhere they cost double."""
    plain = ColumnProperties(dictionary_enabled=False)
    distinct = [c for c, t in schema.items() if t.is_numeric() or t.is_temporal() or c == "prediction_id"]
    return WriterProperties(compression="SNAPPY", column_properties=dict.fromkeys(distinct, plain))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _from_arrow(stream: Any) -> pl.DataFrame:
    return pl.DataFrame(pa.table(stream))


def _after(frame: pl.DataFrame, last: Mapping[str, int | None]) -> pl.DataFrame:
    """Rows behind the last append, each once: a source that began again may have delivered some twice."""
    frame = frame.unique(["source_partition", "source_offset"], keep="first", maintain_order=True)
    done = {p: v for p, v in last.items() if v is not None}
    if not done:
        return frame
    floor = pl.col("source_partition").replace_strict(done, default=-1, return_dtype=pl.Int64)
    return frame.filter(pl.col("source_offset") > floor)


def _appending_versions(delta: DeltaTable, since: int, until: int) -> list[int]:
    newest = delta.version()
    entries = {e["version"]: e["operation"] for e in delta.history(newest - since)}
    if missing := [v for v in range(since + 1, until + 1) if v not in entries]:
        raise DeltaError(f"no log entry for version {missing[0]}")
    return [v for v in range(since + 1, until + 1) if entries[v] in _DATA_OPERATIONS and v > 0]


def _runs(versions: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Consecutive numbers as (first, last) pairs."""
    start = end = None
    for v in versions:
        if end is not None and v == end + 1:
            end = v
            continue
        if start is not None and end is not None:
            yield start, end
        start = end = v
    if start is not None and end is not None:
        yield start, end


LAST_DAY = "9999-12-31"


def day(ts: datetime) -> str:
    """The lake's date partition of a time (aware UTC)."""
    return f"{ts:%Y-%m-%d}"
