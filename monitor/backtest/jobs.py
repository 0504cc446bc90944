"""Retrain jobs of simulated time: each takes no time at all.

Invariant: triggers are told of them as `supervisor.job_history` tells of those in the control database.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from monitor.rules.triggers import LOOK_BACK, JobHistory, PastJob
from retrain.terms.request import RetrainRequest


@dataclass(frozen=True, slots=True)
class SimulatedJob:
    """A job that takes no time. `state`: promoted, rejected, rolled_back or noted; `detail` says why; `gain` and
    `no_better` as in `PastJob`."""

    at: datetime
    state: str
    detail: str
    version: str | None
    trained: bool = True
    gain: float | None = None
    no_better: bool = False
    follow_up: bool = False


class SimulatedJobs:
    """All jobs of one run, oldest first."""

    def __init__(self) -> None:
        self._jobs: list[SimulatedJob] = []

    def __iter__(self) -> Iterator[SimulatedJob]:
        return iter(self._jobs)

    def add(self, job: SimulatedJob) -> None:
        self._jobs.append(job)

    def note(self, _request: RetrainRequest, at: datetime) -> None:
        """A job that is only imagined: it ends at once and leaves everything as it is."""
        self.add(SimulatedJob(at, "noted", "", None, trained=False))

    def roll_back(self, detail: str) -> None:
        """The newest promotion did not stand."""
        promoted = max(n for n, job in enumerate(self._jobs) if job.state == "promoted")
        self._jobs[promoted] = replace(self._jobs[promoted], state="rolled_back", detail=detail)

    def history(self, _model: str, now: datetime) -> JobHistory:
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        return JobHistory(
            last_ended_at=self._jobs[-1].at if self._jobs else None,
            started_today=sum(job.at >= midnight for job in self._jobs),
            past=[
                PastJob(
                    job.at,
                    stands=job.state == "promoted",
                    no_better=job.state == "rolled_back" or job.no_better,
                    gain=job.gain,
                    follow_up=job.follow_up,
                )
                for job in reversed(self._jobs[-LOOK_BACK:])
                if job.state != "noted"
            ],
        )
