"""Models of a closed loop: trained as a job would, each set of rows once.

Invariant: policies that train on the same rows get the same model; the trainer is called, or its command run, as in a
retrain job.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from monitor.backtest.history import History
from monitor.config.plan import ModelPlan
from retrain.config.spec import JobSpec, limits_of, recipe_of
from retrain.data.labelled_rows import columns_of
from retrain.isolation.forkserver import ForkServer
from retrain.job.publish import reference_rows
from retrain.judge.evaluate import score
from retrain.models.model_files import LoadedModel, UnusableModel
from retrain.scorer import Scorer, Scorers, Trust
from retrain.terms.request import RetrainRequest
from retrain.terms.schema import ModelSchema, Task
from retrain.train.trainer import TrainContext, Trained, run_trainer
from retrain.train.trainer_process import call_trainer

FIRST = "1"
Answering = LoadedModel | Scorer
"""A model of a trainer's that was called here, or of a command's in a scorer."""


class CannotTrain(ValueError):
    """No first model can be made; the text says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """A model that was in force. `reference`: its holdout with what it said about it."""

    name: str
    model: Answering
    reference: pl.DataFrame | None


class Trainings:
    """Trains as a job would, each set of rows once: policies that train at the same time get the same model."""

    def __init__(self, plan: ModelPlan):
        self._plan = plan
        self._made: dict[tuple[int, ...], Answering] = {}
        self._server = ForkServer(os.environ)
        self._scorers = Scorers(self._server, Trust(), limits_of(plan.retrain))

    def spec(self, request: RetrainRequest, folder: str = "") -> JobSpec:
        return JobSpec(request, self._plan.schema, "", "", self._plan.registered_model, folder, self._plan.retrain)

    def __enter__(self) -> Trainings:
        return self

    def __exit__(self, *_: object) -> None:
        """Models of a command are held open by processes, until then."""
        self._server.close()

    def fit(self, rows: pl.DataFrame, key: tuple[int, ...]) -> Answering | str:
        """A model of these rows, or why there is none. `key` tells sets of rows apart."""
        if key not in self._made:
            found = self._run_command(rows) if self._plan.retrain.command else self._call(rows)
            if isinstance(found, str):
                return found
            self._made[key] = found
        return self._made[key]

    def _call(self, rows: pl.DataFrame) -> LoadedModel | str:
        config, schema = self._plan.retrain, self._plan.schema
        if schema.task is not Task.REGRESSION and rows["label"].n_unique() < 2:
            return f"all {rows.height} training rows have the label {rows['label'][0]!r}"
        with tempfile.TemporaryDirectory() as folder:
            context = TrainContext(schema, config.seed, dict(config.parameters), Path(folder))
            try:
                estimator, _, _ = call_trainer(config.trainer, rows, context)
            except Exception as exc:  # noqa: BLE001 - the user's code: a failed job, not a failed backtest
                return f"the trainer raised {type(exc).__name__}: {exc}"[:300]
        return LoadedModel(estimator, {f.name: f.kind.value for f in schema.features})

    def _run_command(self, rows: pl.DataFrame) -> Answering | str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "train.parquet"
            rows.write_parquet(path)
            trained = run_trainer(recipe_of(self._plan.retrain, self._plan.schema), path, Path(folder), self._server)
            if not isinstance(trained, Trained):
                return trained.message
            try:
                return self._scorers.open(trained.model_dir, self._plan.schema)
            except UnusableModel as exc:
                return f"the command left a model that {exc}"


def first_version(plan: ModelPlan, history: History, trainings: Trainings) -> Version:
    """The model that serves in the beginning, trained on what lies before the stream; its reference is the newest 30 %
    of that, which it is judged on and, like a registered first model, not trained on."""
    training = training_rows(history, plan.schema)
    cut = int(training.height * 0.7)
    model = trainings.fit(training[:cut], (cut,)) if training.height else "there are no rows before the stream"
    if isinstance(model, str):
        raise CannotTrain(f"the first model cannot be trained: {model}")
    held = training[cut:]
    side = score(model, held, plan.schema, source="first")
    if plan.retrain.refit:
        again = trainings.fit(training, (training.height,))
        model = model if isinstance(again, str) else again
    return Version(FIRST, model, reference_rows(held, side, plan.schema))


def training_rows(history: History, schema: ModelSchema) -> pl.DataFrame:
    """Labelled rows from before the stream, in the columns of a snapshot."""
    if history.training is None:
        return pl.DataFrame()
    return history.training.select(c for c in columns_of(schema) if c in history.training.columns)
