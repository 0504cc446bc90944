"""The stream answered by the models in force, and what becomes of each retrain request.

Invariant: a model answers only rows that came after it was made, and is trained only on labels that had come by then.
Snapshot rule, contest and gates are those of a retrain job; what is left out is MLflow and the job's process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from monitor.backtest.history import History, naive
from monitor.backtest.jobs import SimulatedJob, SimulatedJobs
from monitor.backtest.replay import Event, Step, yardstick_on
from monitor.backtest.trainings import Trainings, Version, training_rows
from monitor.config.plan import ModelPlan
from monitor.measure.yardstick import Yardstick
from monitor.rules.triggers import JobHistory
from retrain.config.spec import JobSpec
from retrain.control.records import found_no_better
from retrain.data.frame import features_frame
from retrain.data.labelled_rows import columns_of
from retrain.data.snapshot import TooLittle, split
from retrain.job.publish import reference_rows
from retrain.job.watch import compare_watched
from retrain.judge.contest import Contest, hold_contest
from retrain.judge.evaluate import Side, score
from retrain.judge.gates import Reject, SmokeTest, decide
from retrain.models.quality import Predictions, measure
from retrain.terms.request import RetrainRequest, TriggerKind
from retrain.terms.schema import Task

Array = np.ndarray[Any, Any]


class Serving:
    """The stream as it is answered by the models in force: rows for `Replay`, and what became of each request."""

    def __init__(self, plan: ModelPlan, history: History, trainings: Trainings, first: Version):
        self.plan = plan
        self.history = history
        self.trainings = trainings
        self.versions = {first.name: first}
        self.jobs = SimulatedJobs()
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
        self._training = training_rows(history, plan.schema)

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
            self.jobs.add(SimulatedJob(at, "rejected", model, None))
            return
        name = self._name()
        self.versions[name] = Version(name, model, None)
        self._force = name
        self.jobs.add(SimulatedJob(at, "promoted", "", name))

    def retrain(self, request: RetrainRequest, at: datetime) -> None:
        """A retrain job: snapshot, training, contest, gates, and promotion if it has earned it."""
        self.serve(at)
        self._watching = False
        job = self._job(request, at)
        self.jobs.add(replace(job, follow_up=request.trigger is TriggerKind.FOLLOW_UP))

    def _job(self, request: RetrainRequest, at: datetime) -> SimulatedJob:
        rows, key = self.labelled(at)
        spec = self.trainings.spec(request)
        parts = split(rows, spec)
        if isinstance(parts, TooLittle):
            return SimulatedJob(at, "rejected", parts.reason, None, trained=False)
        train, holdout = parts
        model = self.trainings.fit(train, (*key, train.height))
        if isinstance(model, str):
            return SimulatedJob(at, "rejected", model, None)
        ours = score(model, holdout, spec.schema, source="challenger", inputs=model.inputs)
        held = self._contest(spec, train, holdout, ours)
        again = self.trainings.fit(rows, key) if spec.config.refit and held.passed else ""
        if isinstance(again, str):
            held = held.without_refit()
        else:
            model = again
        decision = decide(held.gates, SmokeTest(True, "nothing is registered in a backtest"))
        if isinstance(decision, Reject):
            no_better = any(found_no_better(g.to_json()) for g in decision.gates)
            reasons = "; ".join(decision.reasons)
            return SimulatedJob(at, "rejected", reasons, None, gain=held.gain, no_better=no_better)
        name = self._name()
        self.versions[name] = Version(name, model, reference_rows(holdout, ours, spec.schema))
        self._previous, self._force, self._watching = self._force, name, spec.config.watch_rows > 0
        return SimulatedJob(at, "promoted", held.gates[0].detail, name, gain=held.gain)

    def _contest(self, spec: JobSpec, train: pl.DataFrame, holdout: pl.DataFrame, ours: Side) -> Contest:
        champion = self.versions[self._force]
        theirs = score(
            champion.model, holdout, spec.schema, source=f"version {champion.name}", version=champion.name,
            inputs=champion.model.inputs,
        )  # fmt: skip
        return hold_contest(spec, theirs, ours, holdout, train)

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
            self.jobs.roll_back(verdict.detail)

    def _name(self) -> str:
        self._last_name += 1
        return str(self._last_name)

    @property
    def champion(self) -> str:
        """The version in force."""
        return self._force

    def job_history(self, model: str, now: datetime) -> JobHistory:
        return replace(self.jobs.history(model, now), champion=self._force)

    # -- how good it was

    def performance(
        self, windows: Iterable[tuple[datetime, datetime]], metric: str
    ) -> tuple[float | None, list[float | None]]:
        """Of what was answered in `windows`, over all rows and per window, against the labels that ever came."""
        spans = list(windows)
        labels = self.history.labels
        found, every = [], []
        for start, end in spans:
            self.serve(end)
            a, b = self.history.positions(start, end)
            known = np.arange(a, b)[[label is not None for label in labels[a:b]]]
            every.append(known)
            found.append(self._measure(known, labels, metric))
        return self._measure(np.concatenate(every) if every else np.array([], int), labels, metric), found

    def _measure(self, at: Array, labels: Array, metric: str) -> float | None:
        if not len(at):
            return None
        numeric = self.plan.schema.task is Task.REGRESSION
        scores = self._scores[at]
        given = None if not scores.size or np.isnan(scores).any() else scores
        if given is not None and self.plan.schema.task is Task.BINARY:
            given = given[:, 0]
        truth = labels[at].astype(float) if numeric else labels[at]
        return measure(metric, truth, Predictions(self._answers[at], given), self.plan.schema)

    def served_by(self, start: datetime, end: datetime) -> str:
        """The version that answered last in a window."""
        _, b = self.history.positions(start, end)
        return str(self._by[b - 1])
