"""The reference: cleaned once, bounded, and readable from a user's file."""

import math
from pathlib import Path

import polars as pl
import pytest

from monitor.measure.reference import encode, infer_features, prepare, read_file, to_lake_columns
from retrain.terms.schema import Feature, FeatureKind, ModelSchema, Task

SCHEMA = ModelSchema(
    "m",
    Task.BINARY,
    (
        Feature("x", FeatureKind.NUMBER),
        Feature("colour", FeatureKind.CATEGORY),
        Feature("on", FeatureKind.BOOL),
    ),
    classes=("0", "1"),
    positive="1",
    segments=("country",),
)


def frame(**columns: list[object]) -> pl.DataFrame:
    plain = {
        "feature_x": [1.0, math.nan, math.inf, None, 3.0],
        "feature_colour": ["red", None, "blue", "red", "red"],
        "feature_on": [True, False, None, True, True],
        "prediction": ["1", "0", "1", "0", None],
        "score": [0.9, 0.1, 0.8, None, math.nan],
        "label": ["1", None, None, "0", "0"],
    }
    return pl.DataFrame({**plain, **columns}, strict=False)


def test_number_is_cleaned_of_null_nan_and_infinite() -> None:
    x = prepare(frame(), SCHEMA).features["x"]
    assert x.values.to_list() == [1.0, 3.0]
    assert (x.low, x.high) == (1.0, 3.0)
    assert x.missing_share == pytest.approx(3 / 5)


def test_number_is_prepared_sorted() -> None:
    x = prepare(frame(feature_x=[3.0, 1.0, None, 2.0, -5.0]), SCHEMA).features["x"]
    assert x.prepared.to_list() == [-5.0, 1.0, 2.0, 3.0]


def test_labels_are_prepared_as_sorted_codes() -> None:
    reference = prepare(frame(), SCHEMA)
    assert reference.features["colour"].categories.to_list() == ["blue", "red"]
    assert reference.features["colour"].prepared.to_list() == [1, 0, 1, 1]
    assert reference.features["on"].categories.to_list() == [False, True]
    assert reference.features["on"].prepared.to_list() == [1, 0, 1, 1]


def test_unseen_labels_are_coded_after_the_known_ones() -> None:
    values = pl.Series(["red", "zebra", "amber", "blue", "zebra"])
    assert encode(values, pl.Enum(["blue", "red"])).to_list() == [1, 3, 2, 0, 3]


def test_absent_columns_are_missing_not_an_error() -> None:
    reference = prepare(pl.DataFrame({"feature_x": [1.0]}), SCHEMA)
    assert reference.features["colour"].missing_share == 1
    assert reference.features["colour"].values.len() == 0
    assert reference.prediction.values.len() == 0
    assert reference.label is None
    assert reference.score is None


def test_empty_frame_is_a_reference_without_values() -> None:
    reference = prepare(frame().clear(), SCHEMA)
    assert reference.rows == 0
    assert {c.values.len() for c in reference.features.values()} == {0}
    assert reference.features["x"].missing_share == 1


def big() -> pl.DataFrame:
    rows = 1000
    return pl.DataFrame(
        {
            "feature_x": [float(i) for i in range(rows)],
            "feature_colour": [f"c{i}" for i in range(rows)],
            "prediction": ["1"] * rows,
        }
    )


def test_sample_is_bounded_seeded_and_in_row_order() -> None:
    one, again = (prepare(big(), SCHEMA, max_rows=100, seed=3) for _ in range(2))
    other = prepare(big(), SCHEMA, max_rows=100, seed=4)
    assert one.frame.height == 100
    assert (one.rows, one.max_rows, one.seed) == (1000, 100, 3)
    assert one.frame.equals(again.frame)
    assert not one.frame.equals(other.frame)
    assert one.features["x"].values.is_sorted()


def test_range_and_categories_come_from_all_rows() -> None:
    reference = prepare(big(), SCHEMA, max_rows=10)
    assert (reference.features["x"].low, reference.features["x"].high) == (0.0, 999.0)
    assert reference.features["colour"].categories.len() == 1000


def test_csv_of_a_user_is_read_into_lake_columns(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("x,colour,on,country,label\n1,red,true,de,1\n2.5,blue,false,fr,0\n3,red,true,de,\n")
    found = to_lake_columns(read_file(path), SCHEMA)
    assert found.columns == ["feature_x", "feature_colour", "feature_on", "segment_country", "label"]
    assert found["feature_x"].to_list() == [1.0, 2.5, 3.0]
    assert found["feature_on"].to_list() == [True, False, True]
    assert found["label"].to_list() == ["1", "0", None]


def test_features_and_classes_are_inferred_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pl.DataFrame(
        {"x": [1, 2], "colour": ["a", "b"], "on": [True, False], "score": [0.1, 0.2], "label": [1.0, 0.0]}
    ).write_parquet(path)
    features, classes = infer_features(path)
    assert features == {"x": FeatureKind.NUMBER, "colour": FeatureKind.CATEGORY, "on": FeatureKind.BOOL}
    assert classes == ("0", "1")


def test_prefixed_columns_alone_are_the_features(tmp_path: Path) -> None:
    path = tmp_path / "window.parquet"
    pl.DataFrame({"feature_x": [1.0], "note": ["n"], "label": [0.25]}).write_parquet(path)
    assert infer_features(path) == ({"x": FeatureKind.NUMBER}, ())


@pytest.mark.parametrize(("name", "text"), [("a.xlsx", ""), ("a.parquet", "not parquet")])
def test_unreadable_file_is_a_value_error(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"parquet"):
        read_file(tmp_path / name)
