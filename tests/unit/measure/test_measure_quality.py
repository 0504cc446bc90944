"""Data quality of a window."""

import math

import polars as pl
import pytest

from monitor.measure.data_quality import measure_quality
from monitor.measure.reference import prepare
from monitor.rules.measurement import Measure, Measurement
from retrain.terms.schema import Feature, FeatureKind, ModelSchema, Task

SCHEMA = ModelSchema(
    "m",
    Task.REGRESSION,
    (
        Feature("x", FeatureKind.NUMBER),
        Feature("colour", FeatureKind.CATEGORY),
        Feature("on", FeatureKind.BOOL),
    ),
)
REFERENCE = prepare(
    pl.DataFrame({"feature_x": [0.0, 10.0], "feature_colour": ["red", "blue"], "feature_on": [True, True]}),
    SCHEMA,
)
WINDOW = pl.DataFrame(
    {
        "feature_x": [5.0, 11.0, -1.0, None, math.inf],
        "feature_colour": ["red", "green", None, None, "blue"],
        "feature_on": [True, False, True, None, True],
        "invalid_features": [None, ["colour"], ["x", "colour", "x"], [], None],
        "latency_ms": [10.0, 20.0, 30.0, None, math.nan],
    }
)


def measured(window: pl.DataFrame) -> dict[tuple[Measure, str], Measurement]:
    return {(m.measure, m.feature): m for m in measure_quality(window, REFERENCE, SCHEMA)}


@pytest.mark.parametrize(
    ("measure", "feature", "value", "rows"),
    [
        (Measure.VOLUME, "", 5, 5),
        (Measure.MISSING_SHARE, "x", 2 / 5, 5),
        (Measure.MISSING_SHARE, "colour", 2 / 5, 5),
        (Measure.MISSING_SHARE, "on", 1 / 5, 5),
        (Measure.INVALID_SHARE, "x", 2 / 5, 5),  # one broken, one infinite
        (Measure.INVALID_SHARE, "colour", 2 / 5, 5),
        (Measure.INVALID_SHARE, "on", 0, 5),
        (Measure.OUT_OF_RANGE_SHARE, "x", 2 / 3, 3),
        (Measure.UNSEEN_SHARE, "colour", 1 / 3, 3),
        (Measure.UNSEEN_SHARE, "on", 1 / 4, 4),
        (Measure.LATENCY_P50, "", 0.020, 3),
        (Measure.LATENCY_P95, "", 0.029, 3),
        (Measure.LATENCY_P99, "", 0.0298, 3),
    ],
)
def test_share_is_counted(measure: Measure, feature: str, value: float, rows: int) -> None:
    found = measured(WINDOW)[measure, feature]
    assert found.value == pytest.approx(value)
    assert (found.rows, found.reason) == (rows, "")


def test_each_feature_has_its_measures() -> None:
    assert len(measured(WINDOW)) == 1 + 3 * 3 + 3


def test_empty_window_is_undefined_but_for_volume() -> None:
    found = measured(WINDOW.clear())
    assert found.pop((Measure.VOLUME, "")).value == 0
    assert {m.value for m in found.values()} == {None}
    assert all(m.reason for m in found.values())


def test_absent_columns_are_missing() -> None:
    found = measured(pl.DataFrame({"prediction": [1.0, 2.0]}))
    assert found[Measure.MISSING_SHARE, "x"].value == 1
    assert found[Measure.OUT_OF_RANGE_SHARE, "x"].reason == "no usable value in the window"
    assert found[Measure.LATENCY_P99, ""].reason == "no latency in the window"


def test_reference_without_values_leaves_the_comparison_undefined() -> None:
    empty = prepare(pl.DataFrame({"prediction": [1.0]}), SCHEMA)
    found = {(m.measure, m.feature): m for m in measure_quality(WINDOW, empty, SCHEMA)}
    for key in ((Measure.OUT_OF_RANGE_SHARE, "x"), (Measure.UNSEEN_SHARE, "colour")):
        assert found[key].value is None
        assert found[key].reason == "no usable value in the reference"
    assert found[Measure.MISSING_SHARE, "x"].value == pytest.approx(2 / 5)


def test_all_null_invalid_features_column_is_accepted() -> None:
    window = WINDOW.with_columns(invalid_features=pl.lit(None, pl.List(pl.String)))
    assert measured(window)[Measure.INVALID_SHARE, "colour"].value == 0
