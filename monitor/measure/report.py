"""The full Evidently HTML report of a window against its reference, for people to read.

Invariant: one odd column or an undefined metric never costs the report: it is left out, and the page says so.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl

from monitor.measure._evidently import load, quiet
from monitor.measure.drift.methods import METHODS, DriftMethod, default_method
from monitor.measure.reference import Reference, answer_kind, column, usable
from retrain.base.files import write_whole
from retrain.terms.schema import FeatureKind, ModelSchema, Task

MAX_ROWS = 20_000  # of each side: drawing takes memory and seconds per column


@dataclass(frozen=True, slots=True)
class WrittenReport:
    """`left_out`: column or section -> why the report is without it; `notes`: what else a reader must
    know."""

    path: Path
    left_out: Mapping[str, str]
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Sides:
    """Both frames as Evidently gets them, being built."""

    window: pl.DataFrame
    reference: pl.DataFrame
    kinds: dict[str, FeatureKind] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def write_report(
    window: pl.DataFrame,
    reference: Reference,
    schema: ModelSchema,
    path: Path,
    methods: Mapping[str, DriftMethod] | None = None,
    *,
    max_rows: int = MAX_ROWS,
) -> WrittenReport:
    """Data summary, drift and, when both sides have labels, quality: one self-contained page, written
    atomically.

    `methods` is by feature name as for `measure_drift`; each side is sampled to `max_rows`. Raises ValueError
    when no column can be shown, OSError when the page cannot be written.
    """
    sides = _sides(window, reference, schema, max_rows)
    if not sides.kinds:
        raise ValueError(f"nothing to report on: {sides.left_out or 'no columns'}")
    page = _annotated(_render(sides, schema, methods or {}), sides)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)
    return WrittenReport(path, dict(sides.left_out), tuple(sides.notes))


def _sides(window: pl.DataFrame, reference: Reference, schema: ModelSchema, max_rows: int) -> _Sides:
    sides = _Sides(window, reference.frame)
    if "label" in window.columns:
        _keep_labelled(sides, schema)
    _bound(sides, max_rows, reference.seed)
    answer = answer_kind(schema)
    wanted = [(f.column, f.kind) for f in schema.features] + [("prediction", answer)]
    if "label" in sides.window.columns:
        wanted.append(("label", answer))
    if schema.task is Task.BINARY and reference.score is not None:
        wanted.append(("score", FeatureKind.NUMBER))
    for name, kind in wanted:
        where = [side for side in ("window", "reference") if not _shown(getattr(sides, side), name, kind)]
        if where:
            sides.left_out[name] = f"no usable value in the {' and the '.join(where)}"
        else:
            sides.kinds[name] = kind
    return sides


def _keep_labelled(sides: _Sides, schema: ModelSchema) -> None:
    """Quality needs label and prediction in each row; Evidently fails on gaps."""
    full = {side: _labelled(getattr(sides, side), schema) for side in ("window", "reference")}
    for side, rows in full.items():
        if not rows.any():
            sides.left_out["quality"] = f"the {side} has no row with prediction and label"
            return
    for side, rows in full.items():
        if not rows.all():
            setattr(sides, side, getattr(sides, side).filter(rows))
            sides.notes.append(f"{side}: {rows.sum()} of {rows.len()} rows shown, those with prediction and label")


def _labelled(frame: pl.DataFrame, schema: ModelSchema) -> pl.Series:
    full = pl.Series([True] * frame.height, dtype=pl.Boolean)
    for name in ("label", "prediction"):
        series = column(frame, name, answer_kind(schema))
        full &= series.is_finite().fill_null(value=False) if series.dtype.is_float() else series.is_not_null()
    return full


def _bound(sides: _Sides, max_rows: int, seed: int) -> None:
    for side in ("window", "reference"):
        frame: pl.DataFrame = getattr(sides, side)
        if frame.height > max_rows:
            setattr(sides, side, frame.sample(max_rows, seed=seed))
            sides.notes.append(f"{side}: a sample of {max_rows} of {frame.height} rows")


def _shown(frame: pl.DataFrame, name: str, kind: FeatureKind) -> bool:
    return usable(column(frame, name, kind)).len() > 0


def _render(sides: _Sides, schema: ModelSchema, methods: Mapping[str, DriftMethod]) -> str:
    """The richest page that can be made: what Evidently fails on is left out section by section."""
    load()
    from evidently import Report

    drift, summary, quality, scores = _sections(sides, schema, methods)
    attempts = (
        [*summary, *drift, *quality, *scores],
        [*summary, *drift, *quality],
        [*summary, *drift],
        drift,
        summary,
    )
    missing = ("", "quality of scores", "quality", "summary", "drift")
    failure: Exception | None = None
    for sections, name in zip(attempts, missing, strict=True):
        if failure is not None:
            sides.left_out[name] = f"Evidently failed: {failure}"[:300]
        try:
            with quiet():
                snapshot = Report(sections).run(
                    _dataset(sides.window, sides, schema), _dataset(sides.reference, sides, schema)
                )
                page: str = snapshot.get_html_str(as_iframe=False)
        except Exception as exc:  # noqa: BLE001  any metric may fail in any way; the last failure is raised
            failure = exc
        else:
            return page
    assert failure is not None
    raise ValueError(f"Evidently failed: {failure}") from failure


def _sections(
    sides: _Sides, schema: ModelSchema, methods: Mapping[str, DriftMethod]
) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    from evidently.metrics import LogLoss, RocAuc
    from evidently.presets import ClassificationPreset, DataDriftPreset, DataSummaryPreset, RegressionPreset

    names = {f.column: f.name for f in schema.features}
    chosen: dict[str, DriftMethod] = {}
    for name, kind in sides.kinds.items():
        method = methods.get(names.get(name, "")) or default_method(kind)
        chosen[name] = method if kind in METHODS[method.name].kinds else default_method(kind)
    drift = DataDriftPreset(
        columns=list(sides.kinds),
        per_column_method={name: method.name for name, method in chosen.items()},
        per_column_threshold={name: method.threshold for name, method in chosen.items()},
    )
    quality: list[Any] = []
    scores: list[Any] = []
    if {"label", "prediction"} <= sides.kinds.keys() and "quality" not in sides.left_out:
        quality = [RegressionPreset() if schema.task is Task.REGRESSION else ClassificationPreset()]
        if "score" in sides.kinds:
            scores = [RocAuc(classification_name="scores"), LogLoss(classification_name="scores")]
    return [drift], [DataSummaryPreset(columns=list(sides.kinds))], quality, scores


def _dataset(frame: pl.DataFrame, sides: _Sides, schema: ModelSchema) -> Any:
    from evidently import DataDefinition, Dataset

    data = {name: _pandas(column(frame, name, kind)) for name, kind in sides.kinds.items()}
    definition = DataDefinition(
        numerical_columns=[n for n, k in sides.kinds.items() if k is FeatureKind.NUMBER],
        categorical_columns=[n for n, k in sides.kinds.items() if k is not FeatureKind.NUMBER],
        **_task(sides, schema),
    )
    return Dataset.from_pandas(pd.DataFrame(data), data_definition=definition)


def _task(sides: _Sides, schema: ModelSchema) -> dict[str, Sequence[Any]]:
    """Scores are a classification of their own: given together, Evidently judges score > 0.5, not
    `prediction`."""
    from evidently import BinaryClassification, MulticlassClassification, Regression

    if not {"label", "prediction"} <= sides.kinds.keys():
        return {}
    match schema.task:
        case Task.REGRESSION:
            return {"regression": [Regression(target="label", prediction="prediction")]}
        case Task.MULTICLASS:
            return {"classification": [MulticlassClassification(target="label", prediction_labels="prediction")]}
        case Task.BINARY:
            known = {"target": "label", "pos_label": schema.positive}
            tasks = [BinaryClassification(prediction_labels="prediction", **known)]
            if "score" in sides.kinds:
                tasks.append(BinaryClassification(name="scores", prediction_probas="score", **known))
            return {"classification": tasks}


def _pandas(series: pl.Series) -> pd.Series:
    """Numbers with NaN for what is not usable; labels as text (Evidently cannot sort booleans among gaps)."""
    if series.dtype.is_float():
        finite = series.set((~series.is_finite()).fill_null(value=True), None)
        return pd.Series(finite.fill_null(float("nan")).to_numpy())
    return pd.Series(series.cast(pl.String).to_list(), dtype=object)


def _annotated(page: str, sides: _Sides) -> str:
    lines = [f"Left out: {name} ({why})" for name, why in sides.left_out.items()] + sides.notes
    if not lines:
        return page
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    note = f'<ul id="driftd-notes" style="font-family: sans-serif; margin: 1em 2em">{items}</ul>'
    head, body, rest = page.partition("<body>")
    return f"{head}{body}{note}{rest}" if body else f"{note}{page}"
