"""The shipped trainer: histogram gradient boosting on whatever features the schema has.

Invariant: missing values, unseen categories and categories without number are ordinary input, in training and when
predicting; the same rows, seed and parameters give the same model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retrain.schema import FeatureKind, Task

if TYPE_CHECKING:
    import pandas as pd

    from retrain.trainer import TrainContext

TAIL_SHARE = 0.15
TAIL_ROWS = 100
"""How many boosting rounds are worth it is found on the newest share of the rows; fewer rows than this: not found."""
SPANS = (1.0, 0.5, 0.25, 0.125)
"""Shares of the rows, counted back from the newest, that are tried: after a change old rows mislead."""
SPAN_ROWS = 150
"""A shorter span is not tried."""
MAX_CATEGORIES = 254
"""Per feature; the rarer ones share one more. Boosting bins hold 255 values."""
MAX_ROUNDS = 300
DEFAULT_ROUNDS = 100


def train(frame: pd.DataFrame, labels: pd.Series, context: TrainContext) -> Any:
    """A fitted pipeline. How far back to train and for how many rounds is found on the newest rows given.

    `context.parameters` go to HistGradientBoosting* (`learning_rate`, `max_leaf_nodes`, `class_weight`, ...); with
    `max_iter` among them the rounds are not searched for, with `choose_span = false` all rows are used.
    """
    parameters = dict(context.parameters)
    if parameters.pop("choose_span", True):
        start = _start(frame, labels, context, parameters)
        frame, labels = frame[start:].reset_index(drop=True), labels[start:].reset_index(drop=True)
    if "max_iter" not in parameters:
        parameters["max_iter"] = _rounds(frame, labels, context, parameters)
    return _fit(frame, labels, context, parameters)


def _fit(frame: pd.DataFrame, labels: pd.Series, context: TrainContext, parameters: dict[str, Any]) -> Any:
    from sklearn.pipeline import Pipeline

    encoder = _encoder(context)
    booster = _booster(context, parameters).fit(encoder.fit_transform(frame), labels)
    return Pipeline([("encode", encoder), ("boost", booster)])


def _start(frame: pd.DataFrame, labels: pd.Series, context: TrainContext, parameters: dict[str, Any]) -> int:
    """First row to train on: the span whose model is best on the newest rows; the longest one on a tie."""
    from sklearn.metrics import balanced_accuracy_score, mean_absolute_error

    tail = int(len(frame) * TAIL_SHARE)
    head = len(frame) - tail
    regression = context.schema.task is Task.REGRESSION
    best, start = None, 0
    for share in SPANS if tail >= TAIL_ROWS else ():
        first = head - int(head * share)
        known = labels[first:head]
        if head - first < SPAN_ROWS or (not regression and set(labels[head:]) - set(known)):
            continue
        model = _fit(frame[first:head], known, context, {"max_iter": DEFAULT_ROUNDS, **parameters})
        predicted = model.predict(frame[head:])
        truth = labels[head:]
        quality = -mean_absolute_error(truth, predicted) if regression else balanced_accuracy_score(truth, predicted)
        if best is None or quality > best:
            best, start = quality, first
    return start


def _rounds(frame: pd.DataFrame, labels: pd.Series, context: TrainContext, parameters: dict[str, Any]) -> int:
    """Stops early on the newest rows, not on random ones: what is to be predicted is later than what is known."""
    tail = int(len(frame) * TAIL_SHARE)
    head = len(frame) - tail
    classification = context.schema.task is not Task.REGRESSION
    if tail < TAIL_ROWS or (classification and set(labels[head:]) != set(labels[:head])):
        return DEFAULT_ROUNDS
    encoder = _encoder(context)
    searching = _booster(
        context, {**parameters, "max_iter": MAX_ROUNDS, "early_stopping": True, "n_iter_no_change": 15}
    )
    searching.fit(
        encoder.fit_transform(frame[:head]),
        labels[:head],
        X_val=encoder.transform(frame[head:]),
        y_val=labels[head:],
    )
    return max(10, int(searching.n_iter_) - 15 if searching.n_iter_ < MAX_ROUNDS else MAX_ROUNDS)


def _encoder(context: TrainContext) -> Any:
    """Categories first, as codes; rare ones share a code, unseen and missing ones are missing. Then the others."""
    import numpy as np
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import OrdinalEncoder

    features = context.schema.features
    categories = [f.name for f in features if f.kind is FeatureKind.CATEGORY]
    others = [f.name for f in features if f.kind is not FeatureKind.CATEGORY]
    codes = OrdinalEncoder(
        handle_unknown="use_encoded_value",
        unknown_value=np.nan,
        encoded_missing_value=np.nan,
        max_categories=MAX_CATEGORIES,
    )
    return ColumnTransformer([("category", codes, categories), ("other", "passthrough", others)])


def _booster(context: TrainContext, parameters: dict[str, Any]) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    coded = sum(f.kind is FeatureKind.CATEGORY for f in context.schema.features)
    settings = {
        "categorical_features": list(range(coded)) or None,
        "early_stopping": False,
        "random_state": context.seed,
        **parameters,
    }
    if context.schema.task is Task.REGRESSION:
        return HistGradientBoostingRegressor(**settings)
    return HistGradientBoostingClassifier(**settings)
