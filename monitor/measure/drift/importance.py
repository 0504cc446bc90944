"""How much each feature moves a model's answers, found without the model: from its recorded answers alone.

Invariant: seeded; needs only the reference, so it works for models that driftd never saw.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from monitor.measure._evidently import quiet
from monitor.measure.reference import Reference, answer_kind
from retrain.data.frame import features_frame
from retrain.terms.schema import FeatureKind, ModelSchema, Task

MAX_ROWS = 3000
MIN_ROWS = 100
REPEATS = 2


def surrogate_importance(reference: Reference, schema: ModelSchema) -> dict[str, float]:
    """Feature -> share of importance (they sum to 1); empty when the reference cannot tell.

    A boosted surrogate learns the model's answers (the score of a binary model where there is one) on half of the rows;
    on the other half each feature is shuffled in turn, and what that adds to the error is its importance
    (permutation importance: Breiman 2001; Fisher, Rudin and Dominici 2019).
    """
    frame = reference.frame.head(0)
    answer = "score" if reference.score is not None else "prediction"
    if answer in reference.frame.columns:
        frame = reference.frame.drop_nulls(answer)
    if frame.height < MIN_ROWS or any(c not in frame.columns for c in schema.feature_columns):
        return {}
    if frame.height > MAX_ROWS:
        frame = frame.sample(MAX_ROWS, seed=0)
    with quiet():
        return _importance(frame, schema, answer)


def _importance(frame: Any, schema: ModelSchema, answer: str) -> dict[str, float]:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.preprocessing import OrdinalEncoder

    table = features_frame(frame, schema)
    empty = {name for name in table.columns if table[name].isna().all()}  # they move nothing, and cannot be binned
    table = table.drop(columns=list(empty))
    if table.empty:
        return {}
    coded = [f.name for f in schema.features if f.kind is not FeatureKind.NUMBER and f.name not in empty]
    if coded:
        encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan, max_categories=50)
        table[coded] = encoder.fit_transform(table[coded].astype(str))
    inputs = np.where(np.isfinite(values := table.to_numpy(dtype=float)), values, np.nan)
    numeric = answer == "score" or answer_kind(schema) is FeatureKind.NUMBER or schema.task is Task.REGRESSION
    truth = frame[answer].to_numpy().astype(float) if numeric else np.array(frame[answer].to_list(), dtype=object)
    if len(np.unique(truth)) < 2:
        return {}
    half = len(truth) // 2
    rng = np.random.default_rng(0)
    order = rng.permutation(len(truth))
    fit, test = order[:half], order[half:]
    kind = HistGradientBoostingRegressor if numeric else HistGradientBoostingClassifier
    surrogate = kind(max_iter=60, max_leaf_nodes=15, random_state=0, early_stopping=False).fit(inputs[fit], truth[fit])

    def loss(rows: np.ndarray[Any, Any]) -> float:
        told = surrogate.predict(rows)
        return float(np.mean((told - truth[test]) ** 2)) if numeric else float(np.mean(told != truth[test]))

    plain = loss(inputs[test])
    gained = {}
    for at, name in enumerate(table.columns):
        shuffled = inputs[test].copy()
        worse = []
        for _ in range(REPEATS):
            shuffled[:, at] = rng.permutation(shuffled[:, at])
            worse.append(loss(shuffled) - plain)
        gained[name] = max(0.0, float(np.mean(worse)))
    total = sum(gained.values())
    return {f.name: gained.get(f.name, 0.0) / total for f in schema.features} if total > 0 else {}
