"""Drives one job through its states, in its own process.

Invariant: every step can be repeated; a decision is recorded before its effects; a job process killed at any point is
followed by one that ends the same way, with one run, one version and one outcome. Only the holder of the lease
drives.
"""

from __future__ import annotations

import random
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog

from retrain.base.retry import Backoff, Retry, Stopped
from retrain.control.records import lease_owner
from retrain.control.store import Store
from retrain.data.snapshot import remove_rows
from retrain.isolation.forkserver import ForkServer
from retrain.job import steps
from retrain.job.context import CONTROL, MLFLOW, JobContext, Next
from retrain.scorer import Scorers
from retrain.terms.errors import JobFailed, LeaseLost, LostRace, TransientError
from retrain.terms.states import ON_TRIAL, JobState

LEASE = timedelta(seconds=60)
MOST_STARTS = 10
"""Processes started for one state; a job that takes its process down each time fails after so many."""
log = structlog.get_logger()
ENDED = frozenset({JobState.REJECTED, JobState.FAILED, JobState.WATCHED, JobState.ROLLED_BACK})
_ASKED_AGAIN = ON_TRIAL | {JobState.PROMOTED}
"""States in which what is away may stay away: the job is driven again later."""


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Limits:
    lease: timedelta = LEASE
    backoff: Backoff = field(default_factory=Backoff)


class Driver:
    """`checkpoint(name)` is called after each durable step (tests end the process there)."""

    def __init__(
        self,
        store: Store,
        *,
        environ: Mapping[str, str],
        stopping: threading.Event,
        clock: Callable[[], datetime] = utc_now,
        limits: Limits = Limits(),
        owner: str | None = None,
        server: ForkServer | None = None,
        checkpoint: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self._store = store
        self._environ = environ
        self._stopping = stopping
        self._clock = clock
        self._limits = limits
        self._owner = owner or lease_owner()
        self._server = server
        self._checkpoint = checkpoint

    def drive(self, job_id: str) -> JobState:
        """Goes as far as the job can go now and answers where it is: ended, waiting for approval or for rows, or where
        it was told to stop. Raises LeaseLost when another process drives it; any other exception has been recorded as
        the job's failure."""
        if not self._store.acquire(job_id, self._owner, self._clock(), self._limits.lease):
            self._store.get(job_id)  # raises UnknownJob
            raise LeaseLost(f"job {job_id}: another process holds its lease")
        try:
            with self._heartbeat(job_id):
                state = self._drive(job_id)
            self._store.update(job_id, self._owner, attempt=0)  # a process that ends well is no failed attempt
            return state
        finally:
            try:
                self._store.release(job_id, self._owner)
            except TransientError:
                log.warning("lease_not_released", job_id=job_id)  # it expires by itself

    def _drive(self, job_id: str) -> JobState:
        def on_waiting(text: str | None) -> None:
            self._store.update(job_id, self._owner, waiting=text)

        jitter = random.Random()  # noqa: S311 - spreads retries, guards nothing
        retry = Retry(self._limits.backoff, self._clock, self._stopping, on_waiting, jitter)
        spec = retry(CONTROL, lambda: self._store.get(job_id)).spec
        if spec.code and spec.code not in sys.path:
            sys.path.append(spec.code)  # gates and validations of the team's; last: it replaces no module of anybody's
        with (
            nullcontext(self._server) if self._server else ForkServer(self._environ) as server,
            Scorers(server, spec.trust, spec.scorer_limits, self._stopping) as scorers,
        ):
            while True:
                job = retry(CONTROL, lambda: self._store.get(job_id))
                if job.state in ENDED:
                    return job.state
                context = JobContext(
                    self._store,
                    job,
                    self._owner,
                    retry,
                    self._clock,
                    self._environ,
                    self._stopping,
                    self._checkpoint,
                    scorers,
                )
                try:
                    if (following := self._step(context)) is None:
                        return job.state
                    self._advance(context, following)
                except LostRace:
                    log.info("job_moved_by_other", job_id=job_id, state=job.state.value)
                except Stopped:
                    log.info("job_stopped", job_id=job_id, state=job.state.value)
                    return job.state

    def _step(self, context: JobContext) -> Next | None:
        """What follows; a bug or a broken set-up is put on record as the failure it is, then raised."""
        job = context.job
        if job.attempt > MOST_STARTS and job.state is not JobState.PROMOTED:
            text = f"gave up: {MOST_STARTS} processes ended in state {job.state} without finishing it"
            return Next(JobState.FAILED, text, text)
        try:
            return steps.run(context)
        except (LeaseLost, LostRace, Stopped):
            raise
        except JobFailed as exc:
            return Next(JobState.FAILED, str(exc), str(exc))
        except TransientError as exc:
            if job.state in _ASKED_AGAIN:
                return None
            text = f"gave up waiting after {self._limits.backoff.deadline}: {exc}"
            return Next(JobState.FAILED, text, text)
        except Exception as exc:
            if job.state is JobState.PROMOTED:
                raise
            text = traceback.format_exception_only(exc)[-1].strip()[:1000]
            self._advance(context, Next(JobState.FAILED, f"a bug or a broken set-up: {text}", text))
            raise

    def _advance(self, context: JobContext, following: Next) -> None:
        job = context.job
        try:
            steps.leave(context)
        except TransientError:  # what must be taken back stays with this state: asked again later
            log.warning("job_not_left", job_id=job.id, state=job.state.value)
            raise Stopped(MLFLOW) from None
        context.retry(
            CONTROL,
            lambda: self._store.advance(
                job.id,
                job.state,
                following.state,
                following.detail,
                self._clock(),
                owner=self._owner,
                error=following.error,
            ),
        )
        log.info("job_advanced", job_id=job.id, model=job.model, state=following.state.value, detail=following.detail)
        self._checkpoint(following.state.value)
        if following.state in ENDED:
            remove_rows(job.spec)

    @contextmanager
    def _heartbeat(self, job_id: str) -> Iterator[None]:
        done = threading.Event()

        def beat() -> None:
            while not done.wait(self._limits.lease.total_seconds() / 3):
                try:
                    if not self._store.renew(job_id, self._owner, self._clock(), self._limits.lease):
                        log.error("lease_lost", job_id=job_id)
                        self._stopping.set()
                        return
                except TransientError:
                    log.warning("lease_not_renewed", job_id=job_id)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
