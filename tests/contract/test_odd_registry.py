"""Whatever answers in MLflow's place: nothing is taken for an answer of MLflow's, and nothing stops."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retrain.models.model_files import LoadedModel
from retrain.models.registry import NotThere, Registry
from retrain.terms.errors import TransientError
from serving.models import Follower
from serving.settings import from_dict
from tests.odd_mlflow import ANSWERS, FAILURES, OddAnswer, OddMlflow

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
GONE = OddAnswer(404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "not found"}', "application/json")


@pytest.fixture(scope="module")
def server() -> Iterator[OddMlflow]:
    found = OddMlflow()
    yield found
    found.close()


ASKED: dict[str, Callable[[Registry, Path], Any]] = {
    "alias": lambda r, _: r.resolve_alias("fraud", "champion"),
    "pointers": lambda r, _: r.pointers("fraud"),
    "promote": lambda r, _: r.promote("fraud", "2", None),
    "tag": lambda r, _: r.set_tag("fraud", "k", None),
    "run": lambda r, _: r.open_run("jobs", "j1", {}),
    "register": lambda r, _: r.register("fraud", "a1", {}),
    "reference": lambda r, folder: r.fetch_reference("fraud", "1", folder),
    "model": lambda r, folder: r.fetch_model("fraud", "1", folder / "model"),
}


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_an_odd_answer_is_no_answer(server: OddMlflow, answer: OddAnswer, tmp_path: Path) -> None:
    server.answer = answer
    for ask in list(ASKED.values())[: 1 if answer in FAILURES else None]:  # MLflow's client repeats those, slowly
        with pytest.raises(TransientError) as told:
            ask(Registry(server.uri), tmp_path)
        assert len(str(told.value)) < 500
        assert "\n" not in str(told.value)


def test_only_mlflow_itself_says_that_there_is_none(server: OddMlflow, tmp_path: Path) -> None:
    server.answer = GONE
    registry = Registry(server.uri)
    assert registry.resolve_alias("fraud", "champion") is None
    assert registry.pointers("fraud") == ({}, {})
    registry.set_tag("fraud", "k", None)
    with pytest.raises(NotThere):
        registry.fetch_reference("fraud", "1", tmp_path)


@pytest.mark.parametrize("answer", [*ANSWERS, GONE], ids=str)
def test_a_service_serves_what_it_has_and_starts_with_what_was_baked(
    server: OddMlflow, answer: OddAnswer, tmp_path: Path
) -> None:
    server.answer = answer
    (tmp_path / "version.json").write_text(json.dumps({"version": "7"}))
    schema = {"task": "binary", "features": {"x": "number"}, "classes": ["a", "b"], "positive": "b"}
    files = {"files": str(tmp_path / "events"), "baked": str(tmp_path)}
    settings = from_dict(
        {"model": "fraud", "registered_model": "fraud", "tracking_uri": server.uri, "schema": schema, **files}
    )
    failures: list[int] = []
    model = LoadedModel(None, None)
    follower = Follower(settings, Registry(server.uri), lambda _: model, lambda _: None, lambda: failures.append(1))
    for _ in range(2):
        follower.follow()
        assert follower.current is not None
        assert (follower.current.champion.name, follower.current.champion.model) == ("7", model)
    assert len(failures) == (0 if answer is GONE else 2)
