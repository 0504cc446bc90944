"""Whatever a reference or a window holds, measuring ends with an answer, or with a text that says what is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from monitor.base.errors import ConfigError
from monitor.config.loading import LoadedConfig, from_dict
from monitor.config.plan import plans
from monitor.lake.lake import Lake, Table
from monitor.measure.worker import MeasureResult, MeasureTask, measure
from monitor.rules.measurement import Measure, WindowKey
from monitor.start.check import check_references
from tests.builders import HOUR, NOW

START = NOW.replace(hour=0, minute=0)
FEATURES = {"x": "number", "y": "number", "c": "category", "b": "bool"}
TASKS: dict[str, dict[str, Any]] = {
    "binary": {"classes": ["0", "1"], "positive": "1"},
    "multiclass": {"classes": ["p", "q", "r"]},
    "regression": {},
}
NUMBER, TEXT = pl.Float64(), pl.String()


@cache
def sound(task: str, n: int = 220, seed: int = 0) -> pl.DataFrame:
    """Rows under the names of the lake, with answers, scores and labels."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=n), rng.normal(size=n)
    columns: dict[str, Any] = {
        "feature_x": x,
        "feature_y": y,
        "feature_c": rng.choice(["a", "b", "c"], n),
        "feature_b": rng.random(n) < 0.4,
        "segment_s": rng.choice(["s1", "s2"], n),
    }
    if task == "regression":
        columns |= {"prediction": x + rng.normal(size=n) / 3, "label": x}
    elif task == "binary":
        score = 1 / (1 + np.exp(-2 * x))
        truth = np.where(rng.random(n) < score, "1", "0")
        columns |= {"prediction": np.where(score > 0.5, "1", "0"), "score": score, "label": truth}
    else:
        truth = rng.choice(["p", "q", "r"], n)
        columns |= {f"score_{c}": np.where(truth == c, 0.6, 0.2) for c in "pqr"}
        columns |= {"prediction": np.where(rng.random(n) < 0.8, truth, "p"), "label": truth}
    return pl.DataFrame(columns)


def put(column: str, value: Any, *, every: int = 1, dtype: pl.DataType | None = None) -> Change:
    """The value in every so many rows."""

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        if column not in frame.columns:
            return frame
        kind = dtype or frame.schema[column]
        odd = pl.lit(value, dtype=kind)
        return frame.with_columns(
            pl.when(pl.int_range(pl.len()) % every == 0).then(odd).otherwise(pl.col(column).cast(kind)).alias(column)
        )

    return change


def drop(*columns: str) -> Change:
    return lambda frame: frame.drop(columns, strict=False)


def all_of(*changes: Change) -> Change:
    def change(frame: pl.DataFrame) -> pl.DataFrame:
        for one in changes:
            frame = one(frame)
        return frame

    return change


Change = Callable[[pl.DataFrame], pl.DataFrame]
NAN, INF = float("nan"), float("inf")
ODD: dict[str, Change] = {
    "number empty": put("feature_x", None),
    "number NaN": put("feature_x", NAN),
    "number infinite": put("feature_x", INF),
    "number sometimes infinite": put("feature_x", -INF, every=9),
    "number constant": put("feature_x", 3.0),
    "number almost empty": all_of(put("feature_x", None), put("feature_x", 1.0, every=219)),
    "number of two values": put("feature_x", 7.0, every=2),
    "number huge": put("feature_x", 1.8e308, every=5),
    "number large": put("feature_x", 1e99, every=5),
    "number tiny": put("feature_x", 5e-324),
    "number absent": drop("feature_x"),
    "all numbers empty": all_of(put("feature_x", None), put("feature_y", None)),
    "all features empty": all_of(*(put(f"feature_{f}", None) for f in FEATURES)),
    "all features absent": drop(*(f"feature_{f}" for f in FEATURES)),
    "category empty": put("feature_c", None),
    "category blank": put("feature_c", ""),
    "category constant": put("feature_c", "a"),
    "category unique": lambda f: f.with_columns(feature_c=pl.int_range(pl.len()).cast(pl.String)),
    "category odd text": put("feature_c", "\x00\u202e\U0001f600", every=3),
    "category long": put("feature_c", "x" * 100_000, every=7),
    "category absent": drop("feature_c"),
    "bool empty": put("feature_b", None),
    "bool constant": put("feature_b", True),
    "bool absent": drop("feature_b"),
    "segment empty": put("segment_s", None),
    "segment unique": lambda f: f.with_columns(segment_s=pl.int_range(pl.len()).cast(pl.String)),
    "segment absent": drop("segment_s"),
    "score empty": put("score", None),
    "score NaN": put("score", NAN, every=4),
    "score beyond 1": put("score", 7.5, every=4),
    "score infinite": put("score", INF, every=4),
    "score constant": put("score", 0.5),
    "score absent": drop("score"),
    "one class's score NaN": put("score_q", NAN, every=3),
    "one class's score absent": drop("score_q"),
    "label empty": put("label", None),
    "label absent": drop("label"),
    "one label": lambda f: f.with_columns(label=pl.when(pl.int_range(pl.len()) == 0).then("label")),
    "prediction empty": put("prediction", None),
    "prediction absent": drop("prediction"),
    "no answers at all": drop("prediction", "score", "label", "score_p", "score_q", "score_r"),
    "no rows": lambda f: f.clear(),
    "one row": lambda f: f.head(1),
    "two rows": lambda f: f.head(2),
    "the same row again and again": lambda f: pl.concat([f.head(1)] * 220),
}
ANSWERS: dict[str, dict[str, Change]] = {
    "regression": {
        "answer NaN": put("prediction", NAN, every=6),
        "answer infinite": put("prediction", INF, every=6),
        "one answer too large": put("prediction", 1.8e308, every=219),
        "label NaN": put("label", NAN, every=6),
        "one label that squares to infinity": put("label", 1e155, every=219),
        "answers constant": put("prediction", 0.0),
        "labels constant": put("label", 0.0),
        "answers right": lambda f: f.with_columns(prediction=pl.col("label")),
    },
    "binary": {
        "one class": all_of(put("label", "0"), put("prediction", "0")),
        "one class in the truth": put("label", "1"),
        "class unknown": put("label", "7", every=5),
        "answer unknown": put("prediction", "", every=5),
        "answers right": lambda f: f.with_columns(prediction=pl.col("label")),
    },
    "multiclass": {
        "one class": all_of(put("label", "q"), put("prediction", "q")),
        "class unknown": put("label", "z", every=5),
        "a class never seen": put("label", "p"),
        "answers right": lambda f: f.with_columns(prediction=pl.col("label")),
    },
}
CASES = [(task, name) for task, more in ANSWERS.items() for name in (ODD if task == "binary" else {}) | more]


def configured(folder: Path, task: str, reference: str) -> LoadedConfig:
    model = {"task": task, "features": FEATURES, "segments": ["s"], "reference": {"path": reference}, **TASKS[task]}
    return from_dict({"daemon": {"state": str(folder / "state")}, "models": {"m": model}}, base=folder)


def measured(folder: Path, loaded: LoadedConfig, window: pl.DataFrame) -> tuple[MeasureResult, MeasureResult]:
    """A window of these rows, without its labels and with them."""
    lake, plan, n = Lake(str(folder / "lake")), plans(loaded)["m"], window.height
    if "prediction" not in window.columns:  # the decoder lets none through
        window = window.with_columns(
            prediction=pl.lit(None, pl.Float64 if "score" not in window.columns else pl.String)
        )
    rows = window.with_columns(
        pl.Series("prediction_id", [f"p{i}" for i in range(n)], dtype=pl.String),
        pl.Series("ts", [START + timedelta(seconds=i) for i in range(n)], dtype=pl.Datetime("us", "UTC")),
        date=pl.lit(f"{START:%Y-%m-%d}"), model_version=pl.lit("1"), source_partition=pl.lit("t:0"),
        source_offset=pl.int_range(pl.len(), dtype=pl.Int64), invalid_features=pl.lit(None, pl.List(pl.String)),
    )  # fmt: skip
    if "label" in rows.columns:
        lake.append(Table.OUTCOMES, rows.with_columns(label_ts=pl.col("ts") + HOUR), "m")
    lake.append(Table.PREDICTIONS, rows.drop("label", strict=False), "m")
    key = WindowKey("m", "1", START, START + HOUR)
    tasks = [MeasureTask(lake.uri, {}, key, judged, plan.settings, plan.reference) for judged in (False, True)]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of NumPy and SciPy about constant columns: that the values are usable is tested
        found = [measure(task) for task in tasks]
    for m in (m for result in found for m in result.measurements):
        assert m.value is None or np.isfinite(m.value), m
    return found[0], found[1]


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitor.measure.calibration.DRAWS", 20)


def has_values(reference: pl.DataFrame, feature: str) -> bool:
    values = reference.get_column(f"feature_{feature}", default=pl.Series([None])).drop_nulls()
    return bool(values.is_finite().any()) if values.dtype.is_float() else values.len() > 0


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedConfig]:
    """A configuration by task, whose reference is sound."""
    found = {}
    for task in TASKS:
        folder = tmp_path_factory.mktemp(task)
        sound(task).write_parquet(folder / "reference.parquet")
        found[task] = configured(folder, task, "reference.parquet")
    return found


@pytest.mark.parametrize(("task", "name"), CASES)
def test_what_is_odd_in_a_window_is_measured_as_far_as_it_goes(
    tmp_path: Path, ordinary: dict[str, LoadedConfig], task: str, name: str
) -> None:
    window = {**ODD, **ANSWERS[task]}[name](sound(task, seed=1))
    for result in measured(tmp_path, ordinary[task], window):
        assert (result.problem, result.reference) == ("", "file:reference.parquet")
        if window.height and not result.performance:
            assert {m.feature for m in result.measurements if m.measure is Measure.MISSING_SHARE} >= set(FEATURES)


@pytest.mark.parametrize(("task", "name"), CASES)
def test_what_is_odd_in_a_reference_is_left_out_and_check_says_it(tmp_path: Path, task: str, name: str) -> None:
    reference = {**ODD, **ANSWERS[task]}[name](sound(task))
    reference.write_parquet(tmp_path / "reference.parquet")
    loaded = configured(tmp_path, task, "reference.parquet")
    problem, notes = "", list[str]()
    try:
        notes = check_references(loaded)
    except ConfigError as exc:
        (problem,) = exc.problems
        assert problem.startswith("models.m.reference.path: ")
    for result in measured(tmp_path, loaded, sound(task, seed=1)):
        assert bool(result.problem) is bool(problem), "check says what the daemon finds"
    if not problem:
        values = {f: reference.get_column(f"feature_{f}", default=pl.Series([None])).drop_nulls() for f in FEATURES}
        empty = [
            f
            for f, found in values.items()
            if not found.len() or (found.dtype.is_float() and not found.is_finite().any())
        ]
        assert [note.split("'")[1] for note in notes] == empty


def test_a_file_is_read_as_it_was_when_it_was_checked(tmp_path: Path) -> None:
    """CSV with a number that becomes fractional late, NDJSON under both its names, classes with gaps."""
    frame = sound("binary", 400).with_columns(feature_x=pl.int_range(pl.len()).cast(pl.Float64).add(0))
    texts = frame.with_columns(
        feature_x=pl.when(pl.int_range(pl.len()) < 300)
        .then(pl.col("feature_x").cast(pl.Int64).cast(pl.String))
        .otherwise(pl.lit("137.21"))
    )
    texts.write_csv(tmp_path / "late.csv")
    frame.write_ndjson(tmp_path / "rows.jsonl")
    frame.write_ndjson(tmp_path / "rows.ndjson")
    for name in ("late.csv", "rows.jsonl", "rows.ndjson"):
        loaded = configured(tmp_path, "binary", name)
        assert check_references(loaded) == []
        folder = tmp_path / f"of {name}"
        folder.mkdir()
        for result in measured(folder, loaded, sound("binary", seed=1)):
            assert (result.problem, result.reference) == ("", f"file:{name}")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("r.parquet", b"PAR1 nothing PAR1", "parquet"),
        ("r.parquet", b"", "parquet"),
        ("r.csv", b"", "empty"),
        ("r.csv", b'a,b\n"1,2\n3', "cannot be read"),
        ("r.csv", b"\x00\xff\xfe" * 50, ""),
        ("r.ndjson", b'{"feature_x": 1}\n{"feature_x": ', "cannot be read"),
        ("r.ndjson", b"[1, 2]", "cannot be read"),
        ("r.csv", b"colour,size\nred,1\n", "none of the configured columns"),
    ],
)
def test_a_file_that_is_none_is_named_by_check_and_by_the_daemon(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(content)
    loaded = configured(tmp_path, "binary", name)
    with pytest.raises(ConfigError) as caught:
        check_references(loaded)
    assert told in caught.value.problems[0].lower()
    for result in measured(tmp_path, loaded, sound("binary")):
        assert name in result.problem
        assert result.reference == ""
        assert result.measurements
