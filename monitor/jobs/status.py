"""What driftd knows of each model, as data and in words: for the CLI, the HTTP API and the status page.

Invariant: reads the control database only, so it answers with the daemon stopped, and never writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from monitor.base.faults import Fault
from monitor.decide.ledger import REQUESTED, Decision, Ledger
from monitor.decide.units import recorded
from monitor.rules.phases import Phase
from retrain.config.settings import MaintenanceConfig
from retrain.control.holds import why_held
from retrain.control.store import AliasMove, Job, Store
from retrain.terms.states import IN_FLIGHT

FAULTS = 20
"""Faults of one model that are told."""


def statuses(
    models: Mapping[str, Sequence[MaintenanceConfig]], ledger: Ledger, store: Store, now: datetime
) -> dict[str, dict[str, Any]]:
    """`model_status` of each of `models`, which are given with their maintenance windows."""
    return {
        model: model_status(
            model,
            ledger,
            store,
            held=why_held(store.engine, model, maintenance, now),
            faults=recorded(store.engine, model),
        )
        for model, maintenance in models.items()
    }


def model_status(
    model: str,
    ledger: Ledger,
    store: Store,
    *,
    held: str = "",
    faults: Sequence[Fault] = (),
    decisions: int = 10,
) -> dict[str, Any]:
    """Rules, decisions and jobs of one model; JSON values only. `held`: see `retrain.control.holds.why_held`."""
    records = ledger.rule_records(model)
    jobs = store.list_jobs(model, limit=decisions)
    decided = ledger.decisions(model, decisions)
    moves = store.champion_moves(model)
    firing = [r for r in records.values() if r.state.phase is Phase.FIRING]
    return {
        "model": model,
        "champion": moves[0].version if moves else None,
        "state": "firing" if firing else "ok" if records else "no windows yet",
        "held": held or None,
        "faults": fault_lines(faults),
        "summary": summary(decided, jobs),
        "rules": [
            {
                "rule": r.rule,
                "version": r.version,
                "phase": r.state.phase.value,
                "verdict": r.verdict.value,
                "value": r.value,
                "window_end": r.state.at.isoformat() if r.state.at else None,
                "reason": r.reason,
            }
            for r in sorted(records.values(), key=lambda r: (r.version, r.rule))
        ],
        "decisions": [_decision(d) for d in decided],
        "transitions": [
            {**t, "at": t["at"].isoformat(), "recorded_at": t["recorded_at"].isoformat()}
            for t in ledger.transitions(model, 500)
        ],
        "jobs": [job_line(j) for j in jobs],
        "champions": champions(moves),
    }


def fault_lines(faults: Sequence[Fault]) -> list[dict[str, Any]]:
    """The newest of what has failed and not succeeded since, as data and in words."""
    return [{**fault.to_json(), "words": fault.to_words()} for fault in faults[:FAULTS]]


def champions(moves: Sequence[AliasMove]) -> list[dict[str, Any]]:
    """The newest moves of the alias, newest first."""
    return [{"version": m.version, "since": m.at.isoformat(), "by": m.actor, "reason": m.reason} for m in moves[:10]]


def summary(decisions: list[Decision], jobs: list[Job]) -> str:
    """The newest thing worth saying: "retraining: training since ..", "not retrained: cooldown until 14:10"."""
    running = next((j for j in jobs if j.state in IN_FLIGHT), None)
    if running is not None:
        waiting = f" ({running.waiting})" if running.waiting else ""
        return f"retraining: {running.state.value} since {_clock(running.updated_at)}{waiting}, job {running.id}"
    ended = jobs[0] if jobs else None
    newest = decisions[0] if decisions else None
    if newest is not None and newest.outcome != REQUESTED and (ended is None or newest.recorded_at > ended.updated_at):
        return newest.to_words()
    if ended is not None:
        why = f": {ended.error}" if ended.error else ""
        return f"last job {ended.id} {ended.state.value} at {_clock(ended.updated_at)}{why}"
    return 'never retrained: no rule with action = "retrain" has fired'


def _decision(d: Decision) -> dict[str, Any]:
    return {
        "at": d.recorded_at.isoformat(),
        "trigger": d.trigger,
        "outcome": d.outcome,
        "words": d.to_words(),
        "request": d.request_id,
        "evidence": dict(d.evidence),
    }


def job_line(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "state": job.state.value,
        "trigger": job.spec.request.trigger.value,
        "reason": job.spec.request.reason,
        "created_at": job.created_at.isoformat(),
        "updated_at": job.updated_at.isoformat(),
        "waiting": job.waiting,
        "error": job.error,
        "result": dict(job.result),
    }


def _clock(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
