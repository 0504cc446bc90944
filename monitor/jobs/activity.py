"""What has happened to each model, as one list: for the status page, Grafana's annotations and the metrics.

Invariant: read from the control database only; the same records always give the same list, newest first.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from monitor.base.kinds import ActivityKind
from monitor.decide.ledger import REQUESTED, Ledger
from monitor.rules.phases import Phase
from retrain.control.store import Store
from retrain.terms.states import JobState

_STATES = {
    JobState.SHADOW: ActivityKind.SHADOW,
    JobState.AWAITING_APPROVAL: ActivityKind.AWAITING_APPROVAL,
    JobState.CANARY: ActivityKind.CANARY,
    JobState.PROMOTED: ActivityKind.PROMOTED,
    JobState.REJECTED: ActivityKind.REJECTED,
    JobState.FAILED: ActivityKind.FAILED,
    JobState.ROLLED_BACK: ActivityKind.ROLLED_BACK,
}


@dataclass(frozen=True, slots=True)
class Activity:
    """`id` is unique and lasting; `at` is the wall time (aware UTC); `window_end` the event time where there is one."""

    id: str
    at: datetime
    model: str
    kind: ActivityKind
    text: str
    version: str = ""
    rule: str = ""
    job: str = ""
    window_end: datetime | None = None


def newest(ledger: Ledger, store: Store, model: str) -> dict[ActivityKind, datetime]:
    """When each kind happened last, however long ago; what never happened is absent."""
    fired, resolved = ledger.newest_transitions(model)
    requested, suppressed = ledger.newest_decisions(model)
    found = {
        ActivityKind.RULE_FIRED: fired,
        ActivityKind.RULE_RESOLVED: resolved,
        ActivityKind.RETRAIN_REQUESTED: requested,
        ActivityKind.RETRAIN_SUPPRESSED: suppressed,
        **{_STATES[state]: at for state, at in store.newest_states(model).items() if state in _STATES},
    }
    return {kind: at for kind, at in found.items() if at is not None}


def activities(ledger: Ledger, store: Store, model: str, limit: int = 200) -> list[Activity]:
    """The newest `limit` of each source (rules, decisions, jobs), newest first."""
    found: list[Activity] = []
    for t in ledger.transitions(model, limit):
        before, after = Phase(t["before"]), Phase(t["after"])
        if Phase.FIRING not in (before, after):
            continue
        fired = after is Phase.FIRING
        kind = ActivityKind.RULE_FIRED if fired else ActivityKind.RULE_RESOLVED
        text = f"{t['rule']} {'fires' if fired else 'resolved'}: {t['reason']}"
        found.append(
            Activity(f"transition-{t['id']}", t["recorded_at"], model, kind, text, t["version"], t["rule"],
                     window_end=t["at"])
        )  # fmt: skip
    for d in ledger.decisions(model, limit):
        rule, version = str(d.evidence.get("rule") or ""), str(d.evidence.get("version") or "")
        kind = ActivityKind.RETRAIN_REQUESTED if d.outcome == REQUESTED else ActivityKind.RETRAIN_SUPPRESSED
        end = datetime.fromisoformat(str(d.evidence["window_end"])) if d.evidence.get("window_end") else None
        found.append(
            Activity(
                f"decision-{d.id}", d.recorded_at, model, kind, d.to_words(), version, rule, d.request_id or "", end
            )
        )
    for number, job, step in store.recent_steps(model, limit):
        if step.to_state in _STATES:
            kind, text = _STATES[step.to_state], f"{step.to_state.value.replace('_', ' ')}: {step.detail}"
            version = str(job.result.get("version") or "")
            found.append(Activity(f"step-{number}", step.at, model, kind, text, version, job=job.id))
    return sorted(found, key=lambda a: (a.at, a.id), reverse=True)
