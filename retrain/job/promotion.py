"""The second half of a job: from a passed challenger to a champion, and what becomes of it.

Invariant: a decision is on record before its effects; a promotion that has begun is completed, whatever holds the
model by then.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, assert_never

import structlog

from retrain.control.store import approval_due
from retrain.job.context import CONTROL, LAKE, MLFLOW, JobContext, Next, moved_meanwhile
from retrain.job.watch import compare_watched, watched_rows
from retrain.judge.evaluate import score
from retrain.models.model_files import UnusableModel
from retrain.models.registry import Conflict, Promoted
from retrain.terms.aliases import CHAMPION, PREVIOUS
from retrain.terms.states import JobState

log = structlog.get_logger()


def onward(job: JobContext) -> Next | None:
    """What follows a challenger that has passed the state it is in: the next state that the configuration asks for,
    promotion in the end; None while the model is held."""
    config, result, state = job.spec.config, job.result, job.job.state
    against = result["compared_with"]
    if state is JobState.EVALUATING and config.shadow is not None and against is not None:
        return Next(
            JobState.SHADOW, f"version {result['version']} passed every gate and is tried beside version {against}"
        )
    if state in (JobState.EVALUATING, JobState.SHADOW) and (asked := _why_ask(job)):
        return Next(JobState.AWAITING_APPROVAL, asked)
    if state is not JobState.CANARY and config.canary is not None and against is not None:
        if held := job.retry(CONTROL, job.why_held):
            job.wait(f"promotion waits: {held}")
            return None
        return Next(JobState.CANARY, f"version {result['version']} gets a share of the traffic of version {against}")
    return _promote(job, job.job.approved_by or "job")


def _why_ask(job: JobContext) -> str:
    """Why a person must agree, empty when none must."""
    config, gain, shadow = job.spec.config, job.result["gain"], job.result.get("shadow")
    if shadow is None:  # one that has passed was right about rows that nothing could know of when it was trained
        asking = [f"{g['name']}: {g['detail']}" for g in job.result["gates"] if g.get("asks") and not g["passed"]]
        if asking:
            return "; ".join(asking)
    close = gain is None or gain < config.close_call
    if config.approval == "auto" or (config.approval == "close_calls" and not close):
        return ""
    detail = f"version {job.result['version']} passed every gate"
    if gain is not None:
        detail += f"; it is better by {gain:.2g} standard errors, {config.close_call:g} would be clear"
    if shadow is not None:
        detail += f"; {shadow['detail']}"
    return detail


def await_approval(job: JobContext) -> Next | None:
    """A person agrees, or nobody does in time."""
    if job.job.approved_by is not None:
        return onward(job)
    if approval_due(job.job, job.clock()):
        return job.reject(f"nobody approved it within {job.spec.config.approval_timeout}")
    return None


def _promote(job: JobContext, actor: str) -> Next | None:
    name, version, compared = job.spec.registered_model, job.result["version"], job.result["compared_with"]
    if not job.result.get("promoting"):
        if text := job.retry(CONTROL, job.why_held):
            _wait_to_promote(job, text)
            return None
        job.save(promoting=True)
        job.checkpoint("promotion_begun")

    def move() -> Promoted | Conflict | str:
        """Completed if it has begun, whatever holds the model; a hold may also come while MLflow is away."""
        if (text := job.why_held()) and job.registry.resolve_alias(name, CHAMPION) != version:
            return text
        job.must_hold_lease()
        return job.registry.promote(name, version, compared)

    moved = job.retry(MLFLOW, move)
    if isinstance(moved, str):
        _wait_to_promote(job, moved)
        return None
    job.checkpoint("alias_moved")
    match moved:
        case Conflict(expected, found):
            log.warning("promotion_refused", job_id=job.job.id, model=job.job.model, champion=found)
            return job.reject(moved_meanwhile(expected, found))
        case Promoted(_, previous):
            job.record_alias(CHAMPION, version, previous, actor, job.spec.request.reason)
            if previous is not None:
                job.record_alias(PREVIOUS, previous, None, actor, f"version {version} was promoted")
            job.retry(MLFLOW, lambda: job.finish_run("promoted"))
            log.info("model_promoted", model=job.job.model, version=version, previous=previous)
            return Next(JobState.PROMOTED, f"version {version} replaces {previous or 'nothing'} as champion")
        case unreachable:
            assert_never(unreachable)


def _wait_to_promote(job: JobContext, held: str) -> None:
    job.save(promoting=False)
    job.wait(f"promotion waits: {held}")


def last_known_row(result: Mapping[str, Any]) -> str:
    """Event time of the newest row that the challenger was judged on: whatever is later is new to it."""
    return str(result["snapshot"]["holdout"]["last"])


def watch(job: JobContext) -> Next | None:
    """Is the new champion worse than the one before it, on what came in since? Then back."""
    spec, version, previous = job.spec, job.result["version"], job.result["compared_with"]
    if spec.config.watch_rows == 0 or previous is None:
        return Next(JobState.WATCHED, "not watched: " + ("no previous champion" if previous is None else "off"))
    serving = job.retry(MLFLOW, lambda: job.registry.resolve_alias(spec.registered_model, CHAMPION))
    if (text := job.result.get("rollback")) is not None:
        return _roll_back(job, text)
    if serving != version:
        return _overtaken(serving)
    since = datetime.fromisoformat(last_known_row(job.result)).date()
    rows = job.retry(LAKE, lambda: watched_rows(spec, version, since, job.storage_options))
    if len(rows) < spec.config.watch_rows:
        job.wait(f"watching: {len(rows)} of {spec.config.watch_rows} labelled rows")
        return None
    sides = []
    for name, of in (("previous", previous), ("champion", version)):
        try:
            with job.fetch_model(of, name) as model:
                sides.append(score(model, rows, spec.schema, source=name).predictions)
        except UnusableModel as exc:
            return Next(JobState.WATCHED, f"version {of} cannot be compared: {exc}"[:500])
    verdict = compare_watched(spec, rows, sides[0], sides[1])
    if verdict.worse:
        job.save(rollback=verdict.detail)
        return _roll_back(job, verdict.detail)
    return Next(JobState.WATCHED, verdict.detail)


def _overtaken(serving: str | None) -> Next:
    return Next(JobState.WATCHED, f"watching ended: the champion is version {serving or 'none'} by now")


def _roll_back(job: JobContext, reason: str) -> Next:
    """Unless somebody has moved the alias since it was looked at: theirs counts."""
    version, previous = job.result["version"], job.result["compared_with"]
    name = job.spec.registered_model

    def move() -> str | None:
        job.must_hold_lease()
        serving: str | None = job.registry.resolve_alias(name, CHAMPION)
        if serving in (version, previous):
            job.registry.set_alias(name, CHAMPION, previous)
            job.registry.set_alias(name, PREVIOUS, None)
            serving = previous
        return serving

    serving = job.retry(MLFLOW, move)
    if serving != previous:
        return _overtaken(serving)
    job.checkpoint("alias_moved_back")
    job.record_alias(CHAMPION, previous, version, "watch", reason)
    log.warning("model_rolled_back", model=job.job.model, version=previous, from_version=version, reason=reason)
    return Next(JobState.ROLLED_BACK, reason)
