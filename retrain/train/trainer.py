"""Runs the user's training code apart (`retrain.isolation`), with limits on time and memory.

Invariant: whatever the code does (raises, hangs, eats memory, prints without end, leaves children behind), the
answer is a `Trained` or a `TrainingFailed` that says in one sentence what happened.

The contract of a trainer, `module:function`::

    def train(frame: pandas.DataFrame, labels: pandas.Series, context: TrainContext) -> estimator

`frame` has one column per feature, named as in the config, rows in order of event time: numbers as float64,
categories as strings, bools as bool, missing values as NaN or None. `labels` are class names or floats. The
estimator has `predict`, and for scores `predict_proba` and `classes_`; it is stored with skops, so it is made of
scikit-learn parts and of classes that live in the trainer's own top-level package or are listed in its module's
`TRUSTED_TYPES`.

The contract of a `command`, any program::

    DRIFTD_TRAIN       parquet file in: one column per feature, `label`, `ts`
    DRIFTD_SCHEMA      JSON file in: task, classes, features
    DRIFTD_PARAMETERS  JSON text in: the configured parameters
    DRIFTD_SEED        integer in
    DRIFTD_TIME_LIMIT  seconds in: then it is stopped
    DRIFTD_MODEL_OUT   directory out, not yet there: an MLflow model with the scikit-learn flavour, in the skops
                       format, with a signature (`mlflow.sklearn.save_model(..., serialization_format="skops")`)
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, assert_never

import polars as pl

from retrain.base.files import write_whole
from retrain.config.recipe import Recipe
from retrain.data.frame import features_frame
from retrain.isolation import child_environment
from retrain.isolation.apart import Cut, Ended, run_apart, train_apart
from retrain.isolation.forkserver import ForkServer
from retrain.models.estimators import CHECKED_ROWS
from retrain.models.model_files import UnusableModel
from retrain.scorer import Scorers
from retrain.terms.schema import ModelSchema

LEAST_FILE = 2**30
"""Bytes that a file of a trainer's may have, if its memory is not more."""
RESULT = "train_result.json"
SEARCH = "search.json"
"""What a search for hyperparameters has found, in the trainer's folder (`retrain.trainers.search`)."""


@dataclass(frozen=True, slots=True)
class TrainContext:
    """What a trainer is told besides the rows. `work_dir` is its scratch folder, gone when the training has ended;
    `deadline` on the clock of `time.monotonic`. `found`: settings that an earlier search has found for this job."""

    schema: ModelSchema
    seed: int
    parameters: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    work_dir: Path = Path()
    deadline: float = math.inf
    found: Mapping[str, Any] | None = None

    @property
    def seconds_left(self) -> float:
        """Until the training is stopped."""
        return self.deadline - time.monotonic()


class FailureKind(StrEnum):
    RAISED = "raised"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    NONSENSE = "nonsense"
    CRASHED = "crashed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Trained:
    model_dir: Path
    seconds: float


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    kind: FailureKind
    message: str


def run_trainer(
    recipe: Recipe,
    rows: Path,
    folder: Path,
    server: ForkServer,
    stopping: threading.Event | None = None,
    scratch: str = "",
) -> Trained | TrainingFailed:
    """Trains on the file `rows` (lake columns) and leaves the model in `folder/model`, the output in
    `folder/trainer.log`. The training happens in a place of its own below `scratch` (default: the system's place for
    temporary files), with nothing but these rows in it: a function in a child of `server`, a command in a process of
    its own. `stopping` ends it early with FailureKind.STOPPED."""
    folder = folder.absolute()
    for left in (folder / RESULT, folder / SEARCH):
        left.unlink(missing_ok=True)
    with _place_apart(folder, scratch) as place:
        shutil.copyfile(rows, place / "train.parquet")
        names = {"train": "train.parquet", "model": "model", "work_dir": "work", "result": RESULT}
        places = {name: str(place / file) for name, file in names.items()}
        started = time.monotonic()
        deadline = started + recipe.time_limit
        request = place / "request.json"
        request.write_text(json.dumps(recipe.to_json() | places | {"deadline": deadline, "cwd": str(Path.cwd())}))
        env = child_environment(recipe.environment, server.environ, place)
        limits = (place, folder / "trainer.log", deadline, max(recipe.memory_limit, LEAST_FILE), stopping)
        if recipe.command is None:
            ended = train_apart(server, request, env, *limits)
        else:
            ended = run_apart([sys.executable, "-P", "-m", "retrain.train.trainer_process", str(request)], env, *limits)
        match ended.cut:
            case Cut.TIME:
                message = f"training timed out: stopped after {timedelta(seconds=recipe.time_limit)}"
                return TrainingFailed(FailureKind.TIMED_OUT, message)
            case Cut.STOPPED:
                return TrainingFailed(FailureKind.STOPPED, "training was stopped because the job was asked to end")
            case None:
                outcome = _outcome(recipe, place, ended, time.monotonic() - started)
            case unreachable:
                assert_never(unreachable)
        return _brought_back(outcome, place, folder) if isinstance(outcome, Trained) else outcome


@contextmanager
def _place_apart(folder: Path, scratch: str) -> Iterator[Path]:
    """An empty folder that nobody else can read, far from everything of driftd's. The same one for the same `folder`:
    what a process that was killed has left there is removed."""
    base = Path(scratch or tempfile.gettempdir())
    base.mkdir(parents=True, exist_ok=True)
    place = base / f"driftd-training-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"
    shutil.rmtree(place, ignore_errors=True)
    try:
        place.mkdir(mode=0o700)
    except FileExistsError:  # somebody else's
        place = Path(tempfile.mkdtemp(prefix="driftd-training-", dir=base))
    (place / "work").mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _brought_back(trained: Trained, place: Path, folder: Path) -> Trained | TrainingFailed:
    """The model and what a search has found into the job's folder; the result last, for with it all is there."""
    if any(path.is_symlink() for path in (place / "model", *(place / "model").rglob("*"))):
        return TrainingFailed(FailureKind.NONSENSE, "the trainer returned nonsense: its model's folder holds links")
    shutil.rmtree(folder / "model", ignore_errors=True)
    shutil.move(place / "model", folder / "model")
    if (place / "work" / SEARCH).is_file():
        shutil.copyfile(place / "work" / SEARCH, folder / SEARCH)
    write_whole(folder / RESULT, json.dumps({"status": "ok"}))
    return Trained(folder / "model", trained.seconds)


def why_unusable(scorers: Scorers, model: Path, rows: Path, schema: ModelSchema) -> str | None:
    """None for a model's directory that can be opened and answers some of the training rows (lake columns)."""
    frame = features_frame(pl.read_parquet(rows).head(CHECKED_ROWS), schema)
    try:
        with scorers.open(model, schema) as scorer:
            scorer.check(frame)
    except UnusableModel as exc:
        return str(exc)
    return None


def _outcome(recipe: Recipe, place: Path, ended: Ended, seconds: float) -> Trained | TrainingFailed:
    code, tail = ended.code, ended.tail
    reported = json.loads((place / RESULT).read_text()) if (place / RESULT).exists() else {}
    match reported.get("status"):
        case "ok" if (place / "model").is_dir():
            return Trained(place / "model", seconds)
        case "raised":
            return TrainingFailed(FailureKind.RAISED, f"the trainer raised {reported['message']}")
        case "nonsense":
            return TrainingFailed(FailureKind.NONSENSE, f"the trainer returned nonsense: {reported['message']}")
        case "memory":
            return _out_of_memory(recipe, reported["message"])
    if any(sign in tail for sign in ("MemoryError", "bad_alloc", "Cannot allocate memory", "Unable to allocate")):
        return _out_of_memory(recipe, tail.strip().splitlines()[-1][:200])
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; the kernel kills so when memory runs out" if -code == signal.SIGKILL else ""
        return TrainingFailed(FailureKind.CRASHED, f"the trainer crashed: ended by {name}{hint}")
    last = (tail.strip().splitlines() or ["nothing was printed"])[-1][:300]
    what = "command" if recipe.command else "trainer"
    return TrainingFailed(FailureKind.CRASHED, f"the {what} exited with code {code} and left no model: {last}")


def _out_of_memory(recipe: Recipe, detail: str) -> TrainingFailed:
    limit = recipe.memory_limit / 2**20
    return TrainingFailed(FailureKind.OUT_OF_MEMORY, f"the trainer ran out of its {limit:.0f} MiB of memory: {detail}")
