"""What is said of versions that cannot be served, and of a registry that is away."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retrain.data.frame import features_frame, labels_array
from retrain.judge.servability import smoke_test
from retrain.models.model_files import save_model
from retrain.models.registry import Registry
from retrain.scorer import Scorers
from retrain.terms.errors import TransientError
from retrain.train.trainer import TrainContext
from tests.jobs import fork_server
from tests.retrain_data import BINARY, outcomes, spec, trains_logistic

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
HOLDOUT = outcomes(100)


@pytest.fixture(scope="module")
def scorers() -> Iterator[Scorers]:
    with Scorers(fork_server()) as found:
        yield found


def made(folder: Path, *, flipped: bool = False) -> Path:
    rows = outcomes(200, flipped=flipped)
    frame = features_frame(rows, BINARY)
    save_model(
        trains_logistic(frame, labels_array(rows, BINARY), TrainContext(BINARY, 0)), folder, BINARY, frame.head(5), ()
    )
    return folder


def as_pickle(model: Path) -> None:
    described = (model / "MLmodel").read_text()
    (model / "MLmodel").write_text(described.replace("serialization_format: skops", "serialization_format: pickle"))


def replaced(model: Path) -> None:
    shutil.rmtree(model)
    made(model, flipped=True)


def cut_short(model: Path) -> None:
    file = model / "model.skops"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("happens", "passed", "says"),
    [
        (lambda _: None, True, "a clean process opened version 1 as the registry has it and scored 50 rows in "),
        (replaced, False, "version 1 predicts otherwise than the model that is to be promoted"),
        (shutil.rmtree, False, "version 1 is not in the registry any more: "),
        (as_pickle, False, "version 1 stored as pickle; nothing is unp"),
        (cut_short, False, "version 1 cannot be loaded: BadZipFile"),
    ],
)
def test_a_version_must_answer_as_the_model_that_was_registered(
    tmp_path: Path, scorers: Scorers, happens: Callable[[Path], None], passed: bool, says: str
) -> None:
    model = made(tmp_path / "model")
    registry = Registry(spec(tmp_path).tracking_uri)
    run_id = registry.open_run("fraud", "job", {})
    registry.log_files(run_id, model, "model")
    assert registry.register("fraud", run_id, {}) == "1"
    (stored,) = tmp_path.glob("artifacts/*/artifacts/model")
    happens(stored)
    found = smoke_test(
        "1",
        HOLDOUT,
        BINARY,
        lambda: scorers.open(model, BINARY),
        lambda: scorers.open(registry.fetch_model("fraud", "1", tmp_path / "smoke"), BINARY),
    )
    assert (found.passed, found.detail.startswith(says)) == (passed, True), found


def test_a_registry_that_is_away_is_no_fault_of_the_model(tmp_path: Path, scorers: Scorers) -> None:
    model, registry = made(tmp_path / "model"), Registry("http://127.0.0.1:9")
    with pytest.raises(TransientError, match="Connection refused"):
        smoke_test(
            "1",
            HOLDOUT,
            BINARY,
            lambda: scorers.open(model, BINARY),
            lambda: scorers.open(registry.fetch_model("fraud", "1", tmp_path / "smoke"), BINARY),
        )
