"""The rows a model can be judged on, as arrays, and each metric computed on them.

Invariant: raises `Undefined` where a metric has no meaning; never answers 0 or 1 for want of data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from sklearn import metrics as sk

from monitor.measure.performance.scores import SCORES
from monitor.measure.reference import answer_kind, column, encode
from retrain.terms.schema import FeatureKind, ModelSchema, Task


class Undefined(Exception):
    """A metric has no value on these rows; the text says why."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Rows with a known label and a prediction.

    Classification: `truth` and `answer` index `schema.classes`, an answer outside it has a higher index
    (and is wrong); binary `positive` is the positive class's index. `scores`: n x classes (binary: n x 1,
    of the positive class), NaN where unknown. Regression: `truth` and `answer` are the numbers themselves.
    """

    task: Task
    truth: np.ndarray[Any, Any]
    answer: np.ndarray[Any, Any]
    scores: np.ndarray[Any, Any]
    classes: int = 0
    positive: int = 0

    @property
    def count(self) -> int:
        return len(self.truth)


def scored_rows(frame: pl.DataFrame, schema: ModelSchema) -> Scored:
    """Rows whose label or prediction is missing, not finite, or whose label is no class of the schema are
    left out."""
    kind = answer_kind(schema)
    rows = pl.DataFrame(
        [
            column(frame, "label", kind).alias("label"),
            column(frame, "prediction", kind).alias("prediction"),
            *(column(frame, name, FeatureKind.NUMBER) for name in schema.score_columns),
        ]
    ).drop_nulls(["label", "prediction"])
    if schema.task is Task.REGRESSION:
        rows = rows.filter(pl.col("label").is_finite() & pl.col("prediction").is_finite())
        return Scored(schema.task, rows["label"].to_numpy(), rows["prediction"].to_numpy(), np.empty((len(rows), 0)))
    coding = pl.Enum(schema.classes)
    rows = rows.filter(pl.col("label").is_in(schema.classes))
    return Scored(
        schema.task,
        encode(rows["label"], coding).to_numpy(),
        encode(rows["prediction"], coding).to_numpy(),
        rows.select(pl.col(schema.score_columns).fill_null(float("nan"))).to_numpy(),
        classes=len(schema.classes),
        positive=schema.classes.index(schema.positive) if schema.positive is not None else 0,
    )


def recalls(rows: Scored) -> dict[int, tuple[int, int]]:
    """Index of a class that occurs -> (its rows answered right, its rows); empty for a regression."""
    found = {}
    for c in np.unique(rows.truth) if rows.classes else ():
        mine = rows.truth == c
        found[int(c)] = (int((rows.answer[mine] == c).sum()), int(mine.sum()))
    return found


def compute(metric: str, rows: Scored) -> float:
    """The metric's value. Raises Undefined, or scikit-learn's ValueError on impossible scores."""
    if SCORES[metric].from_scores:
        rows = with_scores(rows)
    return float(_COMPUTE[metric](rows))


def with_scores(rows: Scored) -> Scored:
    """Only the rows whose scores are known. Raises Undefined without any."""
    known = np.isfinite(rows.scores).all(axis=1)
    if not known.any():
        raise Undefined("no scores on the labelled rows")
    return Scored(rows.task, rows.truth[known], rows.answer[known], rows.scores[known], rows.classes, rows.positive)


def _balanced_accuracy(rows: Scored) -> float:
    _need_two_classes(rows)
    return float(sk.balanced_accuracy_score(rows.truth, rows.answer))


def _positives(rows: Scored) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return rows.truth == rows.positive, rows.answer == rows.positive


def _f1(rows: Scored) -> float:
    truth, answer = _positives(rows)
    if not (truth | answer).any():
        raise Undefined("no positive among the labels and predictions")
    return float(sk.f1_score(truth, answer))


def _precision(rows: Scored) -> float:
    truth, answer = _positives(rows)
    if not answer.any():
        raise Undefined("no positive among the predictions")
    return float(sk.precision_score(truth, answer))


def _recall(rows: Scored) -> float:
    truth, answer = _positives(rows)
    if not truth.any():
        raise Undefined("no positive among the labels")
    return float(sk.recall_score(truth, answer))


def _roc_auc(rows: Scored) -> float:
    _need_two_classes(rows)
    return float(sk.roc_auc_score(rows.truth == rows.positive, rows.scores[:, 0]))


def _log_loss(rows: Scored) -> float:
    if rows.task is Task.BINARY:
        return float(sk.log_loss(rows.truth == rows.positive, rows.scores[:, 0], labels=[False, True]))
    return float(sk.log_loss(rows.truth, rows.scores, labels=list(range(rows.classes))))


def _brier(rows: Scored) -> float:
    return float(sk.brier_score_loss(rows.truth == rows.positive, rows.scores[:, 0], pos_label=True))


def _r2(rows: Scored) -> float:
    if rows.count < 2 or np.ptp(rows.truth) == 0:
        raise Undefined("all labels are the same")
    return float(sk.r2_score(rows.truth, rows.answer))


def _mape(rows: Scored) -> float:
    if (rows.truth == 0).any():
        raise Undefined("a label is zero")
    return float(sk.mean_absolute_percentage_error(rows.truth, rows.answer))


def _need_two_classes(rows: Scored) -> None:
    if np.ptp(rows.truth) == 0:
        raise Undefined("labels of one class only")


_COMPUTE: Mapping[str, Callable[[Scored], float]] = {
    "accuracy": lambda rows: sk.accuracy_score(rows.truth, rows.answer),
    "balanced_accuracy": _balanced_accuracy,
    "f1": _f1,
    "precision": _precision,
    "recall": _recall,
    "f1_macro": lambda rows: sk.f1_score(rows.truth, rows.answer, average="macro"),
    "roc_auc": _roc_auc,
    "log_loss": _log_loss,
    "brier": _brier,
    "mae": lambda rows: sk.mean_absolute_error(rows.truth, rows.answer),
    "rmse": lambda rows: sk.root_mean_squared_error(rows.truth, rows.answer),
    "r2": _r2,
    "mape": _mape,
    "bias": lambda rows: np.mean(rows.answer - rows.truth),
}
