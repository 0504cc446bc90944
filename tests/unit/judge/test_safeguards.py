"""The gates beside quality: what each holds against its limit, and that nothing unmeasured passes."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from fairlearn.metrics import demographic_parity_difference, equalized_odds_difference

from retrain.config.settings import GatesConfig
from retrain.data.frame import labels_array
from retrain.judge.evaluate import Side, answered_by_both, constant
from retrain.judge.gates import GateResult
from retrain.judge.safeguards import Answer, Match, calibration_error, odds_difference, parity_difference, safeguards
from retrain.models.quality import Predictions
from retrain.terms.schema import ModelSchema
from tests.retrain_data import BINARY, MULTICLASS, REGRESSION, outcomes

RNG = np.random.default_rng(0)
ROWS = outcomes(600)
TRUTH = (ROWS["label"] == "fraud").to_numpy()
SURE = np.where(TRUTH, 0.9, 0.1)


class Asked:
    """A model that answers by a rule on the frame."""

    def __init__(self, answer: Any):
        self.answer = answer

    def predictions(self, frame: pd.DataFrame, schema: ModelSchema) -> Predictions:
        del schema
        return named(self.answer(frame))


def named(scores: Any) -> Predictions:
    scores = np.asarray(scores, dtype=float)
    return Predictions(np.where(scores >= 0.5, "fraud", "ok").astype(object), scores)


def side(scores: Any = SURE, **more: Any) -> Side:
    return Side("version 1", "1", named(scores), **more)


def judged(champion: Side, challenger: Side, rows: pl.DataFrame = ROWS, **config: Any) -> list[GateResult]:
    """What was asked for: that of size is always there."""
    gates = GatesConfig.model_validate({"bootstrap": 200, **config})
    found = safeguards(match_of(champion, challenger, rows, BINARY, "balanced_accuracy"), gates, seed=1)
    return [gate for gate in found if gate.name != "size" or "max_size" in config]


def match_of(champion: Side, challenger: Side, rows: pl.DataFrame, schema: ModelSchema, metric: str) -> Match:
    """As a contest makes it."""
    champion, challenger, rows = answered_by_both(champion, challenger, rows)
    return Match(champion, challenger, rows, labels_array(rows, schema), schema, metric)


def one(*sides: Side, **config: Any) -> GateResult:
    (found,) = judged(*sides, **config)
    return found


def ones(rows: int) -> np.ndarray:
    return np.ones((1, rows))


def test_nothing_is_judged_that_was_not_asked_for() -> None:
    assert judged(side(), side()) == []


# -- calibration


def test_calibration_error_of_known_bins() -> None:
    probability = np.repeat([0.2, 0.8], 100)
    came_true = np.concatenate([np.arange(100) < 30, np.arange(100) < 80]).astype(float)
    order = np.concatenate([RNG.permutation(100), 100 + RNG.permutation(100)])  # rows of a bin in any order
    value = calibration_error(probability[order], came_true[order])(ones(200))[0]
    assert value == pytest.approx(0.05)  # 0.1 and 0: rows with the same probability are one bin, in whatever order


def test_calibration_error_is_none_for_probabilities_that_come_true() -> None:
    probability = RNG.uniform(size=200_000)
    came_true = (RNG.uniform(size=200_000) < probability).astype(float)
    assert calibration_error(probability, came_true)(ones(200_000))[0] < 0.01


def test_a_challenger_that_is_too_sure_of_itself_fails() -> None:
    wrong = np.where(RNG.uniform(size=600) < 0.3, 1 - SURE, SURE)
    modest, sure = np.where(wrong > 0.5, 0.7, 0.3), np.where(wrong > 0.5, 0.999, 0.001)
    found = one(side(modest), side(sure), calibration_tolerance=0.05)
    assert not found.passed
    assert found.value is not None
    assert found.interval is not None
    assert found.interval[0] < found.value < found.interval[1]
    assert one(side(sure), side(modest), calibration_tolerance=0.05).passed
    assert one(side(modest), side(modest), calibration_tolerance=0.0).value == 0


def test_calibration_without_probabilities() -> None:
    bare = replace(side(), predictions=Predictions(side().predictions.values))
    failed = one(side(), bare, calibration_tolerance=0.5)
    assert (failed.passed, failed.detail) == (False, "the challenger gives no probabilities")
    assert "no champion's probabilities to compare with" in one(bare, side(), calibration_tolerance=0.5).detail


def test_calibration_of_several_classes_is_that_of_the_likeliest() -> None:
    rows = outcomes(400, schema=MULTICLASS)
    truth = rows["label"].to_list()
    scores = np.full((400, 3), 0.1)
    scores[np.arange(400), [MULTICLASS.classes.index(t) for t in truth]] = 0.8
    given = Side("one", "1", Predictions(np.array(truth, dtype=object), scores))
    gates = GatesConfig.model_validate({"calibration_tolerance": 0.1})
    found, _ = safeguards(match_of(given, given, rows, MULTICLASS, "accuracy"), gates, 0)
    assert (found.passed, found.value) == (True, 0)
    assert "error 0.2 against 0.2" in found.detail  # 0.8 said, always right


# -- fairness


@pytest.mark.parametrize("seed", range(5))
def test_fairness_is_that_of_fairlearn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = rng.choice(["a", "b", "c"], size=500, p=[0.6, 0.3, 0.1])
    actual, predicted = rng.uniform(size=500) < 0.3, rng.uniform(size=500) < np.where(names == "a", 0.2, 0.5)
    groups = {name: (names == name).astype(float) for name in "abc"}
    parity, odds = (f(groups, actual, predicted)(ones(500))[0] for f in (parity_difference, odds_difference))
    assert parity == pytest.approx(demographic_parity_difference(actual, predicted, sensitive_features=names))
    assert odds == pytest.approx(equalized_odds_difference(actual, predicted, sensitive_features=names))


def unfair() -> Side:
    """Says "fraud" of everybody in one country."""
    country = ROWS["segment_country"].to_numpy()
    return side(np.where(country == ROWS["segment_country"].unique().sort()[0], 0.9, SURE))


def test_groups_that_are_treated_differently_fail_and_say_which() -> None:
    limits = {"fairness_segment": "country", "max_parity_difference": 0.2, "max_odds_difference": 0.2}
    parity, odds = judged(side(), unfair(), **limits)
    assert (parity.name, odds.name) == ("demographic_parity", "equalized_odds")
    assert not parity.passed
    assert not odds.passed
    assert parity.interval is not None
    assert "by country (" in parity.detail
    assert all(g.passed for g in judged(unfair(), side(), **limits))


def test_rates_that_cannot_be_compared_are_not_equal() -> None:
    country = pl.col("segment_country")
    one_country = ROWS["segment_country"].unique().sort()[0]
    label = pl.when(country == one_country).then(pl.lit("ok")).otherwise(pl.lit("fraud")).alias("label")
    rows = ROWS.with_columns(label).filter(country.is_in(ROWS["segment_country"].unique().sort()[:2]))
    wrong = side(np.where(rows["label"].to_numpy() == "ok", 0.9, 0.1))
    (found,) = judged(wrong, wrong, rows, fairness_segment="country", max_odds_difference=0.5)
    assert (found.passed, found.value) == (False, None)


def test_segment_that_the_rows_do_not_have_does_not_pass() -> None:
    rows = ROWS.drop("segment_country")
    (found,) = judged(side(), side(), rows, fairness_segment="country", max_parity_difference=0.5)
    assert not found.passed


def test_groups_too_small_to_be_compared_do_not_pass() -> None:
    found = one(side(), side(), fairness_segment="country", max_parity_difference=0.5, segment_min_rows=500)
    assert (found.passed, found.value) == (False, None)
    assert "fewer than two groups have 500 rows" in found.detail


# -- agreement


def test_agreement_is_the_share_of_the_same_answers() -> None:
    other = np.where(np.arange(600) < 60, 1 - SURE, SURE)
    found = one(side(), side(other), min_agreement=0.85)
    assert (found.passed, found.value) == (True, pytest.approx(0.9))
    assert found.interval is not None
    assert found.interval[0] < 0.9 < found.interval[1]
    assert not one(side(), side(other), min_agreement=0.95).passed


@pytest.mark.parametrize(("one_value", "other"), [(1e9, 1e9), (5.0, 5.0)])
def test_agreement_of_large_and_of_constant_numbers(one_value: float, other: float) -> None:
    rows = outcomes(300, schema=REGRESSION)
    noise = RNG.normal(size=300)
    shifted = [Side(n, n, Predictions(noise * (one_value != 5.0) + v)) for n, v in (("1", one_value), ("2", other))]
    gates = GatesConfig.model_validate({"min_agreement": 0.99})
    found, _ = safeguards(match_of(*shifted, rows, REGRESSION, "mae"), gates, 0)
    assert (found.passed, found.value) == (True, pytest.approx(1.0, abs=1e-6))


def test_a_first_model_has_nobody_to_agree_with() -> None:
    guess = constant(ROWS, 600, BINARY)
    assert one(guess, side(), min_agreement=1.0).detail == "there is no champion to agree with"


def test_agreement_of_numbers_is_their_correlation() -> None:
    rows = outcomes(300, schema=REGRESSION)
    values = RNG.normal(size=300)
    noisy = values + RNG.normal(size=300)
    sides = [Side(name, name, Predictions(v)) for name, v in (("1", values), ("2", noisy))]
    gates = GatesConfig.model_validate({"min_agreement": 0.9})
    found, _ = safeguards(match_of(*sides, rows, REGRESSION, "mae"), gates, 0)
    assert found.value == pytest.approx(np.corrcoef(values, noisy)[0, 1])
    assert not found.passed


# -- robustness


def by_amount(frame: pd.DataFrame) -> Any:
    return SURE[: len(frame)] if frame["amount"].notna().all() else np.full(len(frame), 0.1)


def careless(frame: pd.DataFrame) -> Any:
    if frame["kind"].isna().any():
        raise ValueError("no kind")
    return SURE[: len(frame)]


def test_a_challenger_that_needs_an_input_that_the_champion_does_not_fails() -> None:
    steady = side(model=Asked(lambda frame: SURE[: len(frame)]))
    found = one(steady, side(model=Asked(by_amount)), robustness_tolerance=0.1)
    assert (found.passed, found.value) == (False, pytest.approx(-0.5))
    assert "balanced_accuracy 0.5 against 1 with amount missing" in found.detail
    assert one(side(model=Asked(by_amount)), steady, robustness_tolerance=0.0).passed


def test_a_challenger_that_cannot_answer_a_gap_fails_and_a_champion_that_cannot_loses_nothing() -> None:
    steady = side(model=Asked(lambda frame: SURE[: len(frame)]))
    found = one(steady, side(model=Asked(careless)), robustness_tolerance=0.1)
    assert (found.passed, found.detail) == (
        False, "the challenger cannot answer with kind missing: ValueError: no kind"
    )  # fmt: skip
    assert one(side(model=Asked(careless)), steady, robustness_tolerance=0.0).passed


def gives_up(frame: pd.DataFrame) -> Any:
    return np.where(frame["amount"].isna(), np.nan, SURE[: len(frame)])


def test_a_challenger_whose_metric_is_undefined_fails_where_the_champion_has_one() -> None:
    steady = side(model=Asked(lambda frame: SURE[: len(frame)]))
    gates = GatesConfig.model_validate({"robustness_tolerance": 0.5})
    match = match_of(steady, side(model=Asked(gives_up)), ROWS, BINARY, "brier")
    found, _ = safeguards(match, gates, 0)
    assert not found.passed
    assert found.detail.startswith("brier is not defined for the challenger with amount missing")


def test_a_challenger_is_not_blamed_for_what_its_champion_cannot_answer() -> None:
    def helpless(frame: pd.DataFrame) -> Any:
        raise ValueError("no")

    found = one(side(model=Asked(helpless)), side(model=Asked(by_amount)), robustness_tolerance=0.0)
    assert (found.passed, "nothing is lost" in found.detail) == (True, True)


def test_robustness_without_a_model_to_compare_with_is_that_every_change_is_answered() -> None:
    found = one(side(), side(model=Asked(by_amount)), robustness_tolerance=0.1)
    assert (found.passed, found.value) == (True, None)
    assert found.detail == "every change of an input was answered; no model to compare with: version 1"
    assert not one(side(), side(model=Asked(careless)), robustness_tolerance=0.1).passed


# -- size, functions


def test_size_is_held_against_its_limit() -> None:
    assert one(side(), side(size=1000), max_size="1KiB").passed
    assert not one(side(), side(size=2000), max_size="1KiB").passed
    assert one(side(), side(), max_size="1KiB").detail == "the model was not stored"


def few_refusals(match: Match) -> Answer:
    share = float((match.challenger.predictions.values == "fraud").mean())
    return Answer(share <= 0.1, f"{share:.0%} are refused", share, 0.1)


def leaves(match: Match) -> Answer:
    sys.exit(3)


def empty(match: Match) -> Answer:
    return Answer(True, "nothing to say", float(np.float32("nan")), np.float32(0.5))  # type: ignore[arg-type]


def broken(match: Match) -> Answer:
    raise RuntimeError("no such table")


def test_a_function_of_a_team_judges_and_one_that_raises_does_not_pass() -> None:
    here = __name__
    first, second, third = judged(
        side(), side(), functions=[f"{here}:few_refusals", f"{here}:broken", f"{here}:absent"]
    )
    assert (first.name, first.value, first.limit) == (f"function.{here}:few_refusals", TRUTH.mean(), 0.1)
    assert not first.passed
    assert (second.passed, second.detail) == (False, "raised RuntimeError: no such table")
    assert "has no attribute 'absent'" in third.detail
    left, said = judged(side(), side(), functions=[f"{here}:leaves", f"{here}:empty"])
    assert (left.passed, left.detail) == (False, "raised SystemExit: 3")
    assert (said.passed, said.value, said.limit) == (True, None, 0.5)
    assert type(said.limit) is float


def test_rows_that_the_champion_cannot_answer_for_are_left_out() -> None:
    usable = np.arange(600) >= 100
    known: list[int] = []

    def counts(match: Match) -> Answer:
        known.extend([len(match.rows), len(match.labels), len(match.champion.predictions.values)])
        return Answer(True, "")

    globals()["counts"] = counts
    judged(side(usable=usable), side(), functions=[f"{__name__}:counts"])
    assert known == [500, 500, 500]
