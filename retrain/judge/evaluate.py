"""Champion and challenger on the same holdout rows.

Invariant: both sides are scored on exactly the same rows; nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl

from retrain.data.frame import features_frame, labels_array
from retrain.models.quality import DEFAULT_METRIC, METRICS, Array, Comparison, Predictions, compare, measure
from retrain.terms.schema import ModelSchema, Task

if TYPE_CHECKING:
    import pandas as pd

GUESS = "constant guess"
TIMED_ROWS = 2000
MOST_PASSES, TIMED_FOR = 30, 0.5
"""So often are models timed; slow ones only until that many processor seconds are over, but three times."""
USABLE_SHARE = 0.5
"""As-served predictions stand in for the champion when at least this share of the holdout rows has them."""


class Model(Protocol):
    """What scoring needs of a model: a `retrain.scorer.Scorer`, or one that was made right here."""

    def predictions(self, frame: pd.DataFrame, schema: ModelSchema) -> Predictions: ...

    def processor_seconds(self, frame: pd.DataFrame, schema: ModelSchema) -> float:
        """What one call of `predictions` takes, of all threads together."""
        ...


@dataclass(frozen=True, slots=True)
class Latency:
    """Processor seconds: of a request for one row, and per row of many that are asked at once."""

    request: float
    row: float


@dataclass(frozen=True, slots=True)
class SegmentScore:
    rows: int
    value: float | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One side's scores. `source` says for people where its predictions come from; `inputs` is the model's
    signature as feature name -> kind, None when unknown."""

    source: str
    version: str | None
    rows: int
    metrics: Mapping[str, float | None]
    segments: Mapping[str, SegmentScore]
    latency: Latency | None = None
    inputs: Mapping[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One contender's predictions on the holdout; `usable` marks the rows that have them (None: all). `model` and its
    stored `size` in bytes are None where there is no model at hand."""

    source: str
    version: str | None
    predictions: Predictions
    latency: Latency | None = None
    inputs: Mapping[str, str] | None = None
    usable: Array | None = None
    model: Model | None = None
    size: int | None = None

    def only(self, rows: Array) -> Side:
        """On these rows, all of which it can answer for."""
        return replace(self, predictions=self.predictions[rows], usable=None)


def quality_metric(schema: ModelSchema, configured: str | None) -> str:
    """The metric that decides. Raises ValueError when the configured one does not fit the task."""
    metric = configured or DEFAULT_METRIC[schema.task]
    if metric not in METRICS[schema.task]:
        raise ValueError(
            f"gates.metric: {metric!r} does not fit {schema.task}; choose of {', '.join(METRICS[schema.task])}"
        )
    return metric


def score(
    model: Model,
    rows: pl.DataFrame,
    schema: ModelSchema,
    *,
    source: str,
    version: str | None = None,
    inputs: Mapping[str, str] | None = None,
    size: int | None = None,
) -> Side:
    """Predicts all rows."""
    predictions = model.predictions(features_frame(rows, schema), schema)
    return Side(source, version, predictions, inputs=inputs, model=model, size=size)


def timed(sides: Sequence[Side], rows: pl.DataFrame, schema: ModelSchema) -> list[Side]:
    """The sides that have a model with their latencies: the least of several passes, because a busy machine only ever
    adds to it; in turns, so that what slows the machine for a while slows all of them."""
    frame = features_frame(rows.head(TIMED_ROWS), schema)
    one = frame.head(1)
    passes: list[list[Latency]] = [[] for _ in sides]
    spent = 0.0
    for n in range(MOST_PASSES if len(frame) else 0):
        if n >= 3 and spent >= TIMED_FOR * len(sides):
            break
        for side, mine in zip(sides, passes, strict=True):
            if side.model is not None:
                alone, together = (side.model.processor_seconds(part, schema) for part in (one, frame))
                spent += alone + together
                mine.append(Latency(alone, together / len(frame)))
    return [
        replace(side, latency=Latency(min(p.request for p in mine), min(p.row for p in mine))) if mine else side
        for side, mine in zip(sides, passes, strict=True)
    ]


def as_served(rows: pl.DataFrame, schema: ModelSchema, note: str = "") -> Side | None:
    """The recorded predictions as a contender; None when too few rows have one."""
    kind = pl.Float64 if schema.task is Task.REGRESSION else pl.String
    recorded = rows["prediction"].cast(kind, strict=False)
    usable = recorded.is_not_null().to_numpy()
    present = [c for c in schema.score_columns if c in rows.columns and rows[c].null_count() < len(rows)]
    scored = bool(present) and len(present) == len(schema.score_columns)
    if scored:
        with_scores = usable & rows.select(pl.all_horizontal(pl.col(present).is_not_null())).to_series().to_numpy()
        scored = with_scores.mean() >= USABLE_SHARE
        usable = with_scores if scored else usable
    if len(rows) == 0 or usable.mean() < USABLE_SHARE:
        return None
    numeric = schema.task is Task.REGRESSION
    values = recorded.to_numpy() if numeric else np.array(recorded.to_list(), dtype=object)
    scores = None
    if scored:
        table = rows.select(pl.col(present).cast(pl.Float64)).to_numpy()
        scores = table[:, 0] if schema.task is Task.BINARY else table
    source = "as served" + (f" ({note})" if note else "")
    return Side(source, None, Predictions(values, scores), usable=None if usable.all() else usable)


def constant(training: pl.DataFrame, rows: int, schema: ModelSchema) -> Side:
    """The best guess that looks at no feature: what a first model has to beat."""
    labels = labels_array(training, schema)
    if schema.task is Task.REGRESSION:
        return Side(GUESS, None, Predictions(np.full(rows, float(np.median(labels)))))
    shares = np.array([(labels == c).mean() for c in schema.classes])
    values = np.full(rows, schema.classes[int(shares.argmax())], dtype=object)
    if schema.task is Task.BINARY:
        scores = np.full(rows, shares[schema.classes.index(str(schema.positive))])
    else:
        scores = np.tile(shares, (rows, 1))
    return Side(GUESS, None, Predictions(values, scores))


def answered_by_both(champion: Side, challenger: Side, rows: pl.DataFrame) -> tuple[Side, Side, pl.DataFrame]:
    """Both sides and the rows, only where both can answer."""
    if champion.usable is None:
        return champion, challenger, rows
    kept = np.flatnonzero(champion.usable)
    return champion.only(kept), challenger.only(kept), rows[kept]


def evaluate(
    champion: Side,
    challenger: Side,
    rows: pl.DataFrame,
    schema: ModelSchema,
    *,
    metric: str,
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[Evaluation, Evaluation, Comparison]:
    """(champion, challenger, challenger against champion) on the rows both can answer for."""
    champion, challenger, rows = answered_by_both(champion, challenger, rows)
    labels = labels_array(rows, schema)
    one, two = champion.predictions, challenger.predictions
    comparison = compare(metric, labels, one, two, schema, confidence=confidence, resamples=resamples, seed=seed)
    masks = segment_masks(rows, schema)
    sides = [
        Evaluation(
            side.source,
            side.version,
            len(rows),
            {name: measure(name, labels, p, schema) for name in METRICS[schema.task]},
            {s: SegmentScore(len(at), measure(metric, labels[at], p[at], schema)) for s, at in masks.items()},
            side.latency,
            side.inputs,
        )
        for side, p in ((champion, one), (challenger, two))
    ]
    return sides[0], sides[1], comparison


def segment_masks(rows: pl.DataFrame, schema: ModelSchema) -> dict[str, Array]:
    """`segment=value` -> row positions."""
    masks: dict[str, Array] = {}
    for name, column in zip(schema.segments, schema.segment_columns, strict=True):
        if column not in rows.columns:
            continue
        values = rows[column].cast(pl.String)
        for value in values.drop_nulls().unique().sort():
            masks[f"{name}={value}"] = np.flatnonzero((values == value).fill_null(False).to_numpy())
    return masks
