"""Aliases that others have moved come on record; driftd's own moves are left to those who make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from monitor.jobs.champions import Champions, Question, ask
from retrain.config.settings import RetrainConfig
from retrain.config.spec import JobSpec
from retrain.control import audit
from retrain.control.audit import AuditKind
from retrain.control.store import AliasMove, Store
from retrain.models.registry import Registry
from retrain.terms.request import RetrainRequest, TriggerKind
from retrain.terms.states import JobState
from tests.builders import BINARY, MINUTE, NOW
from tests.retrain_data import mlflow_store

MODELS = {"fraud": "fraud-registered", "price": "price"}
REQUEST = RetrainRequest("r1", "fraud", TriggerKind.RULE, "rule drop fires", {}, NOW)
SPEC = JobSpec(REQUEST, BINARY, "outcomes", "sqlite:///m.db", "fraud", "jobs", RetrainConfig.model_validate({}))
PASSED = (JobState.REQUESTED, JobState.SNAPSHOT, JobState.TRAINING, JobState.EVALUATING)


class Told:
    """A registry that says what the test says."""

    def __init__(self, fraud: str | None) -> None:
        self.fraud = fraud

    def __call__(self, question: Question) -> Sequence[str | None]:
        assert question.names == ("fraud-registered", "price")
        return [self.fraud, None]


def test_a_champion_of_others_is_on_record_after_two_looks(store: Store) -> None:
    told = Told("7")
    champions = Champions(store, "sqlite:///m.db", told)
    champions.look(MODELS, NOW)
    assert store.champion_moves("fraud") == []
    champions.look(MODELS, NOW + MINUTE)
    champions.look(MODELS, NOW + 2 * MINUTE)
    (first,) = store.champion_moves("fraud")
    assert (first.version, first.previous_version, first.actor, first.at) == ("7", None, "registry", NOW + MINUTE)
    for told.fraud in ("9", "7", "8", "8", None, "8"):  # only what stays is believed
        champions.look(MODELS, NOW + 3 * MINUTE)
    assert [(m.version, m.previous_version) for m in store.champion_moves("fraud")] == [("8", "7"), ("7", None)]
    moved = [e.body["version"] for e in audit.entries(store.engine) if e.kind == AuditKind.ALIAS_MOVED]
    assert moved == ["7", "8"]
    assert store.champion_moves("price") == []


@pytest.mark.parametrize("what", ["promoting", "rollback"])
def test_a_move_that_a_job_is_about_to_record_is_left_to_it(store: Store, what: str) -> None:
    path = PASSED if what == "promoting" else (*PASSED, JobState.PROMOTED)
    store.record_alias(AliasMove("fraud", "champion", "1", None, None, "ann", NOW, "the first"))
    store.submit(SPEC, NOW)
    for before, after in pairwise(path):
        store.advance("r1", before, after, "", NOW)
    store.update("r1", None, result={what: True, "version": "2"})
    champions = Champions(store, "sqlite:///m.db", Told("2"))
    for _ in range(3):
        champions.look(MODELS, NOW)
    assert len(store.champion_moves("fraud")) == 1
    store.advance("r1", path[-1], JobState.ROLLED_BACK if what == "rollback" else JobState.REJECTED, "", NOW)
    for _ in range(2):  # it ended otherwise, and the alias is where it is
        champions.look(MODELS, NOW)
    assert [m.actor for m in store.champion_moves("fraud")] == ["registry", "ann"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_the_registry_is_asked_by_the_registered_names(tmp_path: Path) -> None:
    nowhere = f"sqlite:///{tmp_path / 'none.db'}"
    assert ask(Question(nowhere, ("a", "b"))) == [None, None]
    assert not (tmp_path / "none.db").exists()
    uri = mlflow_store(tmp_path)
    registry = Registry(uri)
    run = registry.open_run("a", "job", {})
    registry.set_alias("a", "champion", registry.register("a", run, {}))
    assert ask(Question(uri, ("a", "b"))) == ["1", None]
    assert ask(replace(Question(uri, ("b", "a")))) == [None, "1"]
