"""What chance gives, found on the reference, is what chance gives in windows that were not looked at."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from monitor.measure.calibration import (
    Calibration,
    Share,
    block_length,
    calibrate,
    load_calibration,
    save_calibration,
    size_class,
    variance_inflation,
    with_chance,
)
from monitor.measure.data_quality import measure_quality
from monitor.measure.drift.compare import measure_drift
from monitor.measure.drift.methods import default_method, drift_method
from monitor.measure.reference import prepare
from monitor.rules.measurement import Measure, Measurement
from retrain.terms.schema import Feature, FeatureKind, ModelSchema, Task

SCHEMA = ModelSchema("m", Task.REGRESSION, (Feature("x", FeatureKind.NUMBER), Feature("c", FeatureKind.CATEGORY)))
METHODS = {f.name: default_method(f.kind) for f in SCHEMA.features}


def rows(n: int, rng: np.random.Generator, shift: float = 0.0, missing: float = 0.02) -> pl.DataFrame:
    x = pl.Series(rng.normal(shift, 1, n)).set(pl.Series(rng.random(n) < missing), None)
    c = rng.choice(["a", "b", "c"], n, p=[0.6, 0.3, 0.1])
    return pl.DataFrame({"feature_x": x, "feature_c": c, "prediction": rng.normal(size=n)})


def walk(n: int, rng: np.random.Generator, memory: float) -> np.ndarray:
    x = np.zeros(n)
    for i in range(1, n):
        x[i] = memory * x[i - 1] + rng.normal()
    return x * math.sqrt(1 - memory**2)


def p_values(windows: list[pl.DataFrame], reference: pl.DataFrame, feature: str = "x") -> list[float]:
    prepared = prepare(reference, SCHEMA)
    found = calibrate(prepared, SCHEMA, METHODS, size_class(windows[0].height))
    values = []
    for window in windows:
        measured = with_chance(measure_drift(window, prepared, SCHEMA, METHODS), found)
        value = next(m.p_value for m in measured if m.measure is Measure.FEATURE_DRIFT and m.feature == feature)
        assert value is not None
        values.append(value)
    return values


@pytest.mark.parametrize("feature", ["x", "c"])
def test_unchanged_windows_are_surprising_as_seldom_as_their_p_values_say(feature: str) -> None:
    rng = np.random.default_rng(0)
    found = p_values([rows(300, rng) for _ in range(200)], rows(3000, rng), feature)
    assert np.mean(np.array(found) < 0.05) < 0.09
    assert np.mean(np.array(found) < 0.001) <= 0.01


def test_a_shift_that_matters_is_surprising() -> None:
    rng = np.random.default_rng(1)
    assert max(p_values([rows(300, rng, shift=0.6) for _ in range(5)], rows(3000, rng))) < 1e-4


def test_neighbouring_rows_that_are_alike_make_windows_stray() -> None:
    rng = np.random.default_rng(2)

    def alike(n: int) -> pl.DataFrame:
        return rows(n, rng).with_columns(feature_x=pl.Series(walk(n, rng, 0.97)))

    found = p_values([alike(300) for _ in range(100)], alike(6000))
    assert np.mean(np.array(found) < 0.01) < 0.08  # as if rows were independent: more than half of them


def test_missing_values_that_come_are_drift_and_no_accident() -> None:
    rng = np.random.default_rng(3)
    prepared = prepare(rows(3000, rng), SCHEMA)
    found = calibrate(prepared, SCHEMA, METHODS, size_class(400))
    window = rows(400, rng, missing=0.4)
    measured = [*measure_quality(window, prepared, SCHEMA), *measure_drift(window, prepared, SCHEMA, METHODS)]
    drift = next(m for m in with_chance(measured, found) if m.measure is Measure.FEATURE_DRIFT and m.feature == "x")
    assert drift.drifted
    assert drift.p_value is not None
    assert drift.p_value < 1e-6
    assert "missing in" in drift.reason


def test_test_with_p_values_keeps_its_level() -> None:
    rng = np.random.default_rng(4)
    prepared = prepare(rows(2000, rng), SCHEMA)
    methods = {**METHODS, "x": drift_method("ks")}
    found = calibrate(prepared, SCHEMA, methods, size_class(300))
    values = []
    for _ in range(200):
        measured = with_chance(measure_drift(rows(300, rng), prepared, SCHEMA, methods), found)
        values.append(next(m.p_value for m in measured if m.feature == "x"))
    assert np.mean(np.array(values, dtype=float) < 0.05) < 0.1


@pytest.mark.parametrize(
    ("share", "count", "value", "low", "high"),
    [
        (0.0, 0.0, 0.0, 1.0, 1.0),  # nothing missing is never a surprise
        (0.01, 10.0, 0.01, 0.2, 0.9),
        (0.01, 10.0, 0.10, 0.0, 1e-6),
        (0.0, 0.0, 0.005, 0.0, 0.5),  # one in two hundred, though the reference had none in a thousand
    ],
)
def test_share_is_as_likely_as_the_reference_makes_it(
    share: float, count: float, value: float, low: float, high: float
) -> None:
    assert low <= Share(count, 1000.0, 1.0).p_value(value, 200) <= high


def test_dependent_rows_count_for_less() -> None:
    assert Share(10, 1000, 1.0).p_value(0.05, 200) < Share(1, 100, 10.0).p_value(0.05, 200)


def test_rows_that_belong_together_are_found() -> None:
    rng = np.random.default_rng(5)
    assert block_length(rng.normal(size=2000)) <= 6
    assert block_length(walk(2000, rng, 0.95)) > 30
    assert variance_inflation(rng.normal(size=2000)) < 1.6
    assert variance_inflation(walk(5000, rng, 0.9)) > 6
    assert block_length(np.zeros(500)) == 1


def test_size_class_is_never_larger_than_the_window() -> None:
    for n in (50, 51, 70, 71, 99, 100, 1000, 123_456):
        assert n / 1.4143 <= size_class(n) <= n


def test_calibration_is_kept_as_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    found = calibrate(prepare(rows(400, rng), SCHEMA), SCHEMA, METHODS, 100)
    save_calibration(found, tmp_path / "a" / "c.json")
    assert load_calibration(tmp_path / "a" / "c.json") == found
    (tmp_path / "bad.json").write_text('{"rows": 1}')
    assert load_calibration(tmp_path / "bad.json") is None
    assert load_calibration(tmp_path / "none.json") is None


def test_what_is_too_small_has_no_p_value() -> None:
    rng = np.random.default_rng(7)
    found = calibrate(prepare(rows(30, rng), SCHEMA), SCHEMA, METHODS, 100)
    assert not found.tails
    few = Measurement(Measure.FEATURE_DRIFT, 0.2, 20, feature="x", method="wasserstein", threshold=0.1, drifted=True)
    big = Calibration(100, 1000, {}, {}, 1.0)
    assert with_chance([few], big)[0].p_value is None
