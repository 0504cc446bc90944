"""The HTML report survives odd data, and says what it is without."""

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from monitor.measure.reference import prepare
from monitor.measure.report import write_report
from retrain.terms.schema import Feature, FeatureKind, ModelSchema, Task

FEATURES = (
    Feature("x", FeatureKind.NUMBER),
    Feature("y", FeatureKind.NUMBER),
    Feature("colour", FeatureKind.CATEGORY),
    Feature("on", FeatureKind.BOOL),
)
BINARY = ModelSchema("m", Task.BINARY, FEATURES, ("no", "yes"), "yes")
REGRESSION = ModelSchema("m", Task.REGRESSION, FEATURES)


def frame(seed: int = 0, rows: int = 200, task: Task = Task.BINARY) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    score = rng.random(rows)
    features = {
        "feature_x": rng.normal(size=rows),
        "feature_y": rng.normal(size=rows),
        "feature_colour": rng.choice(["red", "blue"], rows),
        "feature_on": rng.random(rows) < 0.5,
    }
    if task is Task.REGRESSION:
        return pl.DataFrame({**features, "prediction": score, "label": score + rng.normal(size=rows)})
    return pl.DataFrame(
        {
            **features,
            "score": score,
            "prediction": np.where(score > 0.5, "yes", "no"),
            "label": np.where(rng.random(rows) < score, "yes", "no"),
        }
    )


def test_page_has_drift_and_quality_and_loads_nothing(tmp_path: Path) -> None:
    written = write_report(frame(1), prepare(frame(), BINARY), BINARY, tmp_path / "runs" / "a.html")
    page = written.path.read_text(encoding="utf-8")
    assert (written.left_out, written.notes) == ({}, ())
    assert "Dataset Drift" in page
    assert "Accuracy" in page
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?https?:", page)
    assert list(written.path.parent.iterdir()) == [written.path]


def test_regression_page(tmp_path: Path) -> None:
    reference = prepare(frame(task=Task.REGRESSION), REGRESSION)
    written = write_report(frame(1, task=Task.REGRESSION), reference, REGRESSION, tmp_path / "r.html")
    assert written.left_out == {}
    assert "Regression Model Performance" in written.path.read_text(encoding="utf-8")


def test_odd_columns_are_left_out_and_named_on_the_page(tmp_path: Path) -> None:
    window = frame(1).drop("feature_x").with_columns(feature_on=pl.lit(None, pl.Boolean))
    window = window.with_columns(
        feature_y=pl.when(pl.int_range(pl.len()) < 5).then(float("inf")).otherwise("feature_y"),
        feature_colour=pl.when(pl.int_range(pl.len()) > 5).then("feature_colour"),
    )
    written = write_report(window, prepare(frame(), BINARY), BINARY, tmp_path / "a.html")
    assert written.left_out == {
        "feature_x": "no usable value in the window",
        "feature_on": "no usable value in the window",
    }
    assert "Left out: feature_x (no usable value in the window)" in written.path.read_text(encoding="utf-8")


def test_constant_and_one_class_data_still_make_a_page(tmp_path: Path) -> None:
    window = frame(1).with_columns(
        feature_x=pl.lit(1.0), feature_colour=pl.lit("red"), label=pl.lit("no"), prediction=pl.lit("no")
    )
    written = write_report(window, prepare(frame(), BINARY), BINARY, tmp_path / "a.html")
    assert not {name for name in written.left_out if name.startswith("feature_")}
    assert written.path.exists()


def test_window_without_labels(tmp_path: Path) -> None:
    written = write_report(frame(1).drop("label"), prepare(frame(), BINARY), BINARY, tmp_path / "a.html")
    assert written.left_out == {}
    assert "Accuracy" not in written.path.read_text(encoding="utf-8")


def test_partly_labelled_window_shows_labelled_rows_and_says_so(tmp_path: Path) -> None:
    window = frame(1).with_columns(label=pl.when(pl.int_range(pl.len()) < 150).then("label"))
    written = write_report(window, prepare(frame(), BINARY), BINARY, tmp_path / "a.html")
    assert written.notes == ("window: 150 of 200 rows shown, those with prediction and label",)


def test_reference_without_labels_has_no_quality(tmp_path: Path) -> None:
    reference = prepare(frame().drop("label"), BINARY)
    window = frame(1).with_columns(label=pl.when(pl.int_range(pl.len()) < 150).then("label"))
    written = write_report(window, reference, BINARY, tmp_path / "a.html")
    assert written.notes == ()
    assert written.left_out["quality"] == "the reference has no row with prediction and label"


def test_large_window_is_sampled(tmp_path: Path) -> None:
    reference = prepare(frame(rows=50), BINARY)
    written = write_report(frame(1), reference, BINARY, tmp_path / "a.html", max_rows=100)
    assert written.notes == ("window: a sample of 100 of 200 rows",)


def test_nothing_to_show_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to report on"):
        write_report(frame().clear(), prepare(frame(), BINARY), BINARY, tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []
