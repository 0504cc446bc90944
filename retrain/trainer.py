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

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, assert_never

from retrain.isolation import Cut, Ended, child_environment, run_apart
from retrain.recipe import Recipe
from retrain.schema import ModelSchema

SEARCH = "search.json"
"""What a search for hyperparameters has found, in the trainer's folder (`retrain.trainers.search`)."""


@dataclass(frozen=True, slots=True)
class TrainContext:
    """What a trainer is told besides the rows. `work_dir` is its scratch folder, kept for the job's duration;
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
    environ: Mapping[str, str],
    stopping: threading.Event | None = None,
) -> Trained | TrainingFailed:
    """Trains on the file `rows` (lake columns) and leaves the model in `folder/model`, the output in
    `folder/trainer.log`. `stopping` ends it early with FailureKind.STOPPED."""
    folder = folder.absolute()
    request, result, model = folder / "train_request.json", folder / "train_result.json", folder / "model"
    for left in (result, folder / SEARCH):
        left.unlink(missing_ok=True)
    places = {"train": str(rows.absolute()), "model": str(model), "work_dir": str(folder), "result": str(result)}
    started = time.monotonic()
    deadline = started + recipe.time_limit
    request.write_text(json.dumps(recipe.to_json() | places | {"deadline": deadline}))
    command = [sys.executable, "-m", "retrain.trainer_process", str(request)]
    env = child_environment(recipe.environment, environ, folder)
    ended = run_apart(command, env, folder / "trainer.log", deadline, stopping)
    match ended.cut:
        case Cut.TIME:
            message = f"training timed out: stopped after {timedelta(seconds=recipe.time_limit)}"
            return TrainingFailed(FailureKind.TIMED_OUT, message)
        case Cut.STOPPED:
            return TrainingFailed(FailureKind.STOPPED, "training was stopped because the job was asked to end")
        case None:
            return _outcome(recipe, model, result, ended, time.monotonic() - started)
        case unreachable:
            assert_never(unreachable)


def _outcome(recipe: Recipe, model: Path, result: Path, ended: Ended, seconds: float) -> Trained | TrainingFailed:
    code, tail = ended.code, ended.tail
    reported = json.loads(result.read_text()) if result.exists() else {}
    match reported.get("status"):
        case "ok":
            return Trained(model, seconds)
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
