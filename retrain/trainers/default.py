"""The shipped trainer: histogram gradient boosting on whatever features the schema has.

Invariant: missing values, empty columns, unseen categories and categories without number are ordinary input, in
training and when predicting; the same rows, seed and parameters give the same model.
"""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any

from retrain.terms.schema import FeatureKind, Task
from retrain.trainers.search import find, loss

if TYPE_CHECKING:
    import pandas as pd

    from retrain.train.trainer import TrainContext

TAIL_SHARE = 0.03
TAIL_ROWS = (100, 500)
"""The newest rows, on which spans are compared: this share of all, but so many at least, and at most."""
SPAN_STEP = 3.0
"""Each span that is tried is so many times shorter than the one before: after a change old rows mislead."""
SPAN_ROWS = 300
"""A shorter span is not tried."""
SHARPNESS = 4.0
"""A span's weight is its loss on the newest rows to minus this power: one that is 20 % worse counts half as much."""
LEAST_WEIGHT = 0.05
MAX_CATEGORIES = 254
"""Per feature; the rarer ones share one more. Boosting bins hold 255 values."""


def train(frame: pd.DataFrame, labels: pd.Series, context: TrainContext) -> Any:
    """A fitted model that averages models of several spans: all rows given, the newest third, ninth and so on.

    How much each span counts is found on the newest rows, which it is not trained on for that. An average ages better
    than its best part: the long spans know more, the short ones know what is new.

    `context.parameters` go to HistGradientBoosting* (`learning_rate`, `max_leaf_nodes`, `class_weight`, ...);
    `spans = 1` trains on all rows alone; `search = 20` tries so many settings for `search_share` of the time limit.
    """
    parameters = dict(context.parameters)
    most = int(parameters.pop("spans", 6))
    candidates, share = int(parameters.pop("search", 0)), float(parameters.pop("search_share", 0.5))
    if candidates:
        parameters |= _found(frame, labels, context, parameters, candidates, share)
    spans = _weighted_spans(frame, labels, context, parameters, most)
    members = [_fit(frame[-rows:], labels[-rows:], context, parameters) for rows, _ in spans]
    if len(members) == 1:
        return members[0]
    return _vote(members, [weight for _, weight in spans], context)


def _vote(members: list[Any], weights: list[float], context: TrainContext) -> Any:
    """scikit-learn's own average of models, made of fitted ones: whoever loads it needs scikit-learn alone."""
    from sklearn.ensemble import VotingClassifier, VotingRegressor
    from sklearn.preprocessing import LabelEncoder

    named = [(f"span_{n}", member) for n, member in enumerate(members)]
    if context.schema.task is Task.REGRESSION:
        vote = VotingRegressor(named, weights=weights)
    else:
        vote = VotingClassifier(named, voting="soft", weights=weights)
        vote.le_ = LabelEncoder().fit(members[0].classes_)
        vote.classes_ = vote.le_.classes_
    vote.estimators_ = members
    return vote


def _found(
    frame: pd.DataFrame,
    labels: pd.Series,
    context: TrainContext,
    parameters: dict[str, Any],
    candidates: int,
    share: float,
) -> dict[str, Any]:
    """Settings of the booster that are better than the given ones; what is given is not searched for."""
    from scipy.stats import loguniform
    from sklearn.pipeline import Pipeline

    columns = _filled(frame)
    space = {
        "learning_rate": loguniform(0.02, 0.3),
        "max_iter": [50, 100, 200, 400],
        "max_leaf_nodes": [7, 15, 31, 63],
        "min_samples_leaf": [5, 10, 20, 50, 100],
        "l2_regularization": loguniform(1e-3, 10.0),
    }
    model = Pipeline([("encode", _encoder(context, columns)), ("boost", _booster(context, parameters, columns))])
    wanted = {f"boost__{name}": values for name, values in space.items() if name not in parameters}
    found = find(model, wanted, frame, labels, context, candidates, share)
    return {name.removeprefix("boost__"): value for name, value in found.items()}


def _fit(frame: pd.DataFrame, labels: pd.Series, context: TrainContext, parameters: dict[str, Any]) -> Any:
    from sklearn.pipeline import Pipeline

    columns = _filled(frame)
    encoder = _encoder(context, columns)
    booster = _booster(context, parameters, columns).fit(encoder.fit_transform(frame), labels)
    return Pipeline([("encode", encoder), ("boost", booster)])


def _weighted_spans(
    frame: pd.DataFrame, labels: pd.Series, context: TrainContext, parameters: dict[str, Any], most: int
) -> list[tuple[int, float]]:
    """(newest rows to train on, weight), the longest first; weights sum to 1."""
    rows, classify = len(frame), context.schema.task is not Task.REGRESSION
    tail = min(max(TAIL_ROWS[0], int(rows * TAIL_SHARE)), TAIL_ROWS[1])
    head = rows - tail
    lengths = [rows]
    while len(lengths) < most and lengths[-1] / SPAN_STEP >= SPAN_ROWS:
        lengths.append(int(lengths[-1] / SPAN_STEP))
    losses = {}
    for length in lengths if len(lengths) > 1 and head >= SPAN_ROWS else ():
        known = slice(head - max(1, int(length * head / rows)), head)
        if classify and not set(labels) == set(labels[known]) == set(labels[-length:]):
            continue  # all members must know the same classes
        model = _fit(frame[known], labels[known], context, parameters)
        losses[length] = loss(model, frame[head:], labels[head:])
    if not losses:
        return [(rows, 1.0)]
    best = max(min(losses.values()), 1e-12)
    weights = {length: (best / max(loss, best)) ** SHARPNESS for length, loss in losses.items()}
    total = sum(weights.values())
    kept = {length: w for length, w in weights.items() if w / total >= LEAST_WEIGHT}
    return [(length, w / sum(kept.values())) for length, w in kept.items()]


def _filled(frame: pd.DataFrame) -> frozenset[str]:
    """The columns that can be learned from: an outage of a feature, or one that is not sent yet, leaves it empty.
    Raises ValueError when all are."""
    filled = frozenset(str(name) for name in frame.columns if frame[name].notna().any())
    if not filled:
        raise ValueError(f"all features are empty in the {len(frame)} rows to train on: {', '.join(frame.columns)}")
    return filled


def _encoder(context: TrainContext, columns: Container[str]) -> Any:
    """Categories first, as codes; rare ones share a code, unseen and missing ones are missing. Then the others."""
    import numpy as np
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import OrdinalEncoder

    features = [f for f in context.schema.features if f.name in columns]
    categories = [f.name for f in features if f.kind is FeatureKind.CATEGORY]
    others = [f.name for f in features if f.kind is not FeatureKind.CATEGORY]
    codes = OrdinalEncoder(
        handle_unknown="use_encoded_value",
        unknown_value=np.nan,
        encoded_missing_value=np.nan,
        max_categories=MAX_CATEGORIES,
    )
    return ColumnTransformer([("category", codes, categories), ("other", "passthrough", others)])


def _booster(context: TrainContext, parameters: dict[str, Any], columns: Container[str]) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    coded = sum(f.kind is FeatureKind.CATEGORY and f.name in columns for f in context.schema.features)
    settings = {
        "categorical_features": list(range(coded)) or None,
        "early_stopping": False,
        "random_state": context.seed,
        **parameters,
    }
    if context.schema.task is Task.REGRESSION:
        return HistGradientBoostingRegressor(**settings)
    return HistGradientBoostingClassifier(**settings)
