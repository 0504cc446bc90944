"""Firing rules x history -> RetrainRequest | Suppressed(reason): the policy that decides when to retrain.

Invariant: pure; the same facts give the same answer. Every call that finds a cause gives an answer to record:
a request, or why not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import takewhile
from typing import Any

from retrain.terms.request import RetrainRequest, TriggerKind


class SuppressReason(StrEnum):
    DISABLED = "disabled"
    PAUSED = "paused"
    MAINTENANCE = "maintenance"
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
    window: timedelta


@dataclass(frozen=True, slots=True)
class PastJob:
    """A job that has ended. `stands`: it was promoted and not rolled back; `no_better`: it ended with the verdict that
    there is nothing to gain; `gain`: how much better than the champion it was, in standard errors (None: not known)."""

    requested_at: datetime
    stands: bool
    no_better: bool = False
    gain: float | None = None
    follow_up: bool = False


@dataclass(frozen=True, slots=True)
class Requests:
    """When one model's requests were made, by the clock of its windows: `position` is the end of the newest window that
    rules have judged. `windows_ago`: how many windows ago the newest requests that the pace is for were made, newest
    first; `since_last`: the same of the newest request of all. None: not known."""

    position: datetime | None = None
    windows_ago: Sequence[float] = ()
    since_last: float | None = None


@dataclass(frozen=True, slots=True)
class JobHistory:
    """What is known of one model's jobs. Times are aware UTC wall time. `past`: the newest jobs that have ended, newest
    first. `paused` and `maintenance` say why the model must be left as it is, and until when; empty: it need not."""

    in_flight: str | None = None
    last_ended_at: datetime | None = None
    started_today: int = 0
    champion: str | None = None
    past: Sequence[PastJob] = ()
    requests: Requests = Requests()
    paused: str = ""
    maintenance: str = ""

    def without_gain(self, since: datetime | None) -> int:
        """Jobs since the last promotion that found nothing better; only of those requested since then. A job that ended
        for another reason says nothing of what the next one would find."""
        jobs = takewhile(lambda j: not j.stands and (since is None or j.requested_at >= since), self.past)
        return sum(job.no_better for job in jobs)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a retrain is wanted now. `occasion` makes the request's id: the same occasion never asks twice.

    `since`: of a rule, when it began to fire; jobs that failed before that do not speak against it. `windows_amiss`:
    for how many windows things have been amiss.
    """

    model: str
    trigger: TriggerKind
    occasion: str
    reason: str
    evidence: Mapping[str, Any]
    version: str | None = None
    since: datetime | None = None
    windows_amiss: float = 0.0


@dataclass(frozen=True, slots=True)
class Suppressed:
    """A retrain that was wanted and not asked for. `detail` is for people: "cooldown until 14:10"."""

    cause: Cause
    reason: SuppressReason
    detail: str


def decide(cause: Cause, policy: TriggerPolicy, history: JobHistory, now: datetime) -> RetrainRequest | Suppressed:
    """A request for `cause`, or the first reason against it.

    A person's request (MANUAL) passes everything but a job in flight and a pause, which is another person's word.
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


SAVED_AT_FIRST, SAVED_AT_MOST = 2, 5
"""Jobs that may follow each other without regard to the pace: a change that is still going on needs more than one."""
PACED = (TriggerKind.RULE, TriggerKind.FOLLOW_UP)
LOOK_BACK = 50
"""Jobs and requests that are looked back on."""
CLEAR_GAIN = 3.0
"""Standard errors: of two equal models one gains as much by chance in 1 of 700 contests."""
_ROUNDING = 1e-9


def jobs_saved(policy: TriggerPolicy, windows_ago: Sequence[float]) -> float:
    """How many jobs the pace allows now: each took one, and each `pace` windows give one back (a token bucket)."""
    saved, before = float(SAVED_AT_FIRST), None
    for ago in (*reversed(windows_ago), 0.0):
        if before is not None:
            saved = min(SAVED_AT_MOST, saved - 1 + (before - ago) / policy.pace)
        before = ago
    return saved


def follow_up_paced(policy: TriggerPolicy, requests: Requests) -> bool:
    """Whether the pace allows a follow-up now; one job is kept for a rule that fires."""
    if not policy.follow_up or requests.since_last is None or requests.since_last < policy.pace - _ROUNDING:
        return False
    return jobs_saved(policy, requests.windows_ago) >= 2 - _ROUNDING


def follow_up_due(policy: TriggerPolicy, history: JobHistory) -> bool:
    """A promotion has shown that there was something to gain: there may be more, as rows of the new world come in.

    One follow-up is due after each promotion that was asked for otherwise; more of them as long as one of the newest
    `stop_after_rejected` jobs has clearly gained.
    """
    if history.in_flight or not follow_up_paced(policy, history.requests):
        return False
    recent = [job for job in history.past[: policy.stop_after_rejected] if job.stands]
    first = bool(recent) and recent[0] is history.past[0] and not recent[0].follow_up
    return first or any((job.gain or 0.0) >= CLEAR_GAIN for job in recent)


def request_id(cause: Cause) -> str:
    text = "\x1f".join((cause.model, cause.trigger.value, cause.occasion))
    return f"{cause.model}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _against(
    cause: Cause, policy: TriggerPolicy, history: JobHistory, now: datetime
) -> tuple[SuppressReason, str] | None:
    if history.in_flight:
        return SuppressReason.JOB_IN_FLIGHT, f"job {history.in_flight} is under way"
    if history.paused:
        return SuppressReason.PAUSED, history.paused
    if cause.trigger is TriggerKind.MANUAL:
        return None
    if history.maintenance:
        return SuppressReason.MAINTENANCE, history.maintenance
    if not policy.enabled:
        return SuppressReason.DISABLED, "retrain.enabled is false"
    if cause.version and history.champion and cause.version != history.champion:
        return SuppressReason.SUPERSEDED, f"version {history.champion} has replaced version {cause.version}"
    without_gain, since_last = history.without_gain(cause.since), _since_last(policy, history, now)
    pause = policy.pace * policy.stop_after_rejected
    if without_gain >= policy.stop_after_rejected and since_last < pause - _ROUNDING:
        return (
            SuppressReason.TOO_MANY_REJECTED,
            f"{without_gain} jobs in a row found nothing better: look at them, then "
            f"`driftd retrain {cause.model}`; else {_when(policy, history.requests, now, pause - since_last)}",
        )
    if history.last_ended_at and now < (until := history.last_ended_at + policy.cooldown):
        return SuppressReason.COOLDOWN, f"cooldown until {until:%Y-%m-%d %H:%M} UTC"
    if cause.trigger is TriggerKind.RULE and without_gain:
        wait = min(policy.pace, max(1.0, cause.windows_amiss - since_last)) - since_last
        if wait > _ROUNDING:
            when = _when(policy, history.requests, now, wait)
            return SuppressReason.AWAITING_NEW_DATA, f"the last job gained nothing: with more rows, {when}"
    if cause.trigger in PACED and (missing := 1 - jobs_saved(policy, history.requests.windows_ago)) > _ROUNDING:
        when = _when(policy, history.requests, now, missing * policy.pace)
        return SuppressReason.PACE, f"one job in {policy.pace} windows (retrain.pace): {when}"
    if history.started_today >= policy.max_per_day:
        return (
            SuppressReason.BUDGET,
            f"{history.started_today} jobs today, max_per_day = {policy.max_per_day}",
        )
    return None


def _since_last(policy: TriggerPolicy, history: JobHistory, now: datetime) -> float:
    """Windows since the last request; by the wall clock where no rule judges windows."""
    if history.requests.since_last is not None:
        return history.requests.since_last
    return math.inf if history.last_ended_at is None else (now - history.last_ended_at) / policy.window


def _when(policy: TriggerPolicy, requests: Requests, now: datetime, windows: float) -> str:
    """The same text until the time has come: a refusal is recorded once."""
    if requests.position is None:
        return f"from {now + windows * policy.window:%Y-%m-%d %H:%M} UTC"
    at = requests.position + math.ceil(windows - _ROUNDING) * policy.window
    return f"with the window that ends {at:%Y-%m-%d %H:%M} UTC"
