"""Runs the user's training code apart: own process, scrubbed environment, limits on time and memory.

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

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from retrain.recipe import Recipe
from retrain.schema import ModelSchema

LOG_BYTES = 1 << 20
SEARCH = "search.json"
"""What a search for hyperparameters has found, in the trainer's folder (`retrain.trainers.search`)."""
SHORT_SPIN = "GOMP_SPINCOUNT", "1000"
"""Threads of libgomp that wait spin only for a moment: not at all costs 5 times the time for boosting on small data
(every wait is a system call), the default 3 times on a machine that is busy with something else."""
HARMLESS = (
    *("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "SSL_CERT_FILE"),
    *("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"),  # in a job of a Ray cluster: where it is
)


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
    request.write_text(json.dumps(recipe.to_json() | places | {"deadline": started + recipe.time_limit}))
    command = [sys.executable, "-m", "retrain.trainer_process", str(request)]
    with subprocess.Popen(
        command,
        env=child_environment(recipe.environment, environ, folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        log = BoundedLog(process.stdout, folder / "trainer.log")
        ended = _wait(process, started + recipe.time_limit, stopping)
        log.join()
    seconds = time.monotonic() - started
    if ended is not None:
        message = {
            FailureKind.TIMED_OUT: f"training timed out: stopped after {timedelta(seconds=recipe.time_limit)}",
            FailureKind.STOPPED: "training was stopped because the job was asked to end",
        }[ended]
        return TrainingFailed(ended, message)
    return _outcome(recipe, model, result, process.returncode, log.tail, seconds)


def child_environment(names: Iterable[str], environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The harmless variables and those of `names`; HOME is the job's folder, so that no credential file of
    the daemon's user is found by name."""
    env = {name: environ[name] for name in (*HARMLESS, *names) if name in environ}
    root = str(Path(__file__).resolve().parent.parent)
    env["PYTHONPATH"] = os.pathsep.join(p for p in (env.get("PYTHONPATH"), root) if p)
    env.setdefault("HOME", str(folder))
    env.setdefault(*SHORT_SPIN)
    env |= {"PYTHONUNBUFFERED": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    return env


def _wait(process: subprocess.Popen[bytes], deadline: float, stopping: threading.Event | None) -> FailureKind | None:
    """Waits for the end, then kills whatever of its process group is left."""
    ended: FailureKind | None = None
    while True:
        try:
            process.wait(timeout=0.1)
            break
        except subprocess.TimeoutExpired:
            if time.monotonic() >= deadline:
                ended = FailureKind.TIMED_OUT
            elif stopping is not None and stopping.is_set():
                ended = FailureKind.STOPPED
            if ended is not None:
                break
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return ended


def _outcome(
    recipe: Recipe, model: Path, result: Path, code: int, tail: str, seconds: float
) -> Trained | TrainingFailed:
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


class BoundedLog:
    """Copies a pipe into a file up to LOG_BYTES, drains the rest, and remembers the end."""

    def __init__(self, pipe: IO[bytes], path: Path) -> None:
        self._pipe = pipe
        self._path = path
        self._tail = b""
        self._thread = threading.Thread(target=self._pump, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """A grandchild that left the process group may still hold the pipe: wait for it only a little."""
        self._thread.join(timeout=5)

    @property
    def tail(self) -> str:
        return self._tail.decode(errors="replace")

    def _pump(self) -> None:
        written = 0
        with self._path.open("wb") as file:
            while chunk := os.read(self._pipe.fileno(), 65536):
                self._tail = (self._tail + chunk)[-4000:]
                if written < LOG_BYTES:
                    written += file.write(chunk[: LOG_BYTES - written])
                    file.flush()
                    if written >= LOG_BYTES:
                        file.write(b"\n... the rest was not kept\n")
