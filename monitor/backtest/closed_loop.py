"""The loop closed: requests train, gates decide, and the stream is scored again by the model in force.

Invariant: a model answers only rows that came after it was made, and is trained only on labels that had come by then.
Snapshot rule, trainer, contest and gates are those of a retrain job; what is left out is MLflow and the job's process.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from monitor.backtest.history import History, naive
from monitor.backtest.replay import Event, Replayed, Step, yardstick_on
from monitor.measure.yardstick import Yardstick
from monitor.plan import ModelPlan
from monitor.triggers import JobHistory
from retrain import contest
from retrain.evaluate import Side, score
from retrain.frame import features_frame
from retrain.gates import Reject, SmokeTest, decide
from retrain.model_files import LoadedModel, load_model
from retrain.outcomes import columns_of
from retrain.publish import reference_rows
from retrain.quality import measure
from retrain.request import RetrainRequest, TriggerKind
from retrain.schema import ModelSchema, Task
from retrain.snapshot import TooLittle, split
from retrain.spec import JobSpec
from retrain.trainer import TrainContext, Trained, run_trainer
from retrain.trainer_process import call_trainer
from retrain.watch import compare_watched

Array = np.ndarray[Any, Any]
FIRST = "1"


class CannotTrain(ValueError):
    """No first model can be made; the text says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """A model that was in force. `reference`: its holdout with what it said about it."""

    name: str
    model: LoadedModel
    reference: pl.DataFrame | None


@dataclass(frozen=True, slots=True)
class SimulatedJob:
    """A job that takes no time. `state`: promoted, rejected or rolled_back; `detail` says why."""

    at: datetime
    state: str
    detail: str
    version: str | None
    trained: bool = True


class Trainings:
    """Trains as a job would, each set of rows once: policies that train at the same time get the same model."""

    def __init__(self, plan: ModelPlan):
        self._plan = plan
        self._made: dict[tuple[int, ...], LoadedModel] = {}

    def spec(self, request: RetrainRequest, folder: str = "") -> JobSpec:
        return JobSpec(request, self._plan.schema, "", "", self._plan.registered_model, folder, self._plan.retrain)

    def fit(self, rows: pl.DataFrame, key: tuple[int, ...]) -> LoadedModel | str:
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

    def _run_command(self, rows: pl.DataFrame) -> LoadedModel | str:
        with tempfile.TemporaryDirectory() as folder:
            request = RetrainRequest("backtest", self._plan.model, TriggerKind.MANUAL, "", {}, datetime.now(UTC))
            spec = self.spec(request, folder)
            spec.job_dir.mkdir(parents=True)
            path = spec.job_dir / "train.parquet"
            rows.write_parquet(path)
            trained = run_trainer(spec, path, os.environ)
            return load_model(trained.model_dir) if isinstance(trained, Trained) else trained.message


class Serving:
    """The stream as it is answered by the models in force: rows for `Replay`, and what became of each request."""

    def __init__(self, plan: ModelPlan, history: History, trainings: Trainings, first: Version):
        self.plan = plan
        self.history = history
        self.trainings = trainings
        self.versions = {first.name: first}
        self.jobs: list[SimulatedJob] = []
        self._force = first.name
        self._previous: str | None = None
        self._watching = False
        self._last_name = int(first.name)
        self._served = 0
        numeric = plan.schema.task is Task.REGRESSION
        self._answers: Array = np.full(history.rows, np.nan) if numeric else np.empty(history.rows, dtype=object)
        self._scores: Array = np.full((history.rows, len(plan.schema.score_columns)), np.nan)
        self._by: Array = np.zeros(history.rows, dtype=np.int32)
        self._yardsticks: dict[str, Yardstick] = {}
        self._training = _training_rows(history, plan.schema)

    # -- rows

    def serve(self, until: datetime) -> None:
        """Answer everything that has come before `until` with the model in force."""
        last = int(np.searchsorted(self.history.times, naive(until)))
        if last <= self._served:
            return
        schema, version = self.plan.schema, self.versions[self._force]
        rows = self.history.slice(self._served, last)
        said = version.model.predictions(features_frame(rows, schema), schema)
        self._answers[self._served : last] = said.values
        if said.scores is not None:
            self._scores[self._served : last] = said.scores.reshape(len(rows), -1)
        self._by[self._served : last] = int(version.name)
        self._served = last

    def window(self, start: datetime, end: datetime) -> pl.DataFrame:
        self.serve(end)
        a, b = self.history.positions(start, end)
        return self._with_answers(self.history.slice(a, b), np.arange(a, b))

    def _with_answers(self, rows: pl.DataFrame, at: Array) -> pl.DataFrame:
        numeric = self.plan.schema.task is Task.REGRESSION
        answers = self._answers[at]
        columns = [
            pl.Series("prediction", answers if numeric else list(answers), dtype=None if numeric else pl.String),
            pl.Series("model_version", self._by[at].astype(str)),
        ]
        scores = self._scores[at]
        if scores.size and not np.isnan(scores).all():
            columns += [pl.Series(c, scores[:, n]) for n, c in enumerate(self.plan.schema.score_columns)]
        return rows.with_columns(columns)

    def yardstick(self, version: str) -> Yardstick | None:
        reference = self.versions[version].reference
        if version not in self._yardsticks and reference is not None:
            self._yardsticks[version] = yardstick_on(reference, f"holdout:{version}", self.plan)
        return self._yardsticks.get(version)

    def noted(self, event: Event) -> None:
        if event.step is Step.FINAL:
            self._watch(event.at)

    # -- jobs

    def labelled(self, at: datetime) -> tuple[pl.DataFrame, tuple[int, ...]]:
        """The newest labelled rows known at `at`, as a snapshot takes them, and what tells them from others."""
        config, schema = self.plan.retrain, self.plan.schema
        known = np.flatnonzero(self.history.label_times[: self._served] <= naive(at))[-config.max_rows :]
        rows = pl.DataFrame()
        if len(known):
            first, last = int(known[0]), int(known[-1]) + 1
            rows = self.history.slice(first, last)[known - first]
            rows = self._with_answers(rows, known)
        before = self._training.tail(max(0, config.max_rows - len(known)))
        rows = pl.concat([before, rows], how="diagonal_relaxed") if rows.height else before
        rows = rows.select(c for c in columns_of(schema) if c in rows.columns)
        if config.span is not None and rows.height:
            rows = rows.filter(pl.col("ts") > rows["ts"].max() - config.span)  # type: ignore[operator]
        key = (rows.height, len(known), int(known[-1]) if len(known) else -1)
        return rows, key

    def replace_now(self, at: datetime) -> None:
        """Train on all that is known and put it in force: plain retraining, without holdout or gates."""
        self.serve(at)
        rows, key = self.labelled(at)
        model = self.trainings.fit(rows, key)
        if isinstance(model, str):
            self.jobs.append(SimulatedJob(at, "rejected", model, None))
            return
        name = self._name()
        self.versions[name] = Version(name, model, None)
        self._force = name
        self.jobs.append(SimulatedJob(at, "promoted", "", name))

    def retrain(self, request: RetrainRequest, at: datetime) -> None:
        """A retrain job: snapshot, training, contest, gates, and promotion if it has earned it."""
        self.serve(at)
        self._watching = False
        rows, key = self.labelled(at)
        spec = self.trainings.spec(request)
        parts = split(rows, spec)
        if isinstance(parts, TooLittle):
            self.jobs.append(SimulatedJob(at, "rejected", parts.reason, None, trained=False))
            return
        train, holdout = parts
        model = self.trainings.fit(train, (*key, train.height))
        if isinstance(model, str):
            self.jobs.append(SimulatedJob(at, "rejected", model, None))
            return
        ours = score(model, holdout, spec.schema, source="challenger", inputs=model.inputs)
        decision, detail = self._contest(spec, holdout, ours)
        if not decision:
            self.jobs.append(SimulatedJob(at, "rejected", detail, None))
            return
        if spec.config.refit:
            again = self.trainings.fit(rows, key)
            model = model if isinstance(again, str) else again
        name = self._name()
        self.versions[name] = Version(name, model, reference_rows(holdout, ours, spec.schema))
        self._previous, self._force, self._watching = self._force, name, spec.config.watch_rows > 0
        self.jobs.append(SimulatedJob(at, "promoted", detail, name))

    def note(self, _request: RetrainRequest, at: datetime) -> None:
        """A job that is only imagined: it ends at once and leaves everything as it is."""
        self.jobs.append(SimulatedJob(at, "noted", "", None, trained=False))

    def _contest(self, spec: JobSpec, holdout: pl.DataFrame, ours: Side) -> tuple[bool, str]:
        champion = self.versions[self._force]
        theirs = score(
            champion.model, holdout, spec.schema, source=f"version {champion.name}", version=champion.name,
            inputs=champion.model.inputs,
        )  # fmt: skip
        theirs, ours = replace(theirs, seconds_per_row=None), replace(ours, seconds_per_row=None)  # no clock in here
        held = contest.hold_contest(spec, theirs, ours, holdout)
        decision = decide(held.gates, SmokeTest(True, "nothing is registered in a backtest"))
        if isinstance(decision, Reject):
            return False, "; ".join(decision.reasons)
        return True, held.gates[0].detail

    def _watch(self, at: datetime) -> None:
        """The promoted version against the one before it, on what it served; worse: that one is in force again."""
        if not self._watching or self._previous is None:
            return
        mine = np.flatnonzero(
            (self.history.label_times[: self._served] <= naive(at)) & (self._by[: self._served] == int(self._force))
        )
        config, schema = self.plan.retrain, self.plan.schema
        if len(mine) < config.watch_rows:
            return
        rows = self._with_answers(self.history.slice(int(mine[0]), int(mine[-1]) + 1)[mine - mine[0]], mine)
        frame = features_frame(rows, schema)
        sides = [self.versions[v].model.predictions(frame, schema) for v in (self._previous, self._force)]
        request = RetrainRequest("backtest", self.plan.model, TriggerKind.MANUAL, "", {}, at)
        verdict = compare_watched(self.trainings.spec(request), rows, *sides)
        self._watching = False
        if verdict.worse:
            self.serve(at)
            self._force = self._previous
            promoted = max(n for n, job in enumerate(self.jobs) if job.state == "promoted")
            self.jobs[promoted] = replace(self.jobs[promoted], state="rolled_back", detail=verdict.detail)

    def _name(self) -> str:
        self._last_name += 1
        return str(self._last_name)

    # -- what triggers are told

    def job_history(self, _model: str, since: datetime | None, now: datetime) -> JobHistory:
        """As `supervisor.job_history` reads it from the control database."""
        rejected = 0
        for job in reversed(self.jobs):
            if job.state != "rejected" or (since is not None and job.at < since):
                break
            rejected += 1
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        return JobHistory(
            last_ended_at=self.jobs[-1].at if self.jobs else None,
            last_ended_state=self.jobs[-1].state if self.jobs else None,
            started_today=sum(job.at >= midnight for job in self.jobs),
            rejected_in_a_row=rejected,
            champion=self._force,
            gained=next((j.state for j in reversed(self.jobs) if j.state != "rejected"), "") == "promoted",
        )

    # -- how good it was

    def performance(
        self, windows: Iterable[tuple[datetime, datetime]], metric: str
    ) -> tuple[float | None, list[float | None]]:
        """Of what was answered in `windows`, over all rows and per window, against the labels that ever came."""
        spans = list(windows)
        labels = self.history_labels()
        found, every = [], []
        for start, end in spans:
            self.serve(end)
            a, b = self.history.positions(start, end)
            known = np.arange(a, b)[[label is not None for label in labels[a:b]]]
            every.append(known)
            found.append(self._measure(known, labels, metric))
        return self._measure(np.concatenate(every) if every else np.array([], int), labels, metric), found

    def _measure(self, at: Array, labels: Array, metric: str) -> float | None:
        from retrain.quality import Predictions

        if not len(at):
            return None
        numeric = self.plan.schema.task is Task.REGRESSION
        scores = self._scores[at]
        given = None if not scores.size or np.isnan(scores).any() else scores
        if given is not None and self.plan.schema.task is Task.BINARY:
            given = given[:, 0]
        truth = labels[at].astype(float) if numeric else labels[at]
        return measure(metric, truth, Predictions(self._answers[at], given), self.plan.schema)

    def history_labels(self) -> Array:
        numeric = self.plan.schema.task is Task.REGRESSION
        column = pl.scan_parquet(self.history.path).select("label").collect()["label"]
        values = column.cast(pl.Float64 if numeric else pl.String).to_list()
        return np.array(values, dtype=object)

    def served_by(self, start: datetime, end: datetime) -> str:
        """The version that answered last in a window."""
        _, b = self.history.positions(start, end)
        return str(self._by[b - 1])


def first_version(plan: ModelPlan, history: History, trainings: Trainings) -> Version:
    """The model that serves in the beginning, trained on what lies before the stream; its reference is the newest 30 %
    of that, which it is judged on and, like a registered first model, not trained on."""
    training = _training_rows(history, plan.schema)
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


def _training_rows(history: History, schema: ModelSchema) -> pl.DataFrame:
    if history.training is None:
        return pl.DataFrame()
    return history.training.select(c for c in columns_of(schema) if c in history.training.columns)


@dataclass(slots=True)
class PolicyResult:
    """One way of deciding when to train, on the same rows as the others. `trainings` counts challengers too."""

    name: str
    trainings: int
    promoted: int
    performance: float | None
    windows: list[float | None] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    jobs: list[SimulatedJob] = field(default_factory=list)
    replayed: Replayed | None = None

    def to_json(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "trainings": self.trainings,
            "promoted": self.promoted,
            "performance": self.performance,
            "windows": self.windows,
            "versions": self.versions,
            "jobs": [
                {"at": j.at.isoformat(), "state": j.state, "detail": j.detail, "version": j.version} for j in self.jobs
            ],
        }


def result_of(name: str, serving: Serving, metric: str, replayed: Replayed | None = None) -> PolicyResult:
    windows = list(serving.history.windows(serving.plan.windows.size))
    overall, each = serving.performance(windows, metric)
    return PolicyResult(
        name=name,
        trainings=sum(job.trained for job in serving.jobs),
        promoted=sum(job.state == "promoted" for job in serving.jobs),
        performance=overall,
        windows=each,
        versions=[serving.served_by(*w) for w in windows],
        jobs=serving.jobs,
        replayed=replayed,
    )


def run_plain(name: str, serving: Serving, metric: str, wanted: Callable[[int], bool]) -> PolicyResult:
    """Plain retraining at the end of each window of which `wanted` (its number, from 0) is true."""
    windows = list(serving.history.windows(serving.plan.windows.size))
    for n, (_, end) in enumerate(windows[:-1]):
        if wanted(n):
            serving.replace_now(end + serving.plan.windows.lateness)
    return result_of(name, serving, metric)
