"""`driftd init`: what it finds in a table, that driftd accepts what it writes, and what it says about mistakes."""

from __future__ import annotations

import gzip
import os
import re
import shlex
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.cli import main
from monitor.config.loading import LoadedConfig, from_dict, load
from monitor.config.plan import plans
from monitor.config.sections import DEFAULT_RULES, RuleConfig
from monitor.measure.reference import read_file, to_lake_columns
from monitor.start.columns import Asked, look
from monitor.start.proposal import Setup, choose_window, propose
from retrain.terms.schema import FeatureKind, Task

START = datetime(2026, 1, 1, tzinfo=UTC)
ROWS = 400
DATA = Path(__file__).parents[4] / "shared" / "data"


def driftd(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["init", *map(str, arguments)], env={"MLFLOW_TRACKING_URI": None})


def table(rows: int = ROWS, **columns: Any) -> pl.DataFrame:
    """A feature of every kind, a label that no column gives away, and what is asked for."""
    rng = np.random.default_rng(0)
    chance = rng.random(rows)
    return pl.DataFrame(
        {
            "amount": rng.normal(size=rows),
            "country": rng.choice(["de", "fr", "pl"], rows),
            "is_new": rng.random(rows) < 0.5,
            "y": np.where(rng.random(rows) < chance / 2, "fraud", "ok"),
            "answer": np.where(chance > 0.7, "fraud", "ok"),
            "p": chance,
            **columns,
        }
    )


def written(frame: pl.DataFrame, folder: Path, *arguments: str, name: str = "rows.parquet") -> LoadedConfig:
    """What `driftd init` made of the frame, loaded as the daemon loads it."""
    frame.write_parquet(folder / name)
    done = driftd(folder / name, "--target", "y", "--output", folder / "config.toml", *arguments)
    assert done.exit_code == 0, done.output
    return load(folder / "config.toml")


ANSWERS = ("--prediction", "answer", "--score", "p")


def test_task_classes_and_kinds_are_found(tmp_path: Path) -> None:
    loaded = written(table(), tmp_path, *ANSWERS, "--segment", "country", "--segment", "country")
    schema, section = loaded.schemas["rows"], loaded.config.models["rows"]
    assert (schema.task, schema.classes, schema.positive) == (Task.BINARY, ("fraud", "ok"), "fraud")
    assert {f.name: f.kind.value for f in schema.features} == {
        "amount": "number", "country": "category", "is_new": "bool",
    }  # fmt: skip
    assert (schema.segments, section.metrics, section.rules) == (("country",), (), None)
    assert section.reference.path == "reference-rows.parquet"


def test_the_reference_is_written_as_driftd_reads_it(tmp_path: Path) -> None:
    frame = table(at=[START - timedelta(minutes=i) for i in range(ROWS)])
    loaded = written(frame, tmp_path, *ANSWERS)
    path = Path(str(plans(loaded)["rows"].reference.path))
    kept = read_file(path)
    assert kept["ts"].is_sorted()
    read = to_lake_columns(kept, loaded.schemas["rows"])
    turned = frame.reverse()
    for column, origin in (("label", "y"), ("prediction", "answer"), ("score", "p"), ("feature_amount", "amount")):
        assert read[column].to_list() == turned[origin].to_list()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.toml", "reference-rows.parquet", "rows.parquet"]


def test_a_file_that_driftd_can_read_is_used_as_it_is(tmp_path: Path) -> None:
    frame = table().rename({"y": "label", "answer": "prediction", "p": "score"})
    (tmp_path / "data").mkdir()
    frame.write_csv(tmp_path / "data" / "rows.csv")
    done = driftd(tmp_path / "data" / "rows.csv", "--output", tmp_path / "config.toml")
    assert done.exit_code == 0, done.output
    assert load(tmp_path / "config.toml").config.models["rows"].reference.path == os.path.join("data", "rows.csv")  # noqa: PTH118
    assert not list(tmp_path.glob("reference-*"))


def test_a_feature_named_like_a_column_of_driftd_is_not_taken_for_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    loaded = written(table(label=rng.random(ROWS), score=rng.normal(600, 50, ROWS)), tmp_path, "--prediction", "answer")
    assert {"label", "score", "p"} <= {f.name for f in loaded.schemas["rows"].features}
    kept = to_lake_columns(read_file(tmp_path / "reference-rows.parquet"), loaded.schemas["rows"])
    assert set(kept["label"].unique()) == {"fraud", "ok"}
    assert "score" not in kept.columns


def test_without_predictions_the_first_windows_become_the_reference(tmp_path: Path) -> None:
    loaded = written(table().drop("answer", "p"), tmp_path)
    assert loaded.config.models["rows"].reference.path is None
    text = (tmp_path / "config.toml").read_text()
    assert '# path = "reference-rows.parquet"' in text
    assert "--prediction" in text
    with_path = tomllib.loads(text.replace("# path =", "path ="))
    assert from_dict(with_path, base=tmp_path).config.models["rows"].reference.path == "reference-rows.parquet"


def test_metrics_without_scores_need_none(tmp_path: Path) -> None:
    loaded = written(table(), tmp_path, "--prediction", "answer", "--drop", "p")
    assert loaded.config.models["rows"].metrics == ("balanced_accuracy", "accuracy", "f1")


def test_the_rules_in_the_comments_are_the_defaults(tmp_path: Path) -> None:
    written(table(), tmp_path, *ANSWERS)
    text = (tmp_path / "config.toml").read_text()
    rules = text[text.index("# [[models.rows.rules]]") :]
    document = tomllib.loads(text + re.sub(r"^# ?", "", rules, flags=re.M))
    expected = tuple(RuleConfig.model_validate(r) for r in DEFAULT_RULES[Task.BINARY])
    assert from_dict(document, base=tmp_path).config.models["rows"].rules == expected


# -- what is no feature


def why(frame: pl.DataFrame, column: str, **asked: Any) -> str | None:
    found = look(frame, Asked(target="y", **asked), source="rows", model="rows")
    kept = {f.name for f in found.schema.features}
    assert kept.isdisjoint(found.left_out)
    assert kept | set(found.left_out) | {"y"} == set(frame.columns)
    return found.left_out.get(column)


rng = np.random.default_rng(2)
LEFT_OUT = {
    "always empty": [None] * ROWS,
    "always 'de'": ["de"] * ROWS,
    "is always 7": [7] * ROWS,
    "whole numbers that only grow": list(range(10, 10 + ROWS * 3, 3)),
    "is an identifier": [f"{i:032x}" for i in range(ROWS)],
    "nearly unique": [f"{i % 250}" + "x" for i in range(ROWS)],
    "holds times": [(START + timedelta(hours=int(h))).isoformat() for h in rng.permutation(ROWS)],
    "list": [[1, 2]] * ROWS,
}


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_columns_that_are_no_features_are_named_with_the_reason(reason: str) -> None:
    more = {"t": [START] * ROWS} if reason == "holds times" else {}
    found = why(table(x=pl.Series(LEFT_OUT[reason], strict=False), **more), "x", time="t" if more else None)
    assert found is not None
    assert reason in found


def test_a_column_of_nan_alone_is_empty() -> None:
    assert "always empty" in str(why(table(x=[float("nan")] * ROWS), "x"))


def test_a_sorted_measure_or_a_number_with_few_values_stays_a_feature() -> None:
    assert why(table(x=np.sort(rng.normal(size=ROWS))), "x") is None
    assert why(table(x=rng.integers(0, 5, ROWS)), "x") is None
    assert why(table(x=rng.permutation(ROWS)), "x") is None
    assert "identifier" in str(why(table(user_id=rng.permutation(ROWS)), "user_id"))


LABELS = table()["y"]
IS_FRAUD = (LABELS == "fraud").to_numpy()
COPIES = {
    "the same": LABELS,
    "as bool": pl.Series(IS_FRAUD),
    "in other words": pl.Series(np.where(IS_FRAUD, "blocked", "paid")),
    "finer": pl.Series([f"{'bad' if f else 'good'}-{i % 3}" for i, f in enumerate(IS_FRAUD)]),
    "a threshold": pl.Series(np.where(IS_FRAUD, 15, 0) + rng.random(ROWS) * 15),
    "reversed": pl.Series(np.where(IS_FRAUD, -1.0, 1.0)),
    "only then there": pl.Series(["late" if f else None for f in IS_FRAUD]),
    "with gaps": pl.Series([None if i % 7 == 0 else bool(f) for i, f in enumerate(IS_FRAUD)]),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_of_the_target_are_left_out(kind: str) -> None:
    assert re.search("equals|determines", str(why(table(x=COPIES[kind]), "x")))


@pytest.mark.parametrize("share", [0.5, 0.1, 0.03])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), values=st.sampled_from([2, 3, 10, 20, 400]))
def test_chance_is_not_taken_for_a_copy(share: float, seed: int, values: int) -> None:
    random = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "x": random.integers(0, values, ROWS).astype(float),
            "c": [f"c{i}" for i in random.integers(0, min(values, 20), ROWS)],
            "y": (random.random(ROWS) < share).astype(int),
        }
    )
    if frame["y"].n_unique() == 2:
        assert why(frame, "x") is None
        assert why(frame, "c") is None


def test_copies_of_a_number_are_left_out_and_near_ones_are_noted() -> None:
    y = rng.normal(size=ROWS)
    frame = pl.DataFrame({"y": y, "cents": y * 100, "near": y + rng.normal(size=ROWS) / 20, "x": rng.normal(size=ROWS)})
    found = look(frame, Asked(target="y"), source="rows", model="rows")
    assert found.schema.task is Task.REGRESSION
    assert set(found.left_out) == {"cents"}
    assert "almost alone" in found.notes["near"]


def test_many_categories_are_kept_with_a_word() -> None:
    frame = table(2000, x=[f"v{i % 300}" for i in range(2000)])
    assert "300 values" in look(frame, Asked(target="y"), source="rows", model="rows").notes["x"]


def test_words_for_missing_numbers_are_understood(tmp_path: Path) -> None:
    values = ["NA" if i % 9 == 0 else str(i % 50 / 4) for i in range(ROWS)]
    loaded = written(table(x=values), tmp_path, *ANSWERS)
    assert {f.name: f.kind for f in loaded.schemas["rows"].features}["x"] is FeatureKind.NUMBER
    kept = pl.read_parquet(tmp_path / "reference-rows.parquet")["feature_x"]
    assert (kept.dtype, kept.null_count()) == (pl.Float64, len([v for v in values if v == "NA"]))


# -- positive class, scores, predictions


@pytest.mark.parametrize(
    ("labels", "positive"),
    [(["0", "1"], "1"), ([False, True], "true"), (["no", "Yes"], "Yes"), (["a", "b"], "a"), ([0.0, 1.0], "1")],
)
def test_positive_is_told_by_name_or_is_the_rarer_class(labels: list[Any], positive: str) -> None:
    rare = rng.random(ROWS) < 0.2
    frame = pl.DataFrame({"x": rng.normal(size=ROWS), "y": [labels[0] if r else labels[1] for r in rare]})
    assert look(frame, Asked(target="y"), source="rows", model="rows").schema.positive == positive


def test_predictions_tell_best_what_the_score_speaks_of() -> None:
    score = rng.random(ROWS)
    frame = pl.DataFrame({"x": rng.normal(size=ROWS), "y": rng.choice(["no", "yes"], ROWS), "score": score})
    frame = frame.with_columns(prediction=pl.Series(np.where(score > 0.5, "no", "yes")))
    assert look(frame, Asked(target="y"), source="rows", model="rows").schema.positive == "no"


def test_positive_is_what_the_score_speaks_of() -> None:
    y = rng.random(ROWS) < 0.5
    frame = pl.DataFrame({"x": rng.normal(size=ROWS), "y": y.astype(int), "p": np.where(y, 0.2, 0.8)})
    frame = frame.with_columns(p=pl.Series(np.clip(frame["p"].to_numpy() + rng.normal(size=ROWS) / 4, 0, 1)))
    assert look(frame, Asked(target="y", score="p"), source="rows", model="rows").schema.positive == "0"


def test_a_score_per_class_is_found(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    frame = pl.DataFrame(
        {"x": rng.normal(size=ROWS), "y": rng.choice(names, ROWS), "prediction": rng.choice(names, ROWS)}
    )
    frame = frame.with_columns(pl.lit(1 / 3).alias(f"score_{c}") for c in names)
    loaded = written(frame, tmp_path)
    assert loaded.schemas["rows"].classes == ("a", "b", "c")
    assert [f.name for f in loaded.schemas["rows"].features] == ["x"]


# -- windows


@pytest.mark.parametrize(("per_day", "size"), [(24_000, "1h"), (1000, "1d"), (100, "7d"), (1, "28d"), (10**9, "1m")])
def test_windows_fit_the_rate(per_day: float, size: str, tmp_path: Path) -> None:
    loaded = written(table(), tmp_path, *ANSWERS, "--rows-per-day", str(per_day))
    windows = plans(loaded)["rows"].windows
    text = (tmp_path / "config.toml").read_text()
    assert f'size = "{size}"' in text
    assert plans(loaded)["rows"].min_rows == min(
        10_000, max(50, round(per_day * (windows.size / timedelta(days=1)) / 5))
    )


@settings(max_examples=60, deadline=None)
@given(st.floats(11, 400_000))
def test_a_typical_window_has_some_hundreds_of_rows(per_day: float) -> None:
    window = choose_window(None, rows_per_day=per_day)
    assert window.rows is not None
    assert 295 <= window.rows <= 3000


def test_windows_fit_the_files_own_rate_and_nights_do_not_count() -> None:
    times = [START + timedelta(days=d, hours=8, seconds=36 * i) for d in range(10) for i in range(800)]
    window = choose_window(pl.Series(times))
    assert window.size <= timedelta(hours=12)
    assert 300 <= (window.rows or 0) <= 1000


@pytest.mark.parametrize("unit", [1, 1000, 10**6])
def test_epochs_are_times_when_the_name_says_so(unit: int) -> None:
    seconds = [int(START.timestamp()) + 60 * i for i in range(ROWS)]
    found = look(table(created_at=[s * unit for s in seconds]), Asked(target="y"), source="rows", model="rows")
    assert found.time == "created_at"
    assert found.times is not None
    assert found.times[0] == START
    assert "identifier" in str(why(table(x=[s * unit for s in seconds]), "x"))


def test_without_a_rate_an_hour_is_taken_and_said(tmp_path: Path) -> None:
    loaded = written(table(), tmp_path, *ANSWERS)
    assert plans(loaded)["rows"].windows.size == timedelta(hours=1)
    assert "see --time and --rows-per-day" in (tmp_path / "config.toml").read_text()
    loaded = written(table(), tmp_path, *ANSWERS, "--window", "90m", "--force")
    assert plans(loaded)["rows"].windows.size == timedelta(minutes=90)


# -- any names, any file


words = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=12)
hostile = words | st.sampled_from(
    [
        'a"b',
        "a.b",
        "a\nb",
        "'",
        "]",
        "[x]",
        "# no",
        "\\",
        "\\u0041",
        "ключ",
        "\x7f",
        "\u2028",
        "",
        "=",
        '"""',
        "a b",
        "\r",
    ]
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(hostile, min_size=1, max_size=5, unique_by=str.lower),
    st.lists(hostile, min_size=2, max_size=3, unique=True),
)
def test_whatever_the_names_are_the_text_is_accepted_and_says_the_same(names: list[str], classes: list[str]) -> None:
    random = np.random.default_rng(0)
    columns: dict[str, Any] = {f"feature_{n}": random.normal(size=60) for n in names}
    frame = pl.DataFrame({**columns, "truth": [classes[i % len(classes)] for i in range(60)], "empty#\n": [None] * 60})
    found = look(frame, Asked(target="truth"), source=f"{names[0]}.csv", model="a.b-c")
    window = choose_window(None)
    text = propose(found, window, Setup(f"{names[0]}.csv", registered_model=names[0], kafka=("h:1", "h:2")))
    loaded = from_dict(tomllib.loads(text))
    schema = loaded.schemas["a.b-c"]
    assert {f.name for f in schema.features} == set(names)
    assert set(schema.classes) == set(classes)
    assert loaded.config.models["a.b-c"].registered_model == names[0]


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.ndjson", "rows.jsonl", "rows.ndjson.gz"])
def test_every_file_type_gives_the_same(name: str, tmp_path: Path) -> None:
    frame = table(amount=[None if i % 5 == 0 else i % 37 / 2 for i in range(ROWS)])
    plain = tmp_path / name.removesuffix(".gz")
    if ".csv" in name:
        frame.write_csv(plain)
    else:
        frame.write_ndjson(plain)
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(plain.read_bytes()))
    done = driftd(tmp_path / name, "--target", "y", *ANSWERS, "--output", tmp_path / "config.toml")
    assert done.exit_code == 0, done.output
    loaded = load(tmp_path / "config.toml")
    assert [f.kind.value for f in loaded.schemas["rows"].features] == ["number", "category", "bool"]
    kept = to_lake_columns(read_file(tmp_path / "reference-rows.parquet"), loaded.schemas["rows"])
    assert kept["feature_amount"].to_list() == frame["amount"].to_list()


# -- the command


def test_it_explains_itself() -> None:
    done = driftd("--help")
    assert (done.exit_code, "--rows-per-day" in done.output) == (0, True)


def test_it_says_what_it_found_and_what_to_type_next(tmp_path: Path) -> None:
    table(id=range(ROWS)).write_parquet(tmp_path / "my rows.parquet")
    path, output = tmp_path / "my rows.parquet", tmp_path / "config.toml"
    done = driftd(path, "--target", "y", *ANSWERS, "--output", output)
    assert "binary, target 'y' (fraud, ok)" in done.output
    assert "left out  'id' is an identifier" in done.output
    check, backtest = (shlex.split(line) for line in done.output.splitlines()[-2:])
    assert check == ["driftd", "--config", str(output), "check"]
    assert backtest[:6] == ["driftd", "backtest", "--stream", str(path), "--target", "y"]
    assert set(backtest[7].split(",")) == {"id", "answer", "p"}
    assert CliRunner().invoke(main, check[1:]).exit_code == 0
    assert "[models.my-rows]" in output.read_text()


def test_a_dash_prints_the_text_and_writes_nothing(tmp_path: Path) -> None:
    table().write_parquet(tmp_path / "rows.parquet")
    done = driftd(tmp_path / "rows.parquet", "--target", "y", *ANSWERS, "--output", "-")
    assert from_dict(tomllib.loads(done.stdout)).schemas["rows"].positive == "fraud"
    assert "binary" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["rows.parquet"]


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    written(table(), tmp_path, *ANSWERS)
    before = (tmp_path / "config.toml").read_text()
    again = driftd(tmp_path / "rows.parquet", "--target", "y", "--output", tmp_path / "config.toml")
    assert again.exit_code == 2
    assert "--force" in again.stderr
    other = driftd(tmp_path / "rows.parquet", "--target", "y", "--output", tmp_path / "other.toml")
    assert other.exit_code == 2
    assert "reference-rows.parquet: is there already" in other.stderr
    assert (tmp_path / "config.toml").read_text() == before
    assert written(table(), tmp_path, "--force").schemas["rows"].task is Task.BINARY


def test_kafka_and_registry_get_their_tables(tmp_path: Path) -> None:
    where = f"sqlite:///{tmp_path}/mlflow.db"
    loaded = written(table(), tmp_path, *ANSWERS, "--kafka", "broker:9092", "--tracking-uri", where, "--model", "a.b")
    assert loaded.config.source.kafka is not None
    assert loaded.config.source.kafka.bootstrap == ("broker:9092",)
    assert loaded.config.tracking_uri == where
    assert list(loaded.schemas) == ["a.b"]


MISTAKES = [
    (["--target", "yy"], ["--target: rows.parquet has no column 'yy': did you mean 'y'?"]),
    ([], ["--target: say which column holds the truth: known are amount, answer, country, is_new, p, y"]),
    (
        ["--target", "z", "--score", "pp", "--segment", "contry", "--drop", "is_mew"],
        ["--target: rows.parquet has no column 'z'", "--score: rows.parquet has no column 'pp'",
         "--drop: rows.parquet has no column 'is_mew': did you mean 'is_new'?",
         "--segment: rows.parquet has no column 'contry': did you mean 'country'?"],
    ),
    (["--target", "y", "--score", "amount"], ["--score: 'amount' must hold probabilities"]),
    (["--target", "y", "--prediction", "country"], ["--prediction: 'country' holds 'de', 'fr', 'pl', no classes"]),
    (["--target", "y", "--prediction", "y"], ["--prediction: 'y' is already --target"]),
    (["--target", "y", "--drop", "y"], ["--drop: 'y' is also --target"]),
    (["--target", "amount", "--score", "p"], ["--score: 'amount' is a number to predict, which has no score"]),
    (["--target", "y", "--time", "country"], ["--time: 'country' holds no times"]),
    (["--target", "y", "--drop", "amount,country,is_new,p,answer"], ["rows.parquet: no column is left"]),
    (
        ["--target", "y", "--window", "soon", "--rows-per-day", "0", "--kafka", "broker", "--model", "a b"],
        ["--window: must be a duration", "--rows-per-day: must be > 0", "--kafka: must be host", "--model: letters"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES)
def test_every_mistake_is_a_line_that_names_the_column_and_the_fix(
    arguments: list[str], expected: list[str], tmp_path: Path
) -> None:
    table().write_parquet(tmp_path / "rows.parquet")
    done = driftd(tmp_path / "rows.parquet", *arguments, "--output", tmp_path / "config.toml")
    assert done.exit_code == 2
    lines = done.stderr.removeprefix("driftd: ").splitlines()
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.parquet"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("rows.txt", b"", "must end in"),
        ("rows.csv", b"", "cannot be read"),
        ("rows.csv", b"a,y\n", "has no rows"),
        ("rows.csv", b"a;y\n1;2\n", "is separated by ';'"),
        ("rows.parquet", b"no", "cannot be read"),
        ("rows.csv", b"A,a,y\n" + b"1,2,0\n2,1,1\n" * 3, "differ only in upper and lower case"),
        ("rows.csv", b"a,y\n1,1\n2,1\n", "1 distinct value"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(name: str, content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    done = driftd(tmp_path / name, "--target", "y", "--output", tmp_path / "config.toml")
    assert done.exit_code == 2
    assert expected in done.stderr
    assert not (tmp_path / "config.toml").exists()


def test_neither_file_nor_model_is_a_mistake(tmp_path: Path) -> None:
    done = driftd("--output", tmp_path / "config.toml")
    assert (done.exit_code, done.stderr) == (
        2, "driftd: give a REFERENCE file with --target COLUMN, or --registered NAME\n",
    )  # fmt: skip


# -- a registered model


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """`fraud` with a reference, as driftd publishes it, under `champion`; without one under `bare`."""
    from retrain.data.frame import features_frame, labels_array
    from retrain.models.model_files import save_model
    from retrain.models.registry import MODEL_PATH, Registry
    from retrain.train.trainer import TrainContext
    from tests.retrain_data import BINARY, outcomes, trains_logistic

    folder = tmp_path_factory.mktemp("store")
    registry = Registry(f"sqlite:///{folder}/mlflow.db")
    rows = outcomes(1000)
    frame = features_frame(rows, BINARY)
    model = trains_logistic(frame, pd.Series(labels_array(rows, BINARY)), TrainContext(BINARY, 0))
    save_model(model, folder / "model", BINARY, frame.head(3), ())
    rows.write_parquet(folder / "reference.parquet")
    for job in ("champion", "bare"):
        run_id = registry.open_run("fraud", job, {})
        registry.log_files(run_id, folder / "model", MODEL_PATH)
        if job == "champion":
            registry.log_files(run_id, folder / "reference.parquet", "reference")
        registry.set_alias("fraud model", job, registry.register("fraud model", run_id, {}))
    return registry.tracking_uri


quiet = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)


@quiet
def test_a_registered_model_brings_its_schema_and_its_reference(store: str, tmp_path: Path) -> None:
    output = tmp_path / "config.toml"
    done = driftd(
        "--registered", "fraud model", "--tracking-uri", store, "--segment", "country", "--output", output
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    loaded = load(output)
    section, schema = loaded.config.models["fraud-model"], loaded.schemas["fraud-model"]
    assert {f.name: f.kind.value for f in schema.features} == {"amount": "number", "kind": "category", "new": "bool"}
    assert (schema.classes, schema.positive, schema.segments) == (("fraud", "ok"), "fraud", ("country",))
    assert (section.registered_model, section.reference.path, section.metrics) == ("fraud model", None, ())
    assert loaded.config.tracking_uri == store
    assert section.windows.size == timedelta(days=2)  # 250 rows a day
    assert [p.name for p in tmp_path.iterdir()] == ["config.toml"]


@quiet
def test_a_version_without_reference_says_what_is_missing_and_takes_a_file(store: str, tmp_path: Path) -> None:
    from tests.retrain_data import outcomes

    output = tmp_path / "config.toml"
    bare = ("--registered", "fraud model", "--tracking-uri", store, "--alias", "bare", "--output", output)
    done = driftd(*bare)
    assert done.exit_code == 2
    assert "logged no reference/reference.parquet" in done.stderr
    assert "--target COLUMN --registered 'fraud model'" in done.stderr
    rows = outcomes(600).rename({f"feature_{n}": n for n in ("amount", "kind", "new")})
    rows = rows.select("amount", "kind", "new", "label", "prediction", "score", "ts", pl.lit(1).alias("spare"))
    rows.write_parquet(tmp_path / "rows.parquet")
    done = driftd(tmp_path / "rows.parquet", *bare)
    assert done.exit_code == 0, done.output
    assert "'spare' is no input of the registered model" in done.output
    assert load(output).config.models["fraud-model"].reference.path == "rows.parquet"
    rows.drop("kind").write_parquet(tmp_path / "rows.parquet")
    done = driftd(tmp_path / "rows.parquet", *bare, "--force")
    assert (done.exit_code, "takes 'kind'" in done.stderr) == (2, True)


@quiet
def test_an_unknown_model_alias_or_store_is_a_mistake(store: str, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "config.toml")
    done = driftd("--registered", "froud", "--tracking-uri", store, *output)
    assert (done.exit_code, "no version of 'froud' has the alias 'champion'" in done.stderr) == (2, True)
    done = driftd("--registered", "fraud model", "--tracking-uri", store, "--alias", "best", *output)
    assert (done.exit_code, "the alias 'best'" in done.stderr) == (2, True)
    done = driftd("--registered", "fraud", "--tracking-uri", f"sqlite:///{tmp_path}/none.db", *output)
    assert (done.exit_code, "there is no MLflow store" in done.stderr) == (2, True)
    done = driftd("--registered", "fraud", "--tracking-uri", "ftp://x", *output)
    assert (done.exit_code, "--tracking-uri: starts with none of http" in done.stderr) == (2, True)
    assert not list(tmp_path.iterdir())


@quiet
def test_a_version_without_a_model_is_a_mistake(store: str, tmp_path: Path) -> None:
    from retrain.models.registry import Registry

    registry = Registry(store)
    version = registry.register("hollow", registry.open_run("fraud", "hollow", {}), {})
    registry.set_alias("hollow", "champion", version)
    done = driftd("--registered", "hollow", "--tracking-uri", store, "--output", tmp_path / "config.toml")
    assert (done.exit_code, "'hollow': no MLmodel file could be had" in done.stderr) == (2, True)


# -- recorded streams

STREAMS = {
    "electricity_nsw.csv.gz": ("class", "date,nswprice"),
    "bike_sharing_hour.csv.gz": ("cnt", "casual,registered"),
    "occupancy_uci.csv.gz": ("Occupancy", "part"),
    "keystroke.csv.gz": ("class", ""),
    "nycflights13.parquet": ("arr_delayed_15", "dep_time,dep_delay,arr_time,air_time"),
    "nannyml_synthetic_car_loan.parquet": ("repaid", "partition"),
    "sea_vlosing_synthetic.csv.gz": ("class", ""),
}
NO_FEATURES = {
    "instant",
    "dteday",
    "date",
    "id",
    "timestamp",
    "arr_delay",
    "time_hour",
    "year",
    "y_pred",
    "y_pred_proba",
}


@pytest.mark.parametrize("name", STREAMS)
def test_recorded_streams_get_a_config_that_loads(name: str, tmp_path: Path) -> None:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the recorded stream {name} is not here")
    target, drop = STREAMS[name]
    more = ("--prediction", "y_pred", "--score", "y_pred_proba") if "car_loan" in name else ()
    output = tmp_path / "config.toml"
    done = driftd(path, "--target", target, "--drop", drop, *more, "--output", output)
    assert done.exit_code == 0, done.output
    loaded = load(output)
    (model,) = loaded.schemas.values()
    frame = pl.read_parquet(path) if name.endswith("parquet") else pl.read_csv(path, infer_schema_length=None)
    left = set(frame.columns) - {target, *drop.split(",")} - NO_FEATURES
    assert {f.name for f in model.features} == left
    assert plans(loaded)[model.model].min_rows >= 50
