"""Which drift matters, and whether inputs or their meaning changed."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from monitor.decide.reasons import what_changed, what_drifted
from monitor.measure.drift.impact import STRONGEST, drift_impact, drift_strength
from monitor.measure.drift.importance import surrogate_importance
from monitor.measure.drift.methods import default_method
from monitor.measure.reference import prepare
from monitor.measure.settings import Settings
from monitor.measure.window import measure_labelled, measure_unlabelled
from monitor.measure.yardstick import Yardstick
from monitor.rules.measurement import Measure, Measurement
from retrain.terms.schema import Feature, FeatureKind, ModelSchema, Task

SCHEMA = ModelSchema(
    "m", Task.BINARY, tuple(Feature(n, FeatureKind.NUMBER) for n in ("strong", "weak", "idle")), ("0", "1"), "1"
)


def world(n: int, seed: int, shift: float = 0.0, turned: bool = False) -> pl.DataFrame:
    """The model knows how labels come about (`turned`: how they did); `shift` moves the features."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)) + np.array([shift, 0, shift])
    logit = 2 * x[:, 0] + 0.7 * x[:, 1]
    score = 1 / (1 + np.exp(-logit))
    truth = 1 / (1 + np.exp(logit if turned else -logit))
    label = np.where(rng.random(n) < truth, "1", "0")
    ts = pl.Series([0] * n, dtype=pl.Datetime("us", "UTC"))
    return pl.DataFrame(
        {f"feature_{f.name}": x[:, i] for i, f in enumerate(SCHEMA.features)}
        | {"prediction": np.where(score > 0.5, "1", "0"), "score": score, "label": label, "ts": ts, "label_ts": ts}
    )


def measured(window: pl.DataFrame) -> list[Measurement]:
    methods = {f.name: default_method(f.kind) for f in SCHEMA.features}
    settings = Settings(SCHEMA, methods, ("balanced_accuracy",), 50, 100_000, calibrate=False)
    yardstick = Yardstick("r", world(3000, 0), settings)
    return [*measure_unlabelled(window, yardstick, settings), *measure_labelled(window, window, yardstick, settings)]


def test_importance_is_found_from_the_answers_alone() -> None:
    found = surrogate_importance(prepare(world(2000, 1), SCHEMA), SCHEMA)
    assert found["strong"] > 0.7
    assert found["strong"] > found["weak"] > found["idle"]
    assert sum(found.values()) == pytest.approx(1.0)


def test_importance_of_a_reference_that_cannot_tell_is_empty() -> None:
    assert surrogate_importance(prepare(world(20, 1), SCHEMA), SCHEMA) == {}
    assert surrogate_importance(prepare(world(500, 1).drop("prediction", "score"), SCHEMA), SCHEMA) == {}


def test_drift_of_what_the_model_uses_comes_first() -> None:
    found = measured(world(2000, 2, shift=1.0))
    text = what_drifted(found)
    assert text.startswith("strong (wasserstein ")
    assert "of what moves the model" in text
    impacts = {m.feature: m.value for m in found if m.measure is Measure.DRIFT_IMPACT}
    assert impacts["strong"] > 5 * impacts["idle"]  # type: ignore[operator]


def test_turned_meaning_is_called_concept_drift() -> None:
    text = what_changed(measured(world(2000, 3, turned=True)), "balanced_accuracy")
    assert "what they mean has changed (concept drift)" in text


def test_harder_inputs_of_the_same_meaning_are_called_covariate_drift() -> None:
    near_the_border = world(20_000, 4).filter(pl.col("feature_strong").abs() < 0.4)
    text = what_changed(measured(near_the_border), "balanced_accuracy")
    assert "the same meaning (covariate drift)" in text


def test_nothing_is_said_of_a_window_like_the_reference() -> None:
    found = measured(world(2000, 5))
    assert what_changed(found, "balanced_accuracy") == ""
    assert what_drifted(found) == ""
    assert what_changed([], "mae") == ""


@pytest.mark.parametrize(
    ("value", "method", "threshold", "drifted", "strength"),
    [
        (0.3, "wasserstein", 0.1, True, 3.0),
        (0.0025, "ks", 0.05, True, 2.0),
        (None, "wasserstein", 0.1, True, STRONGEST),
        (None, "wasserstein", 0.1, None, None),
        (0.02, "wasserstein", 0.1, True, 1.0),  # by its missing values
        (99.0, "wasserstein", 0.1, True, STRONGEST),
    ],
)
def test_strength_is_one_at_the_threshold(
    value: float | None, method: str, threshold: float, drifted: bool | None, strength: float | None
) -> None:
    m = Measurement(Measure.FEATURE_DRIFT, value, 100, "x", method=method, threshold=threshold, drifted=drifted)
    found = drift_strength(m)
    assert found == (pytest.approx(strength, rel=0.01) if strength is not None else None)


def test_without_importance_nothing_is_weighted() -> None:
    m = Measurement(Measure.FEATURE_DRIFT, 0.3, 100, "x", method="wasserstein", threshold=0.1, drifted=True)
    assert drift_impact([m], {}) == []
