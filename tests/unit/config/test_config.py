"""Good documents load; bad ones say everything that is wrong, at once, with path and hint."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.base.errors import ConfigError
from monitor.config.loading import from_dict, load
from monitor.config.plan import plans
from monitor.config.sections import DEFAULT_RULES
from monitor.rules.rules import ForDuration, ForWindows
from retrain.terms.fields import Secret, format_duration, parse_duration
from retrain.terms.schema import Feature, FeatureKind, Task
from tests.builders import config

FOLDER = Path(__file__).parents[2] / "configs"
BAD, GOOD = sorted((FOLDER / "bad").glob("*.toml")), sorted((FOLDER / "good").glob("*.toml"))


def problems(document: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        from_dict(document)
    return [line.removeprefix("config.toml: ") for line in caught.value.problems]


@pytest.mark.parametrize("path", BAD, ids=lambda p: p.stem)
def test_bad_config_says_everything_that_is_wrong(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    monkeypatch.delenv("DRIFTD_TEST_NOT_SET", raising=False)
    lines = path.read_text().split("\n\n", 1)[0].splitlines()
    with pytest.raises(ConfigError) as caught:
        load(Path(path.name))
    assert caught.value.problems == [line.removeprefix("# ") for line in lines]
    assert "hunter2" not in str(caught.value), "a secret is never repeated"


def test_one_of_them_has_ten_mistakes() -> None:
    lines = (FOLDER / "bad" / "ten_mistakes.toml").read_text().splitlines()
    assert sum(line.startswith("# ") for line in lines) == 10


@pytest.mark.parametrize("path", GOOD, ids=lambda p: p.stem)
def test_good_config_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTD_TEST_TOKEN", "hunter2")
    loaded = load(path)
    assert load(path) == loaded
    assert load(path).config.digest() == loaded.config.digest()
    assert "hunter2" not in repr(loaded)
    assert set(plans(loaded)) == set(loaded.schemas) == set(loaded.config.models)


def test_full_config_means_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTD_TEST_TOKEN", "hunter2")
    loaded = load(FOLDER / "good" / "full.toml")
    c, model = loaded.config, loaded.config.models["fraud"]
    assert (c.daemon.tick, c.source.batch_wait) == (timedelta(minutes=90), timedelta(milliseconds=500))
    assert (c.source.max_bytes, model.retrain.memory_limit) == (8 * 2**20, 2 * 2**30)
    assert c.storage_options() == {"region": "eu-central-1", "aws_secret_access_key": "hunter2"}
    assert model.rules is not None
    assert [r.for_ for r in model.rules] == [ForWindows(2, 3), ForDuration(timedelta(minutes=30))]
    schema = loaded.schemas["fraud"]
    assert schema.features[1] == Feature("is new (y/n)", FeatureKind.BOOL)
    assert (schema.positive, schema.segments) == ("fraud", ("region",))


def test_schema_is_inferred_from_a_csv_reference() -> None:
    schema = load(FOLDER / "good" / "inferred.toml").schemas["topic"]
    assert {f.name: f.kind.value for f in schema.features} == {
        "amount": "number", "country": "category", "is_new": "bool",
    }  # fmt: skip
    assert (schema.classes, schema.positive) == (("0", "1"), "1")


def test_schema_is_inferred_from_a_parquet_reference(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"feature_x": [1, 2], "feature_c": ["a", "b"], "label": ["no", "yes"], "ts": ["", ""], "other": [1, 2]}
    )
    frame.write_parquet(tmp_path / "reference.parquet")
    document = {"models": {"m": {"task": "binary", "reference": {"path": "reference.parquet"}}}}
    loaded = from_dict(document, base=tmp_path)
    schema = loaded.schemas["m"]
    assert [f.name for f in schema.features] == ["x", "c"]
    assert (schema.classes, schema.positive) == (("no", "yes"), "yes")
    assert plans(loaded)["m"].reference.path == str(tmp_path / "reference.parquet")


def test_missing_file_and_folder_are_the_operators(tmp_path: Path) -> None:
    for path, text in ((tmp_path / "no.toml", "no such file: copy config.toml or give --config"),
                       (tmp_path, "Is a directory")):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert caught.value.problems == [f"{path}: {text}"]


@pytest.mark.parametrize("content", [b"", b"  \n", b"\xff\xfe"])
def test_secret_file_without_a_secret_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secret").write_bytes(content)
    document = config() | {"http": {"token": {"file": str(tmp_path / "secret")}}}
    (line,) = problems(document)
    assert line.startswith(f"http.token: secret file {tmp_path / 'secret'}: is ")


def test_secret_by_file_or_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("hunter2\n")
    monkeypatch.setenv("DRIFTD_TEST_TOKEN", "hunter3")
    assert Secret.model_validate({"file": str(tmp_path / "secret")}).reveal() == "hunter2"
    assert Secret.model_validate({"env": "DRIFTD_TEST_TOKEN"}).reveal() == "hunter3"
    monkeypatch.setenv("DRIFTD_TEST_TOKEN", "")
    assert problems(config() | {"http": {"token": {"env": "DRIFTD_TEST_TOKEN"}}}) == [
        "http.token: environment variable DRIFTD_TEST_TOKEN is not set: export it or use file = ..."
    ]


@given(st.integers(0, 10**10))
def test_durations_are_written_as_they_are_read(milliseconds: int) -> None:
    duration = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize("task", list(Task))
def test_default_rules_are_valid_rules(task: Task) -> None:
    document = {"models": {"m": {"task": task.value, "features": {"x": "number"}}}}
    if task is Task.MULTICLASS:
        document["models"]["m"]["classes"] = ["a", "b"]
    loaded = from_dict(document)
    assert [r.name for r in plans(loaded)["m"].rules] == [r["name"] for r in DEFAULT_RULES[task]]


def test_digest_changes_with_anything_and_only_then() -> None:
    one = from_dict(config()).config
    assert from_dict(config() | {"daemon": {"tick": "5000ms"}}).config.digest() == one.digest()
    assert from_dict(config() | {"daemon": {"tick": "6s"}}).config.digest() != one.digest()


keys = st.sampled_from(["models", "fraud", "task", "features", "rules", "windows", "size", "source", "x"])
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=50, deadline=None)
@given(documents)
def test_any_document_loads_or_is_refused(document: Any) -> None:
    if isinstance(document, dict):
        try:
            from_dict(document)
        except ConfigError as exc:
            assert exc.problems
