"""The gates that a team asks for beside quality: calibration, fairness, agreement, robustness, size, its own functions.

Invariant: pure but for the models that are asked again with changed inputs and the functions that a team names; each
but that of size is off until it is configured. What cannot be measured of the challenger does not pass; what needs a
champion passes where there is none.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from retrain.config.settings import GatesConfig
from retrain.data.frame import features_frame
from retrain.judge.evaluate import GUESS, Model, Side
from retrain.judge.gates import GateResult, in_words
from retrain.models.quality import LOWER_IS_BETTER, Array, Predictions, Statistic, bootstrap_interval, measure
from retrain.terms.schema import FeatureKind, ModelSchema, Task

if TYPE_CHECKING:
    import pandas as pd

BINS = 10
"""Bins of equal numbers of rows in which calibration is measured."""
ROBUSTNESS_ROWS = 5000
"""Holdout rows, evenly spaced, that are asked again for each feature."""


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """Champion and challenger on the same holdout rows, in lake columns; what a gate function of a team's is given.

    `labels`: class names (object) or float64, one per row. `metric`: the one that the quality gate judges.
    """

    champion: Side
    challenger: Side
    rows: pl.DataFrame
    labels: Array
    schema: ModelSchema
    metric: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a gate function answers; `value` is what it holds against `limit`."""

    passed: bool
    detail: str
    value: float | None = None
    limit: float | None = None


def safeguards(match: Match, config: GatesConfig, seed: int) -> list[GateResult]:
    """Every gate of these that is configured."""
    return [gate for check in _CHECKS for gate in check(match, config, seed)]


# -- calibration


def _calibration(match: Match, config: GatesConfig, seed: int) -> Iterator[GateResult]:
    if (limit := config.calibration_tolerance) is None:
        return
    ours, theirs = (_confidence(side.predictions, match) for side in (match.challenger, match.champion))
    if ours is None:
        yield GateResult("calibration", False, None, limit, "the challenger gives no probabilities")
        return
    mine = calibration_error(*ours)
    told = f"expected calibration error {_once(mine, match)}"
    if theirs is None or match.champion.source == GUESS:
        yield GateResult("calibration", True, None, limit, f"{told}; no champion's probabilities to compare with")
        return
    other = calibration_error(*theirs)
    value, interval = _measured(lambda w: mine(w) - other(w), len(match.rows), config, seed)
    detail = f"{told} against {_once(other, match)}; worse by {limit:g} is allowed"
    yield _at_most("calibration", value, limit, detail, interval)


def _confidence(predictions: Predictions, match: Match) -> tuple[Array, Array] | None:
    """(probability, whether it came true) per row: of the positive class, or of the likeliest one."""
    scores, schema = predictions.scores, match.schema
    if scores is None:
        return None
    if schema.task is Task.BINARY:
        return scores, (match.labels == schema.positive).astype(float)
    best = scores.argmax(axis=1)
    return scores.max(axis=1), (np.array(schema.classes, dtype=object)[best] == match.labels).astype(float)


def calibration_error(probability: Array, came_true: Array) -> Statistic:
    """Expected calibration error over bins of equal numbers of rows (Naeini, Cooper & Hauskrecht 2015): how far the
    mean probability of a bin is from the share that came true, on average over rows. Rows with the same probability are
    in the same bin."""
    lower = np.searchsorted(np.sort(probability), probability, "left")
    apart = np.zeros((len(probability), BINS))
    apart[np.arange(len(probability)), lower * BINS // max(len(probability), 1)] = probability - came_true
    return lambda w: np.asarray(np.abs(w @ apart).sum(axis=1) / w.sum(axis=1))


# -- fairness


def _fairness(match: Match, config: GatesConfig, seed: int) -> Iterator[GateResult]:
    limits = (
        ("demographic_parity", config.max_parity_difference, parity_difference),
        ("equalized_odds", config.max_odds_difference, odds_difference),
    )
    for name, limit, statistic_of in limits:
        if limit is None or config.fairness_segment is None:
            continue
        groups = _groups(match, config.fairness_segment, config.segment_min_rows)
        if len(groups) < 2:
            told = f"{config.fairness_segment}: fewer than two groups have {config.segment_min_rows} rows"
            yield GateResult(name, False, None, limit, told)
            continue
        sides = [
            statistic_of(groups, match.labels == match.schema.positive, s.predictions.values == match.schema.positive)
            for s in (match.challenger, match.champion)
        ]
        value, interval = _measured(sides[0], len(match.rows), config, seed)
        if value is not None and interval is not None:  # a difference that cannot be negative: chance adds to it
            interval = (min(value, interval[0]), interval[1])
        detail = (
            f"by {config.fairness_segment} ({', '.join(groups)}): {in_words(value)}, the champion's "
            f"{_once(sides[1], match)}; {limit:g} is allowed"
        )
        yield _at_most(name, value, limit, detail, interval)


def _groups(match: Match, segment: str, least: int) -> dict[str, Array]:
    """Group -> 0/1 per row, of the groups with enough rows."""
    if f"segment_{segment}" not in match.rows.columns:
        return {}
    values = match.rows[f"segment_{segment}"].cast(pl.String)
    counted = values.drop_nulls().value_counts(name="rows").filter(pl.col("rows") >= least)
    names = sorted(counted[values.name].to_list())
    return {name: (values == name).fill_null(False).to_numpy().astype(float) for name in names}


def parity_difference(groups: dict[str, Array], _actual: Array, predicted: Array) -> Statistic:
    """Largest difference between groups in the share that is predicted positive (demographic parity)."""
    return _largest_difference([_rate(group, predicted) for group in groups.values()])


def odds_difference(groups: dict[str, Array], actual: Array, predicted: Array) -> Statistic:
    """The larger of the largest differences between groups in true and in false positive rates (equalized odds; Hardt,
    Price & Srebro 2016). A group without positives (negatives) has no such rate; fewer than two rates: NaN."""
    of_positives, of_negatives = (
        _largest_difference([_rate(group * among, predicted) for group in groups.values()])
        for among in (actual.astype(float), (~actual).astype(float))
    )
    return lambda w: np.maximum(of_positives(w), of_negatives(w))


def _rate(among: Array, predicted: Array) -> Statistic:
    hits = among * predicted

    def rate(w: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((w @ hits) / (w @ among))

    return rate


def _largest_difference(rates: list[Statistic]) -> Statistic:
    def difference(w: Array) -> Array:
        found = np.stack([rate(w) for rate in rates])
        apart = np.fmax.reduce(found) - np.fmin.reduce(found)
        return np.where(np.isfinite(found).sum(axis=0) >= 2, apart, np.nan)

    return difference


# -- agreement


def _agreement(match: Match, config: GatesConfig, seed: int) -> Iterator[GateResult]:
    if (limit := config.min_agreement) is None:
        return
    if match.champion.source == GUESS:
        yield GateResult("agreement", True, None, limit, "there is no champion to agree with")
        return
    ours, theirs = match.challenger.predictions.values, match.champion.predictions.values
    if match.schema.task is Task.REGRESSION:
        statistic, what = _correlation(ours, theirs), "correlation of the answers"
    else:
        same = (ours == theirs).astype(float)
        statistic, what = (lambda w: np.asarray((w @ same) / w.sum(axis=1))), "share of rows with the same answer"
    value, interval = _measured(statistic, len(match.rows), config, seed)
    detail = f"{what}: {in_words(value)} with {match.champion.source}; at least {limit:g} is asked for"
    yield GateResult("agreement", value is not None and value >= limit, value, limit, detail, interval)


def _correlation(one: Array, two: Array) -> Statistic:
    """Pearson's, weighted; of the same answers 1, also where they are constant."""
    if np.array_equal(one, two):
        return lambda w: np.ones(len(w))
    one, two = one - one.mean(), two - two.mean()  # or squares of large numbers cancel

    def correlation(w: Array) -> Array:
        n = w.sum(axis=1)
        mean_one, mean_two = (w @ one) / n, (w @ two) / n
        covariance = (w @ (one * two)) / n - mean_one * mean_two
        spread = ((w @ one**2) / n - mean_one**2) * ((w @ two**2) / n - mean_two**2)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(covariance / np.sqrt(spread))

    return correlation


# -- robustness


def _robustness(match: Match, config: GatesConfig, _seed: int) -> Iterator[GateResult]:
    if (limit := config.robustness_tolerance) is None:
        return
    ours, theirs = match.challenger.model, match.champion.model
    assert ours is not None
    step = max(1, -(-len(match.rows) // ROBUSTNESS_ROWS))
    rows, labels = match.rows.gather_every(step), match.labels[::step]
    sign = -1.0 if match.metric in LOWER_IS_BETTER else 1.0

    def asked(model: Model, frame: pd.DataFrame) -> float | None:
        return measure(match.metric, labels, model.predictions(frame, match.schema), match.schema)

    def failed(told: str) -> GateResult:
        return GateResult("robustness", False, None, -limit, told)

    worst, where, unanswered = np.inf, "", 0
    for change, frame in _changed(features_frame(rows, match.schema), match.schema):
        try:
            a = asked(ours, frame)
        except Exception as exc:  # noqa: BLE001 - whatever a model does with a gap
            yield failed(f"the challenger cannot answer with {change}: {type(exc).__name__}: {exc}")
            return
        b = None
        with suppress(Exception):  # where the champion cannot answer either, nothing is lost
            b = None if theirs is None else asked(theirs, frame)
        if b is None:
            unanswered += 1
        elif a is None:
            yield failed(
                f"{match.metric} is not defined for the challenger with {change}, for the champion it is {b:.4g}"
            )
            return
        elif sign * (a - b) < worst:
            worst = sign * (a - b)
            where = f"{match.metric} {a:.4g} against {b:.4g} with {change}"
    if where:
        detail = f"worst of {len(rows)} rows: {where}; worse by {limit:g} is allowed"
        yield GateResult("robustness", bool(worst >= -limit), float(worst), -limit, detail)
        return
    detail = f"the champion can be measured with none of {unanswered} changes: nothing is lost"
    if theirs is None:
        detail = f"every change of an input was answered; no model to compare with: {match.champion.source}"
    yield GateResult("robustness", True, None, -limit, detail)


def _changed(frame: pd.DataFrame, schema: ModelSchema) -> Iterator[tuple[str, pd.DataFrame]]:
    """One input at a time: missing everywhere; of numbers, also moved up by their standard deviation."""
    for feature in schema.features:
        number = feature.kind is FeatureKind.NUMBER
        gone = np.full(len(frame), np.nan) if number else np.full(len(frame), None, dtype=object)
        yield f"{feature.name} missing", frame.assign(**{feature.name: gone})
        spread = float(frame[feature.name].std()) if number else 0.0
        if np.isfinite(spread) and spread > 0:
            yield f"{feature.name} moved by {spread:.3g}", frame.assign(**{feature.name: frame[feature.name] + spread})


# -- size, and functions of a team's own


def _size(match: Match, config: GatesConfig, _seed: int) -> Iterator[GateResult]:
    yield size_gate(match.challenger.size, config.max_size)


def size_gate(size: int | None, limit: int) -> GateResult:
    """`size` None: the model is stored nowhere, as in a backtest."""
    if size is None:
        return GateResult("size", True, None, limit, "the model was not stored")
    return _at_most("size", float(size), limit, f"{size:,} bytes unpacked; {limit:,} are allowed", None)


def _functions(match: Match, config: GatesConfig, _seed: int) -> Iterator[GateResult]:
    for name in config.functions:
        gate = f"function.{name}"
        try:
            module, _, function = name.partition(":")
            answer = getattr(importlib.import_module(module), function)(match)
            value, limit = _finite(answer.value), _finite(answer.limit)
            yield GateResult(gate, bool(answer.passed), value, limit, str(answer.detail))
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - a team's code: whatever it does, it has not passed
            told = traceback.format_exception_only(exc)[-1].strip()
            yield GateResult(gate, False, None, None, f"raised {told}")


# -- parts


_CHECKS = (_calibration, _fairness, _agreement, _robustness, _size, _functions)


def _finite(value: Any) -> float | None:
    return None if value is None or not np.isfinite(float(value)) else float(value)


def _measured(
    statistic: Statistic, rows: int, config: GatesConfig, seed: int
) -> tuple[float | None, tuple[float, float] | None]:
    """The value on all rows, None where it is not defined, and its bootstrap interval."""
    value = float(statistic(np.ones((1, rows)))[0]) if rows else np.nan
    if not np.isfinite(value):
        return None, None
    interval = bootstrap_interval(statistic, rows, confidence=config.confidence, resamples=config.bootstrap, seed=seed)
    return value, interval


def _once(statistic: Statistic, match: Match) -> str:
    return in_words(float(statistic(np.ones((1, len(match.rows))))[0]))


def _at_most(
    name: str, value: float | None, limit: float, detail: str, interval: tuple[float, float] | None
) -> GateResult:
    return GateResult(name, value is not None and value <= limit, value, limit, detail, interval)
