"""Drift of a window against its reference, in Evidently's own numbers.

Invariant: every number is what Evidently's registered test gives on the usable values (no null, NaN,
infinite), as `ValueDrift` in `Report.run` would; a column whose test cannot run is a Measurement with the
reason, and the others stand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import polars as pl

from monitor.measure._evidently import column_type, quiet, stat_test
from monitor.measure.drift.methods import METHODS, DriftMethod, MethodSpec, default_method
from monitor.measure.reference import Reference, ReferenceColumn, answer_kind, column, encode, usable
from monitor.rules.measurement import Measure, Measurement
from retrain.terms.schema import FeatureKind, ModelSchema

_SEED = 0
MISSING_CHANGE = 0.1
"""A feature drifts when the share of its missing values has changed by this much: comparing the values that are left
says nothing of those that are not."""


@dataclass(frozen=True, slots=True)
class _Result:
    value: float | None = None
    drifted: bool | None = None
    reason: str = ""


def measure_drift(
    window: pl.DataFrame,
    reference: Reference,
    schema: ModelSchema,
    methods: Mapping[str, DriftMethod],
    prediction_method: DriftMethod | None = None,
) -> list[Measurement]:
    """`feature_drift` of each feature, `drift_share`, `prediction_drift`.

    `methods` is by feature name; a feature not in it gets its kind's default. `drift_share` is drifted
    features over features whose drift is decided. `prediction_drift` compares the score where a binary
    model's reference has scores (a shift shows there first), else the predicted class or number; the
    reference alone decides, so that the series stays comparable. `prediction_method` must take a number in
    the first case, else the default is used.
    """
    name, answers = "prediction", reference.prediction
    if reference.score is not None:
        name, answers = "score", reference.score
    predictions = column(window, name, answers.kind)
    with quiet():
        features = [
            _measurement(
                Measure.FEATURE_DRIFT,
                column(window, f.column, f.kind),
                reference.features[f.name],
                methods.get(f.name),
                feature=f.name,
            )
            for f in schema.features
        ]
        prediction = _measurement(Measure.PREDICTION_DRIFT, predictions, answers, prediction_method)
    return [*features, _share(features, window.height), prediction]


def measure_label_drift(
    outcomes: pl.DataFrame, reference: Reference, schema: ModelSchema, method: DriftMethod | None = None
) -> list[Measurement]:
    """`label_drift`, apart from the rest because labels come later. `method` defaults to the label's
    kind's."""
    kind = answer_kind(schema)
    if reference.label is None:
        return [Measurement(Measure.LABEL_DRIFT, None, outcomes.height, reason="the reference has no labels")]
    with quiet():
        return [_measurement(Measure.LABEL_DRIFT, column(outcomes, "label", kind), reference.label, method)]


def compare_column(
    values: pl.Series, reference: ReferenceColumn, method: DriftMethod | None
) -> tuple[float | None, str]:
    """The number that the method gives for usable values against a reference's column, and the method's name."""
    method = _fitting(method, reference)
    return _compare(values, values.len(), reference, method).value, method.name


def _fitting(method: DriftMethod | None, reference: ReferenceColumn) -> DriftMethod:
    if method is None or reference.kind not in METHODS[method.name].kinds:
        return default_method(reference.kind)
    return method


def _measurement(
    measure: Measure,
    series: pl.Series,
    reference: ReferenceColumn,
    method: DriftMethod | None,
    feature: str = "",
) -> Measurement:
    if not feature or method is None:
        method = _fitting(method, reference)
    values = usable(series)
    result = _compare(values, series.len(), reference, method)
    if feature and not result.drifted and (change := _missing_change(values.len(), series.len(), reference)):
        result = _Result(result.value, drifted=True, reason=change)
    return Measurement(
        measure,
        result.value,
        rows=values.len(),
        feature=feature,
        method=method.name,
        threshold=method.threshold,
        drifted=result.drifted,
        reason=result.reason,
    )


def _compare(values: pl.Series, rows: int, reference: ReferenceColumn, method: DriftMethod) -> _Result:
    if rows == 0:
        return _Result(reason="the window has no rows")
    if reference.values.len() == 0:
        return _Result(reason="no usable value in the reference")
    if values.len() == 0:
        return _Result(drifted=True, reason="went missing: no usable value in the window")
    spec = METHODS[method.name]
    try:
        test = stat_test(method.name, reference.kind)
        theirs, ours = _sides(values, reference, spec)
        with _seeded(spec):
            outcome = test(theirs, ours, column_type(reference.kind), method.threshold)
    except (ValueError, TypeError, ArithmeticError, LookupError) as exc:
        return _Result(reason=f"{method.name} failed: {exc}"[:300])
    value = float(outcome.drift_score)
    if math.isnan(value):
        return _Result(reason=f"{method.name} is undefined on these values")
    if math.isinf(value):
        return _Result(drifted=bool(outcome.drifted), reason=f"{method.name} is infinite")
    return _Result(value, bool(outcome.drifted))


def _missing_change(usable_rows: int, rows: int, reference: ReferenceColumn) -> str:
    """What is to be said when missing values came or went: by a tenth of the rows, and by more than chance does."""
    if not rows or not reference.rows:
        return ""
    ours, theirs = 1 - usable_rows / rows, reference.missing_share
    spread = math.sqrt(max(theirs * (1 - theirs), 0.25 / reference.rows) * (1 / rows + 1 / reference.rows))
    if abs(ours - theirs) < max(MISSING_CHANGE, 4 * spread):
        return ""
    return f"missing in {ours:.0%} of the rows, {theirs:.0%} in the reference"


@contextmanager
def _seeded(spec: MethodSpec) -> Iterator[None]:
    """Permutation tests draw from NumPy's global state: the same window must measure the same."""
    if not spec.as_is:
        yield
        return
    state = np.random.get_state()
    np.random.seed(_SEED)
    try:
        yield
    finally:
        np.random.set_state(state)


def _sides(values: pl.Series, reference: ReferenceColumn, spec: MethodSpec) -> tuple[pd.Series, pd.Series]:
    """The reference's and the window's values as the test is quickest on them.

    Sorted numbers and coded labels give the same result where `as_is` is not set, and cost a fraction.
    """
    if spec.as_is:
        limit = spec.max_rows or max(values.len(), reference.values.len())
        return _series(_cut(reference.values, limit)), _series(_cut(values, limit))
    ours = values if reference.kind is FeatureKind.NUMBER else encode(values, reference.coding)
    theirs = reference.prepared
    if spec.max_labels is not None and max(ours.n_unique(), theirs.n_unique()) > spec.max_labels:
        raise ValueError(f"takes at most {spec.max_labels} different labels on each side")
    if spec.equal_rows:
        rows = min(ours.len(), theirs.len())
        theirs, ours = _cut(theirs, rows), _cut(ours, rows)
    array = ours.to_numpy()
    return _series(theirs), pd.Series(np.sort(array) if reference.kind is FeatureKind.NUMBER else array, copy=False)


def _cut(values: pl.Series, rows: int) -> pl.Series:
    return values if values.len() <= rows else values.sample(rows, seed=_SEED)


def _series(values: pl.Series) -> pd.Series:
    array = values.to_numpy()
    return pd.Series(array, dtype=object if array.dtype == object else None, copy=False)


def _share(features: list[Measurement], rows: int) -> Measurement:
    decided = [m for m in features if m.drifted is not None]
    if not decided:
        return Measurement(Measure.DRIFT_SHARE, None, rows, reason="no feature's drift is decided")
    return Measurement(Measure.DRIFT_SHARE, sum(bool(m.drifted) for m in decided) / len(decided), rows)
