"""The frozen reference of one model version: what its windows are compared with.

Invariant: prepared once, bounded in rows, never changed. Pure (no Evidently, no pandas) but for `read_file`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from monitor.base.errors import ConfigError
from monitor.base.table_files import read_table
from retrain.terms.schema import LARGEST, FeatureKind, ModelSchema, Task

_DTYPES: Mapping[FeatureKind, pl.DataType] = {
    FeatureKind.NUMBER: pl.Float64(),
    FeatureKind.CATEGORY: pl.String(),
    FeatureKind.BOOL: pl.Boolean(),
}


@dataclass(frozen=True, slots=True)
class ReferenceColumn:
    """One column of the reference, cleaned.

    `values`: the usable values (no null, NaN, infinite) of the sampled rows in row order. `prepared`: the
    same, sorted for numbers, as indices into `categories` otherwise.
    `low`/`high`/`categories`/`missing_share`/`rows` describe all rows, sampled or not. `categories` are sorted.
    """

    kind: FeatureKind
    values: pl.Series
    prepared: pl.Series
    low: float | None
    high: float | None
    categories: pl.Series
    coding: pl.Enum
    missing_share: float
    rows: int = 0


@dataclass(frozen=True, slots=True)
class Reference:
    """`frame`: the sampled rows (features, prediction, scores, label) for reports.

    `rows` counts what was given, `frame.height` what was kept: at most `max_rows`, drawn with `seed`.
    `score` is the binary score, if it has any; `label` is there when the reference has labels.
    `performance`: (metric, segment) -> value, undefined ones absent; segment "" is all rows. `intervals`: the 95 %
    intervals of those that have one. `recalls`: segment -> index of a class -> (its rows answered right, its rows).
    """

    frame: pl.DataFrame
    rows: int
    max_rows: int
    seed: int
    features: Mapping[str, ReferenceColumn]
    prediction: ReferenceColumn
    score: ReferenceColumn | None
    label: ReferenceColumn | None
    performance: Mapping[tuple[str, str], float]
    intervals: Mapping[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    recalls: Mapping[str, Mapping[int, tuple[int, int]]] = field(default_factory=dict)


_RESERVED = frozenset(
    {"prediction_id", "model", "model_version", "ts", "prediction", "score", "label", "label_ts"}
    | {"latency_ms", "invalid_features"}
)
_MAX_CLASSES = 1000
_BOOLS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def read_file(path: Path) -> pl.DataFrame:
    """A Parquet, CSV or NDJSON file, as `driftd init` reads it. Raises OSError, or ValueError when it is none."""
    try:
        return read_table(path)
    except ConfigError as exc:
        raise ValueError(exc.problems[0].removeprefix(f"{path}: ")) from exc
    except pl.exceptions.PanicException as exc:
        raise ValueError(f"cannot be read: {exc}"[:300]) from exc


def open_reference(path: Path, schema: ModelSchema) -> pl.DataFrame:
    """A file's rows as windows are compared with them. Raises OSError, or ValueError when there are none."""
    found = measurable(to_lake_columns(read_file(path), schema), schema)
    if not found.height:
        raise ValueError("holds no rows, or none of the configured columns")
    return found


def gaps(frame: pl.DataFrame, schema: ModelSchema) -> list[str]:
    """Features that an opened reference has no value of: nothing of theirs can be compared."""
    return [f.name for f in schema.features if not usable(column(frame, f.column, f.kind)).len()]


def measurable(frame: pl.DataFrame, schema: ModelSchema) -> pl.DataFrame:
    """With numbers that nothing can be computed from as missing ones: NaN, infinite answers and scores, and whatever
    is beyond `retrain.terms.schema.LARGEST`. An infinite feature stays: it is counted as invalid."""
    answers = [*schema.score_columns, *(("prediction", "label") if schema.task is Task.REGRESSION else ())]
    numbers = [f.column for f in schema.features if f.kind is FeatureKind.NUMBER]
    fine = {c: pl.col(c).abs() <= LARGEST for c in answers}
    fine |= {c: (pl.col(c).abs() <= LARGEST) | pl.col(c).is_infinite() for c in numbers}
    known = {c: test for c, test in fine.items() if c in frame.columns and frame.schema[c].is_float()}
    return frame.with_columns(pl.when(test & pl.col(c).is_not_nan()).then(pl.col(c)) for c, test in known.items())


def labelled(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows with a label and an answer."""
    return frame.drop_nulls(["label", "prediction"]) if "label" in frame.columns else frame


def infer_features(path: Path) -> tuple[dict[str, FeatureKind], tuple[str, ...]]:
    """Features and kinds by column type, and the class names (sorted; none when labels are no classes).

    Feature columns are those named `feature_<name>`, or, when there are none, all that have no other meaning.
    """
    frame = read_file(path)
    names = {c: c.removeprefix("feature_") for c in frame.columns if c.startswith("feature_")} or {
        c: c for c in frame.columns if c not in _RESERVED and not c.startswith(("score_", "segment_"))
    }
    kinds = {name: kind_of(frame.schema[c]) for c, name in names.items()}
    answer = next((c for c in ("label", "prediction") if c in frame.columns), None)
    classes = _class_names(frame[answer]).drop_nulls().unique().sort().to_list() if answer else []
    fractional = answer is not None and frame.schema[answer].is_float() and any("." in c for c in classes)
    features = {name: kind for name, kind in kinds.items() if kind is not None}
    return features, () if fractional or len(classes) > _MAX_CLASSES else tuple(classes)


def to_lake_columns(frame: pl.DataFrame, schema: ModelSchema) -> pl.DataFrame:
    """A user's file -> the lake's column names and types; a feature `x` may be named `feature_x` or `x`."""
    kind = answer_kind(schema)
    wanted = [(f.column, f.name, f.kind) for f in schema.features]
    wanted += [(c, c.removeprefix("segment_"), FeatureKind.CATEGORY) for c in schema.segment_columns]
    wanted += [(c, c, FeatureKind.NUMBER) for c in schema.score_columns]
    wanted += [("prediction", "prediction", kind), ("label", "label", kind)]
    found = [
        (name, frame[name if name in frame.columns else bare], kind)
        for name, bare, kind in wanted
        if name in frame.columns or bare in frame.columns
    ]
    return pl.DataFrame(
        [
            column(pl.DataFrame([(_class_names(s) if k is FeatureKind.CATEGORY else s).alias(name)]), name, k)
            for name, s, k in found
        ]
    )


def kind_of(dtype: pl.DataType) -> FeatureKind | None:
    """None when the type is no feature's."""
    if dtype.is_numeric():
        return FeatureKind.NUMBER
    if dtype == pl.Boolean:
        return FeatureKind.BOOL
    return FeatureKind.CATEGORY if dtype in (pl.String, pl.Categorical, pl.Enum) else None


def _class_names(series: pl.Series) -> pl.Series:
    """Labels as text. A CSV with gaps turns classes 0 and 1 into 0.0 and 1.0: "0" and "1" are meant."""
    if series.dtype.is_float() and (series.drop_nulls() == series.drop_nulls().round()).all():
        series = series.cast(pl.Int64, strict=False)
    return series.cast(pl.String, strict=False)


def answer_kind(schema: ModelSchema) -> FeatureKind:
    """The kind of the `prediction` and `label` columns."""
    return FeatureKind.NUMBER if schema.task is Task.REGRESSION else FeatureKind.CATEGORY


def column(frame: pl.DataFrame, name: str, kind: FeatureKind) -> pl.Series:
    """The column in its kind's type; all null when absent. What does not convert becomes null."""
    dtype = _DTYPES[kind]
    if name not in frame.columns:
        return pl.Series(name, [None] * frame.height, dtype=dtype)
    series = frame[name]
    if series.dtype == dtype:
        return series
    if kind is FeatureKind.BOOL and series.dtype == pl.String:
        return series.str.to_lowercase().replace_strict(_BOOLS, default=None, return_dtype=pl.Boolean)
    if kind is FeatureKind.BOOL and series.dtype.is_numeric():
        return series.cast(pl.Float64).replace_strict({0.0: False, 1.0: True}, default=None, return_dtype=pl.Boolean)
    return series.cast(dtype, strict=False)


def usable(series: pl.Series) -> pl.Series:
    """The values that can be compared: not null, and for numbers finite."""
    if series.dtype.is_float():
        array = series.to_numpy()  # null becomes NaN
        finite = np.isfinite(array)
        return series if finite.all() else pl.Series(series.name, array[finite])
    return series.drop_nulls() if series.null_count() else series


def encode(values: pl.Series, coding: pl.Enum) -> pl.Series:
    """Usable labels -> indices into the coding's categories, those not in it after them, in sorted order."""
    if values.dtype == pl.Boolean:
        values = values.cast(pl.String)
    coded = values.cast(coding, strict=False)
    if coded.null_count():
        found = values.unique()
        unseen = found.filter(~found.is_in(coding.categories.implode())).sort()
        coded = values.cast(pl.Enum(pl.concat([coding.categories, unseen])))
    return coded.to_physical().cast(pl.Int64)


def prepare(
    frame: pl.DataFrame,
    schema: ModelSchema,
    *,
    max_rows: int = 10_000,
    seed: int = 0,
    performance: Mapping[tuple[str, str], float] | None = None,
) -> Reference:
    """Clean and sample a frame of a version's events, with `label` if known, into its Reference.

    Absent or all-null columns are kept as such: what needs them is then undefined, the rest stands.
    """
    kept = sample(frame, max_rows, seed)
    kind = answer_kind(schema)
    score = _describe(frame, kept, "score", FeatureKind.NUMBER) if schema.task is Task.BINARY else None
    label = _describe(frame, kept, "label", kind)
    wanted = (*schema.feature_columns, "prediction", *schema.score_columns, "label")
    return Reference(
        frame=kept.select(c for c in wanted if c in kept.columns),
        rows=frame.height,
        max_rows=max_rows,
        seed=seed,
        features={f.name: _describe(frame, kept, f.column, f.kind) for f in schema.features},
        prediction=_describe(frame, kept, "prediction", kind),
        score=score if score is not None and score.values.len() else None,
        label=label if label.values.len() else None,
        performance=dict(performance or {}),
    )


def sample(frame: pl.DataFrame, max_rows: int, seed: int) -> pl.DataFrame:
    if frame.height <= max_rows:
        return frame
    return frame[pl.int_range(frame.height, eager=True).sample(max_rows, seed=seed).sort()]


def _describe(frame: pl.DataFrame, kept: pl.DataFrame, name: str, kind: FeatureKind) -> ReferenceColumn:
    every = usable(column(frame, name, kind))
    values = usable(column(kept, name, kind))
    missing_share = 1 - every.len() / frame.height if frame.height else 1.0
    if kind is FeatureKind.NUMBER:
        low, high = (float(every.min()), float(every.max())) if every.len() else (None, None)  # type: ignore[arg-type]
        nothing = pl.Series(name, [], dtype=pl.Float64)
        return ReferenceColumn(
            kind, values, values.sort(), low, high, nothing, pl.Enum([]), missing_share, frame.height
        )
    categories = every.unique().sort()
    coding = pl.Enum(categories.cast(pl.String))
    prepared = encode(values, coding)
    return ReferenceColumn(kind, values, prepared, None, None, categories, coding, missing_share, frame.height)
