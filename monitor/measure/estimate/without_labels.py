"""Performance estimated without labels: what a window's metrics would be if the reference still told the truth.

Invariant: pure and seeded; no exception and no NaN for want of data, but a reason. An estimate follows a change of
the inputs; it cannot see a change of what the same inputs mean (concept drift).

Classification: `_cbpe.py`. Regression: Direct Loss Estimation (NannyML, "How it works: estimation of performance"): a
second model learns from the reference's rows how large the served model's loss is where. Its out-of-fold answers are
then calibrated on the reference as scores are, so that it is right on average there.

The interval is a 95 % prediction interval of the realized value, the one that labels will show: labels (or losses) are
drawn for the window's rows, under versions of the reference drawn by the Bayesian bootstrap (Rubin 1981).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from monitor.measure._evidently import quiet
from monitor.measure.estimate._cbpe import (
    DRAWS,
    MIN_EACH,
    SHIFTS,
    Array,
    Calibrator,
    estimated,
    fit_calibrator,
    fit_calibrators,
    offsets,
    resampled,
)
from monitor.measure.estimate._cbpe import score as score_of
from monitor.measure.performance._scored import Scored, scored_rows
from monitor.measure.performance.scores import metrics_for
from monitor.measure.reference import answer_kind, column, sample
from retrain.terms.schema import FeatureKind, ModelSchema, Task

MIN_REFERENCE_ROWS = 200
MIN_WINDOW_ROWS = 30
MAX_REFERENCE_ROWS = 50_000
"""More rows are sampled (seeded): they would add time, not precision."""
MAX_CATEGORIES = 254
"""Per feature, the most frequent ones; all others share one more. Boosting bins hold 255 values."""
FOLDS = 5
MAX_ROUNDS, PATIENCE = 200, 10
NEIGHBOURS = 0.05
"""Share of the reference's rows, those with the most similar expected loss, from which a row's loss is drawn."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """In the metric's units; `low` and `high` bound the 95 % prediction interval of the realized value."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class LossModel:
    """What one kind of loss is expected to be: the mean of the folds' boosters, each one's answer calibrated.

    `sorted_answers`: (n,), the out-of-fold answers on the reference, ascending; `ratios`: (n,), in the same order, the
    rows' own loss over the expected one.
    """

    boosters: tuple[Any, ...]
    calibrator: Calibrator
    sorted_answers: Array
    ratios: Array


@dataclass(frozen=True, slots=True, eq=False)
class Estimator:
    """What is learned from one reference.

    `rows`: how many of the reference's rows it is fitted on. Classification: `calibrators` by class (binary: of the
    positive one) and `offsets` by metric (`_cbpe.offsets`), added to every estimate. Regression: `losses` by metric, or
    why it has none, and the `categories` of each category feature, the most frequent first.
    """

    schema: ModelSchema
    metrics: tuple[str, ...]
    rows: int
    calibrators: tuple[Calibrator, ...] = ()
    offsets: Mapping[str, Array] = field(default_factory=dict)
    losses: Mapping[str, LossModel | str] = field(default_factory=dict)
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def fit_estimator(frame: pl.DataFrame, schema: ModelSchema, metrics: Sequence[str]) -> Estimator | str:
    """`frame`: the reference's rows in lake columns. A text says why nothing can be estimated from them."""
    if "label" not in frame.columns or column(frame, "label", answer_kind(schema)).null_count() == frame.height:
        return "the reference has no labels"
    with quiet():
        if schema.task is Task.REGRESSION:
            return _fit_losses(frame, schema, metrics)
        return _fit_classes(frame, schema, metrics)


def estimate(estimator: Estimator, window: pl.DataFrame) -> dict[str, Estimate | str]:
    """Each of the estimator's metrics on the window's rows, or why it has no estimate. Labels are not looked at.

    Rows without a prediction or with unusable scores are left out; when they are the most, nothing is estimated.
    """
    schema = estimator.schema
    with quiet():
        if schema.task is Task.REGRESSION:
            rows = window.filter(_finite(window, "prediction"))
            reason = _too_few(rows.height, window.height, "a prediction")
            if not reason:
                return _by_losses(estimator, rows)
        else:
            found = _with_scores(_unlabelled(window, schema))
            reason = _too_few(found.count, window.height, "a prediction and scores")
            if not reason:
                return _by_classes(estimator, found)
    return dict.fromkeys(estimator.metrics, reason)


def _finite(frame: pl.DataFrame, name: str) -> pl.Series:
    return column(frame, name, FeatureKind.NUMBER).fill_null(float("nan")).is_finite()


def _too_few(rows: int, given: int, what: str) -> str:
    if rows < MIN_WINDOW_ROWS:
        return f"{rows} rows with {what}, fewer than {MIN_WINDOW_ROWS}"
    return f"only {rows} of {given} rows have {what}" if rows < given / 2 else ""


def _between(value: float, draws: Array, reason: str) -> Estimate | str:
    """The middle 95 % of the draws, wide enough to hold the estimate itself."""
    draws = draws[np.isfinite(draws)]
    if not np.isfinite(value) or len(draws) < SHIFTS * DRAWS / 2:
        return reason
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(value), min(float(low), float(value)), max(float(high), float(value)))


def _fit_classes(frame: pl.DataFrame, schema: ModelSchema, metrics: Sequence[str]) -> Estimator | str:
    if any(column(frame, c, FeatureKind.NUMBER).null_count() == frame.height for c in schema.score_columns):
        return "the reference has no scores"
    rows = _with_scores(scored_rows(frame, schema))
    if rows.count < MIN_REFERENCE_ROWS:
        return f"{rows.count} labelled rows with scores in the reference, fewer than {MIN_REFERENCE_ROWS}"
    if rows.count > MAX_REFERENCE_ROWS:
        rows = _take(rows, np.random.default_rng(0).permutation(rows.count)[:MAX_REFERENCE_ROWS])
    counts = np.bincount(rows.truth, minlength=rows.classes)
    least = MIN_EACH if schema.task is Task.BINARY else 1
    if counts.min() < least:
        name = schema.classes[int(counts.argmin())]
        return f"{counts.min()} labels of the reference are {name!r}, fewer than {least}"
    calibrators = fit_calibrators(rows)
    found = offsets(calibrators, rows, [m for m in metrics if m in metrics_for(schema.task)])
    return Estimator(schema, tuple(metrics), rows.count, calibrators=calibrators, offsets=found)


def _by_classes(estimator: Estimator, rows: Scored) -> dict[str, Estimate | str]:
    expected, drawn = estimated(estimator.calibrators, rows)
    found: dict[str, Estimate | str] = {}
    for metric in estimator.metrics:
        if metric not in estimator.offsets:
            found[metric] = f"{metric} cannot be estimated"
            continue
        both = np.concatenate([score_of(metric, expected), score_of(metric, drawn)])
        both += np.repeat(estimator.offsets[metric], [1, *[DRAWS] * SHIFTS])
        both = np.clip(both, 0.0, None if metric == "log_loss" else 1.0)
        found[metric] = _between(both[0], both[1:], _why_undefined(metric, expected.told, rows))
    return found


def _why_undefined(metric: str, told: Array, rows: Scored) -> str:
    if metric == "precision" and not told[0, rows.positive]:
        return "no positive among the predictions"
    return "too few labels of a class are expected"


def _unlabelled(window: pl.DataFrame, schema: ModelSchema) -> Scored:
    """The window's answers and scores. `truth` has no meaning: rows are kept whatever label they have."""
    return scored_rows(window.with_columns(pl.lit(schema.classes[0]).alias("label")), schema)


def _with_scores(rows: Scored) -> Scored:
    """Only rows whose scores are all probabilities (a NaN is none)."""
    usable: Array = np.all((rows.scores >= 0) & (rows.scores <= 1), axis=1)
    return _take(rows, usable)


def _take(rows: Scored, chosen: Array) -> Scored:
    return replace(rows, truth=rows.truth[chosen], answer=rows.answer[chosen], scores=rows.scores[chosen])


def _fit_losses(frame: pl.DataFrame, schema: ModelSchema, metrics: Sequence[str]) -> Estimator | str:
    frame = frame.filter(_finite(frame, "label") & _finite(frame, "prediction"))
    frame = sample(frame, MAX_REFERENCE_ROWS, 0)
    if frame.height < MIN_REFERENCE_ROWS:
        return f"{frame.height} labelled rows with a prediction in the reference, fewer than {MIN_REFERENCE_ROWS}"
    rows = scored_rows(frame, schema)
    categories = {f.name: _frequent(frame, f.column) for f in schema.features if f.kind is FeatureKind.CATEGORY}
    inputs = _inputs(frame, schema, categories)
    weights = resampled(rows.count)
    found: dict[str, LossModel | str] = {}
    for metric in metrics:
        losses = _losses(metric, rows)
        found[metric] = losses if isinstance(losses, str) else _fit_loss(inputs, losses, schema, weights)
    return Estimator(schema, tuple(metrics), rows.count, losses=found, categories=categories)


def _losses(metric: str, rows: Scored) -> Array | str:
    """What each row adds to the mean that the metric is made of; a text for a metric that has no such mean."""
    errors = rows.answer - rows.truth
    match metric:
        case "mae":
            return np.asarray(np.abs(errors))
        case "rmse":
            return np.asarray(errors**2)
        case "mape":
            return "a label of the reference is zero" if (rows.truth == 0).any() else np.abs(errors / rows.truth)
        case _:
            return f"{metric} cannot be estimated: it depends on the labels themselves, not on the size of errors"


def _fit_loss(inputs: Array, losses: Array, schema: ModelSchema, weights: Array) -> LossModel:
    """Every row's expected loss comes from a model that has not seen it, and so does how many rounds are worth it."""
    fold = np.random.default_rng(3).permutation(len(losses)) % FOLDS
    answers = np.empty(len(losses))
    boosters = []
    for n in range(FOLDS):
        held, rest = fold == n, fold != n
        model = _booster(schema).fit(inputs[rest], losses[rest], X_val=inputs[held], y_val=losses[held])
        answers[held] = model.predict(inputs[held])
        boosters.append(model)
    calibrator = fit_calibrator(answers, losses, weights, as_they_are=False)
    expected = calibrator.expected(answers)
    ratios = np.divide(losses, expected, out=np.ones_like(losses), where=expected > 0)
    order = np.argsort(answers)
    return LossModel(tuple(boosters), calibrator, answers[order], ratios[order])


def _booster(schema: ModelSchema) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    coded = [n for n, f in enumerate(schema.features) if f.kind is FeatureKind.CATEGORY]
    return HistGradientBoostingRegressor(
        max_iter=MAX_ROUNDS,
        early_stopping=True,
        n_iter_no_change=PATIENCE,
        categorical_features=coded or None,
        random_state=0,
    )


def _by_losses(estimator: Estimator, rows: pl.DataFrame) -> dict[str, Estimate | str]:
    inputs = _inputs(rows, estimator.schema, estimator.categories)
    found: dict[str, Estimate | str] = {}
    for metric, model in estimator.losses.items():
        if isinstance(model, str):
            found[metric] = model
            continue
        answers = np.stack([booster.predict(inputs) for booster in model.boosters])
        value = model.calibrator.expected(answers).mean()
        draws = np.concatenate(list(_drawn_means(model, answers)))
        if metric == "rmse":
            value, draws = np.sqrt(value), np.sqrt(draws)
        found[metric] = _between(float(value), draws, "the expected loss is not finite")
    return found


def _drawn_means(model: LossModel, answers: Array) -> Iterator[Array]:
    """`answers`: folds x n. Mean losses of drawn windows, DRAWS at a time: a row's expected loss times the ratio of a
    similar row of the reference. The boosters take turns in saying which ones are similar."""
    rng = np.random.default_rng(2)
    calibrator, rows = model.calibrator, len(model.ratios)
    expected = calibrator.expected(answers).mean(axis=0)
    answers = answers[np.arange(len(expected)) % FOLDS, np.arange(len(expected))]
    cells = calibrator.cells(answers)
    near = max(10, int(rows * NEIGHBOURS / 2))
    at = np.clip(np.searchsorted(model.sorted_answers, answers), near, rows - near)
    for shift in calibrator.shifts:
        shifted = np.maximum(expected + shift[cells], 0.0)
        drawn = at + rng.integers(-near, near, (DRAWS, len(answers)))
        yield model.ratios[drawn] @ shifted / len(answers)


def _frequent(frame: pl.DataFrame, name: str) -> tuple[str, ...]:
    values = column(frame, name, FeatureKind.CATEGORY).drop_nulls()
    counts = values.value_counts().sort(["count", values.name], descending=[True, False])
    return tuple(counts[values.name].head(MAX_CATEGORIES))


def _inputs(frame: pl.DataFrame, schema: ModelSchema, categories: Mapping[str, tuple[str, ...]]) -> Array:
    """n x (features + 1), the prediction last; categories as codes, missing and infinite values as NaN."""
    inputs = []
    for feature in schema.features:
        values = column(frame, feature.column, feature.kind)
        if feature.kind is FeatureKind.CATEGORY:
            known = categories[feature.name]
            codes = dict(zip(known, range(len(known)), strict=True))
            others = pl.when(values.is_null()).then(None).otherwise(float(MAX_CATEGORIES))
            coded = values.replace_strict(codes, default=None, return_dtype=pl.Float64)
            values = pl.select(pl.coalesce(coded, others)).to_series()
        inputs.append(values.cast(pl.Float64).to_numpy())
    inputs.append(column(frame, "prediction", FeatureKind.NUMBER).to_numpy())
    found = np.stack(inputs, axis=1).astype(float)
    found[~np.isfinite(found)] = np.nan
    return found
