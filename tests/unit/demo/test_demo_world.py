"""Reading any recorded table: task, features and classes are found from the columns."""

from pathlib import Path

import polars as pl
import pytest

from monitor.demo.world import invented, recorded
from monitor.start.target import UnfitTable
from retrain.terms.schema import FeatureKind, Task


def table(folder: Path, **columns: list[object]) -> Path:
    path = folder / "table.csv"
    pl.DataFrame(columns).write_csv(path)
    return path


def test_text_target_is_a_classification(tmp_path: Path) -> None:
    path = table(tmp_path, x=[1, 2, 3, 4], y=["UP", "DOWN", "UP", "DOWN"])
    world = recorded(path, "y", ())
    assert (world.schema.task, world.schema.classes, world.schema.positive) == (Task.BINARY, ("DOWN", "UP"), "UP")
    assert world.metric == "balanced_accuracy"


def test_many_whole_numbers_are_a_regression(tmp_path: Path) -> None:
    path = table(tmp_path, x=["a"] * 30, y=list(range(30)))
    world = recorded(path, "y", ())
    assert (world.schema.task, world.metric) == (Task.REGRESSION, "mae")
    assert world.frame["label"].dtype == pl.Float64


def test_few_whole_numbers_are_classes_even_as_floats_with_gaps(tmp_path: Path) -> None:
    path = table(tmp_path, x=[1, 2, 3, 4], y=[1.0, 0.0, None, 1.0])
    world = recorded(path, "y", ())
    assert world.schema.classes == ("0", "1")
    assert world.frame["label"].to_list() == ["1", "0", None, "1"]


def test_kinds_follow_the_columns_and_dropped_ones_are_gone(tmp_path: Path) -> None:
    path = table(tmp_path, i=[1, 2], n=[0.5, 1.5], c=["a", "b"], b=[True, False], y=["p", "q"])
    world = recorded(path, "y", ("i",))
    kinds = {f.name: f.kind for f in world.schema.features}
    assert kinds == {"n": FeatureKind.NUMBER, "c": FeatureKind.CATEGORY, "b": FeatureKind.BOOL}


def test_column_without_values_is_left_out_and_named(tmp_path: Path) -> None:
    path = table(tmp_path, x=[1, 2], empty=[None, None], y=["p", "q"])
    world = recorded(path, "y", ())
    assert [f.name for f in world.schema.features] == ["x"]
    assert len(world.notes) == 1
    assert "'empty'" in world.notes[0]


@pytest.mark.parametrize(
    ("target", "drop", "message"),
    [("z", (), "has no column 'z'; it has x, y"), ("y", ("w",), "has no column 'w'"), ("x", (), "1 distinct value")],
)
def test_unusable_table_is_named(tmp_path: Path, target: str, drop: tuple[str, ...], message: str) -> None:
    with pytest.raises(UnfitTable, match=message):
        recorded(table(tmp_path, x=[1, 1], y=["p", "q"]), target, drop)


def test_invented_world_is_the_same_every_time() -> None:
    assert invented(rows=50, drift_at=25).frame.equals(invented(rows=50, drift_at=25).frame)
