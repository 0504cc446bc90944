"""What the control database says of jobs and models, as metrics and log lines.

Invariant: reads only; what it exports can be derived again at any time, so a restart loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import structlog

from monitor.decide.ledger import Ledger
from monitor.jobs.activity import newest
from monitor.metrics import Metrics
from retrain.config.settings import MaintenanceConfig
from retrain.control.holds import why_held
from retrain.control.store import Job, Store
from retrain.terms.states import ON_TRIAL, JobState

log = structlog.get_logger()

_RECENT = 20
"""Jobs of a model that are looked at one by one."""


class Observer:
    """Call `observe` now and then."""

    def __init__(self, ledger: Ledger, store: Store, metrics: Metrics):
        self._ledger = ledger
        self._store = store
        self._metrics = metrics
        self._seen: dict[str, JobState] = {}

    def observe(self, models: Mapping[str, Sequence[MaintenanceConfig]], now: datetime) -> None:
        """`models`: with their maintenance windows. Raises TransientError when the control database is away."""
        counts = self._store.count_states()
        for model, maintenance in models.items():
            held = why_held(self._store.engine, model, maintenance, now)
            self._metrics.retraining_held.labels(model).set(float(bool(held)))
            for state in JobState:
                self._metrics.jobs.labels(model, state.value).set(counts.get((model, state), 0))
            for kind, at in newest(self._ledger, self._store, model).items():
                self._metrics.activity_at.labels(model, kind.value).set(at.timestamp())
            jobs = self._store.list_jobs(model, limit=_RECENT)
            self._last(model, jobs)
            self._champion(model)
            self._trial(model, jobs)
            for job in reversed(jobs):
                self._log(job)

    def _last(self, model: str, jobs: list[Job]) -> None:
        ended = next((job for job in jobs if job.ended_at is not None), None)
        if ended is not None and ended.ended_at is not None:
            self._metrics.job_seconds.labels(model).set((ended.ended_at - ended.created_at).total_seconds())
        judged = next((job for job in jobs if job.result.get("gates")), None)
        gates = {g["name"]: float(g["passed"]) for g in judged.result["gates"]} if judged is not None else {}
        self._metrics.set_gates(model, gates)

    def _trial(self, model: str, jobs: list[Job]) -> None:
        on_trial = next((job for job in jobs if job.state in ON_TRIAL), None)
        trial = (on_trial.result.get(on_trial.state.value) or {}) if on_trial is not None else {}
        self._metrics.challenger_traffic.labels(model).set(trial.get("share", 0.0))
        self._metrics.trial_rows.labels(model).set(trial.get("rows", 0))
        self._metrics.trial_rows_needed.labels(model).set(trial.get("needed", 0))

    def _champion(self, model: str) -> None:
        moves = self._store.champion_moves(model)
        if not moves or moves[0].version is None:
            self._metrics.set_champion(model, None, "")
            return
        version = moves[0].version
        made_by = next((m.job_id for m in moves if m.version == version and m.job_id is not None), None)
        job = self._store.find(made_by) if made_by is not None else None
        self._metrics.set_champion(model, version, str(job.result.get("run_id") or "") if job else "")

    def _log(self, job: Job) -> None:
        before = self._seen.get(job.id)
        if before is not job.state:
            self._seen[job.id] = job.state
            if before is not None:
                log.info("job_advanced", model=job.model, job=job.id, state=job.state.value, error=job.error)
