"""Firing rules x history -> RetrainRequest | Suppressed(reason): the policy that decides when to retrain.

Invariant: pure; the same facts give the same answer. Every call that finds a cause gives an answer to record:
a request, or why not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from retrain.request import RetrainRequest, TriggerKind


class SuppressReason(StrEnum):
    DISABLED = "disabled"
    JOB_IN_FLIGHT = "job_in_flight"
    SUPERSEDED = "superseded"
    COOLDOWN = "cooldown"
    AWAITING_NEW_DATA = "awaiting_new_data"
    BUDGET = "budget"
    PACE = "pace"
    TOO_MANY_REJECTED = "too_many_rejected"


@dataclass(frozen=True, slots=True)
class TriggerPolicy:
    enabled: bool
    cooldown: timedelta
    max_per_day: int
    pace: int
    follow_up: bool
    stop_after_rejected: int


@dataclass(frozen=True, slots=True)
class JobHistory:
    """What the control database knows of one model's jobs. Times are aware UTC wall time.

    `gained`: the last job that was not refused was promoted and stands. `windows_ago`: of the newest requests, how many
    windows ago each was made.
    """

    in_flight: str | None = None
    last_ended_at: datetime | None = None
    last_ended_state: str | None = None
    started_today: int = 0
    rejected_in_a_row: int = 0
    windows_since_last: int = 0
    champion: str | None = None
    gained: bool = False
    windows_ago: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a retrain is wanted now. `occasion` makes the request's id: the same occasion never asks twice."""

    model: str
    trigger: TriggerKind
    occasion: str
    reason: str
    evidence: Mapping[str, Any]
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Suppressed:
    """A retrain that was wanted and not asked for. `detail` is for people: "cooldown until 14:10"."""

    cause: Cause
    reason: SuppressReason
    detail: str


def decide(cause: Cause, policy: TriggerPolicy, history: JobHistory, now: datetime) -> RetrainRequest | Suppressed:
    """A request for `cause`, or the first reason against it.

    A person's request (MANUAL) passes everything but a job in flight.
    """
    if found := _against(cause, policy, history, now):
        return Suppressed(cause, *found)
    return RetrainRequest(
        id=request_id(cause),
        model=cause.model,
        trigger=cause.trigger,
        reason=cause.reason,
        evidence=cause.evidence,
        requested_at=now,
    )


BURST = 4
"""Jobs that may follow each other without regard to the pace: a change that is still going on needs more than one."""


def follow_up_due(policy: TriggerPolicy, history: JobHistory) -> bool:
    """A promotion has shown that there was something to gain: there may be more, as rows of the new world come in.

    Looked for every `pace` windows, until `stop_after_rejected` times in a row nothing was gained.
    """
    if not policy.follow_up or not history.gained or history.in_flight or not history.windows_ago:
        return False
    if history.rejected_in_a_row >= policy.stop_after_rejected or _recent(policy, history) >= BURST - 1:
        return False  # one is kept for a rule that fires
    return min(history.windows_ago) >= policy.pace


def _recent(policy: TriggerPolicy, history: JobHistory) -> int:
    """Jobs in the windows that the pace looks at."""
    return sum(ago < policy.pace * BURST for ago in history.windows_ago)


def request_id(cause: Cause) -> str:
    text = "\x1f".join((cause.model, cause.trigger.value, cause.occasion))
    return f"{cause.model}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _against(
    cause: Cause, policy: TriggerPolicy, history: JobHistory, now: datetime
) -> tuple[SuppressReason, str] | None:
    if history.in_flight:
        return SuppressReason.JOB_IN_FLIGHT, f"job {history.in_flight} is under way"
    if cause.trigger is TriggerKind.MANUAL:
        return None
    if not policy.enabled:
        return SuppressReason.DISABLED, "retrain.enabled is false"
    if cause.version and history.champion and cause.version != history.champion:
        return SuppressReason.SUPERSEDED, f"version {history.champion} has replaced version {cause.version}"
    if history.rejected_in_a_row >= policy.stop_after_rejected:
        return (
            SuppressReason.TOO_MANY_REJECTED,
            f"{history.rejected_in_a_row} jobs in a row ended without a promotion: look at them, then "
            f"`driftd retrain {cause.model}`",
        )
    if history.last_ended_at and now < (until := history.last_ended_at + policy.cooldown):
        return SuppressReason.COOLDOWN, f"cooldown until {until:%Y-%m-%d %H:%M} UTC"
    if cause.trigger is TriggerKind.RULE and history.rejected_in_a_row:
        needed = 2 ** (history.rejected_in_a_row - 1)
        if history.windows_since_last < needed:
            missing = needed - history.windows_since_last
            return (
                SuppressReason.AWAITING_NEW_DATA,
                f"the last challenger failed; {missing} more window(s) first",
            )
    within = policy.pace * BURST
    if cause.trigger in (TriggerKind.RULE, TriggerKind.FOLLOW_UP) and _recent(policy, history) >= BURST:
        return SuppressReason.PACE, f"{BURST} jobs in the last {within} windows, retrain.pace = {policy.pace}"
    if history.started_today >= policy.max_per_day:
        return (
            SuppressReason.BUDGET,
            f"{history.started_today} jobs today, max_per_day = {policy.max_per_day}",
        )
    return None
