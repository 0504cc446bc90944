"""Scores calibrated on the reference, and what they make a window's classification performance to be.

Invariant: pure and seeded; the same reference and window give the same numbers.

Confidence-based Performance Estimation (CBPE): Kivimäki, Białek, Kuberski and Nurminen, "Performance Estimation in
Binary Classification Using Calibrated Confidence", arXiv:2505.05295; as software NannyML, "How it works: estimation
of performance". With p_i the calibrated probability of the positive class and a_i the served answer (1 or 0), the
expected cells of the confusion matrix are TP = sum a_i p_i, FP = sum a_i (1 - p_i), FN = sum (1 - a_i) p_i, TN the
rest, and a metric's estimate is its formula on them. ROC AUC: with r_i the midrank of row i by its score, P = sum p_i
and N = n - P, it is (sum p_i (r_i - 1/2) - P^2 / 2) / (P N): Mann and Whitney's statistic with p_i for the label.

Isotonic regression is optimistic about the rows it was fitted on and, less, about others: its running sum never lies
above that of the labels (it is their greatest convex minorant), so scores seem to part the classes better than they do.
`offsets` takes that off: what is wrong with the reference's own estimate is not repeated for a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from scipy.stats import rankdata

from monitor.measure.performance._scored import Scored
from retrain.terms.schema import Task

Array = np.ndarray[Any, Any]

SHIFTS = 100
"""Versions of the reference, drawn from its rows, that say how far the calibration can be trusted."""
DRAWS = 4
"""Sets of labels drawn for a window under each of them."""
CHECKS, CHECK_SHARE, CHECK_SEED, CHECK_BINS = 10, 0.1, 42, 10
"""NannyML's own, so that the same reference is judged the same."""
SEPARATED = 0.999
"""ROC AUC above which NannyML leaves scores as they are."""
MIN_EACH = 10
"""Rows of a class, and of the others, without which its scores are taken as they are."""


@dataclass(frozen=True, slots=True, eq=False)
class Calibrator:
    """A non-decreasing map of scores to expected values, and how uncertain it is.

    `knots`: 2 x k, linear in between; None leaves scores as they are. `edges` part the scores into cells, the levels
    of the isotonic regression. `shifts`: SHIFTS x cells, what to add to the expected value of a cell's rows.
    """

    knots: Array | None
    edges: Array
    shifts: Array

    def expected(self, scores: Array) -> Array:
        return scores if self.knots is None else np.interp(scores, self.knots[0], self.knots[1])

    def cells(self, scores: Array) -> Array:
        return np.searchsorted(self.edges, scores)


def resampled(rows: int) -> Array:
    """Weights, SHIFTS x rows: the Bayesian bootstrap (Rubin 1981), which leaves no row out."""
    return np.random.default_rng(0).standard_exponential((SHIFTS, rows), dtype=np.float32)


def fit_calibrator(scores: Array, values: Array, weights: Array, *, as_they_are: bool) -> Calibrator:
    """`scores` and `values`: (n,), `weights`: SHIFTS x n from `resampled`.

    A level whose rows all agree would seem certain: one row of the overall mean is added to each.
    """
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(out_of_bounds="clip").fit(scores, values)
    x, y = fitted.X_thresholds_, fitted.y_thresholds_
    steps = np.flatnonzero(np.diff(y))
    edges = (x[steps] + x[steps + 1]) / 2
    cells = np.searchsorted(edges, scores)
    added = np.random.default_rng(1).standard_exponential((SHIFTS, len(edges) + 1))
    means = added * values.mean()
    for n, weight in enumerate(weights):
        added[n] += np.bincount(cells, weight, len(edges) + 1)
        means[n] += np.bincount(cells, weight * values, len(edges) + 1)
    means /= added
    return Calibrator(None if as_they_are else np.stack([x, y]), edges, means - means.mean(axis=0))


def needs_calibration(scores: Array, truth: Array) -> bool:
    """Does isotonic regression lower the expected calibration error on rows held out of it? As NannyML decides.

    The error is the mean over ten equally filled bins of |mean score - share of positives|, on the rows held out in
    ten stratified splits together (Naeini et al. 2015).
    """
    from sklearn.isotonic import IsotonicRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedShuffleSplit

    if min(truth.sum(), len(truth) - truth.sum()) < MIN_EACH or roc_auc_score(truth, scores) > SEPARATED:
        return False
    splits = StratifiedShuffleSplit(CHECKS, test_size=CHECK_SHARE, random_state=CHECK_SEED)
    held: list[tuple[Array, Array, Array]] = []
    for train, test in splits.split(scores, truth):
        fitted = IsotonicRegression(out_of_bounds="clip").fit(scores[train], truth[train])
        held.append((scores[test], fitted.predict(scores[test]), truth[test]))
    before, after, outcomes = (np.concatenate(part) for part in zip(*held, strict=True))
    return calibration_error(before, outcomes) > calibration_error(after, outcomes)


def calibration_error(scores: Array, truth: Array) -> float:
    order = np.argsort(scores)
    bins = np.array_split(order, CHECK_BINS)
    return float(sum(abs(scores[b].mean() - truth[b].mean()) * len(b) for b in bins if len(b)) / len(scores))


def fit_calibrators(rows: Scored) -> tuple[Calibrator, ...]:
    """One of the positive class for a binary model, else one for each class against the rest."""
    classes = [rows.positive] if rows.task is Task.BINARY else range(rows.classes)
    weights = resampled(rows.count)
    found = []
    for n, c in enumerate(classes):
        scores, truth = rows.scores[:, n], (rows.truth == c).astype(float)
        found.append(fit_calibrator(scores, truth, weights, as_they_are=not needs_calibration(scores, truth)))
    return tuple(found)


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """What the metrics are computed from, for one or more sets of labels of the same n rows.

    `totals`: sets x classes x 5, sums over the rows of a class (or over all rows, times the class's probability) of:
    1, whether it was answered, log loss, squared error of the score, (midrank of the score - 1/2) / n. `told`: (sets
    or 1) x classes, how often each was answered; `strays`: how many different answers are no class.
    """

    totals: Array
    told: Array
    strays: int
    rows: int
    positive: int


def estimated(calibrators: Sequence[Calibrator], rows: Scored) -> tuple[Sums, Sums]:
    """The expected sums (one set), and SHIFTS x DRAWS sets of drawn labels, which spread as realized ones would."""
    weights = _weights(rows)
    facts = _facts(rows)
    expected = _expected(calibrators, rows, weights)
    drawn = np.concatenate(list(_drawn(calibrators, rows, weights.astype(np.float32))))
    return Sums(expected, *facts), Sums(drawn.astype(float), *facts)


def offsets(calibrators: Sequence[Calibrator], rows: Scored, metrics: Sequence[str]) -> dict[str, Array]:
    """Realized minus estimated on the reference, by metric: (1 + SHIFTS,), as it is and under each shift.

    A shift's offset is of the resampled reference that the shift comes from, moved so that their mean is the first.
    0 where one of the two is undefined.
    """
    weights, facts = _weights(rows), _facts(rows)
    own = weights[rows.truth, np.arange(rows.count)]
    counts = np.concatenate([np.ones((1, rows.count), dtype=np.float32), resampled(rows.count)])
    counts *= rows.count / counts.sum(axis=1, keepdims=True)
    totals = np.stack([counts * (rows.truth == c) @ own for c in range(rows.classes)], axis=1)
    told = np.stack([counts @ (rows.answer == c) for c in range(rows.classes)], axis=1)
    as_it_is = iter([_probabilities(calibrators, rows)])
    versions = zip(chain(as_it_is, _shifted(calibrators, rows)), counts, strict=True)
    expected = np.stack([np.einsum("nc,cnm->cm", p * count[:, None], weights) for p, count in versions])
    facts = (told, *facts[1:])
    found: dict[str, Array] = {}
    for metric in metrics:
        offset = np.nan_to_num(score(metric, Sums(totals, *facts)) - score(metric, Sums(expected, *facts)))
        offset[1:] += offset[0] - offset[1:].mean()
        found[metric] = offset
    return found


def _facts(rows: Scored) -> tuple[Array, int, int, int]:
    told = np.bincount(rows.answer, minlength=rows.classes)
    return told[None, : rows.classes], int(np.count_nonzero(told[rows.classes :])), rows.count, rows.positive


def _expected(calibrators: Sequence[Calibrator], rows: Scored, weights: Array) -> Array:
    return np.asarray(np.einsum("nc,cnm->cm", _probabilities(calibrators, rows), weights)[None])


def _drawn(calibrators: Sequence[Calibrator], rows: Scored, weights: Array) -> Iterator[Array]:
    """Labels drawn under each shifted calibration, summed up: DRAWS x classes x 5 at a time."""
    rng = np.random.default_rng(2)
    for probabilities in _shifted(calibrators, rows):
        below = np.cumsum(probabilities, axis=1, dtype=np.float32)
        chance = rng.random((DRAWS, rows.count), dtype=np.float32)
        sums = np.empty((DRAWS, rows.classes, weights.shape[2]), dtype=np.float32)
        left = np.ones(chance.shape, dtype=bool)
        for c in range(rows.classes - 1):
            chosen = left & (chance < below[:, c])
            sums[:, c] = chosen.astype(np.float32) @ weights[c]
            left &= ~chosen
        sums[:, -1] = left.astype(np.float32) @ weights[-1]
        yield sums


def _shifted(calibrators: Sequence[Calibrator], rows: Scored) -> Iterator[Array]:
    """The rows' class probabilities, n x classes, under each of the SHIFTS."""
    cells = [c.cells(rows.scores[:, n]) for n, c in enumerate(calibrators)]
    expected = [c.expected(rows.scores[:, n]) for n, c in enumerate(calibrators)]
    for shift in range(SHIFTS):
        yield _joint([p + c.shifts[shift][cell] for c, p, cell in zip(calibrators, expected, cells, strict=True)], rows)


def _probabilities(calibrators: Sequence[Calibrator], rows: Scored) -> Array:
    return _joint([c.expected(rows.scores[:, n]) for n, c in enumerate(calibrators)], rows)


def _joint(columns: list[Array], rows: Scored) -> Array:
    """n x classes, each row's sum is 1: one-vs-rest probabilities are scaled, all zero means all alike."""
    clipped = [np.clip(p, 0.0, 1.0) for p in columns]
    if rows.task is Task.BINARY:
        pair = (1 - clipped[0], clipped[0])
        return np.stack(pair if rows.positive == 1 else pair[::-1], axis=1)
    joint = np.stack(clipped, axis=1)
    total = joint.sum(axis=1, keepdims=True)
    scaled: Array = np.divide(joint, total, out=np.full_like(joint, 1 / rows.classes), where=total > 0)
    return scaled


def _weights(rows: Scored) -> Array:
    """classes x n x 5: what a row adds to the sums when its label is the class."""
    weights = np.zeros((rows.classes, rows.count, 5))
    weights[:, :, 0] = 1.0
    ranks = (rankdata(rows.scores[:, 0]) - 0.5) / rows.count
    smallest = np.finfo(float).eps
    for c in range(rows.classes):
        weights[c, :, 1] = rows.answer == c
        if rows.task is Task.BINARY:
            given = rows.scores[:, 0] if c == rows.positive else 1 - rows.scores[:, 0]
            weights[c, :, 3] = (1 - given) ** 2
            weights[c, :, 4] = ranks
        else:
            given = rows.scores[:, c]
        weights[c, :, 2] = -np.log(np.clip(given, smallest, 1 - smallest))
    return weights


def score(metric: str, sums: Sums) -> Array:
    """(sets,): the metric of each set of labels, NaN where it is undefined."""
    true, hit = sums.totals[:, :, 0], sums.totals[:, :, 1]
    at, n = sums.positive, sums.rows
    there = true > 0.5  # a realized count is whole, an expected one is not
    with np.errstate(divide="ignore", invalid="ignore"):
        match metric:
            case "accuracy":
                found = hit.sum(axis=1) / n
            case "balanced_accuracy":
                shares = np.where(there, hit / true, 0.0).sum(axis=1)
                found = np.where(there.sum(axis=1) > 1, shares / there.sum(axis=1), np.nan)
            case "precision":
                found = hit[:, at] / sums.told[:, at]
            case "recall":
                found = np.where(there[:, at], hit[:, at] / true[:, at], np.nan)
            case "f1":
                found = 2 * hit[:, at] / (sums.told[:, at] + true[:, at])
            case "f1_macro":
                named = there | (sums.told > 0)
                each = np.where(named, 2 * hit / (sums.told + true), 0.0).sum(axis=1)
                found = each / (named.sum(axis=1) + sums.strays)
            case "roc_auc":
                positives = true[:, at]
                above = sums.totals[:, at, 4] * n - positives**2 / 2
                found = np.where(there.all(axis=1), above / (positives * (n - positives)), np.nan)
            case "log_loss":
                found = sums.totals[:, :, 2].sum(axis=1) / n
            case "brier":
                found = sums.totals[:, :, 3].sum(axis=1) / n
            case _:
                raise NotImplementedError(metric)
    return np.asarray(found, dtype=float)
