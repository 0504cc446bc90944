"""A challenger that is better than can be: when a person is asked, and when what was seen before explains it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from retrain.data.frame import labels_array
from retrain.judge.evaluate import Side, constant
from retrain.judge.safeguards import Match
from retrain.judge.too_good import too_good
from retrain.models.quality import Predictions
from retrain.terms.schema import ModelSchema
from tests.retrain_data import BINARY, MULTICLASS, REGRESSION, outcomes


def answered(rows: pl.DataFrame, schema: ModelSchema, wrong: float, seed: int = 0) -> Any:
    """The labels, that share of them (of each class) turned into others; of numbers, with so much noise (as a share of
    their variance)."""
    rng, labels = np.random.default_rng(seed), labels_array(rows, schema)
    if schema is REGRESSION:
        return labels + rng.normal(size=len(labels)) * labels.std() * wrong**0.5
    said = labels.copy()
    for at, name in enumerate(schema.classes):
        of = np.flatnonzero(labels == name)
        said[rng.choice(of, round(wrong * len(of)), replace=False)] = schema.classes[at - 1]
    return said


def asks(
    wrong: float,
    *,
    champion: float | None = 0.5,
    earlier: float | None = None,
    n: int = 300,
    schema: ModelSchema = BINARY,
    rows: pl.DataFrame | None = None,
) -> bool:
    """Whether a person is asked about a challenger with this share of wrong answers on `n` rows, where the champion has
    another share, and what was served in the first half of the earlier rows a third; None: there is none."""
    holdout = outcomes(n, schema=schema, seed=1) if rows is None else rows
    before = outcomes(2000, schema=schema, seed=2)
    if earlier is None:
        before = before.with_columns(prediction=pl.lit(None, before["prediction"].dtype))
    else:
        good, since = answered(before[:1000], schema, earlier), answered(before[1000:], schema, 0.5)
        before = before.with_columns(prediction=pl.Series(list(good) + list(since)))
    theirs = (
        constant(before, len(holdout), schema)
        if champion is None
        else Side("version 1", "1", Predictions(answered(holdout, schema, champion)))
    )
    ours = Side("challenger", None, Predictions(answered(holdout, schema, wrong)))
    match = Match(theirs, ours, holdout, labels_array(holdout, schema), schema, "any")
    found = too_good(match, before)
    assert found.asks
    assert not found.rejects
    assert found.passed or "approve it" in found.detail
    return not found.passed


@pytest.mark.parametrize("schema", [BINARY, MULTICLASS])
def test_answers_that_are_nearly_all_right_are_asked_about_where_nothing_was_ever_near(schema: ModelSchema) -> None:
    assert asks(0.0, schema=schema)
    assert asks(0.0, schema=schema, champion=None)
    assert asks(0.0, schema=schema, champion=0.1, earlier=0.1)
    assert asks(0.007, schema=schema, champion=0.1, earlier=0.1, n=1200)


@pytest.mark.parametrize("schema", [BINARY, MULTICLASS])
def test_nobody_is_asked_about_what_was_seen_before_or_may_be_luck(schema: ModelSchema) -> None:
    assert not asks(0.02, schema=schema)
    assert not asks(0.08, schema=schema, champion=0.92, earlier=0.08)  # what turned round, learnt again
    assert not asks(0.0, schema=schema, champion=0.98, earlier=0.01)
    assert not asks(0.0, schema=schema, champion=0.02)
    assert not asks(0.0, schema=schema, champion=0.1, n=60)


def test_a_champion_that_is_near_perfect_explains_any_other_whatever_the_classes() -> None:
    for classes, rows in ((2, 20_000), (19, 1900)):
        names = tuple(f"c{n:02}" for n in range(classes))
        schema = replace(MULTICLASS, classes=names)
        holdout = outcomes(rows, seed=1).with_columns(label=pl.Series([names[n % classes] for n in range(rows)]))
        before = holdout.with_columns(prediction=pl.lit(None, pl.String))
        for champion, wrong in ((0.0, 0.0), (0.009, 0.0), (0.012, 0.006)):
            sides = [Side("any", "1", Predictions(answered(holdout, schema, w))) for w in (champion, wrong)]
            match = Match(sides[0], sides[1], holdout, labels_array(holdout, schema), schema, "any")
            assert too_good(match, before).passed, (classes, champion, wrong)


def test_a_piece_with_hardly_any_of_a_class_explains_nothing() -> None:
    rows, before = outcomes(6000, seed=3), outcomes(6000, seed=4)
    holdout, earlier = (
        pl.concat([f.filter(pl.col("label") == "ok"), f.filter(pl.col("label") == "fraud")[:n]]).sort("ts")
        for f, n in ((rows, 20), (before, 30))
    )
    said = answered(holdout, BINARY, 0.0)
    missed = np.where((said == "fraud") & (np.cumsum(said == "fraud") % 2 == 0), "ok", said).astype(object)
    served = np.array(earlier["label"].to_list(), dtype=object)
    served[np.flatnonzero(served == "fraud")[10:]] = "ok"  # right at first, in a piece with few of them
    served[np.flatnonzero(served == "ok")[::20]] = "fraud"
    champion, challenger = (Side("any", "1", Predictions(v)) for v in (missed, said))
    match = Match(champion, challenger, holdout, labels_array(holdout, BINARY), BINARY, "any")
    assert not too_good(match, earlier.with_columns(prediction=pl.Series(list(served)))).passed


def test_rare_positives_count_by_themselves() -> None:
    rows = outcomes(4000, seed=3)
    fraud = rows.filter(pl.col("label") == "fraud")
    rows = pl.concat([rows.filter(pl.col("label") == "ok"), fraud[:40]])
    assert asks(0.0, champion=None, rows=rows)  # a champion that says "ok" is right in 98 %, and explains nothing
    assert not asks(0.0, champion=None, rows=pl.concat([rows[:-40], fraud[:9]]))


def test_numbers_are_held_against_the_variance() -> None:
    assert asks(0.0, schema=REGRESSION)
    assert asks(0.00001, schema=REGRESSION, champion=0.1, earlier=0.05)
    assert not asks(0.01, schema=REGRESSION)
    assert not asks(1e-8, schema=REGRESSION, champion=1e-6)
    assert not asks(0.0005, schema=REGRESSION, champion=0.9, earlier=0.002)
    constant_labels = outcomes(300, schema=REGRESSION).with_columns(label=pl.lit(1.0))
    assert not asks(0.0, schema=REGRESSION, rows=constant_labels)
