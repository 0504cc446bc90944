from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn import metrics as sk

from retrain.config.settings import GatesConfig, RetrainConfig
from retrain.config.spec import JobSpec
from retrain.judge.contest import Contest, hold_contest
from retrain.judge.evaluate import Evaluation, Latency, SegmentScore, Side, as_served, constant, evaluate, timed
from retrain.judge.gates import Promote, Reject, SmokeTest, decide, judge
from retrain.models.quality import METRICS, Comparison, Predictions, compare, measure
from retrain.terms.request import RetrainRequest, TriggerKind
from retrain.terms.schema import Task
from tests.retrain_data import BINARY, MULTICLASS, REGRESSION, outcomes

INPUTS = {"amount": "number", "kind": "category", "new": "bool"}
QUICK, SLOWER, SLOW = Latency(1e-3, 1e-5), Latency(0.02, 1e-4), Latency(0.3, 1e-5)


def side(
    value: float | None = 0.8,
    segments: Mapping[str, SegmentScore] | None = None,
    latency: Latency | None = QUICK,
    inputs: Mapping[str, str] | None = INPUTS,
) -> Evaluation:
    return Evaluation("version 1", "1", 1000, {"roc_auc": value}, segments or {}, latency, inputs)


def compared(low: float | None = 0.01, high: float | None = 0.05) -> Comparison:
    difference = None if low is None or high is None else (low + high) / 2
    return Comparison("roc_auc", difference, low, high, 0.95, 1000)


def failed(champion: Evaluation, challenger: Evaluation, comparison: Comparison, **config: float) -> list[str]:
    gates = judge(champion, challenger, comparison, BINARY, GatesConfig.model_validate(config))
    return [g.name for g in gates if not g.passed]


@pytest.mark.parametrize(
    ("low", "high", "margin", "expected"),
    [
        (0.01, 0.05, 0.0, []),
        (0.0, 0.05, 0.0, ["quality"]),
        (-0.01, 0.05, 0.0, ["quality"]),
        (0.01, 0.05, 0.02, ["quality"]),
        (None, None, 0.0, ["quality"]),
    ],
)
def test_quality_passes_when_the_whole_interval_is_above_the_margin(
    low: float | None, high: float | None, margin: float, expected: list[str]
) -> None:
    assert failed(side(), side(0.83), compared(low, high), margin=margin) == expected


@pytest.mark.parametrize(
    ("low", "high", "passed"),
    [(0.01, 0.05, True), (-0.01, 0.05, True), (0.0, 0.0, True), (-0.05, -0.01, False), (None, None, False)],
)
def test_renewal_needs_no_gain_but_must_not_be_worse(low: float | None, high: float | None, passed: bool) -> None:
    quality = judge(side(), side(), compared(low, high), BINARY, GatesConfig(margin=0.005), renewing=True)[0]
    assert quality.passed is passed
    held = Contest(None, side(), compared(low, high), (quality,))
    by_newer_rows_alone = passed and low is not None and low <= 0.005
    assert held.renewed is by_newer_rows_alone
    assert ("not shown to be worse" in quality.detail) is by_newer_rows_alone
    assert held.without_refit().gates[0].passed is (passed and not by_newer_rows_alone)


@pytest.mark.parametrize(("trigger", "renewed"), [(TriggerKind.FOLLOW_UP, True), (TriggerKind.RULE, False)])
@pytest.mark.parametrize(("refit", "renew"), [(True, True), (False, True), (True, False)])
def test_only_a_refitted_follow_up_may_renew(
    tmp_path: Path, trigger: TriggerKind, renewed: bool, refit: bool, renew: bool
) -> None:
    rows = outcomes(400)
    config = RetrainConfig(refit=refit, gates=GatesConfig(metric="accuracy", renew=renew, bootstrap=200))
    request = RetrainRequest("r", "fraud", trigger, "", {}, datetime(2026, 1, 1, tzinfo=UTC))
    spec = JobSpec(request, BINARY, "", "", "fraud", str(tmp_path), config)
    served = replace(as_served(rows, BINARY), inputs=INPUTS)  # type: ignore[type-var]
    held = hold_contest(spec, served, served, rows)  # against itself: not better, not worse
    assert held.gates[0].passed is (renewed and refit and renew)
    assert held.gain == 0.0


@pytest.mark.parametrize(
    ("low", "high", "errors"),
    [
        (0.01, 0.05, 0.03 / (0.02 / 1.95996)),
        (-0.05, -0.01, -2.93994),
        (0.1, 0.1, 1000.0),
        (0.0, 0.0, 0.0),
        (None, None, None),
    ],
)
def test_difference_in_standard_errors(low: float | None, high: float | None, errors: float | None) -> None:
    assert compared(low, high).standard_errors == (None if errors is None else pytest.approx(errors, rel=1e-4))


@pytest.mark.parametrize(
    ("rows", "theirs", "ours", "expected"),
    [
        (100, 0.8, 0.76, []),
        (100, 0.8, 0.74, ["segment"]),
        (49, 0.8, 0.1, []),
        (100, None, 0.1, []),
        (100, 0.8, None, ["segment"]),
    ],
)
def test_no_segment_may_be_worse_than_tolerated(
    rows: int, theirs: float | None, ours: float | None, expected: list[str]
) -> None:
    a, b = (side(segments={"country=de": SegmentScore(rows, v)}) for v in (theirs, ours))
    assert failed(a, b, compared()) == expected


@pytest.mark.parametrize(
    ("champion", "challenger", "expected"),
    [
        (INPUTS, INPUTS, []),
        (None, INPUTS, []),
        (INPUTS, None, ["signature"]),
        (INPUTS, {**INPUTS, "kind": "number"}, ["signature"]),
        (INPUTS, {"amount": "number"}, ["signature"]),
        ({"amount": "number"}, INPUTS, ["signature"]),
    ],
)
def test_inputs_must_equal_schema_and_champion(
    champion: dict[str, str] | None, challenger: dict[str, str] | None, expected: list[str]
) -> None:
    assert failed(side(inputs=champion), side(inputs=challenger), compared()) == expected


@pytest.mark.parametrize(
    ("theirs", "ours", "ratio", "expected"),
    [
        (QUICK, SLOWER, None, []),  # 20 times a champion of a millisecond is still fast
        (QUICK, SLOW, None, ["latency"]),
        (QUICK, Latency(1e-3, 0.011), None, ["latency"]),
        (None, SLOW, None, ["latency"]),
        (None, SLOWER, None, []),
        (SLOW, SLOW, None, []),  # no slower than what is served today
        (SLOW, Latency(0.31, 1e-5), None, ["latency"]),
        (QUICK, SLOWER, 3.0, []),  # below a tenth of what is allowed nobody asks for a ratio
        (QUICK, Latency(0.026, 1e-5), 3.0, ["latency"]),
        (SLOWER, Latency(0.055, 1e-4), 3.0, []),
        (SLOWER, Latency(0.065, 1e-4), 3.0, ["latency"]),
        (None, SLOWER, 3.0, []),
        (SLOW, Latency(0.31, 1e-5), 3.0, ["latency"]),  # no ratio allows more than the budget
        (QUICK, None, None, []),  # a backtest has no clock
    ],
)
def test_latency_is_held_against_what_the_service_needs(
    theirs: Latency | None, ours: Latency | None, ratio: float | None, expected: list[str]
) -> None:
    settings = {} if ratio is None else {"max_latency_ratio": ratio}
    assert failed(side(latency=theirs), side(latency=ours), compared(), **settings) == expected


def test_a_latency_says_what_was_measured_and_what_is_allowed() -> None:
    latency = judge(side(), side(latency=SLOW), compared(), BINARY, GatesConfig.model_validate({}))[-1]
    assert (latency.name, latency.value, latency.limit) == ("latency", pytest.approx(1.2), 1.0)
    assert latency.detail == "a request for one row takes 300 ms (the champion 1 ms), allowed are 250 ms"


def test_models_are_timed_in_turns_and_the_least_of_each_counts() -> None:
    asked: list[tuple[str, int]] = []

    class Timed:
        def __init__(self, name: str, seconds: list[float]) -> None:
            self.name, self.seconds = name, iter(seconds)

        def predictions(self, frame: Any, schema: Any) -> Predictions:
            raise AssertionError

        def processor_seconds(self, frame: Any, schema: Any) -> float:
            asked.append((self.name, len(frame)))
            return next(self.seconds)

    rows, none = outcomes(100), Predictions(np.array([]))
    one, two = Timed("one", [3.0, 30.0, 1.0, 20.0, 2.0, 10.0]), Timed("two", [0.5, 4.0, 0.6, 5.0, 0.7, 6.0])
    sides = [Side("a", None, none, model=one), Side("b", None, none, model=two), Side("as served", None, none)]
    latencies = [s.latency for s in timed(sides, rows, BINARY)]
    assert latencies == [Latency(1.0, 0.1), Latency(0.5, 0.04), None]
    assert asked == [("one", 1), ("one", 100), ("two", 1), ("two", 100)] * 3


def test_a_challenger_is_promoted_only_after_its_smoke_test() -> None:
    gates = judge(side(), side(), compared(), BINARY, GatesConfig.model_validate({}))
    assert isinstance(decide(gates, SmokeTest(True, "fine")), Promote)
    assert decide(gates, None) == Reject(gates, ("smoke_test: not run",))
    rejected = decide(gates, SmokeTest(False, "cannot be loaded"))
    assert isinstance(rejected, Reject)
    assert rejected.reasons == ("smoke_test: cannot be loaded",)


def test_every_metric_equals_scikit_learns() -> None:
    rows = outcomes(500)
    labels, values, score = (rows[c].to_numpy() for c in ("label", "prediction", "score"))
    labels, values = labels.astype(object), values.astype(object)
    score = np.round(score, 1)  # ties
    mine = {m: measure(m, labels, Predictions(values, score), BINARY) for m in METRICS[Task.BINARY]}
    positive = {"pos_label": "fraud"}
    both = np.stack([1 - score, score], axis=1)
    assert mine == pytest.approx(
        {
            "accuracy": sk.accuracy_score(labels, values),
            "balanced_accuracy": sk.balanced_accuracy_score(labels, values),
            "f1": sk.f1_score(labels, values, **positive),
            "precision": sk.precision_score(labels, values, **positive),
            "recall": sk.recall_score(labels, values, **positive),
            "roc_auc": sk.roc_auc_score(labels == "fraud", score),
            "log_loss": sk.log_loss(labels == "fraud", np.clip(both, 1e-15, 1)),
            "brier": sk.brier_score_loss(labels == "fraud", score),
        }
    )


def test_multiclass_and_regression_metrics_equal_scikit_learns() -> None:
    rows = outcomes(500, schema=MULTICLASS)
    labels, values = (rows[c].to_numpy().astype(object) for c in ("label", "prediction"))
    found = measure("f1_macro", labels, Predictions(values), MULTICLASS)
    assert found == pytest.approx(sk.f1_score(labels, values, average="macro"))
    y = outcomes(500, schema=REGRESSION)["label"].to_numpy()
    guess = Predictions(y * 0.5 + 1)
    assert measure("r2", y, guess, REGRESSION) == pytest.approx(sk.r2_score(y, guess.values))
    assert measure("rmse", y, guess, REGRESSION) == pytest.approx(sk.root_mean_squared_error(y, guess.values))
    assert measure("mae", y, guess, REGRESSION) == pytest.approx(sk.mean_absolute_error(y, guess.values))


@pytest.mark.parametrize("metric", METRICS[Task.BINARY])
def test_the_interval_covers_the_difference_and_has_its_direction(metric: str) -> None:
    bad, good = outcomes(2000, skill=0.1), outcomes(2000, skill=0.9)
    labels = good["label"].to_numpy().astype(object)
    sides = [Predictions(r["prediction"].to_numpy().astype(object), r["score"].to_numpy()) for r in (bad, good)]
    found = compare(metric, labels, *sides, BINARY, confidence=0.95, resamples=300, seed=1)
    assert found.low is not None
    assert found.high is not None
    assert found.difference is not None
    assert 0 < found.low < found.difference < found.high
    same = compare(metric, labels, sides[0], sides[0], BINARY, confidence=0.95, resamples=100, seed=1)
    assert (same.low, same.high) == (0, 0)


def test_a_metric_of_one_class_only_is_undefined() -> None:
    labels = np.array(["ok"] * 50, dtype=object)
    guess = Predictions(labels, np.linspace(0, 1, 50))
    assert measure("roc_auc", labels, guess, BINARY) is None
    assert measure("balanced_accuracy", labels, guess, BINARY) is None
    assert compare("roc_auc", labels, guess, guess, BINARY, confidence=0.95, resamples=100, seed=0).low is None


@pytest.mark.parametrize("metric", ["roc_auc", "log_loss", "f1"])
def test_fifty_thousand_rows_take_seconds(metric: str) -> None:
    rows = outcomes(50_000)
    labels = rows["label"].to_numpy().astype(object)
    guess = Predictions(rows["prediction"].to_numpy().astype(object), rows["score"].to_numpy())
    started = time.process_time()
    compare(metric, labels, guess, guess, BINARY, confidence=0.95, resamples=200, seed=0)
    assert time.process_time() - started < 6


def test_the_linearized_interval_of_roc_auc_agrees_with_the_exact_one() -> None:
    bad, good = outcomes(10_001, skill=0.5), outcomes(10_001, skill=0.7)
    labels = good["label"].to_numpy().astype(object)
    sides = [Predictions(r["prediction"].to_numpy(), np.round(r["score"].to_numpy(), 2)) for r in (bad, good)]
    settings: Any = {"confidence": 0.95, "resamples": 300, "seed": 1}
    linear = compare("roc_auc", labels, *sides, BINARY, **settings)
    exact = compare("roc_auc", labels[1:], *(s[np.arange(1, 10_001)] for s in sides), BINARY, **settings)
    assert linear.note == "bootstrap of roc_auc linearized"
    assert exact.note == ""
    assert (linear.low, linear.high) == pytest.approx((exact.low, exact.high), abs=0.002)


def test_rows_without_a_served_prediction_count_for_neither_side() -> None:
    rows = outcomes(400)
    late = pl.int_range(pl.len()) > 99
    holes = rows.with_columns(prediction=pl.when(late).then("prediction"))
    served = as_served(holes, BINARY)
    assert served is not None
    guess = constant(rows, len(rows), BINARY)
    champion, challenger, _ = evaluate(
        served, guess, rows, BINARY, metric="roc_auc", confidence=0.95, resamples=100, seed=0
    )
    assert champion.rows == challenger.rows == 300
    assert challenger.metrics["roc_auc"] == 0.5
    assert set(champion.segments) == {"country=de", "country=fr"}


def test_too_few_served_predictions_are_no_champion() -> None:
    rows = outcomes(100)
    assert as_served(rows.with_columns(prediction=None), BINARY) is None
