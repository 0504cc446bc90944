"""Hands recorded requests to the job store and keeps one process going for every job that needs one.

Invariant: effects come after the record: a request is handed over only once it stands in the ledger, and handing it
over twice is handing it over once. Jobs run in their own session, so they outlive a restart of the daemon.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import structlog

from monitor.decide.ledger import Ledger
from monitor.metrics import Metrics
from monitor.rules.triggers import LOOK_BACK, JobHistory, PastJob
from retrain.config.settings import MaintenanceConfig
from retrain.config.spec import JobSpec
from retrain.control.holds import paused, told_to_job, why_held
from retrain.control.records import lease_owner
from retrain.control.store import UNSUCCESSFUL, Job, Store, SubmitOutcome
from retrain.isolation import HARMLESS
from retrain.terms.request import RetrainRequest, TriggerKind
from retrain.terms.states import IN_FLIGHT, ON_TRIAL, JobState

log = structlog.get_logger()

DRIVEN_ELSEWHERE = 3
"""Exit code of a job process that finds another one at work (see `retrain.__main__`)."""

SpecOf = Callable[[RetrainRequest], JobSpec]


class Supervisor:
    """Submits requests, starts job processes, notes their ends."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        spec_of: SpecOf,
        due: Callable[[Job, datetime], bool],
        control_url: str,
        environment: Mapping[str, str],
        log_folder: Path,
        metrics: Metrics,
    ):
        self._ledger = ledger
        self._store = store
        self._spec_of = spec_of
        self._due = due
        self._control_url = control_url
        self._environment = environment
        self._log_folder = log_folder
        self._metrics = metrics
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._not_before: dict[str, float] = {}

    def submit(self, now: datetime) -> None:
        """Hand over what is recorded and not yet handed over."""
        for request in self._ledger.undispatched():
            try:
                spec = self._spec_of(request)
            except KeyError:
                self._ledger.mark_dispatched(request, now, "dropped: the model is no longer configured")
                continue
            submission = self._store.submit(spec, now)
            note = ""
            if submission.outcome is SubmitOutcome.IN_FLIGHT:
                note = f"dropped: job {submission.job_id} is in flight"
            self._ledger.mark_dispatched(request, now, note)

    def supervise(self, now: datetime) -> None:
        """Reap ended processes, start one for each job without."""
        self.submit(now)
        self._reap(now)
        busy = set(self._processes)
        watched = self._store.list_jobs(states={JobState.PROMOTED}, limit=100)
        for job in (*self._store.drivable(now), *watched):
            free = job.id not in busy and now.timestamp() >= self._not_before.get(job.id, 0.0)
            if free and not self._held(job, now) and self._due(job, now):
                self._start(job, now)

    def _held(self, job: Job, now: datetime) -> bool:
        """Nothing is left to do but to promote, and the model must be left as it is."""
        if job.state not in IN_FLIGHT or job.result.get("decision") != "promote" or job.result.get("promoting"):
            return False
        if job.state in ON_TRIAL and not (job.result.get(job.state.value) or {}).get("passed"):
            return False
        return bool(why_held(self._store.engine, job.model, self._maintenance(job), now))

    def _maintenance(self, job: Job) -> Sequence[MaintenanceConfig]:
        """As it is in force now: the job may be from before a reload."""
        try:
            return self._spec_of(job.spec.request).config.maintenance
        except KeyError:  # the model is no longer configured
            return job.spec.config.maintenance

    def close(self) -> None:
        """Leave running jobs to themselves; the next daemon finds them by their lease."""
        self._processes.clear()

    def _start(self, job: Job, now: datetime) -> None:
        self._log_folder.mkdir(parents=True, exist_ok=True)
        path = self._log_folder / f"{job.id}.log"
        environment = {
            **os.environ,
            **self._environment,
            **told_to_job(self._maintenance(job)),
            "DRIFTD_CONTROL": self._control_url,
        }
        with path.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "retrain", "run", job.id, "--environment-on-stdin"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={name: os.environ[name] for name in HARMLESS if name in os.environ},
            )
        self._processes[job.id] = process
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as told:
            told.write(json.dumps(environment).encode())
        delay = min(300.0, 5.0 * 2 ** min(job.attempt, 10))
        self._not_before[job.id] = now.timestamp() + delay
        log.info("job_started", model=job.model, job=job.id, state=job.state.value, attempt=job.attempt + 1)

    def _reap(self, now: datetime) -> None:
        for job_id, process in list(self._processes.items()):
            code = process.poll()
            if code is None:
                continue
            del self._processes[job_id]
            if code == DRIVEN_ELSEWHERE:
                log.info("job_driven_elsewhere", job=job_id)
                continue
            self._metrics.job_process_exits.labels("ok" if code == 0 else "failed").inc()
            if code != 0:
                self._store.release(job_id, lease_owner(process.pid))  # its own, never that of another replica
                log.warning(
                    "job_process_failed", job=job_id, exit_code=code, log=str(self._log_folder / f"{job_id}.log")
                )


def serving_versions(store: Store, model: str) -> set[str]:
    """Versions that an alias points at, or lately did, and that of a job under way."""
    moves = store.champion_moves(model)[:1]
    found = {v for move in moves for v in (move.version, move.previous_version) if v is not None}
    job = store.last_job(model)
    version = job.result.get("version") if job is not None else None
    return found | ({str(version)} if version is not None else set())


def job_history(store: Store, model: str, now: datetime) -> JobHistory:
    """What triggers must know of a model's jobs."""
    in_flight = store.in_flight(model)
    ended = [job for job in store.list_jobs(model, limit=LOOK_BACK) if job.ended_at is not None]
    moves, pause = store.champion_moves(model), paused(store.engine, model, now)
    return JobHistory(
        in_flight=in_flight.id if in_flight else None,
        last_ended_at=max((job.ended_at for job in ended if job.ended_at), default=None),
        started_today=store.count_since(model, now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)),
        champion=moves[0].version if moves else None,
        past=[
            PastJob(
                requested_at=job.created_at,
                stands=job.state not in UNSUCCESSFUL,
                no_better=job.no_better,
                gain=job.result.get("gain"),
                follow_up=job.spec.request.trigger is TriggerKind.FOLLOW_UP,
            )
            for job in ended
        ],
        paused=pause.to_words() if pause else "",
    )
