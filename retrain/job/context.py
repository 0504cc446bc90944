"""What every step of a job works with: its record, its registry, its retries; and what every ending has to do.

Invariant: a step changes nothing but its own folder, MLflow and the job's result; the state itself is advanced by
`retrain.job.driver`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from retrain.base.retry import Retry
from retrain.config.spec import JobSpec
from retrain.control.audit import Entry
from retrain.control.holds import maintenance_of, why_held
from retrain.control.store import AliasMove, Job, Store
from retrain.job import publish
from retrain.job.card import card
from retrain.models.registry import Registry
from retrain.scorer import Scorer, Scorers
from retrain.terms.aliases import CHALLENGER, CHAMPION
from retrain.terms.errors import LeaseLost
from retrain.terms.states import JobState

MLFLOW, LAKE, CONTROL = "mlflow", "lake", "control database"


@dataclass(frozen=True, slots=True)
class Next:
    """The state to go to, and why."""

    state: JobState
    detail: str
    error: str | None = None


class JobContext:
    """One job in one state, driven by `owner`. `result` is what the job has found so far, saved with `save`."""

    def __init__(
        self,
        store: Store,
        job: Job,
        owner: str,
        retry: Retry,
        clock: Callable[[], datetime],
        environ: Mapping[str, str],
        stopping: threading.Event,
        checkpoint: Callable[[str], None],
        scorers: Scorers,
    ) -> None:
        self.store = store
        self.job = job
        self.spec: JobSpec = job.spec
        self.owner = owner
        self.retry = retry
        self.clock = clock
        self.environ = environ
        self.stopping = stopping
        self.checkpoint = checkpoint
        self.scorers = scorers
        self.registry = Registry(job.spec.tracking_uri)
        self.result: dict[str, Any] = dict(job.result)

    def open_model(self, folder: Path) -> Scorer:
        """The model in a directory. Raises UnusableModel."""
        return self.scorers.open(folder, self.spec.schema)

    def fetch_model(self, version: str, name: str) -> Scorer:
        """A version of the registry, its files in the folder `name` of the job. Raises UnusableModel."""
        registered, folder = self.spec.registered_model, self.spec.job_dir / name
        return self.open_model(self.retry(MLFLOW, lambda: self.registry.fetch_model(registered, version, folder)))

    @property
    def storage_options(self) -> dict[str, str]:
        return self.spec.open_storage_options(self.environ)

    def save(self, note: Entry | None = None, /, **values: Any) -> None:
        """Keep what was found, with `note` in the audit log in the same transaction."""
        self.result |= values
        result = json.loads(json.dumps(self.result, default=str))
        self.retry(CONTROL, lambda: self.store.update(self.job.id, self.owner, note=note, result=result))

    def wait(self, text: str) -> None:
        """Say what the job waits for."""
        self.retry(CONTROL, lambda: self.store.update(self.job.id, self.owner, waiting=text))

    def must_hold_lease(self) -> None:
        """Just before an effect outside: a process that was frozen may have been replaced. Raises LeaseLost."""
        if not self.store.holds(self.job.id, self.owner):
            raise LeaseLost(f"job {self.job.id}: another process holds its lease")

    def why_held(self) -> str:
        windows = maintenance_of(self.spec.config, self.environ)
        return why_held(self.store.engine, self.job.model, windows, self.clock())

    def record_alias(self, alias: str, version: str, previous: str | None, actor: str, reason: str) -> None:
        move = AliasMove(self.job.model, alias, version, previous, self.job.id, actor, self.clock(), reason)
        self.retry(CONTROL, lambda: self.store.record_alias(move))

    def champion_moved(self) -> str:
        """Why the comparison no longer holds, empty while the champion is the version it was made with."""
        name, expected = self.spec.registered_model, self.result["compared_with"]
        found = self.retry(MLFLOW, lambda: self.registry.resolve_alias(name, CHAMPION))
        return "" if found == expected else moved_meanwhile(expected, found)

    def reject(self, reason: str) -> Next:
        self.retry(MLFLOW, lambda: self.finish_run("rejected", reason))
        return Next(JobState.REJECTED, reason)

    def finish_run(self, decision: str, reason: str = "") -> None:
        """End the job's run in MLflow; a challenger that is not wanted loses its alias. Can be repeated."""
        name, version, run_id = self.spec.registered_model, self.result["version"], self.result["run_id"]
        tags = {"driftd.decision": decision, "driftd.decision_reason": reason}
        self.registry.log(run_id, at_ms=0, tags=tags)
        steps, moves = self.store.history(self.job.id), self.store.champion_moves(self.job.model)
        text = card(replace(self.job, result=self.result), steps, moves)
        publish.log_card(self.registry, run_id, self.spec.job_dir, text)
        self.registry.end_run(run_id)
        if version is not None:
            self.registry.tag_version(name, version, tags)
            if decision == "rejected" and self.registry.resolve_alias(name, CHALLENGER) == version:
                self.registry.set_alias(name, CHALLENGER, None)


def moved_meanwhile(expected: str | None, found: str | None) -> str:
    return f"the champion was moved meanwhile: compared with version {expected or 'none'}, now it is {found or 'none'}"
