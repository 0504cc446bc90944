from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from retrain.data.frame import features_frame, labels_array
from retrain.models.model_files import LoadedModel, load_model, save_model
from retrain.models.quality import measure
from retrain.terms.schema import ModelSchema
from retrain.train.trainer import TrainContext
from retrain.trainers.default import train
from tests.retrain_data import BINARY, MULTICLASS, REGRESSION, outcomes


def fitted(rows: pl.DataFrame, schema: ModelSchema, **parameters: int) -> LoadedModel:
    labels = pd.Series(labels_array(rows, schema))
    return LoadedModel(train(features_frame(rows, schema), labels, TrainContext(schema, 0, parameters)), None)


@pytest.mark.parametrize(
    ("schema", "metric", "least"),
    [(BINARY, "roc_auc", 0.85), (MULTICLASS, "balanced_accuracy", 0.7), (REGRESSION, "r2", 0.9)],
)
def test_it_learns_each_task(schema: ModelSchema, metric: str, least: float) -> None:
    model = fitted(outcomes(2000, schema=schema), schema)
    later = outcomes(500, schema=schema, seed=1)
    found = measure(
        metric, labels_array(later, schema), model.predictions(features_frame(later, schema), schema), schema
    )
    assert found is not None
    assert found > least


def test_many_categories_unseen_ones_and_missing_values_are_ordinary_input() -> None:
    rows = outcomes(3000).with_columns(
        feature_kind=pl.concat_str(pl.lit("c"), pl.int_range(pl.len()) % 700),
        feature_new=pl.when(pl.int_range(pl.len()) % 3 > 0).then("feature_new"),
        feature_amount=pl.when(pl.int_range(pl.len()) % 5 > 0).then("feature_amount"),
    )
    rows = rows.with_columns(feature_kind=pl.when(pl.int_range(pl.len()) % 7 > 0).then("feature_kind"))
    model = fitted(rows, BINARY, max_iter=10)
    odd = rows[:20].with_columns(
        feature_kind=pl.lit("never seen"),
        feature_new=pl.lit(None, pl.Boolean),
        feature_amount=pl.lit(None, pl.Float64),
    )
    for frame in (features_frame(odd, BINARY), features_frame(rows.drop_nulls("feature_new")[:20], BINARY)):
        scores = model.predictions(frame, BINARY).scores
        assert scores is not None
        assert np.isfinite(scores).all()


@pytest.mark.parametrize("empty", ["feature_kind", "feature_amount"])
def test_a_feature_that_is_empty_in_the_rows_of_a_span_or_in_all_is_left_out_there(empty: str) -> None:
    rows = outcomes(3000)
    n = pl.int_range(pl.len())
    for sent in (n < 2000, n > 2000, pl.lit(False)):
        given = rows.with_columns(pl.when(sent).then(empty).alias(empty))
        model = fitted(given, BINARY, max_iter=10)
        for frame in (features_frame(given.tail(20), BINARY), features_frame(rows.head(20), BINARY)):
            scores = model.predictions(frame, BINARY).scores
            assert scores is not None
            assert np.isfinite(scores).all()


def test_rows_without_any_feature_are_refused_by_name() -> None:
    rows = outcomes(50)
    rows = rows.with_columns(pl.lit(None, rows[c].dtype).alias(c) for c in rows.columns if c.startswith("feature_"))
    with pytest.raises(ValueError, match=r"all features are empty in the 50 rows to train on: .*amount"):
        fitted(rows, BINARY)


def test_the_same_seed_gives_the_same_model() -> None:
    rows = outcomes(1500)
    frame = features_frame(rows, BINARY)
    one, two = (fitted(rows, BINARY).predictions(frame, BINARY).scores for _ in range(2))
    assert one is not None
    assert two is not None
    assert (one == two).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_saved_model_answers_the_same_after_loading(tmp_path: Path) -> None:
    rows = outcomes(500)
    frame = features_frame(rows, BINARY)
    model = fitted(rows, BINARY, max_iter=10)
    save_model(model.estimator, tmp_path / "model", BINARY, frame.head(3), ())
    loaded = load_model(tmp_path / "model").predictions(frame, BINARY)
    assert (loaded.values == model.predictions(frame, BINARY).values).all()
