"""What the store of jobs hands out.

Invariant: immutable pictures of rows; holding one says nothing about the state the job is in by now.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import RowMapping

from retrain.config.spec import JobSpec
from retrain.terms.states import JobState

_QUALITY = ("quality", "segment")
"""Gates that say how good a challenger is."""


class SubmitOutcome(StrEnum):
    CREATED = "created"
    EXISTING = "existing"
    IN_FLIGHT = "in_flight"


@dataclass(frozen=True, slots=True)
class Submission:
    """`job_id` is the created or existing job, or the other job of the model that is still in flight."""

    job_id: str
    outcome: SubmitOutcome


@dataclass(frozen=True, slots=True)
class Job:
    id: str
    model: str
    state: JobState
    spec: JobSpec
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None
    attempt: int
    lease_owner: str | None
    lease_until: datetime | None
    fingerprint: str | None
    waiting: str | None
    approved_by: str | None
    result: Mapping[str, Any]
    error: str | None

    @property
    def no_better(self) -> bool:
        """It ended with the verdict that its challenger is no better than the champion: all else that may end a job
        (its latency, a person, rows that were too few, a failure) says nothing of what another one would gain."""
        trials = [(self.result.get(name) or {}).get("gates", []) for name in ("shadow", "canary")]
        gates = [gate for judged in (self.result.get("gates", []), *trials) for gate in judged]
        rejected = self.state is JobState.REJECTED and any(map(found_no_better, gates))
        return rejected or self.state is JobState.ROLLED_BACK


def found_no_better(gate: Mapping[str, Any]) -> bool:
    """Whether a gate (`GateResult.to_json`) is a verdict on how good the challenger is; what could not be measured is
    none."""
    measured = gate["interval"] if gate["name"] == "quality" else gate["value"]
    return gate["name"] in _QUALITY and not gate["passed"] and measured is not None


def verdict(gate: Mapping[str, Any]) -> str:
    """Of a gate (`GateResult.to_json`), in words for people."""
    return "passed" if gate["passed"] else "asks" if gate.get("asks") else "FAILED"


@dataclass(frozen=True, slots=True)
class Step:
    from_state: JobState | None
    to_state: JobState
    at: datetime
    actor: str
    detail: str


@dataclass(frozen=True, slots=True)
class AliasMove:
    """One move of a registry alias; `version` None means that the alias was removed."""

    model: str
    alias: str
    version: str | None
    previous_version: str | None
    job_id: str | None
    actor: str
    at: datetime
    reason: str


def lease_owner(pid: int | None = None) -> str:
    """The name a job process on this host holds its lease by; a daemon that saw it die releases it by that."""
    return f"{socket.gethostname()}:{os.getpid() if pid is None else pid}"


def approval_due(job: Job, now: datetime) -> bool:
    """A waiting challenger was approved, or has waited `approval_timeout`."""
    return job.approved_by is not None or now >= job.updated_at + job.spec.config.approval_timeout


def job_of(row: RowMapping) -> Job:
    values = dict(row)
    values |= {
        "state": JobState(row["state"]),
        "spec": JobSpec.from_json(row["spec"]),
        "result": row["result"] or {},
    }
    return Job(**values)
