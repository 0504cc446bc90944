"""What the clean process says of versions that cannot be served, and of a registry that is away."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from retrain.errors import TransientError
from retrain.evaluate import score
from retrain.frame import features_frame
from retrain.model_files import load_model, save_model, trusted_of
from retrain.registry import Registry
from retrain.retry import Stopped
from retrain.servability import smoke_test
from tests import retrain_data
from tests.retrain_data import BINARY, Elsewhere, outcomes, spec

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
HOLDOUT = outcomes(100)
TRAINER = "tests.retrain_data:trains_logistic"


def registered(folder: Path, estimator: object) -> tuple[retrain_data.JobSpec, Path]:
    """Version 1 of a model, where its files lie."""
    wanted = spec(folder, trainer=TRAINER)
    save_model(estimator, folder / "model", BINARY, features_frame(HOLDOUT.head(5), BINARY), trusted_of(retrain_data))
    registry = Registry(wanted.tracking_uri)
    run_id = registry.open_run("fraud", "job", {})
    registry.log_files(run_id, folder / "model", "model")
    assert registry.register("fraud", run_id, {}) == "1"
    (stored,) = folder.glob("artifacts/*/artifacts/model")
    return wanted, stored


def tried(folder: Path, wanted: retrain_data.JobSpec, **more: object) -> tuple[bool, str]:
    side = score(load_model(folder / "model", ("tests.",)), HOLDOUT, BINARY, source="challenger")
    environ = {**os.environ, "DRIFTD_SECRET": "s3cret", "AWS_REGION": "here"}
    found = smoke_test(wanted, "1", HOLDOUT, side, environ, **more)  # type: ignore[arg-type]
    return found.passed, found.detail


def as_pickle(model: Path) -> None:
    described = (model / "MLmodel").read_text()
    (model / "MLmodel").write_text(described.replace("serialization_format: skops", "serialization_format: pickle"))


@pytest.mark.parametrize(
    ("how", "passed", "says"),
    [
        ("", True, "a clean process fetched version 1, loaded it and scored 50 rows in "),
        ("other", False, "version 1 predicts otherwise than the model that was evaluated"),
        ("crash", False, "version 1 took its process down (exit code -11): "),
        ("refusal", False, "version 1 raised when it was asked: RuntimeError: not here"),
        ("hang", False, "version 1 had not answered after 15 s"),
        ("secret", True, "a clean process fetched"),
    ],
)
def test_a_model_must_answer_there_as_it_did_here(tmp_path: Path, how: str, passed: bool, says: str) -> None:
    wanted, _ = registered(tmp_path, Elsewhere(how))
    found = tried(tmp_path, wanted, seconds=15 if how == "hang" else 120)
    assert (found[0], found[1].startswith(says)) == (passed, True), found


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (shutil.rmtree, "version 1 is not in the registry any more: "),
        (as_pickle, "version 1 stored as pickle; nothing is unp"),
    ],
)
def test_files_that_are_gone_or_pickled_are_refused(tmp_path: Path, harm: Callable[[Path], None], says: str) -> None:
    wanted, stored = registered(tmp_path, Elsewhere())
    harm(stored)
    found = tried(tmp_path, wanted)
    assert (found[0], found[1].startswith(says)) == (False, True), found


def test_a_registry_that_is_away_is_no_fault_of_the_model(tmp_path: Path) -> None:
    wanted, _ = registered(tmp_path, Elsewhere())
    with pytest.raises(TransientError, match="Connection refused"):
        tried(tmp_path, replace(wanted, tracking_uri="http://127.0.0.1:9"))
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(Stopped):
        tried(tmp_path, wanted, stopping=stopping)
