"""Quality metrics of one prediction set, and the paired bootstrap of the difference between two.

Invariant: pure; an undefined metric (one class only, no scores) is None, never NaN. A difference is oriented so that
positive means "the second is better".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from retrain.terms.schema import ModelSchema, Task

Array = np.ndarray[Any, Any]
BOOTSTRAP_ROWS = 100_000
"""Rows a bootstrap over scores looks at, at most; more are thinned at random, which widens the interval a little."""

EXACT_AUC_ROWS = 10_000
"""With more rows the bootstrap of roc_auc is linearized, which is a matter of seconds instead of minutes."""

METRICS: dict[Task, tuple[str, ...]] = {
    Task.BINARY: (
        "accuracy",
        "balanced_accuracy",
        "f1",
        "precision",
        "recall",
        "roc_auc",
        "log_loss",
        "brier",
    ),
    Task.MULTICLASS: ("accuracy", "balanced_accuracy", "f1_macro", "log_loss"),
    Task.REGRESSION: ("mae", "rmse", "r2"),
}
DEFAULT_METRIC = {Task.BINARY: "roc_auc", Task.MULTICLASS: "balanced_accuracy", Task.REGRESSION: "mae"}
LOWER_IS_BETTER = frozenset({"log_loss", "brier", "mae", "rmse"})
_FROM_COUNTS = frozenset({"accuracy", "balanced_accuracy", "f1", "f1_macro", "precision", "recall"})


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """`values`: class names (object) or float64, one per row. `scores`: shape (n,) for binary, (n, classes) in
    schema order for multiclass, None when there are none."""

    values: Array
    scores: Array | None = None

    def __getitem__(self, rows: Array) -> Predictions:
        return Predictions(self.values[rows], None if self.scores is None else self.scores[rows])


@dataclass(frozen=True, slots=True)
class Comparison:
    """Second minus first, oriented so that positive is better. None: not measurable on these rows."""

    metric: str
    difference: float | None
    low: float | None
    high: float | None
    confidence: float
    resamples: int
    note: str = ""

    @property
    def standard_errors(self) -> float | None:
        """The difference in units of its own standard error, read off the interval, within +-1000; None: not known."""
        if self.difference is None or self.low is None or self.high is None:
            return None
        error = (self.high - self.low) / (2 * NormalDist().inv_cdf((1 + self.confidence) / 2))
        return float(np.sign(self.difference) * min(1000.0, abs(self.difference) / max(error, 1e-12)))


def measure(metric: str, labels: Array, predictions: Predictions, schema: ModelSchema) -> float | None:
    """One metric over all rows; None when it is not defined on them."""
    weights = np.ones((1, len(labels)))
    if len(labels) == 0:
        return None
    try:
        value = _statistic(metric, labels, predictions, schema)(weights)[0]
    except _Undefined:
        return None
    return float(value) if np.isfinite(value) else None


def compare(
    metric: str,
    labels: Array,
    first: Predictions,
    second: Predictions,
    schema: ModelSchema,
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> Comparison:
    """Percentile interval of the paired bootstrap (Efron & Tibshirani 1993, ch. 13): both sides are resampled with
    the same rows. Metrics of counts resample the (label, first, second) table, which has the same distribution."""
    one, two = measure(metric, labels, first, schema), measure(metric, labels, second, schema)
    if one is None or two is None:
        side = "first" if one is None else "second"
        note = f"{metric} is not defined for the {side} on these rows"
        return Comparison(metric, None, None, None, confidence, 0, note)
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    rng = np.random.default_rng(seed)
    note = ""
    drawn: Iterable[Array]
    if metric in _FROM_COUNTS:
        labels, first, second, weights = _cells(labels, first, second)
        drawn = [rng.multinomial(int(weights.sum()), weights / weights.sum(), size=resamples).astype(float)]
    else:
        if len(labels) > BOOTSTRAP_ROWS:
            note = f"interval from {BOOTSTRAP_ROWS} of {len(labels)} rows"
            kept = np.sort(rng.choice(len(labels), BOOTSTRAP_ROWS, replace=False))
            labels, first, second = labels[kept], first[kept], second[kept]
        drawn = _drawn(rng, len(labels), resamples)
    if metric == "roc_auc" and len(labels) > EXACT_AUC_ROWS:
        note = "; ".join(filter(None, [note, "bootstrap of roc_auc linearized"]))
    a, b = _statistic(metric, labels, first, schema), _statistic(metric, labels, second, schema)
    found = np.concatenate([sign * (b(w) - a(w)) for w in drawn])
    interval = _percentiles(found, confidence)
    if interval is None:
        note = f"{metric} is undefined on {np.sum(~np.isfinite(found))} of {resamples} resamples"
        return Comparison(metric, sign * (two - one), None, None, confidence, resamples, note)
    return Comparison(metric, sign * (two - one), *interval, confidence, resamples, note)


def compare_unpaired(
    metric: str,
    first: tuple[Array, Predictions],
    second: tuple[Array, Predictions],
    schema: ModelSchema,
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> Comparison:
    """As `compare` for (labels, predictions) of different rows, as when two versions share the traffic: each side is
    resampled by itself (Efron & Tibshirani 1993, ch. 8)."""
    one, two = (measure(metric, labels, said, schema) for labels, said in (first, second))
    if one is None or two is None:
        side = "first" if one is None else "second"
        return Comparison(metric, None, None, None, confidence, 0, f"{metric} is not defined for the {side}")
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    rng = np.random.default_rng(seed)
    a, b = (_resampled(metric, labels, said, schema, resamples, rng) for labels, said in (first, second))
    interval = _percentiles(sign * (b - a), confidence)
    note = "" if interval is not None else f"{metric} is undefined on too many resamples"
    low, high = interval or (None, None)
    return Comparison(metric, sign * (two - one), low, high, confidence, resamples, note)


def _resampled(
    metric: str, labels: Array, said: Predictions, schema: ModelSchema, resamples: int, rng: np.random.Generator
) -> Array:
    """The metric on each resample, NaN where it is undefined."""
    if metric in _FROM_COUNTS:
        labels, said, _, weights = _cells(labels, said, said)
        drawn: Iterable[Array] = [
            rng.multinomial(int(weights.sum()), weights / weights.sum(), size=resamples).astype(float)
        ]
    else:
        if len(labels) > BOOTSTRAP_ROWS:
            kept = np.sort(rng.choice(len(labels), BOOTSTRAP_ROWS, replace=False))
            labels, said = labels[kept], said[kept]
        drawn = _drawn(rng, len(labels), resamples)
    statistic = _statistic(metric, labels, said, schema)
    return np.concatenate([statistic(w) for w in drawn])


def bootstrap_interval(
    statistic: Statistic, rows: int, *, confidence: float, resamples: int, seed: int
) -> tuple[float, float] | None:
    """Percentile interval of the bootstrap (Efron & Tibshirani 1993, ch. 13) of a statistic of `rows` rows; None where
    it is undefined on more than a tenth of the resamples."""
    rng = np.random.default_rng(seed)
    return _percentiles(np.concatenate([statistic(w) for w in _drawn(rng, rows, resamples)]), confidence)


def _percentiles(found: Array, confidence: float) -> tuple[float, float] | None:
    defined = found[np.isfinite(found)]
    if len(defined) < len(found) * 0.9:
        return None
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


class _Undefined(Exception):
    pass


Statistic = Callable[[Array], Array]
"""weights (resamples, rows) -> values (resamples,), NaN where undefined"""


def _statistic(metric: str, labels: Array, predictions: Predictions, schema: ModelSchema) -> Statistic:
    match metric:
        case "mae":
            return _mean(np.abs(predictions.values - labels))
        case "rmse":
            squared = _mean((predictions.values - labels) ** 2)
            return lambda w: np.sqrt(squared(w))
        case "r2":
            return _r2(labels, predictions.values)
        case "roc_auc":
            exact = len(labels) <= EXACT_AUC_ROWS
            return (_auc if exact else _auc_linear)(labels == schema.positive, _scores(predictions))
        case "brier":
            return _mean((_scores(predictions) - (labels == schema.positive)) ** 2)
        case "log_loss":
            return _mean(-np.log(np.clip(_probability_of_label(labels, predictions, schema), 1e-15, 1)))
        case _ if metric in _FROM_COUNTS:
            return _from_counts(metric, labels, predictions.values, schema)
        case _:
            raise ValueError(f"unknown metric {metric!r}; {schema.task} has {', '.join(METRICS[schema.task])}")


def _mean(per_row: Array) -> Statistic:
    return lambda w: np.asarray((w @ per_row) / w.sum(axis=1))


def _r2(labels: Array, values: Array) -> Statistic:
    residual = (values - labels) ** 2

    def statistic(w: Array) -> Array:
        n = w.sum(axis=1)
        mean = (w @ labels) / n
        total = w @ labels**2 - n * mean**2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(total > 1e-12 * n, 1 - (w @ residual) / total, np.nan)

    return statistic


def _auc(positive: Array, scores: Array) -> Statistic:
    """Weighted Mann-Whitney statistic, ties counted half (Hanley & McNeil 1982)."""
    order = np.argsort(scores, kind="stable")
    _, starts = np.unique(scores[order], return_index=True)
    signs = positive[order].astype(float)

    def statistic(w: Array) -> Array:
        sorted_w = w[:, order]
        positives = np.add.reduceat(sorted_w * signs, starts, axis=1)
        negatives = np.add.reduceat(sorted_w * (1 - signs), starts, axis=1)
        below = np.cumsum(negatives, axis=1) - negatives
        pairs = positives.sum(axis=1) * negatives.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(((below + 0.5 * negatives) * positives).sum(axis=1) / pairs)

    return statistic


def _auc_linear(positive: Array, scores: Array) -> Statistic:
    """First-order expansion of the above around equal weights, by placement values (DeLong et al. 1988); exact for
    equal weights."""
    high, low = np.sort(scores[positive]), np.sort(scores[~positive])
    if len(high) == 0 or len(low) == 0:
        return lambda w: np.full(len(w), np.nan)
    placed = np.where(positive, _share_below(low, scores), 1 - _share_below(high, scores))
    auc = placed[positive].mean()
    signs = positive.astype(float)

    def statistic(w: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            of_positives = (w @ (placed * signs)) / (w @ signs)
            of_negatives = (w @ (placed * (1 - signs))) / (w @ (1 - signs))
        return np.asarray(of_positives + of_negatives - auc)

    return statistic


def _share_below(ordered: Array, scores: Array) -> Array:
    """Share of `ordered` below each score, ties counted half."""
    below = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
    return np.asarray(below / (2 * len(ordered)))


def _from_counts(metric: str, labels: Array, values: Array, schema: ModelSchema) -> Statistic:
    classes = schema.classes
    is_label = np.stack([labels == c for c in classes], axis=1).astype(float)
    is_value = np.stack([values == c for c in classes], axis=1).astype(float)

    def statistic(w: Array) -> Array:
        actual, predicted = w @ is_label, w @ is_value
        hits = w @ (is_label * is_value)
        with np.errstate(divide="ignore", invalid="ignore"):
            if metric == "accuracy":
                return np.asarray(hits.sum(axis=1) / w.sum(axis=1))
            recall = hits / actual
            if metric == "balanced_accuracy":
                return np.where((actual > 0).sum(axis=1) > 1, _mean_of_defined(recall), np.nan)
            f1 = 2 * hits / (actual + predicted)
            if metric == "f1_macro":
                return _mean_of_defined(f1)
            at = classes.index(schema.positive) if schema.positive in classes else 0
            return np.asarray({"recall": recall, "precision": hits / predicted, "f1": f1}[metric][:, at])

    return statistic


def _mean_of_defined(values: Array) -> Array:
    defined = np.isfinite(values)
    return np.asarray(np.where(defined, values, 0).sum(axis=1) / np.maximum(defined.sum(axis=1), 1))


def _scores(predictions: Predictions) -> Array:
    if predictions.scores is None:
        raise _Undefined
    return predictions.scores.astype(float)


def _probability_of_label(labels: Array, predictions: Predictions, schema: ModelSchema) -> Array:
    scores = _scores(predictions)
    if schema.task is Task.BINARY:
        return np.where(labels == schema.positive, scores, 1 - scores)
    index = {c: i for i, c in enumerate(schema.classes)}
    return np.asarray(scores[np.arange(len(labels)), [index[label] for label in labels]])


def _cells(labels: Array, first: Predictions, second: Predictions) -> tuple[Array, Predictions, Predictions, Array]:
    codes = [np.unique(v.astype(str), return_inverse=True) for v in (labels, first.values, second.values)]
    table = np.stack([inverse for _, inverse in codes], axis=1)
    cells, counts = np.unique(table, axis=0, return_counts=True)
    names = [codes[i][0][cells[:, i]].astype(object) for i in range(3)]
    return names[0], Predictions(names[1]), Predictions(names[2]), counts


def _drawn(rng: np.random.Generator, rows: int, resamples: int) -> Iterator[Array]:
    """How often each row was drawn, in pieces of shape (some resamples, rows) that fit into memory."""
    size = max(1, min(resamples, 4_000_000 // max(rows, 1)))
    for start in range(0, resamples, size):
        draws = rng.integers(0, rows, size=(min(size, resamples - start), rows))
        yield np.stack([np.bincount(draw, minlength=rows).astype(float) for draw in draws])
