"""What drift says where there is nothing to test, and that one column never costs the others."""

import math
import os
import pickle
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from monitor.measure.drift.compare import measure_drift, measure_label_drift
from monitor.measure.drift.methods import METHODS, DriftMethod, default_method, drift_method, methods_for
from monitor.measure.reference import Reference, prepare
from monitor.rules.measurement import Measure, Measurement
from retrain.terms.schema import Feature, FeatureKind, ModelSchema, Task

FEATURES = (
    Feature("x", FeatureKind.NUMBER),
    Feature("colour", FeatureKind.CATEGORY),
    Feature("on", FeatureKind.BOOL),
)
SCHEMA = ModelSchema("m", Task.BINARY, FEATURES, classes=("no", "yes"), positive="yes")


def frame(rows: int = 2000, seed: int = 0, shift: float = 0.0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    score = rng.random(rows)
    return pl.DataFrame(
        {
            "feature_x": rng.normal(shift, 1, rows),
            "feature_colour": rng.choice(["red", "green", "blue"], rows),
            "feature_on": rng.random(rows) < 0.5,
            "score": score,
            "prediction": np.where(score > 0.5, "yes", "no"),
            "label": np.where(rng.random(rows) < score, "yes", "no"),
        }
    )


def reference(**changed: pl.Expr) -> Reference:
    return prepare(frame().with_columns(**changed), SCHEMA)


def measured(window: pl.DataFrame, against: Reference | None = None, **methods: DriftMethod) -> dict[str, Measurement]:
    """By feature name, else measure name."""
    found = measure_drift(window, against or reference(), SCHEMA, methods)
    return {m.feature or m.measure.value: m for m in found}


def test_unchanged_window_does_not_drift() -> None:
    found = measured(frame(seed=1))
    assert [found[f.name].drifted for f in FEATURES] == [False] * 3
    assert found["drift_share"].value == 0
    assert found["prediction_drift"].drifted is False


def test_shifted_feature_drifts_alone() -> None:
    found = measured(frame(seed=1, shift=1))
    assert found["x"].drifted
    assert found["drift_share"].value == pytest.approx(1 / 3)
    assert (found["x"].method, found["x"].threshold) == ("wasserstein", 0.1)


@pytest.mark.parametrize(
    "values", [pl.lit(None, pl.Float64), pl.lit(math.nan), pl.lit(math.inf)], ids=["null", "nan", "inf"]
)
def test_feature_gone_missing_is_drift(values: pl.Expr) -> None:
    found = measured(frame(seed=1).with_columns(feature_x=values))
    assert (found["x"].value, found["x"].drifted, found["x"].rows) == (None, True, 0)
    assert found["x"].reason == "went missing: no usable value in the window"
    assert found["drift_share"].value == pytest.approx(1 / 3)


def test_absent_column_is_drift() -> None:
    assert measured(frame(seed=1).drop("feature_colour"))["colour"].drifted


def test_feature_missing_on_both_sides_is_undefined() -> None:
    found = measured(frame(seed=1).drop("feature_x"), reference(feature_x=pl.lit(None, pl.Float64)))
    assert (found["x"].value, found["x"].drifted) == (None, None)
    assert found["x"].reason == "no usable value in the reference"
    assert found["drift_share"].value == 0


def test_empty_window_decides_nothing() -> None:
    found = measured(frame().clear())
    assert {m.value for m in found.values()} == {None}
    assert {m.drifted for m in found.values()} == {None}
    assert all(m.reason for m in found.values())


def test_failing_test_leaves_the_others_standing() -> None:
    found = measured(frame(seed=1), x=DriftMethod("chisquare", 0.05))
    assert (found["x"].value, found["x"].drifted) == (None, None)
    assert found["x"].reason.startswith("chisquare failed: ")
    assert found["colour"].value is not None


def test_infinite_values_are_left_out() -> None:
    window = frame(seed=1)
    some = window.with_columns(feature_x=pl.when(pl.int_range(pl.len()) < 10).then(math.inf).otherwise("feature_x"))
    assert measured(some)["x"].value == pytest.approx(measured(window[10:])["x"].value)
    assert measured(some)["x"].rows == 1990


def test_prediction_drift_compares_scores_when_the_reference_has_them() -> None:
    window = frame(seed=1).with_columns(score=pl.col("score") / 2)
    assert measured(window)["prediction_drift"].method == "wasserstein"
    assert measured(window)["prediction_drift"].drifted
    without = reference(score=pl.lit(None, pl.Float64))
    assert measured(window, without)["prediction_drift"].method == "jensenshannon"
    assert not measured(window, without)["prediction_drift"].drifted


def test_prediction_method_that_does_not_fit_gives_way_to_the_default() -> None:
    chosen = DriftMethod("chisquare", 0.01)
    [last] = measure_drift(frame(seed=1), reference(), SCHEMA, {}, chosen)[-1:]
    assert last.method == "wasserstein"
    without = reference(score=pl.lit(None, pl.Float64))
    [last] = measure_drift(frame(seed=1), without, SCHEMA, {}, chosen)[-1:]
    assert (last.measure, last.method, last.threshold) == (Measure.PREDICTION_DRIFT, "chisquare", 0.01)


def test_label_drift() -> None:
    [same] = measure_label_drift(frame(seed=1), reference(), SCHEMA)
    assert same.drifted is False
    [moved] = measure_label_drift(frame(seed=1).with_columns(label=pl.lit("yes")), reference(), SCHEMA)
    assert moved.drifted
    [unknown] = measure_label_drift(frame(), reference(label=pl.lit(None, pl.String)), SCHEMA)
    assert unknown.reason == "the reference has no labels"


def test_costly_test_is_bounded_and_repeats_itself() -> None:
    window = frame(rows=3000, seed=1)
    method = drift_method("empirical_mmd")
    one, again = (measured(window, x=method)["x"] for _ in range(2))
    assert one.value is not None
    assert one == again


def test_global_random_state_is_left_alone() -> None:
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    measured(frame(rows=50, seed=1), x=drift_method("empirical_mmd"))
    assert np.random.random() == expected


def test_reference_survives_the_way_to_a_worker() -> None:
    against = pickle.loads(pickle.dumps(reference()))
    assert measured(frame(seed=1), against) == measured(frame(seed=1))


def test_defaults_fit_their_kind() -> None:
    for kind in FeatureKind:
        method = default_method(kind)
        assert method.name in methods_for(kind)
        assert method.threshold == METHODS[method.name].threshold == 0.1


def test_catalogues_are_light() -> None:
    code = (
        "import sys, monitor.measure, monitor.measure.drift.methods, monitor.measure.performance.scores\n"
        "print([m for m in ('evidently', 'pandas', 'polars', 'numpy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_telemetry_is_off() -> None:
    measured(frame(seed=1))
    assert os.environ["DO_NOT_TRACK"] in ("1", "true")  # or as whoever runs this has set it
