"""95 % intervals of model-quality metrics, from the same rows as the metric itself.

Invariant: an interval holds its value and stays within the metric's range; None where the rows cannot tell.

- shares (accuracy, precision, recall): Wilson's score interval (Wilson 1927)
- balanced accuracy, a mean of independent shares: their Wilson intervals combined by MOVER (Zou and Donner 2008)
- F1 scores: percentile bootstrap of the confusion matrix, which is all they depend on (multinomial, seeded)
- ROC AUC: DeLong's variance (DeLong et al. 1988; ranks as in Sun and Xu 2014), normal on the logit scale
- means of one number per row (MAE, MAPE, bias, Brier, log loss): central limit theorem
- RMSE and R2: central limit theorem through their influence functions (delta method)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from monitor.measure.performance._scored import Scored, recalls, with_scores
from monitor.measure.performance.scores import SCORES
from retrain.terms.schema import Task

Z = 1.959963984540054  # the normal distribution's 97.5 % point
RESAMPLES = 400
MIN_EACH = 10
"""Positives and negatives below which an AUC has no interval: it would be too narrow."""
Array = np.ndarray[Any, Any]
Interval = tuple[float, float]

_RANGES = {"r2": (-math.inf, 1.0), "bias": (-math.inf, math.inf)}
_UNBOUNDED_ABOVE = ("mae", "mape", "rmse", "log_loss")


def interval(metric: str, rows: Scored, value: float) -> Interval | None:
    """The 95 % interval of `metric`, whose value on `rows` is `value`; None with fewer than two rows."""
    if SCORES[metric].from_scores:
        rows = with_scores(rows)
    if rows.count < 2:
        return None
    found = _raw(metric, rows, value)
    if found is None or not all(map(math.isfinite, found)):
        return None
    low, high = _RANGES.get(metric, (0.0, math.inf if metric in _UNBOUNDED_ABOVE else 1.0))
    return max(low, min(found[0], value)), min(high, max(found[1], value))


def _raw(metric: str, rows: Scored, value: float) -> Interval | None:
    truth, answer = rows.truth == rows.positive, rows.answer == rows.positive
    match metric:
        case "accuracy":
            return _wilson(rows.truth == rows.answer)
        case "precision":
            return _wilson(truth[answer])
        case "recall":
            return _wilson(answer[truth])
        case "balanced_accuracy":
            return mean_of_shares(list(recalls(rows).values()))[1]
        case "f1":
            return _bootstrap_f1(truth.astype(int), answer.astype(int), only=1)
        case "f1_macro":
            return _bootstrap_f1(rows.truth, rows.answer)
        case "roc_auc":
            return _delong(rows.scores[truth, 0], rows.scores[~truth, 0], value)
        case "rmse":
            squares = (rows.answer - rows.truth) ** 2
            return _normal(value, squares / (2 * value)) if value else (0.0, 0.0)
        case "r2":
            return _r2(rows, value)
        case _:
            return _normal(value, _per_row(metric, rows))


def _wilson(hits: Array) -> Interval | None:
    return _share(int(hits.sum()), len(hits)) if len(hits) else None


def _share(hits: int, n: int) -> Interval:
    p, z2 = hits / n, Z * Z / n
    centre, half = (p + z2 / 2) / (1 + z2), Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n)) / (1 + z2)
    return centre - half, centre + half


def mean_of_shares(counts: Sequence[tuple[int, int]]) -> tuple[float, Interval]:
    """The mean of independent shares, each (hits, of how many), and its interval."""
    down = up = value = 0.0
    for hits, n in counts:
        share, found = hits / n, _share(hits, n)
        value += share / len(counts)
        down += (share - found[0]) ** 2
        up += (found[1] - share) ** 2
    return value, (value - math.sqrt(down) / len(counts), value + math.sqrt(up) / len(counts))


def _bootstrap_f1(truth: Array, answer: Array, only: int | None = None) -> Interval:
    """Draws over the cells of the confusion matrix that hold rows: as many as there are rows at most."""
    cells, counts = np.unique(np.stack([truth, answer]), axis=1, return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(truth), counts / len(truth), RESAMPLES)
    classes = np.unique(cells) if only is None else np.array([only])
    scores = np.empty((RESAMPLES, len(classes)))
    for n, c in enumerate(classes):
        hits = draws[:, (cells[0] == c) & (cells[1] == c)].sum(axis=1)
        told, true = draws[:, cells[1] == c].sum(axis=1), draws[:, cells[0] == c].sum(axis=1)
        with np.errstate(invalid="ignore"):
            scores[:, n] = 2 * hits / (told + true)
    chosen = np.nanmean(scores, axis=1) if only is None else scores[:, 0]
    low, high = np.quantile(chosen[np.isfinite(chosen)], [0.025, 0.975])
    return float(low), float(high)


def _delong(positive: Array, negative: Array, value: float) -> Interval | None:
    """DeLong's variance on the logit scale, which keeps its level on few rows; none where it comes out as zero."""
    m, n = len(positive), len(negative)
    if min(m, n) < MIN_EACH:
        return None
    together = rankdata(np.concatenate([positive, negative]))
    of_positive = (together[:m] - rankdata(positive)) / n
    of_negative = 1 - (together[m:] - rankdata(negative)) / m
    spread = math.sqrt(np.var(of_positive, ddof=1) / m + np.var(of_negative, ddof=1) / n)
    if not spread or not 0 < value < 1:
        return None
    logit, half = math.log(value / (1 - value)), Z * spread / (value * (1 - value))
    return 1 / (1 + math.exp(half - logit)), 1 / (1 + math.exp(-half - logit))


def _r2(rows: Scored, value: float) -> Interval:
    squares, spread = (rows.answer - rows.truth) ** 2, (rows.truth - rows.truth.mean()) ** 2
    return _normal(value, (-squares + (1 - value) * spread) / spread.mean())


def _per_row(metric: str, rows: Scored) -> Array:
    """The numbers whose mean the metric is."""
    values: Array
    match metric:
        case "mae":
            values = np.abs(rows.answer - rows.truth)
        case "mape":
            values = np.abs((rows.answer - rows.truth) / rows.truth)
        case "bias":
            values = rows.answer - rows.truth
        case "brier":
            values = (rows.scores[:, 0] - (rows.truth == rows.positive)) ** 2
        case "log_loss":
            values = -np.log(np.clip(_of_truth(rows), np.finfo(float).eps, 1.0))
        case _:
            raise NotImplementedError(metric)
    return values


def _of_truth(rows: Scored) -> Array:
    """The probability that was given to what came true."""
    if rows.task is Task.BINARY:
        given: Array = np.where(rows.truth == rows.positive, rows.scores[:, 0], 1 - rows.scores[:, 0])
    else:
        given = rows.scores[np.arange(rows.count), rows.truth]
    return given


def _normal(value: float, influence: Array) -> Interval:
    half = Z * float(np.std(influence, ddof=1)) / math.sqrt(len(influence))
    return value - half, value + half
