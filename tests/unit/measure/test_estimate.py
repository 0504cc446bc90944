"""Performance estimated without labels: how near, how sure, what it follows and what it cannot see."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from bench.estimates import (
    CAR_LOAN,
    REFERENCES,
    RESULTS,
    ROOT,
    SCHEMAS,
    WINDOWS,
    car_loan,
    coverage,
    fitted,
    lake_rows,
    windows_of,
    world,
)
from monitor.measure.estimate._cbpe import needs_calibration
from monitor.measure.estimate.without_labels import MIN_WINDOW_ROWS, Estimate, Estimator, estimate, fit_estimator
from monitor.measure.performance._scored import compute, scored_rows
from monitor.measure.performance.scores import metrics_for
from retrain.terms.schema import Task

DATA = Path(os.environ.get("DRIFTD_DATA", ROOT.parent / "shared" / "data"))
TOLERANCE, MEAN_TOLERANCE = 0.002, 0.001
"""Between driftd's and NannyML's estimates of a car-loan window: each, and on average. Measured: 0.0003 on average, all
of it from the correction on the reference, which NannyML has not."""
KEY = {Task.BINARY: "accuracy", Task.MULTICLASS: "accuracy", Task.REGRESSION: "mae"}
COUNTED = {
    Task.BINARY: ("accuracy", "roc_auc", "log_loss"),
    Task.MULTICLASS: ("accuracy",),
    Task.REGRESSION: ("mae",),
}


def rows(task: Task, count: int, seed: int = 0, **changes: float) -> pl.DataFrame:
    return world(task, np.random.default_rng(seed), count, **changes)


def estimator_of(task: Task, count: int = 2000, *metrics: str) -> Estimator:
    return fitted(rows(task, count), SCHEMAS[task], metrics or metrics_for(task))


@pytest.fixture(scope="module")
def binary() -> Estimator:
    return estimator_of(Task.BINARY)


@pytest.fixture(scope="module", params=list(Task))
def learned(request: pytest.FixtureRequest) -> tuple[Task, Estimator]:
    task: Task = request.param
    return task, estimator_of(task, 5000, KEY[task])


def value(found: Estimate | str) -> float:
    assert isinstance(found, Estimate), found
    return found.value


@pytest.mark.parametrize("task", list(Task))
def test_interval_holds_the_realized_value_in_95_percent_of_windows(task: Task) -> None:
    """A few windows of each size, taken together; bench/estimates.py counts many, size by size."""
    shares = []
    for reference_rows in REFERENCES:
        for window_rows in WINDOWS:
            references, windows = (2, 10) if task is Task.REGRESSION and reference_rows > 1000 else (5, 4)
            found = coverage(task, reference_rows, window_rows, references, windows, COUNTED[task])
            assert set(found) == set(COUNTED[task])
            shares.append(list(found.values()))
    assert 0.90 <= np.mean(shares) <= 0.99, shares


def test_recorded_coverage_is_between_89_and_99_percent() -> None:
    """The lowest one is log_loss, whose largest terms a reference of 1,000 rows has hardly seen."""
    counted = json.loads(RESULTS.read_text())["coverage"]
    assert {(c["reference_rows"], c["window_rows"]) for c in counted} == {(r, w) for r in REFERENCES for w in WINDOWS}
    outside = [c for c in counted if not all(0.89 <= share <= 0.99 for share in c["inside"].values())]
    assert outside == []


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize(("before", "after"), [(0.0, -1.0), (-1.0, 0.0)], ids=["better or easier", "worse or harder"])
def test_estimate_follows_a_change_of_the_inputs(task: Task, before: float, after: float) -> None:
    reference, window, metric = rows(task, 5000, shift=before), rows(task, 5000, 7, shift=after), KEY[task]
    old, new = (compute(metric, scored_rows(frame, SCHEMAS[task])) for frame in (reference, window))
    found = value(estimate(fitted(reference, SCHEMAS[task], [metric]), window)[metric])
    assert abs(old - new) > 0.03
    assert abs(found - new) < abs(old - new) / 3


def test_estimate_cannot_see_a_change_of_meaning(learned: tuple[Task, Estimator]) -> None:
    task, estimator = learned
    window, metric = rows(task, 5000, 7, concept=0.3), KEY[task]
    realized = compute(metric, scored_rows(window, SCHEMAS[task]))
    before = compute(metric, scored_rows(rows(task, 5000), SCHEMAS[task]))
    found = estimate(estimator, window)[metric]
    assert isinstance(found, Estimate)
    assert abs(found.value - before) < abs(before - realized) / 5
    assert not found.low <= realized <= found.high


def test_reference_itself_is_estimated_as_it_was() -> None:
    for task in (Task.BINARY, Task.MULTICLASS):
        reference = rows(task, 2000)
        found = estimate(estimator_of(task), reference)
        known = scored_rows(reference, SCHEMAS[task])
        for metric in metrics_for(task):
            assert value(found[metric]) == pytest.approx(compute(metric, known), abs=1e-6), metric


def test_labels_of_the_window_are_not_looked_at(binary: Estimator) -> None:
    window = rows(Task.BINARY, 500, 3)
    for other in (window.drop("label"), window.with_columns(label=pl.lit("no")), window.with_columns(label=None)):
        assert estimate(binary, other) == estimate(binary, window)


def test_estimates_are_the_same_after_pickling_and_fitting_again(learned: tuple[Task, Estimator]) -> None:
    task, estimator = learned
    window, stored = rows(task, 300, 4), pickle.dumps(estimator)
    again = estimator_of(task, 5000, KEY[task])
    assert estimate(pickle.loads(stored), window) == estimate(estimator, window) == estimate(again, window)
    assert len(stored) < 4_000_000


def test_calibration_is_used_only_where_it_helps() -> None:
    rng = np.random.default_rng(0)
    chance = np.sort(rng.random(4000))
    truth = (np.arange(4000) * 0.6180339887 % 1 < chance).astype(float)  # as many as promised, everywhere
    assert needs_calibration(chance**3, truth)
    assert not needs_calibration(chance, truth)
    assert not needs_calibration(truth, truth)


@pytest.mark.parametrize(
    ("task", "change", "reason"),
    [
        (Task.BINARY, {"label": None}, "the reference has no labels"),
        (Task.REGRESSION, {"label": None}, "the reference has no labels"),
        (Task.BINARY, {"score": None}, "the reference has no scores"),
        (Task.MULTICLASS, {"score_b": None}, "the reference has no scores"),
        (Task.BINARY, {"score": 1.5}, "0 labelled rows with scores in the reference, fewer than 200"),
        (Task.BINARY, {"label": "no"}, "0 labels of the reference are 'yes', fewer than 10"),
        (Task.MULTICLASS, {"label": "a"}, "0 labels of the reference are 'b', fewer than 1"),
        (Task.REGRESSION, {"prediction": float("nan")}, "0 labelled rows with a prediction in the reference, fewer"),
    ],
)
def test_reference_that_tells_nothing_has_a_reason(task: Task, change: dict[str, object], reason: str) -> None:
    frame = rows(task, 400).with_columns(**{name: pl.lit(to) for name, to in change.items()})
    found = fit_estimator(frame, SCHEMAS[task], metrics_for(task))
    assert isinstance(found, str)
    assert found.startswith(reason)
    assert isinstance(fit_estimator(frame.drop(*change), SCHEMAS[task], metrics_for(task)), str)


def test_short_reference_has_a_reason() -> None:
    for task in Task:
        assert "fewer than 200" in str(fit_estimator(rows(task, 199), SCHEMAS[task], metrics_for(task)))


def test_rows_without_usable_scores_are_left_out(binary: Estimator) -> None:
    window = rows(Task.BINARY, 900, 6)
    spoilt = window.head(300).with_columns(score=pl.Series([None, float("nan"), -0.1, 1.1, float("inf"), None] * 50))
    assert estimate(binary, pl.concat([window, spoilt])) == estimate(binary, window)


@pytest.mark.parametrize("task", list(Task))
def test_too_few_usable_rows_have_a_reason(task: Task) -> None:
    estimator, window = estimator_of(task, 300), rows(task, 400, 6)
    for few in (window.head(MIN_WINDOW_ROWS - 1), window.head(0), pl.DataFrame(), window.drop("prediction")):
        assert all("fewer than 30" in str(found) for found in estimate(estimator, few).values())
    most = window.with_columns(prediction=pl.when(pl.int_range(400) < 250).then(None).otherwise("prediction"))
    assert set(estimate(estimator, most).values()) == {
        f"only 150 of 400 rows have a prediction{'' if task is Task.REGRESSION else ' and scores'}"
    }


def test_metric_without_a_meaning_has_a_reason(binary: Estimator) -> None:
    never = estimate(binary, rows(Task.BINARY, 300, 8).with_columns(prediction=pl.lit("no")))
    assert never["precision"] == "no positive among the predictions"
    assert value(never["recall"]) < 0.05
    hopeless = rows(Task.BINARY, 300, 8, shift=-9.0)
    found = estimate(binary, hopeless)
    assert found["roc_auc"] == "too few labels of a class are expected"
    assert value(found["accuracy"]) > 0.95


def test_answer_that_is_no_class_counts_as_wrong(binary: Estimator) -> None:
    odd = rows(Task.BINARY, 300, 8).with_columns(prediction=pl.lit("perhaps"))
    assert value(estimate(binary, odd)["accuracy"]) < 0.05


def test_regression_says_what_cannot_be_estimated() -> None:
    frame = rows(Task.REGRESSION, 300)
    frame = frame.with_columns(label=pl.when(pl.int_range(300) == 7).then(0.0).otherwise("label"))
    found = estimate(fitted(frame, SCHEMAS[Task.REGRESSION], metrics_for(Task.REGRESSION)), frame)
    assert found["mape"] == "a label of the reference is zero"
    assert all("cannot be estimated" in str(found[metric]) for metric in ("r2", "bias"))
    assert all(isinstance(found[metric], Estimate) for metric in ("mae", "rmse"))


def test_features_may_be_missing_or_unseen() -> None:
    estimator, window = estimator_of(Task.REGRESSION, 500, "mae"), rows(Task.REGRESSION, 200, 9)
    odd = window.with_columns(feature_x=pl.lit(float("inf")), feature_kind=pl.lit("never seen")).drop("feature_z")
    assert isinstance(estimate(estimator, odd)["mae"], Estimate)


def test_perfect_model_is_estimated_to_be_perfect() -> None:
    frame = rows(Task.BINARY, 400).with_columns(label=pl.col("prediction"))
    frame = frame.with_columns(score=(pl.col("label") == "yes").cast(pl.Float64))
    found = estimate(fitted(frame, SCHEMAS[Task.BINARY], metrics_for(Task.BINARY)), frame)
    assert [value(found[m]) for m in ("accuracy", "roc_auc", "f1")] == pytest.approx([1.0] * 3)
    exact = rows(Task.REGRESSION, 400).with_columns(label=pl.col("prediction"))
    assert value(estimate(fitted(exact, SCHEMAS[Task.REGRESSION], ["rmse"]), exact)["rmse"]) == 0.0


def test_estimates_are_near_nannymls_recorded_ones() -> None:
    if not (DATA / CAR_LOAN).exists():
        pytest.skip(f"{CAR_LOAN} is not in DRIFTD_DATA")
    recorded = json.loads(RESULTS.read_text())
    frame, schema = lake_rows("car loan", car_loan(DATA))
    theirs = {m: each["nannyml"] for m, each in recorded["tables"]["car loan"].items() if each["nannyml"]}
    assert set(theirs) == {"accuracy", "balanced_accuracy", "f1", "precision", "recall", "roc_auc"}
    estimator = fitted(frame.filter(pl.col("period") == "reference"), schema, list(theirs))
    ours = [estimate(estimator, window) for window in windows_of(frame, recorded["window_rows"])]
    uncorrected = replace(estimator, offsets={m: np.zeros_like(each) for m, each in estimator.offsets.items()})
    plain = estimate(uncorrected, next(windows_of(frame, recorded["window_rows"])))
    for metric, values in theirs.items():
        apart = np.abs(np.array([value(found[metric]) for found in ours]) - np.array(values))
        assert apart.max() < TOLERANCE, metric
        assert apart.mean() < MEAN_TOLERANCE, metric
        assert value(plain[metric]) == pytest.approx(values[0], abs=1e-6), metric
