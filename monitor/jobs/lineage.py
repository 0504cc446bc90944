"""Which version served at a moment, why it came, on what data, who agreed, and how to get back to it.

Invariant: reads the control database only, so it answers with the daemon stopped, and never writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from retrain.control.records import AliasMove, Job, Step, verdict
from retrain.control.store import Store


def serving_at(store: Store, model: str, at: datetime) -> dict[str, Any] | None:
    """JSON values only; None when driftd knows of no champion at that time. `until` and `replaced_by` are null while
    the version still is the champion; `job` is null where no job of driftd made it champion."""
    moves = store.champion_moves(model)  # newest first
    found = next((n for n, move in enumerate(moves) if move.at <= at), None)
    if found is None:
        return None
    move, after = moves[found], moves[found - 1] if found else None
    came = next((m for m in moves[found:] if m.version == move.version and m.job_id is not None), None)
    job = store.find(came.job_id) if came is not None and came.job_id is not None else None
    return {
        "model": model,
        "at": _iso(at),
        "version": move.version,
        "since": _iso(move.at),
        "by": move.actor,
        "reason": move.reason,
        "replaced": move.previous_version,
        "until": None if after is None else _iso(after.at),
        "replaced_by": None if after is None else _replaced_by(after),
        "job": None if job is None else _job(job, store.history(job.id)),
        "way_back": _way_back(model, move, moves[0]),
    }


def _replaced_by(move: AliasMove) -> dict[str, Any]:
    return {"version": move.version, "by": move.actor, "reason": move.reason}


def _job(job: Job, steps: list[Step]) -> dict[str, Any]:
    request, result = job.spec.request, job.result
    return {
        "id": job.id,
        "state": job.state.value,
        "trigger": request.trigger.value,
        "reason": request.reason,
        "evidence": dict(request.evidence),
        "requested_at": _iso(request.requested_at),
        "approval": job.spec.config.approval,
        "approved_by": job.approved_by,
        "snapshot": result.get("snapshot"),
        "compared_with": result.get("compared_with"),
        "gates": result.get("gates", []),
        "run": result.get("run_id"),
        "refit": result.get("refit", False),
        "steps": [{"at": _iso(s.at), "to": s.to_state.value, "by": s.actor, "detail": s.detail} for s in steps],
    }


def _way_back(model: str, move: AliasMove, newest: AliasMove) -> str:
    """In words: back to this version if it was replaced, else back to the one before it."""
    if newest.version == move.version:
        if move.previous_version is None:
            return "it is the champion, and no version was before it"
        return f"it is the champion; `driftd rollback {model} --to {move.previous_version}` leads to the one before it"
    return f"`driftd rollback {model} --to {move.version}` makes it the champion again"


def to_words(found: Mapping[str, Any]) -> Iterator[str]:
    """The same as lines for a terminal."""
    yield f"{found['model']} at {_clock(found['at'])}: version {found['version']}"
    until = f"until {_clock(found['until'])}" if found["until"] else "and still is"
    yield f"  champion   since {_clock(found['since'])} {until}"
    yield f"  why        {found['reason']}"
    yield f"  moved by   {found['by']}" + (f", in place of version {found['replaced']}" if found["replaced"] else "")
    if (job := found["job"]) is not None:
        yield from _job_in_words(job)
    if (after := found["replaced_by"]) is not None:
        yield f"  then       version {after['version']}, by {after['by']}: {after['reason']}"
    yield f"  back       {found['way_back']}"


def _job_in_words(job: Mapping[str, Any]) -> Iterator[str]:
    yield f"  asked for  {_clock(job['requested_at'])} by {job['trigger']}, job {job['id']}"
    if (data := job["snapshot"]) is not None:
        train, holdout = data["train"], data["holdout"]
        yield f"  data       version {data['delta_version']} of {data['outcomes']}"
        yield f"             {train['rows']} training rows, {train['first']} to {train['last']}"
        yield f"             {holdout['rows']} holdout rows, {holdout['first']} to {holdout['last']}"
        yield f"             sha256 of the rows {data['rows_digest']}"
        yield f"  code       commit {data.get('git_commit') or 'unknown'}, digest {data['code_digest']}"
        yield f"  settings   digest {data['config_digest']}"
    for gate in job["gates"]:
        yield f"  gate       {verdict(gate)} {gate['name']}: {gate['detail']}"
    agreed = f"approved by {job['approved_by']}" if job["approved_by"] else f"nobody was asked: {job['approval']}"
    yield f"  agreed     {agreed}"
    if job["run"]:
        yield f"  run        {job['run']} in MLflow"


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat()


def _clock(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S} UTC"
