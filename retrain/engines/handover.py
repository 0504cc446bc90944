"""What lies in the job's MLflow run while somebody else trains: the rows going out, the model coming back.

Invariant: everything is below `handover/STAGE/` of the run, so a training elsewhere needs the tracking server, the
run's id and the stage, and nothing of this machine; each side can repeat its part. Rows are taken out of the run
again once the model is back.

The contract, for whoever trains, below `handover/STAGE/`::

    train.parquet   in: one column per feature, `label`, `ts`
    request.json    in: the recipe (`retrain.config.recipe`), job, model
    model/          out: an MLflow model, scikit-learn flavour in the skops format, with a signature
    result.json     out, optional: {"status": "ok" or a `FailureKind`, "message": ".."}
    trainer.log     out, optional: what was printed
    search.json     out, optional: what a search for hyperparameters has found

STAGE is `challenge` (the holdout is not in the rows) or `refit` (all rows). `python -m retrain.remote` does all of
it.
"""

from __future__ import annotations

import json
import shutil
from enum import StrEnum
from pathlib import Path

import polars as pl

from retrain.base.files import write_whole
from retrain.config.recipe import Recipe
from retrain.config.spec import JobSpec
from retrain.models.registry import Registry
from retrain.scorer import Scorers
from retrain.terms.request import RetrainRequest
from retrain.terms.schema import ModelSchema
from retrain.train.trainer import RESULT, SEARCH, FailureKind, Trained, TrainingFailed, why_unusable

FOLDER = "handover"


class Stage(StrEnum):
    CHALLENGE = "challenge"
    REFIT = "refit"


def hand_over(
    registry: Registry, run_id: str, request: RetrainRequest, recipe: Recipe, rows: Path, stage: Stage, folder: Path
) -> None:
    """Rows (lake columns) and request into the run. Raises TransientError."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    named_columns(pl.read_parquet(rows), recipe.schema).write_parquet(out / "train.parquet")
    told = recipe.to_json() | {"job": request.id, "model": request.model}
    (out / "request.json").write_text(json.dumps(told, indent=2))
    registry.log_files(run_id, out, f"{FOLDER}/{stage}")
    shutil.rmtree(out)


def named_columns(rows: pl.DataFrame, schema: ModelSchema) -> pl.DataFrame:
    """Lake columns -> bare feature names, `label`, `ts`."""
    return rows.select("ts", "label", *(pl.col(f.column).alias(f.name) for f in schema.features))


def lake_columns(rows: pl.DataFrame, schema: ModelSchema) -> pl.DataFrame:
    """The way back."""
    return rows.select("ts", "label", *(pl.col(f.name).alias(f.column) for f in schema.features))


def take_back(
    registry: Registry,
    scorers: Scorers,
    run_id: str,
    spec: JobSpec,
    rows: Path,
    stage: Stage,
    folder: Path,
    seconds: float,
) -> Trained | TrainingFailed:
    """The model into `folder/model`, as a training here leaves it. Raises TransientError."""
    scratch = folder / "back"
    shutil.rmtree(scratch, ignore_errors=True)
    back = registry.download(run_id, f"{FOLDER}/{stage}", scratch)
    if back is None:
        return TrainingFailed(FailureKind.NONSENSE, f"nothing lies below {FOLDER}/{stage} of run {run_id}")
    result = _result(back)
    for name in ("trainer.log", SEARCH):
        if (back / name).exists():
            shutil.copy(back / name, folder / name)
    if (status := result.get("status", "ok")) != "ok":
        kind = FailureKind(status) if status in set(FailureKind) else FailureKind.CRASHED
        if kind is FailureKind.STOPPED:  # not by this job, which would go on with it for ever
            kind = FailureKind.CRASHED
        return TrainingFailed(kind, str(result.get("message", status)))
    if not (back / "model").is_dir():
        told = f"it ended well and left no model below {FOLDER}/{stage}/model of run {run_id}"
        return TrainingFailed(FailureKind.NONSENSE, told)
    if (problem := why_unusable(scorers, back / "model", rows, spec.schema)) is not None:
        return TrainingFailed(FailureKind.NONSENSE, f"the model that came back: {problem}")
    shutil.rmtree(folder / "model", ignore_errors=True)
    (back / "model").rename(folder / "model")
    shutil.rmtree(scratch, ignore_errors=True)
    remove_handed_over(registry, run_id, stage)
    write_whole(folder / RESULT, json.dumps({"status": "ok"}))
    return Trained(folder / "model", seconds)


def remove_handed_over(registry: Registry, run_id: str, stage: Stage) -> None:
    """The rows, out of the run again. Raises TransientError."""
    registry.delete_files(run_id, f"{FOLDER}/{stage}/train.parquet")


def _result(back: Path) -> dict[str, str]:
    path = back / "result.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}
