"""The model card says everything on record, and nothing on record can break it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from retrain.base.markdown import plain, table, to_html
from retrain.control.records import AliasMove, Job
from retrain.control.store import Store, open_store
from retrain.job.card import card
from retrain.job.manual_actions import job_of_version
from retrain.terms.errors import Refused
from retrain.terms.states import JobState as S
from tests.builders import NOW
from tests.retrain_data import spec

GATE = {
    "name": "quality",
    "passed": True,
    "value": 0.1,
    "limit": 0.0,
    "detail": "better | by 0.1",
    "interval": [0.05, 0.15],
}
SCORES = {
    "source": "challenger", "version": None, "rows": 300,
    "metrics": {"roc_auc": 0.81, "accuracy": 0.7, "f1": None},
    "segments": {"country=de": {"rows": 150, "value": 0.8}, "country=fr": {"rows": 150, "value": 0.7}},
}  # fmt: skip
RESULT: dict[str, Any] = {
    "version": "2", "compared_with": "1", "decision": "promote", "refit": True, "run_id": "r1", "training_seconds": 1.5,
    "snapshot": {
        "outcomes": "/lake/outcomes", "delta_version": 7, "predicate": "newest 500", "rows_digest": "d1",
        "code_digest": "d2", "config_digest": "d3", "git_commit": "abc", "environment": {"packages": {"polars": "2.1"}},
        "train": {"rows": 900, "first": "a", "last": "b"}, "holdout": {"rows": 300, "first": "c", "last": "d"},
    },
    "validation": [{"name": "leakage", "level": "odd", "detail": "AUC 0.99", "subject": "amount"}],
    "gates": [GATE], "challenger": SCORES,
    "champion": {**SCORES, "source": "version 1", "segments": {"country=de": {"rows": 150, "value": 0.6}}},
    "shadow": {"detail": "shadow on 240", "gates": [GATE]},
    "canary": {"detail": "canary went well", "steps": [{"share": 0.05, "rows": 110, "gates": [GATE]}]},
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"sqlite:///{tmp_path / 'control.db'}")


def made(store: Store, folder: Path, **result: Any) -> Job:
    wanted = spec(folder, card={"owner": "payments", "limits": "not for <b>credit</b>"}, parameters={"max_iter": 20})
    store.submit(wanted, NOW)
    at = S.REQUESTED
    for state in (S.SNAPSHOT, S.TRAINING, S.EVALUATING, S.AWAITING_APPROVAL):
        store.advance("job-1", at, state, f"to {state}", NOW)
        at = state
    store.approve("job-1", "ann", NOW, "seen | it")
    store.update("job-1", None, result=result)
    return store.get("job-1")


def text(store: Store, job: Job) -> str:
    return card(job, store.history(job.id), store.champion_moves(job.model))


def test_a_card_answers_what_why_how_good_who_and_how_to_get_back(store: Store, tmp_path: Path) -> None:
    job = made(store, tmp_path, **RESULT)
    for version, before, hours in (("2", "1", 0), ("3", "2", 5), ("2", "3", 7)):
        at = NOW + timedelta(hours=hours)
        store.record_alias(AliasMove("fraud", "champion", version, before, None, "ann", at, "because"))
    told = text(store, job)
    for part in (
        "# fraud, version 2",
        "- **Owner**: payments",
        r"not for \<b\>credit\</b\>",
        "champion since 2026-03-02 12:00:00 UTC until 2026-03-02 17:00:00 UTC",
        "champion since 2026-03-02 19:00:00 UTC and still is",
        "drift of amount",
        "| share | 0.6 |",
        "| rows from | version 7 of /lake/outcomes, newest 500 |",
        "| odd: leakage | amount | AUC 0.99 |",
        r"| parameters | max\_iter = 20 |",
        r"| roc\_auc | 0.81 | 0.81 |",
        "| f1 | undefined | undefined |",
        "| country=de | 150 | 0.8 | 0.6 |",
        "| country=fr | 150 | 0.7 |  |",
        r"| passed | quality | 0.1 | 0.05 to 0.15 | 0 | better \| by 0.1 |",
        "### Shadow",
        "Share 0.05, 110 rows:",
        r"| awaiting\_approval | ann | approved: seen \| it |",
        "| after it | version 3, by ann: because |",
        "| back to it | driftd rollback fraud --to 2 |",
        "| again | driftd reproduce job-1 |",
    ):
        assert part in told, part
    assert told == text(store, job)


def test_a_job_that_came_to_nothing_has_a_card_too(store: Store, tmp_path: Path) -> None:
    told = text(store, made(store, tmp_path))
    assert "# fraud, challenger of job job-1" in told
    assert "Never champion" in told
    assert "It was not judged." in told


def test_the_page_of_a_card_loads_nothing_and_shows_markup_as_text(store: Store, tmp_path: Path) -> None:
    job = made(store, tmp_path, **RESULT)
    nasty = replace(job.spec.request, reason="<script>alert(1)</script> [x](javascript:alert(1)) ![](http://x/y.png)")
    page = to_html(text(store, replace(job, spec=replace(job.spec, request=nasty))), "Model <card>")
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; [x](javascript:alert(1)) ![](http://x/y.png)" in page
    assert "<img" not in page
    assert "<title>Model &lt;card&gt;</title>" in page
    assert "<td>better | by 0.1</td>" in page


def test_the_job_of_a_version_is_found(store: Store, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"no job of driftd made version \(there is no champion\)"):
        job_of_version(store, "fraud", None)
    made(store, tmp_path, **RESULT)
    assert job_of_version(store, "fraud", "2").id == "job-1"
    store.record_alias(AliasMove("fraud", "champion", "1", None, None, "ann", NOW, "by hand"))
    with pytest.raises(Refused, match="no job of driftd made version 1"):
        job_of_version(store, "fraud", None)


def test_nothing_in_a_cell_is_markup() -> None:
    assert plain("a\n|b| *c* _d_ `e` <f>") == r"a \|b\| \*c\* \_d\_ \`e\` \<f\>"
    assert table(("x",), []) == []
