"""The gate for a challenger that is better than can be: it has seen the answers, or something tells it them.

Invariant: it rejects nobody, it asks a person; not about a model that answers as well as one that has served this
stream before, nor where it may have been luck.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
from scipy.stats import binom

from retrain.data.frame import labels_array
from retrain.judge.evaluate import as_served
from retrain.judge.gates import GateResult
from retrain.judge.safeguards import Match
from retrain.models.quality import Array
from retrain.terms.schema import ModelSchema, Task

NEAR_PERFECT = 0.01
"""A mean over the classes of the share of wrong answers, up to which a challenger is looked at."""
NEAR_PERFECT_FIT = 0.001
"""The same for numbers: the squared error, as a share of the labels' variance."""
UNLIKELY = 0.1
"""For each class: of two classes, one in a hundred."""
CHUNKS = 10
"""Pieces of the earlier rows, in the order of time, each of which may have had a good model."""
LEAST_ROWS = 10
"""Of each class, to count, in the holdout and in a piece; of numbers three times as many."""


def too_good(match: Match, earlier: pl.DataFrame) -> GateResult:
    """Whether the answers of the challenger are (nearly) all right, and no model that was seen explains it: neither
    the champion on the same rows, nor what was served while the training rows `earlier` came (lake columns, in the
    order of time). `value` is the challenger's share of wrong answers, mean over classes; of numbers, the share of
    the variance that it leaves."""
    schema, ours = match.schema, (match.labels, match.challenger.predictions.values)
    seen = [(match.labels, match.champion.predictions.values), *_served(earlier, schema)]
    if schema.task is Task.REGRESSION:
        (value, explained), limit, what = _numbers(ours, seen), NEAR_PERFECT_FIT, "the variance is left"
    else:
        (value, explained), limit, what = _classes(ours, seen, schema), NEAR_PERFECT, "the answers are wrong"
    detail = "too few rows to tell" if value is None else f"{value:.3g} of {what}"
    if explained and value is not None:
        detail += ", which is not too good to be true"
    elif not explained:
        detail += (
            f" on {len(match.rows)} holdout rows, and no model before came near that: does a feature, or the trainer, "
            f"know what came true? If it does not, approve it"
        )
    return GateResult("too_good", explained, value, limit, detail, asks=True)


Answered = tuple[Array, Array]
"""Labels and answers, row by row."""


def _served(earlier: pl.DataFrame, schema: ModelSchema) -> Iterator[Answered]:
    """What was answered in each piece: fewer where a class is rare, that each may hold some of it."""
    pieces = CHUNKS
    if schema.task is not Task.REGRESSION and len(earlier):
        rarest = min(int(n) for n in earlier["label"].cast(pl.String).drop_nulls().value_counts()["count"])
        pieces = max(1, min(CHUNKS, rarest // (2 * LEAST_ROWS)))
    size = max(3 * LEAST_ROWS, -(-len(earlier) // pieces))
    for start in range(0, len(earlier), size):
        rows = earlier.slice(start, size)
        if (side := as_served(rows, schema)) is not None:
            labels, kept = labels_array(rows, schema), side.usable
            at = slice(None) if kept is None else kept
            yield labels[at], side.predictions.values[at]


def _classes(ours: Answered, seen: list[Answered], schema: ModelSchema) -> tuple[float | None, bool]:
    """(mean over classes of the share of wrong answers, whether it is explained). It is when a model that
    was seen is within the limit too, or has twice as many wrong answers at most, or when one with half of its wrong
    answers might answer so: the chance of so few, by binomial tails of the classes, is not below UNLIKELY for each."""
    rows, wrong = _counts(ours, schema)
    counted = rows >= LEAST_ROWS
    if counted.sum() < 2:
        return None, True
    value = float((wrong[counted] / rows[counted]).mean())
    if value > NEAR_PERFECT:
        return value, True
    for one in seen:
        theirs, amiss = (found[counted] for found in _counts(one, schema))
        if (theirs < LEAST_ROWS).any():
            continue
        rates = (amiss + 0.5) / (theirs + 1)
        chances = binom.cdf(wrong[counted], rows[counted], rates / 2)
        near = float((amiss / theirs).mean()) <= max(NEAR_PERFECT, 2 * value)
        if near or np.log(np.maximum(chances, 1e-300)).mean() >= np.log(UNLIKELY):
            return value, True
    return value, False


def _counts(one: Answered, schema: ModelSchema) -> tuple[Array, Array]:
    """Rows, and wrong answers among them, by class."""
    labels, values = one
    of = np.stack([labels == name for name in schema.classes])
    return of.sum(axis=1), (of & (values != labels)).sum(axis=1)


def _numbers(ours: Answered, seen: list[Answered]) -> tuple[float | None, bool]:
    """(share of the variance that is left, whether it is explained). It is when a model was seen that is
    within the limit too, or whose errors are less than ten times as large in the middle: one large label may be all
    of the variance."""
    value = _unexplained(ours)
    if value is None or value > NEAR_PERFECT_FIT:
        return value, True
    theirs = [left for one in seen if (left := _unexplained(one)) is not None]
    middle = [float(np.median(np.abs(labels - values))) for labels, values in (ours, *seen) if len(labels)]
    explained = min(theirs, default=np.inf) <= max(NEAR_PERFECT_FIT, 10 * value)
    return value, explained or min(middle[1:], default=np.inf) <= 10 * middle[0]


def _unexplained(one: Answered) -> float | None:
    labels, values = one
    spread = float(((labels - labels.mean()) ** 2).sum()) if len(labels) >= 3 * LEAST_ROWS else 0.0
    return float(((labels - values) ** 2).sum()) / spread if spread > 0 else None
