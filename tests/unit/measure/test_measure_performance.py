"""Model quality overall and per segment, its drop against the reference, and where it is undefined."""

import math

import numpy as np
import polars as pl
import pytest

from monitor.measure.performance.compute import (
    MAX_SEGMENTS,
    measure_performance,
    prepare_reference,
    reference_performance,
)
from monitor.measure.performance.scores import SCORES, drop, metrics_for
from monitor.measure.reference import prepare
from monitor.rules.measurement import Measure, Measurement
from retrain.terms.schema import Feature, FeatureKind, ModelSchema, Task

BINARY = ModelSchema("m", Task.BINARY, (), ("no", "yes"), "yes", segments=("region",))
MULTICLASS = ModelSchema("m", Task.MULTICLASS, (), ("c", "a", "b"))
REGRESSION = ModelSchema("m", Task.REGRESSION, ())


def binary(rows: int = 400, seed: int = 0, flip: float = 0.0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    score = rng.random(rows)
    right = np.where(rng.random(rows) < score, "yes", "no")
    wrong = np.where(right == "yes", "no", "yes")
    return pl.DataFrame(
        {
            "score": score,
            "prediction": np.where(score > 0.5, "yes", "no"),
            "label": np.where(rng.random(rows) < flip, wrong, right),
            "segment_region": rng.choice(["eu", "us"], rows),
        }
    )


def measured(
    outcomes: pl.DataFrame, schema: ModelSchema, against: pl.DataFrame | None = None, min_rows: int = 20
) -> dict[tuple[Measure, str, str], Measurement]:
    metrics = metrics_for(schema.task)
    reference = prepare_reference(outcomes if against is None else against, schema, metrics, min_rows)
    found = measure_performance(outcomes, reference, schema, metrics, min_rows)
    return {(m.measure, m.metric, m.segment): m for m in found}


def values(outcomes: pl.DataFrame, schema: ModelSchema) -> dict[str, float | None]:
    found = measured(outcomes, schema)
    return {k[1]: m.value for k, m in found.items() if k[0] is Measure.PERFORMANCE and not k[2]}


def reasons(outcomes: pl.DataFrame, schema: ModelSchema) -> dict[str, str]:
    found = measured(outcomes, schema)
    return {k[1]: m.reason for k, m in found.items() if k[0] is Measure.PERFORMANCE and not k[2] and m.reason}


def test_worse_model_has_a_positive_drop_whichever_way_the_metric_runs() -> None:
    found = measured(binary(flip=0.4), BINARY, binary(seed=1))
    drops = {k[1]: m.value for k, m in found.items() if k[0] is Measure.PERFORMANCE_DROP and not k[2]}
    assert set(drops) == set(metrics_for(Task.BINARY))
    assert all(value is not None and value > 0.02 for value in drops.values()), drops


def test_equal_rows_have_no_drop() -> None:
    found = measured(binary(), BINARY)
    assert {m.value for k, m in found.items() if k[0] is Measure.PERFORMANCE_DROP} == {0.0}


@pytest.mark.parametrize(
    ("metric", "current", "reference", "expected"),
    [("accuracy", 0.8, 0.9, 0.1), ("mae", 3, 2, 1), ("bias", -0.5, 0.2, 0.3), ("bias", 0.1, -0.2, -0.1)],
)
def test_drop(metric: str, current: float, reference: float, expected: float) -> None:
    assert drop(metric, current, reference) == pytest.approx(expected)


def test_every_task_has_metrics_and_every_metric_a_task() -> None:
    assert {m for task in Task for m in metrics_for(task)} == set(SCORES)


def test_segments_are_measured_apart() -> None:
    outcomes = binary()
    found = measured(outcomes, BINARY)
    europe = outcomes.filter(pl.col("segment_region") == "eu")
    assert {k[2] for k in found} == {"", "region=eu", "region=us"}
    expected = (europe["label"] == europe["prediction"]).mean()
    assert found[Measure.PERFORMANCE, "accuracy", "region=eu"].value == pytest.approx(expected)
    assert found[Measure.PERFORMANCE, "accuracy", "region=eu"].rows == europe.height


def test_segment_the_reference_knows_never_vanishes() -> None:
    found = measured(binary().filter(pl.col("segment_region") == "eu"), BINARY, binary())
    gone = found[Measure.PERFORMANCE_DROP, "f1", "region=us"]
    assert (gone.value, gone.rows, gone.reason) == (None, 0, "no labelled rows")


def test_small_segment_is_undefined() -> None:
    found = measured(binary(30), BINARY, min_rows=25)
    assert found[Measure.PERFORMANCE, "accuracy", ""].value is not None
    assert "fewer than 25" in found[Measure.PERFORMANCE, "accuracy", "region=eu"].reason


def test_new_segment_has_a_performance_but_no_drop() -> None:
    outcomes = binary().with_columns(segment_region=pl.lit("asia"))
    found = measured(outcomes, BINARY, binary())
    assert found[Measure.PERFORMANCE, "accuracy", "region=asia"].value is not None
    lost = found[Measure.PERFORMANCE_DROP, "accuracy", "region=asia"]
    assert (lost.value, lost.reason) == (None, "the reference has no such performance")


def test_segments_are_bounded() -> None:
    outcomes = binary(2000).with_columns(segment_region=pl.int_range(pl.len()).cast(pl.String))
    assert len({k[2] for k in measured(outcomes, BINARY)}) == MAX_SEGMENTS + 1


def test_labels_of_one_class() -> None:
    found = reasons(binary().with_columns(label=pl.lit("no")), BINARY)
    assert found == {
        "balanced_accuracy": "labels of one class only",
        "recall": "no positive among the labels",
        "roc_auc": "labels of one class only",
    }


def test_model_that_never_says_yes() -> None:
    outcomes = binary().with_columns(prediction=pl.lit("no"))
    assert reasons(outcomes, BINARY) == {"precision": "no positive among the predictions"}
    assert values(outcomes, BINARY)["f1"] == values(outcomes, BINARY)["recall"] == 0


@pytest.mark.parametrize("schema", [BINARY, MULTICLASS], ids=["binary", "multiclass"])
def test_without_scores_the_rest_stands(schema: ModelSchema) -> None:
    outcomes = pl.DataFrame(
        {"prediction": [*schema.classes] * 10, "label": [*schema.classes[::-1], *schema.classes] * 5}
    )
    expected = {name for name in metrics_for(schema.task) if SCORES[name].from_scores}
    found = reasons(outcomes, schema)
    assert set(found) == expected
    assert set(found.values()) == {"no scores on the labelled rows"}


def test_rows_without_score_are_left_out_of_score_metrics_only() -> None:
    outcomes = binary()
    some = outcomes.with_columns(score=pl.when(pl.int_range(pl.len()) >= 100).then("score"))
    assert values(some, BINARY)["accuracy"] == values(outcomes, BINARY)["accuracy"]
    assert values(some, BINARY)["brier"] == values(outcomes[100:], BINARY)["brier"]


def test_rows_without_label_or_prediction_are_left_out() -> None:
    outcomes = binary(100)
    gaps = pl.concat(
        [
            outcomes,
            outcomes.with_columns(label=pl.lit(None, pl.String)),
            outcomes.with_columns(prediction=pl.lit(None, pl.String)),
            outcomes.with_columns(label=pl.lit("maybe")),
        ]
    )
    assert values(gaps, BINARY) == values(outcomes, BINARY)


def test_prediction_of_an_unknown_class_is_wrong() -> None:
    outcomes = pl.DataFrame({"prediction": ["yes", "maybe", "no", "no"], "label": ["yes", "yes", "no", "no"]})
    assert values(outcomes, BINARY)["accuracy"] == 0.75
    assert values(outcomes, BINARY)["recall"] == 0.5


def test_impossible_score_is_a_reason() -> None:
    found = reasons(binary().with_columns(score=pl.col("score") * 3), BINARY)
    assert found["log_loss"].startswith("log_loss failed: ")
    assert "accuracy" not in found


def test_multiclass_scores_belong_to_the_classes_of_the_schema() -> None:
    outcomes = pl.DataFrame(
        {
            "score_a": [0.8, 0.1],
            "score_b": [0.1, 0.2],
            "score_c": [0.1, 0.7],
            "prediction": ["a", "c"],
            "label": ["a", "c"],
        }
    )
    assert values(outcomes, MULTICLASS)["log_loss"] == pytest.approx(-(math.log(0.8) + math.log(0.7)) / 2)


def regression(**columns: list[float | None]) -> pl.DataFrame:
    return pl.DataFrame({"prediction": [1.0, 2.0, 4.0], "label": [2.0, 2.0, 2.0], **columns})


def test_regression() -> None:
    found = values(regression(label=[2.0, 2.0, 5.0]), REGRESSION)
    assert found["mae"] == pytest.approx(2 / 3)
    assert found["bias"] == pytest.approx(-2 / 3)
    assert found["mape"] == pytest.approx((0.5 + 0 + 0.2) / 3)


def test_regression_on_constant_labels_has_no_r2() -> None:
    assert reasons(regression(), REGRESSION) == {"r2": "all labels are the same"}


def test_zero_label_has_no_percentage_error() -> None:
    assert reasons(regression(label=[0.0, 1.0, 2.0]), REGRESSION) == {"mape": "a label is zero"}


def test_infinite_predictions_are_left_out() -> None:
    outcomes = regression(prediction=[math.inf, 2.0, math.nan], label=[1.0, 2.5, 3.0])
    assert values(outcomes, REGRESSION)["mae"] == 0.5


@pytest.mark.parametrize("schema", [BINARY, MULTICLASS, REGRESSION], ids=lambda s: s.task.value)
def test_nothing_labelled_is_undefined(schema: ModelSchema) -> None:
    found = measured(pl.DataFrame({"prediction": pl.Series([], dtype=pl.String)}), schema)
    assert {m.value for m in found.values()} == {None}
    assert {m.reason for m in found.values()} == {"no labelled rows"}


def test_reference_performance_uses_all_rows_and_leaves_undefined_out() -> None:
    frame = binary(3000)
    reference = prepare_reference(frame, BINARY, ("accuracy",), 20, max_rows=100)
    assert reference.frame.height == 100
    assert reference.performance["accuracy", ""] == (frame["label"] == frame["prediction"]).mean()
    one_class = frame.with_columns(label=pl.lit("no"))
    assert ("roc_auc", "") not in reference_performance(one_class, BINARY, ("roc_auc",), 20)


def test_drop_ratio_is_the_drop_over_the_reference_value() -> None:
    schema = ModelSchema("price", Task.REGRESSION, (Feature("x", FeatureKind.NUMBER),))
    frame = pl.DataFrame({"feature_x": [1.0, 2.0], "prediction": [11.0, 22.0], "label": [10.0, 20.0]})
    reference = prepare(frame, schema, performance={("mae", ""): 1.0})
    found = {m.measure: m.value for m in measure_performance(frame, reference, schema, ["mae"], 1)}
    assert found[Measure.PERFORMANCE_DROP] == 0.5
    assert found[Measure.PERFORMANCE_DROP_RATIO] == 0.5
    free = prepare(frame, schema, performance={("mae", ""): 0.0})
    ratio = [
        m for m in measure_performance(frame, free, schema, ["mae"], 1) if m.measure is Measure.PERFORMANCE_DROP_RATIO
    ]
    assert [(m.value, m.reason) for m in ratio] == [(None, "the reference's value is zero")]


def bootstrapped(outcomes: pl.DataFrame, schema: ModelSchema, metric: str, resamples: int = 300) -> tuple[float, float]:
    """The plain percentile bootstrap over rows: slow, and what every interval must come near to."""
    rng, found = np.random.default_rng(1), []
    for _ in range(resamples):
        picked = outcomes[rng.integers(0, outcomes.height, outcomes.height)]
        value = values_of(picked, schema, metric)
        if value is not None:
            found.append(value)
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def values_of(outcomes: pl.DataFrame, schema: ModelSchema, metric: str) -> float | None:
    reference = prepare(outcomes.clear(), schema)
    return measure_performance(outcomes, reference, schema, [metric], 20)[0].value


def multiclass_rows(rows: int = 400, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet((1, 1, 1), rows)
    label = [rng.choice(3, p=row) for row in scores]
    names = np.array(["c", "a", "b"])
    given = {f"score_{c}": scores[:, i] for i, c in enumerate(names)}
    return pl.DataFrame({**given, "prediction": names[scores.argmax(axis=1)], "label": names[label]})


def regression_rows(rows: int = 400, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    label = rng.gamma(3.0, 2.0, rows) + 1
    return pl.DataFrame({"label": label, "prediction": label + rng.normal(0.3, 1.5, rows)})


@pytest.mark.parametrize(
    ("outcomes", "schema", "metric"),
    [
        *((binary(), BINARY, m) for m in metrics_for(Task.BINARY)),
        *((multiclass_rows(), MULTICLASS, m) for m in metrics_for(Task.MULTICLASS)),
        *((regression_rows(), REGRESSION, m) for m in metrics_for(Task.REGRESSION)),
    ],
)
def test_interval_is_near_the_plain_bootstraps(outcomes: pl.DataFrame, schema: ModelSchema, metric: str) -> None:
    reference = prepare(outcomes.clear(), schema)
    found = measure_performance(outcomes, reference, schema, [metric], 20)[0]
    assert found.interval is not None
    assert found.value is not None
    low, high = found.interval
    assert low <= found.value <= high
    width = high - low
    expected = bootstrapped(outcomes, schema, metric)
    assert width == pytest.approx(expected[1] - expected[0], rel=0.25)
    assert abs(low - expected[0]) < 0.2 * width
    assert abs(high - expected[1]) < 0.2 * width


def test_interval_of_a_faultless_model_has_width_and_stays_in_range() -> None:
    rows = binary(60).with_columns(label=pl.col("prediction"))
    found = measured(rows, BINARY)
    for metric in ("accuracy", "balanced_accuracy", "precision", "recall"):
        interval = found[Measure.PERFORMANCE, metric, ""].interval
        assert interval is not None
        assert 0.85 < interval[0] < interval[1] == 1.0


def test_one_row_has_no_interval() -> None:
    found = measured(regression_rows(1), REGRESSION)
    assert found[Measure.PERFORMANCE, "mae", ""].interval is None


def test_a_producer_that_answers_at_random_costs_no_memory() -> None:
    rows = multiclass_rows(3000).with_columns(prediction=pl.int_range(3000).cast(pl.String))
    found = measured(rows, MULTICLASS)
    assert found[Measure.PERFORMANCE, "f1_macro", ""].value == pytest.approx(0, abs=0.01)
    interval = found[Measure.PERFORMANCE, "f1_macro", ""].interval
    assert interval is None or interval[1] < 0.01


def test_few_rows_have_no_interval_of_the_auc() -> None:
    assert measured(binary(12), BINARY)[Measure.PERFORMANCE, "roc_auc", ""].interval is None


def test_drop_of_balanced_accuracy_is_compared_over_the_classes_that_occur() -> None:
    """A night without a single positive: there is no balanced accuracy, but the negatives can be compared."""
    rng = np.random.default_rng(0)

    def frame(truth: list[str], right: float) -> pl.DataFrame:
        other = {"no": "yes", "yes": "no"}
        said = [t if rng.random() < right else other[t] for t in truth]
        return pl.DataFrame({"label": truth, "prediction": said, "feature_amount": [1.0] * len(truth)})

    reference = prepare_reference(frame(["no", "yes"] * 500, 0.95), BINARY, ["balanced_accuracy"], 50)
    found = measure_performance(frame(["no"] * 200, 0.6), reference, BINARY, ["balanced_accuracy"], 50)
    by = {m.measure: m for m in found if not m.segment}
    assert by[Measure.PERFORMANCE].value is None
    dropped = by[Measure.PERFORMANCE_DROP]
    assert dropped.value == pytest.approx(0.35, abs=0.08)
    assert dropped.reason == "over 1 of 2 classes: the others do not occur"
    assert dropped.p_value is not None
    assert dropped.p_value < 1e-6
