from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from sklearn.tree import DecisionTreeRegressor

from retrain.data.frame import features_frame, labels_array
from retrain.train.trainer import SEARCH, TrainContext
from retrain.trainers.default import train
from retrain.trainers.search import _affordable, find, loss, search
from tests.retrain_data import BINARY, REGRESSION, outcomes

STEPS = pd.DataFrame({"x": np.tile(np.linspace(0, 1, 60), 20)})
TARGET = pd.Series(np.floor(STEPS["x"] * 16))
"""Needs a tree of depth 4."""


class Slow(DecisionTreeRegressor):
    """Takes its time when it is deep."""

    def fit(self, X: Any, y: Any, *rest: Any, **more: Any) -> Slow:
        if self.max_depth > 1:
            time.sleep(30)
        return super().fit(X, y, *rest, **more)


class Vanishing(DecisionTreeRegressor):
    def fit(self, X: Any, y: Any, *rest: Any, **more: Any) -> Vanishing:
        import os

        os._exit(9)


def context(folder: Path, seconds: float = 60, **more: Any) -> TrainContext:
    return TrainContext(REGRESSION, 0, {}, folder, time.monotonic() + seconds, **more)


def told(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / SEARCH).read_text()))


def test_better_settings_are_found_and_on_record(tmp_path: Path) -> None:
    shallow = DecisionTreeRegressor(max_depth=1)
    model = search(shallow, {"max_depth": list(range(1, 9))}, STEPS, TARGET, context(tmp_path), candidates=6)
    record = told(tmp_path)
    assert record["ended"] == "found better settings"
    assert record["candidates"] == 6
    assert record["parameters"] == {"max_depth": model.max_depth}
    assert record["scores"]["best"] > record["scores"]["ordinary"]
    assert loss(model, STEPS, TARGET) < loss(shallow.fit(STEPS, TARGET), STEPS, TARGET)


def test_the_models_own_settings_win_unless_others_are_better(tmp_path: Path) -> None:
    deep = DecisionTreeRegressor(max_depth=5)
    assert find(deep, {"max_depth": [1, 2]}, STEPS, TARGET, context(tmp_path), candidates=2) == {}
    assert told(tmp_path)["ended"] == "nothing better than the ordinary settings"


def test_what_was_found_before_is_not_searched_for(tmp_path: Path) -> None:
    again = context(tmp_path, found={"max_depth": 3})
    assert find(DecisionTreeRegressor(), {"max_depth": [1]}, STEPS, TARGET, again) == {"max_depth": 3}
    assert not (tmp_path / SEARCH).exists()


@pytest.mark.parametrize(
    ("model", "space", "ended"),
    [
        (Slow(max_depth=1), {"max_depth": [4, 5]}, "not done after "),
        (Vanishing(), {"max_depth": [4, 5]}, "its process ended with 9"),
        (DecisionTreeRegressor(), {"no_such_setting": [1, 2]}, "raised ValueError: Invalid parameter"),
        (DecisionTreeRegressor(), {"max_depth": [(1,), (2,)]}, "raised "),
    ],
)
def test_a_search_that_comes_to_nothing_leaves_the_ordinary_settings(
    tmp_path: Path, model: Any, space: dict[str, Any], ended: str
) -> None:
    started = time.monotonic()
    assert find(model, space, STEPS, TARGET, context(tmp_path, 16), candidates=2) == {}
    assert time.monotonic() - started < 14
    assert told(tmp_path)["ended"].startswith(ended)


def test_settings_that_take_too_long_to_fit_are_not_taken(tmp_path: Path) -> None:
    class Late(TrainContext):
        """By the time the search has ended nothing is left."""

        calls = 0

        @property
        def seconds_left(self) -> float:
            Late.calls += 1
            return 60.0 if Late.calls == 1 else 0.0

    shallow = DecisionTreeRegressor(max_depth=1)
    assert find(shallow, {"max_depth": [4, 5]}, STEPS, TARGET, Late(REGRESSION, 0, {}, tmp_path), candidates=2) == {}
    assert "too long" in told(tmp_path)["ended"]


def test_so_many_candidates_are_tried_as_there_is_time_for() -> None:
    assert _affordable(20, seconds=0.01, left=60, workers=1) == 20
    few = _affordable(20, seconds=3.0, left=60, workers=1)
    assert 2 <= few < 20
    assert few < _affordable(20, seconds=3.0, left=60, workers=4) <= 20
    assert _affordable(20, seconds=10, left=20, workers=1) == 0


def test_models_without_scores_are_judged_by_their_classes() -> None:
    from sklearn.svm import LinearSVC

    frame, labels = pd.DataFrame({"x": [0.0, 1.0, 2.0, 3.0]}), pd.Series(["a", "a", "b", "b"])
    assert loss(LinearSVC().fit(frame, labels), frame, labels) == 0
    assert loss(Ridge(alpha=0).fit(frame, [0, 1, 2, 3]), frame, pd.Series([0, 1, 2, 4])) == pytest.approx(0.25)


def test_the_shipped_trainer_searches_for_what_is_not_configured(tmp_path: Path) -> None:
    rows = outcomes(900)
    frame, labels = features_frame(rows, BINARY), pd.Series(labels_array(rows, BINARY))
    parameters = {"max_iter": 5, "learning_rate": 0.001, "spans": 1, "search": 3, "search_share": 0.9}
    model = train(frame, labels, TrainContext(BINARY, 0, parameters, tmp_path, time.monotonic() + 100))
    record = told(tmp_path)
    assert record["candidates"] == 3, record
    assert not {"boost__max_iter", "boost__learning_rate"} & record["best"].keys()
    boost = model.named_steps["boost"]
    assert (boost.max_iter, boost.learning_rate) == (5, 0.001)
    for name, value in record["parameters"].items():
        assert getattr(boost, name.removeprefix("boost__")) == value
