"""Whether a registered version can be served: a process that knows nothing of the job fetches it and scores rows.

Invariant: the process gets what a service gets (registry and artifact store, their credentials), and neither the job's
memory nor its files; whatever the model does there (crashes, hangs), the answer is a `SmokeTest`.

`python -m retrain.servability request.json` is that process. Exit code 0: it has written its answer; AWAY: the
registry could not be reached.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from retrain.errors import TransientError
from retrain.evaluate import Side
from retrain.files import write_whole
from retrain.gates import SmokeTest
from retrain.isolation import Cut, child_environment, die_with_parent, run_apart
from retrain.model_files import UnusableModel, trusted_for
from retrain.retry import Stopped
from retrain.schema import ModelSchema, Task
from retrain.spec import JobSpec

ROWS = 50
SECONDS = 300.0
AWAY = 75
"""EX_TEMPFAIL of sysexits.h."""
_STORES = ("MLFLOW_", "AWS_", "AZURE_", "GOOGLE_")
"""Prefixes of the variables by which MLflow's client finds the registry and the artifact store, and is let in."""


def smoke_test(
    spec: JobSpec,
    version: str,
    holdout: pl.DataFrame,
    side: Side,
    environ: Mapping[str, str],
    stopping: threading.Event | None = None,
    seconds: float = SECONDS,
) -> SmokeTest:
    """Expects the predictions of the evaluation from the version as the registry hands it out. Raises TransientError
    when the registry is away, Stopped."""
    folder, rows = (spec.job_dir / "smoke").absolute(), holdout.head(ROWS)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows.write_parquet(folder / "rows.parquet")
    request = {
        "tracking_uri": spec.tracking_uri,
        "name": spec.registered_model,
        "version": version,
        "trusted": trusted_for(spec.config),
        "schema": spec.schema.to_json(),
    }
    (folder / "request.json").write_text(json.dumps(request))
    stores = [name for name in environ if name.startswith(_STORES)]
    env = child_environment((*stores, *spec.config.environment), environ, folder)
    command = [sys.executable, "-m", "retrain.servability", str(folder / "request.json")]
    ended = run_apart(command, env, folder / "log", time.monotonic() + seconds, stopping)
    last = (ended.tail.strip().splitlines() or ["nothing was printed"])[-1]
    match ended.cut:
        case Cut.STOPPED:
            raise Stopped("the smoke test was cut short because the job was asked to end")
        case Cut.TIME:
            return SmokeTest(False, f"version {version} had not answered after {seconds:g} s")
        case None if ended.code == AWAY:
            raise TransientError(last)
        case None if ended.code != 0:
            return SmokeTest(False, f"version {version} took its process down (exit code {ended.code}): {last[:300]}")
    answer = json.loads((folder / "answer.json").read_text())
    if "refused" in answer:
        return SmokeTest(False, f"version {version} {answer['refused']}")
    return _compared(version, answer, side, spec.schema, len(rows))


def _compared(version: str, answer: Mapping[str, Any], side: Side, schema: ModelSchema, rows: int) -> SmokeTest:
    expected = side.predictions.values[:rows]
    if schema.task is Task.REGRESSION:
        same = np.allclose(np.array(answer["predictions"], dtype=float), expected, rtol=1e-6, atol=1e-9)
    else:
        same = answer["predictions"] == [str(v) for v in expected]
    if not same:
        return SmokeTest(False, f"version {version} predicts otherwise than the model that was evaluated")
    took = f"{answer['seconds']:.1f} s"
    return SmokeTest(True, f"a clean process fetched version {version}, loaded it and scored {rows} rows in {took}")


def main(argv: Sequence[str]) -> int:
    die_with_parent()
    path = Path(argv[1])
    os.chdir(path.parent)
    answer = path.with_name("answer.json")
    try:
        write_whole(answer, json.dumps(_serve(json.loads(path.read_text()), path.parent)))
    except TransientError as exc:
        sys.stdout.write(f"{exc}\n".replace("\n", " ").strip() + "\n")
        return AWAY
    return 0


def _serve(request: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    importlib.import_module("skops.io")  # first: it looks its types up in every module that it finds loaded
    from retrain.frame import features_frame
    from retrain.registry import Registry

    rows, schema = pl.read_parquet(folder / "rows.parquet"), ModelSchema.from_json(request["schema"])
    registry, started = Registry(request["tracking_uri"]), time.monotonic()
    try:
        name, version, trusted = request["name"], request["version"], tuple(request["trusted"])
        model = registry.fetch_model(name, version, folder / "model", trusted)
    except UnusableModel as exc:
        return {"refused": str(exc)}
    try:
        found = model.predictions(features_frame(rows, schema), schema).values
    except Exception as exc:  # noqa: BLE001 - the model's own code
        return {"refused": f"raised when it was asked: {type(exc).__name__}: {exc}"[:500]}
    plain = [float(v) if schema.task is Task.REGRESSION else str(v) for v in found]
    return {"predictions": plain, "seconds": time.monotonic() - started}


if __name__ == "__main__":
    sys.exit(main(sys.argv))
