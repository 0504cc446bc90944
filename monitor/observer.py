"""What the control database says of jobs and models, as metrics and log lines.

Invariant: reads only; what it exports can be derived again at any time, so a restart loses nothing.
"""

from __future__ import annotations

from collections.abc import Collection

import structlog

from monitor.activity import activities
from monitor.ledger import Ledger
from monitor.metrics import Metrics
from retrain.states import JobState
from retrain.store import Job, Store

log = structlog.get_logger()

_RECENT = 30


class Observer:
    """Call `observe` now and then."""

    def __init__(self, ledger: Ledger, store: Store, metrics: Metrics):
        self._ledger = ledger
        self._store = store
        self._metrics = metrics
        self._seen: dict[str, JobState] = {}

    def observe(self, models: Collection[str]) -> None:
        """Raises TransientError when the control database is away."""
        for model in models:
            jobs = self._store.list_jobs(model, limit=1000)
            self._count(model, jobs)
            self._last(model, jobs)
            self._champion(model, jobs)
            for job in reversed(jobs):
                self._log(job)
            for activity in reversed(activities(self._ledger, self._store, model, _RECENT)):
                self._metrics.activity_at.labels(model, activity.kind.value).set(activity.at.timestamp())

    def _count(self, model: str, jobs: list[Job]) -> None:
        for state in JobState:
            self._metrics.jobs.labels(model, state.value).set(sum(job.state is state for job in jobs))

    def _last(self, model: str, jobs: list[Job]) -> None:
        ended = next((job for job in jobs if job.ended_at is not None), None)
        if ended is not None and ended.ended_at is not None:
            self._metrics.job_seconds.labels(model).set((ended.ended_at - ended.created_at).total_seconds())
        judged = next((job for job in jobs if job.result.get("gates")), None)
        if judged is not None:
            self._metrics.gate_passed.remove_by_labels({"model": model})
            for gate in judged.result["gates"]:
                self._metrics.gate_passed.labels(model, gate["name"]).set(float(gate["passed"]))

    def _champion(self, model: str, jobs: list[Job]) -> None:
        moves = self._store.alias_moves(model, "champion")
        self._metrics.champion_info.remove_by_labels({"model": model})
        if moves and moves[0].version is not None:
            version = moves[0].version
            run = next((str(j.result.get("run_id") or "") for j in jobs if j.result.get("version") == version), "")
            self._metrics.champion_info.labels(model, version, run).set(1)

    def _log(self, job: Job) -> None:
        before = self._seen.get(job.id)
        if before is not job.state:
            self._seen[job.id] = job.state
            if before is not None:
                log.info("job_advanced", model=job.model, job=job.id, state=job.state.value, error=job.error)
