"""The process a trainer runs in: a child of a fork server (`keep`), or `python -m retrain.train.trainer_process
request.json` for a command.

Invariant: limits are set before any of the user's code runs, which is imported here and not in the job; a model is
complete on disk before "ok" is reported.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from retrain.base.files import write_whole
from retrain.config.recipe import Recipe
from retrain.data.frame import features_frame, labels_array
from retrain.isolation import keep_to_oneself_no_more, keeper
from retrain.isolation.forkserver import NUMBER
from retrain.models.estimators import CHECKED_ROWS, Nonsense, check_estimator
from retrain.train.trainer import TrainContext

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl


def keep(connection: socket.socket, output: int) -> int:
    """This process becomes the keeper of a training that is told over the connection; answers the code to exit with. In
    the child that trains, SystemExit is raised."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    (size,) = NUMBER.unpack(connection.recv(NUMBER.size, socket.MSG_WAITALL))
    told = json.loads(connection.recv(size, socket.MSG_WAITALL))

    def begin() -> NoReturn:
        connection.close()
        keep_to_oneself_no_more()
        os.environ.clear()
        os.environ.update(told["environment"])
        time.tzset()
        tempfile.tempdir = None
        np.random.seed()
        os.chdir(told["folder"])
        sys.exit(main(["", told["request"]]))

    return keeper.keep(told, begin, connection)


def main(argv: Sequence[str]) -> int:
    request = json.loads(Path(argv[1]).read_text())
    if request["code"]:
        sys.path.append(request["code"])  # last: it replaces no module of anybody's
    if request["command"] is not None:
        return _run_command(request)
    try:
        train_and_save(request)
    except MemoryError as exc:
        report = {"status": "memory", "message": str(exc) or "MemoryError"}
    except Nonsense as exc:
        report = {"status": "nonsense", "message": str(exc)}
    except BaseException as exc:  # noqa: BLE001 - SystemExit of the user's code included; reported, then exit 1
        traceback.print_exc()
        report = {"status": "raised", "message": traceback.format_exception_only(exc)[-1].strip()[:500]}
    else:
        report = {"status": "ok"}
    write_whole(Path(request["result"]), json.dumps(report))
    return 0 if report["status"] == "ok" else 1


def train_and_save(request: dict[str, Any]) -> None:
    """In a child of the fork server, which has loaded the libraries: their memory is not the trainer's."""
    import polars as pl

    recipe, folder = Recipe.from_json(request), Path(request["work_dir"])
    schema = recipe.schema
    rows = pl.read_parquet(request["train"])
    _limit_memory(recipe.memory_limit)
    context = TrainContext(schema, recipe.seed, recipe.parameters, folder, request["deadline"], recipe.found)
    estimator, module, frame = call_trainer(recipe.trainer, rows, context)
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    from retrain.models.model_files import own_types, save_model

    save_model(estimator, Path(request["model"]), schema, frame.head(5), own_types(module))


def call_trainer(trainer: str, rows: pl.DataFrame, context: TrainContext) -> tuple[Any, ModuleType, pd.DataFrame]:
    """What `module:function` makes of the rows (lake columns), its module, and the frame it was given. Raises Nonsense,
    and whatever the user's code raises."""
    import pandas as pd

    frame = features_frame(rows, context.schema)
    labels = pd.Series(labels_array(rows, context.schema), name="label")
    module_name, _, function = trainer.partition(":")
    module = importlib.import_module(module_name)
    estimator = getattr(module, function)(frame, labels, context)
    check_estimator(estimator, frame.head(CHECKED_ROWS), context.schema)
    return estimator, module, frame


def _run_command(request: dict[str, Any]) -> int:
    """Runs the program under the same limits, in the folder where driftd runs."""
    import subprocess

    import polars as pl

    recipe = Recipe.from_json(request)
    schema, limit = recipe.schema, recipe.memory_limit
    folder, model = Path(request["work_dir"]), Path(request["model"])
    rows = pl.read_parquet(request["train"])
    named = rows.select("ts", "label", *(pl.col(f.column).alias(f.name) for f in schema.features))
    named.write_parquet(folder / "command_train.parquet")
    (folder / "schema.json").write_text(json.dumps(schema.to_json()))
    env = dict(os.environ) | {
        "DRIFTD_TRAIN": str(folder / "command_train.parquet"),
        "DRIFTD_SCHEMA": str(folder / "schema.json"),
        "DRIFTD_PARAMETERS": json.dumps(dict(recipe.parameters)),
        "DRIFTD_SEED": str(recipe.seed),
        "DRIFTD_TIME_LIMIT": str(round(recipe.time_limit)),
        "DRIFTD_MODEL_OUT": str(model),
    }
    assert recipe.command is not None
    done = subprocess.run(
        recipe.command, env=env, cwd=request["cwd"], check=False, preexec_fn=lambda: _limit_memory(limit)
    )
    if done.returncode < 0:
        os.kill(os.getpid(), -done.returncode)
    if done.returncode == 0 and model.is_dir():  # what is in it is looked at by a scorer
        write_whole(Path(request["result"]), json.dumps({"status": "ok"}))
        return 0
    return done.returncode or 1


def _limit_memory(growth: int) -> None:
    """Limits private writable memory (RLIMIT_DATA) to what the libraries take plus `growth`. Not RLIMIT_AS: numpy,
    OpenBLAS and Arrow reserve gigabytes of addresses that they never touch."""
    used = 0
    status = Path("/proc/self/status")
    if status.exists():
        used = int(next(line for line in status.read_text().splitlines() if line.startswith("VmData")).split()[1])
    resource.setrlimit(resource.RLIMIT_DATA, (used * 1024 + growth, resource.RLIM_INFINITY))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
