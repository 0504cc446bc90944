"""Reading recorded tables as people have them: gaps written as words, times as text or epochs.

Invariant: pure but for `read_table`; rows and their order stay as they are.
"""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl

from monitor.base.errors import ConfigError

_EMPTY_WORDS = ("", "NA", "N/A", "n/a", "NULL", "null", "NaN", "nan", "None", "?", "-")
_TIME_NAMES = re.compile(r"(^|_)(ts|time|timestamp|epoch|date|datetime|at)$", re.I)
_SECONDS = (946_684_800, 4_102_444_800)  # the years 2000 to 2100


def read_table(path: Path) -> pl.DataFrame:
    """A Parquet, CSV or NDJSON file (the latter two also .gz). Raises ConfigError."""
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    try:
        match suffix:
            case ".parquet":
                return pl.read_parquet(path)
            case ".csv":
                return pl.read_csv(path, infer_schema_length=None)
            case ".ndjson" | ".jsonl":
                return pl.read_ndjson(path, infer_schema_length=None)
    except OSError as exc:
        raise ConfigError([f"{path}: {exc.strerror or exc}"]) from exc
    except pl.exceptions.PolarsError as exc:
        raise ConfigError([f"{path}: cannot be read: {str(exc).splitlines()[0]}"]) from exc
    raise ConfigError([f"{path}: must end in .parquet, .csv, .ndjson or .jsonl, the last three also with .gz"])


def finite(series: pl.Series) -> pl.Series:
    """Null where a number is not finite."""
    if not series.dtype.is_float():
        return series
    return pl.select(pl.when(series.is_finite()).then(series).otherwise(None).alias(series.name)).to_series()


def without_gap_words(frame: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, str]]:
    """Text columns that are numbers but for words such as "NA" become numbers; NaN becomes null."""
    notes, columns = {}, []
    for series in frame:
        if series.dtype == pl.String and (found := _numbers(series)) is not None:
            notes[series.name] = f"text such as {found[1]!r} stands for a missing number"
            series = found[0]
        columns.append(series.fill_nan(None) if series.dtype.is_float() else series)
    return pl.DataFrame(columns), notes


def _numbers(series: pl.Series) -> tuple[pl.Series, str] | None:
    word = series.is_in(list(_EMPTY_WORDS))
    values = series.filter(~word.fill_null(True))
    if not word.any() or not values.len() or values.head(100).cast(pl.Float64, strict=False).null_count():
        return None
    if values.cast(pl.Float64, strict=False).null_count():
        return None
    return series.cast(pl.Float64, strict=False).alias(series.name), str(series.filter(word).drop_nulls()[0])


def as_time(series: pl.Series, *, asked: bool = False) -> pl.Series | None:
    """The column as UTC times; None when it holds none. Whole numbers are epochs only when the name says so."""
    dtype = series.dtype
    if dtype == pl.Date:
        return series.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    if isinstance(dtype, pl.Datetime):
        aware = series.dt.replace_time_zone("UTC") if dtype.time_zone is None else series.dt.convert_time_zone("UTC")
        return aware.dt.cast_time_unit("us")
    if dtype == pl.String:
        return _read_times(series)
    if dtype.is_numeric() and (asked or _TIME_NAMES.search(series.name)):
        known = series.drop_nulls()
        if not known.len() or (known.dtype.is_float() and not asked and not (known == known.round()).all()):
            return None
        low, high = float(known.min()), float(known.max())  # type: ignore[arg-type]
        for per_second in (1, 10**3, 10**6, 10**9):
            if _SECONDS[0] * per_second <= low and high <= _SECONDS[1] * per_second:
                micros = (series.cast(pl.Float64) * (1e6 / per_second)).round().cast(pl.Int64)
                return micros.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return None


def _read_times(series: pl.Series) -> pl.Series | None:
    known = series.drop_nulls()
    if not known.len() or not known.head(200).cast(pl.Float64, strict=False).is_null().all():
        return None
    try:
        if known.head(200).str.to_datetime(strict=False, time_zone="UTC").null_count() > 10:
            return None
        times = series.str.to_datetime(strict=False, time_zone="UTC", time_unit="us")
    except pl.exceptions.PolarsError:
        return None
    return times if times.null_count() - series.null_count() <= 0.05 * known.len() else None
