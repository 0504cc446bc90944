"""Reads labelled rows from a model's `outcomes` table, at one version of it.

Invariant: only the partitions that can hold the wanted rows are read; per prediction the label with the latest
`label_ts` counts, and a prediction without a usable label is left out. A prediction and its corrections lie in the
same `date` partition (that of the prediction's `ts`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from retrain.data.delta import open_delta
from retrain.terms.errors import RowsGone, TransientError
from retrain.terms.schema import LARGEST, ModelSchema, Task


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """`rows` sorted by (ts, prediction_id). `dropped` counts rows left out because their label is unusable."""

    rows: pl.DataFrame
    version: int
    predicate: str
    dropped: int


def open_outcomes(uri: str, version: int | None, storage_options: Mapping[str, str]) -> DeltaTable | None:
    """The table at `version` (the newest when None); None when nothing was ever written there. Raises TransientError,
    RowsGone when the table is there and that version of it is not."""
    try:
        try:
            return open_delta(uri, storage_options, version)
        except DeltaError as exc:
            if version is not None and open_delta(uri, storage_options).version() >= 0:
                raise RowsGone(f"version {version} of {uri}: {exc}") from exc
            raise
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as exc:
        raise TransientError(f"outcomes table: {exc}") from exc


def newest_prediction(uri: str, storage_options: Mapping[str, str]) -> datetime | None:
    """Event time of the newest row of a `predictions` table; from the log, no data is read. None without rows."""
    table = open_outcomes(uri, None, storage_options) if uri else None
    actions = pl.DataFrame() if table is None else pl.DataFrame(table.get_add_actions(flatten=True))
    newest = actions["max.ts"].max() if "max.ts" in actions.columns else None
    assert newest is None or isinstance(newest, datetime)
    return newest if newest is None or newest.tzinfo else newest.replace(tzinfo=UTC)


def newest_predictions(
    uri: str, schema: ModelSchema, rows: int, storage_options: Mapping[str, str]
) -> pl.DataFrame | None:
    """Feature columns of about the newest `rows` predictions, labelled or not, of the newest days; None without a
    table. Raises TransientError."""
    table = open_outcomes(uri, None, storage_options) if uri else None
    if table is None:
        return None
    taken, first = 0, ""
    for date_, count in partition_rows(table).items():
        first, taken = date_, taken + count
        if taken >= rows:
            break
    scan = pl.scan_delta(table)
    known = scan.collect_schema().names()
    wanted = [c for c in schema.feature_columns if c in known]
    try:
        return scan.filter(pl.col("date") >= first).select("ts", *wanted).sort("ts").tail(rows).collect()
    except (OSError, DeltaError, pl.exceptions.ComputeError) as exc:
        raise TransientError(f"predictions table: {exc}") from exc


def partition_rows(table: DeltaTable) -> dict[str, int]:
    """`date` -> rows stored (corrections included), newest first; from the log, no data is read."""
    actions = pl.DataFrame(table.get_add_actions(flatten=True))
    if actions.is_empty():
        return {}
    sums = actions.group_by(pl.col("partition.date").cast(pl.String)).agg(pl.col("num_records").sum())
    return dict(sorted(sums.iter_rows(), reverse=True))


def newest_labelled(
    table: DeltaTable,
    schema: ModelSchema,
    *,
    max_rows: int,
    span: timedelta | None = None,
    model_version: str | None = None,
    since: date | None = None,
    more_columns: Sequence[str] = (),
) -> LabelledRows:
    """The newest `max_rows` labelled rows by event time, none older than `span` before the newest of them; only of
    `model_version` and of partitions from `since` on when given. `columns_of(schema)` and `more_columns` are read, null
    where the table lacks one. Raises TransientError when the store is away."""
    stored = {d: n for d, n in partition_rows(table).items() if since is None or d >= since.isoformat()}
    dates = list(stored)
    wanted, taken, found, dropped = max_rows, 0, pl.DataFrame(), 0
    while True:
        rows = 0
        while taken < len(dates) and rows < wanted:
            rows += stored[dates[taken]]
            taken += 1
        first = dates[taken - 1] if taken else ""
        found, dropped = _read(table, schema, first, model_version, more_columns)
        enough = len(found) >= max_rows
        if not enough and found.height and span is not None and taken < len(dates):
            enough = date.fromisoformat(first) < (_last(found) - span).date()
        if enough or taken >= len(dates):
            break
        wanted = max(max_rows - len(found), rows)  # corrections and unusable labels: look further back, doubling
    predicate = f"date >= {first!r}" if first else "false"
    if model_version is not None:
        predicate += f" AND model_version = {model_version!r}"
    if span is not None and found.height:
        oldest = _last(found) - span
        found = found.filter(pl.col("ts") > oldest)
        predicate += f" AND ts > {oldest.isoformat()!r}"
    predicate += f"; newest {max_rows}"
    return LabelledRows(found.tail(max_rows), table.version(), predicate, dropped)


def columns_of(schema: ModelSchema) -> list[str]:
    """What a snapshot keeps of an outcome, in a fixed order."""
    fixed = ["prediction_id", "model_version", "ts", "label", "prediction"]
    return [*fixed, *schema.score_columns, *schema.segment_columns, *schema.feature_columns]


def digest(rows: pl.DataFrame) -> str:
    """sha256 over names, types, missing masks and plain little-endian values: the same whatever wrote the rows."""
    seen = hashlib.sha256()
    for column in rows.iter_columns():
        values = column.cast(pl.Int64) if column.dtype.is_temporal() else column
        seen.update(f"{column.name}:{_plain(column.dtype)}:{len(column)};".encode())
        seen.update(np.packbits(values.is_null().to_numpy()).tobytes())
        if values.dtype == pl.String:
            values = values.fill_null("")
            seen.update(values.str.len_bytes().cast(pl.Int64).to_numpy().astype("<i8").tobytes())
            seen.update("".join(values).encode())
        elif values.dtype == pl.Boolean:
            seen.update(np.packbits(values.fill_null(False).to_numpy()).tobytes())
        else:
            kind = "<i8" if values.dtype.is_integer() else "<f8"
            seen.update(values.fill_null(0).to_numpy().astype(kind).tobytes())
    return seen.hexdigest()


def _plain(dtype: pl.DataType) -> str:
    if dtype.is_integer() or dtype.is_temporal():
        return "integer"
    return "number" if dtype.is_float() else str(dtype)


def _read(
    table: DeltaTable, schema: ModelSchema, first: str, model_version: str | None, more_columns: Sequence[str]
) -> tuple[pl.DataFrame, int]:
    numeric = schema.task is Task.REGRESSION
    scan = pl.scan_delta(table)
    names = scan.collect_schema().names()
    wanted = [*columns_of(schema), *more_columns]
    if absent := [c for c in ("prediction_id", "ts", "label", *schema.feature_columns) if c not in names]:
        raise MissingColumns(f"the outcomes table has no column {', '.join(absent)}")
    query = scan.filter(pl.col("date") >= first) if first else scan.filter(pl.lit(False))
    if model_version is not None:
        query = query.filter(pl.col("model_version").cast(pl.String) == model_version)
    order = ["label_ts", "label"] if "label_ts" in names else ["label"]
    query = (
        query.select([c for c in [*wanted, "label_ts"] if c in names])
        .sort("prediction_id", *order, nulls_last=False)
        .unique("prediction_id", keep="last", maintain_order=True)
    )
    try:
        rows = query.collect()
    except (OSError, DeltaError, pl.exceptions.ComputeError) as exc:
        raise TransientError(f"outcomes table: {exc}") from exc
    rows = rows.with_columns(pl.lit(None, pl.String).alias(c) for c in wanted if c not in names)
    label = pl.col("label").cast(pl.Float64 if numeric else pl.String, strict=False)
    usable = label.is_finite() & (label.abs() <= LARGEST) if numeric else label.is_in(list(schema.classes))
    kept = rows.with_columns(label).filter(usable.fill_null(False)).sort("ts", "prediction_id").select(wanted)
    return kept, len(rows) - len(kept)


def _last(rows: pl.DataFrame) -> datetime:
    last = rows["ts"].max()
    assert isinstance(last, datetime)
    return last


class MissingColumns(Exception):
    """The table does not hold what the schema names: the job is rejected, saying so."""


def timestamps(rows: pl.DataFrame) -> dict[str, Any]:
    """First and last event time, ISO 8601."""
    if rows.is_empty():
        return {"first": None, "last": None}
    first, last = rows["ts"].min(), rows["ts"].max()
    return {"first": str(first), "last": str(last)}
