"""`python -m retrain.remote --tracking-uri URI --run RUN --stage STAGE`: a training somewhere else than the job.

Takes rows and request from the job's MLflow run, trains as a job does on its own machine (own process group, limits),
and puts the model, the log and how it went into the run (`retrain.engines.handover`). Exit code 0 also for a trainer
that failed: that is a result. Anything else is trouble of this machine, and the training is tried again elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from retrain.config.recipe import Recipe
from retrain.engines.handover import FOLDER, Stage, lake_columns
from retrain.isolation.forkserver import ForkServer
from retrain.models.registry import Registry
from retrain.train.trainer import SEARCH, Trained, TrainingFailed, run_trainer


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m retrain.remote")
    parser.add_argument("--tracking-uri", default=os.environ.get("MLFLOW_TRACKING_URI"), help="of the job's run")
    parser.add_argument("--run", required=True, help="id of the job's run")
    parser.add_argument("--stage", type=Stage, choices=list(Stage), default=Stage.CHALLENGE)
    given = parser.parse_args(argv)
    if not given.tracking_uri:
        parser.error("--tracking-uri or MLFLOW_TRACKING_URI is needed")
    registry, below = Registry(given.tracking_uri), f"{FOLDER}/{given.stage}"
    with tempfile.TemporaryDirectory(prefix="driftd-") as scratch:
        folder = Path(scratch)
        came = registry.download(given.run, below, folder / "in")
        if came is None:
            parser.error(f"run {given.run} has no {below}")
        recipe = Recipe.from_json(json.loads((came / "request.json").read_text()))
        lake_columns(pl.read_parquet(came / "train.parquet"), recipe.schema).write_parquet(folder / "train.parquet")
        with ForkServer(os.environ) as server:
            trained = run_trainer(recipe, folder / "train.parquet", folder, server)
        _give_back(registry, given.run, below, folder, trained)
    return 0


def _give_back(registry: Registry, run_id: str, below: str, folder: Path, trained: Trained | TrainingFailed) -> None:
    """The result last: with it, all is there."""
    told = {"status": "ok"}
    if isinstance(trained, TrainingFailed):
        told = {"status": trained.kind.value, "message": trained.message}
        sys.stdout.write(f"{trained.message}\n")
    sys.stdout.write((folder / "trainer.log").read_text(errors="replace"))
    for name in ("trainer.log", SEARCH):
        if (folder / name).exists():
            registry.log_files(run_id, folder / name, below)
    if isinstance(trained, Trained):
        registry.log_files(run_id, trained.model_dir, f"{below}/model")
    (folder / "result.json").write_text(json.dumps(told))
    registry.log_files(run_id, folder / "result.json", below)


if __name__ == "__main__":
    sys.exit(main())
