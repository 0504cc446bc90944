"""Which version served at a moment: the answer follows the recorded moves of the alias."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitor.jobs.lineage import serving_at, to_words
from retrain.control.store import AliasMove, Store, open_store
from retrain.terms.states import JobState as S
from tests.builders import HOUR
from tests.retrain_data import NOW, spec

GATE = {"name": "better", "passed": True, "detail": "0.012 better, at least 0"}
MANIFEST = {
    "outcomes": "lake/fraud/outcomes",
    "delta_version": 12,
    "rows_digest": "aa",
    "code_digest": "bb",
    "git_commit": "c0ffee",
    "config_digest": "cc",
    "train": {"rows": 4000, "first": "2026-02-01", "last": "2026-02-27"},
    "holdout": {"rows": 1000, "first": "2026-02-27", "last": "2026-03-01"},
}


def move(version: str, previous: str | None, job: str | None, hours: int, actor: str, reason: str) -> AliasMove:
    return AliasMove("fraud", "champion", version, previous, job, actor, NOW + hours * HOUR, reason)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Version 1 from the beginning, 2 by a job an hour later, approved by ada; rolled back by hand in hour 3."""
    store = open_store(f"sqlite:///{tmp_path / 'control.db'}")
    store.record_alias(move("1", None, "initial", 0, "ann", "first model"))
    store.submit(spec(tmp_path, id="job-2", approval="manual"), NOW)
    for state in (S.SNAPSHOT, S.TRAINING, S.EVALUATING, S.AWAITING_APPROVAL):
        store.advance("job-2", store.get("job-2").state, state, f"now {state}", NOW)
    store.update("job-2", None, result={"snapshot": MANIFEST, "gates": [GATE], "compared_with": "1", "run_id": "r9"})
    store.approve("job-2", "ada", NOW + HOUR)
    store.record_alias(move("2", "1", "job-2", 1, "ada", "rule drop fires"))
    store.record_alias(AliasMove("fraud", "previous", "1", None, "job-2", "ada", NOW + HOUR, "version 2 was promoted"))
    store.advance("job-2", S.AWAITING_APPROVAL, S.PROMOTED, "version 2 replaces 1", NOW + HOUR)
    store.record_alias(move("1", "2", None, 3, "bob", "too many refusals of cards"))
    return store


def test_nothing_is_said_of_a_time_before_the_first_champion(store: Store) -> None:
    assert serving_at(store, "fraud", NOW - HOUR) is None
    assert serving_at(store, "churn", NOW) is None


def test_a_promoted_version_with_its_data_gates_and_who_agreed(store: Store) -> None:
    found = serving_at(store, "fraud", NOW + 2 * HOUR)
    assert found is not None
    assert (found["version"], found["replaced"], found["by"]) == ("2", "1", "ada")
    assert found["replaced_by"] == {"version": "1", "by": "bob", "reason": "too many refusals of cards"}
    job = found["job"]
    assert (job["id"], job["approval"], job["approved_by"]) == ("job-2", "manual", "ada")
    assert (job["snapshot"], job["gates"], job["run"]) == (MANIFEST, [GATE], "r9")
    assert [s["to"] for s in job["steps"]][-3:] == ["awaiting_approval", "awaiting_approval", "promoted"]
    assert found["way_back"] == "`driftd rollback fraud --to 2` makes it the champion again"


def test_the_moment_of_a_move_belongs_to_the_new_version(store: Store) -> None:
    versions = [(serving_at(store, "fraud", NOW + h * HOUR) or {})["version"] for h in (0, 1, 2, 3, 4)]
    assert versions == ["1", "2", "2", "1", "1"]


def test_a_version_put_back_by_hand_is_the_present_one(store: Store) -> None:
    found = serving_at(store, "fraud", NOW + 4 * HOUR)
    assert found is not None
    assert (found["until"], found["replaced_by"], found["by"], found["job"]) == (None, None, "bob", None)
    assert found["way_back"].endswith("`driftd rollback fraud --to 2` leads to the one before it")


def test_first_version_has_no_way_back(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path / 'other.db'}")
    store.record_alias(move("1", None, "initial", 0, "ann", "first model"))
    found = serving_at(store, "fraud", NOW)
    assert found is not None
    assert found["way_back"] == "it is the champion, and no version was before it"


def test_words_name_everything_a_release_engineer_is_asked(store: Store) -> None:
    found = serving_at(store, "fraud", NOW + 2 * HOUR)
    assert found is not None
    text = "\n".join(to_words(found))
    for told in (
        "version 2", "rule drop fires", "job job-2", "version 12 of lake/fraud/outcomes", "4000 training rows",
        "sha256 of the rows aa", "commit c0ffee, digest bb", "passed better: 0.012 better",
        "approved by ada", "r9 in MLflow",
        "then       version 1, by bob: too many refusals of cards", "driftd rollback fraud --to 2",
    ):  # fmt: skip
        assert told in text, told
