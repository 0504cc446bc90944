"""What a backtest found, as one JSON document: the stable form that tables, the page and other programs read.

Invariant: JSON values only, times as ISO 8601 in UTC; keys are added, never renamed, within one `format`.
docs/backtest.md describes every key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from monitor.backtest.history import History
from monitor.backtest.policies import PolicyResult, share_of_the_way
from monitor.backtest.replay import Replayed
from monitor.config.plan import ModelPlan
from monitor.decide.ledger import REQUESTED
from monitor.measure.performance.scores import SCORES
from monitor.rules.phases import Phase

FORMAT = "driftd-backtest/1"


@dataclass(frozen=True, slots=True)
class Run:
    """One configuration: its name, what was swept in it, and what it did."""

    name: str
    swept: Mapping[str, Any]
    plan: ModelPlan
    replayed: Replayed


def document(
    history: History,
    plan: ModelPlan,
    runs: Sequence[Run],
    changes: Sequence[datetime],
    closed: Sequence[PolicyResult] = (),
) -> dict[str, Any]:
    """`runs`: one entry per configuration; `closed`: one per policy."""
    metric, size = plan.metrics[0], plan.windows.size
    return {
        "format": FORMAT,
        "history": {
            "source": history.source,
            "model": history.schema.model,
            "task": history.schema.task.value,
            "features": len(history.schema.features),
            "rows": history.rows,
            "labelled": history.labelled,
            "first": history.first.isoformat(),
            "last": history.last.isoformat(),
            "window_seconds": size.total_seconds(),
            "metric": metric,
            "better": SCORES[metric].better.value,
            "changes": [c.isoformat() for c in changes],
        },
        "runs": [_run(run, changes, size) for run in runs],
        "closed_loop": _closed_loop(history, plan, closed) if closed else None,
    }


def _run(run: Run, changes: Sequence[datetime], size: timedelta) -> dict[str, Any]:
    found, plan = run.replayed, run.plan
    outcomes = Counter(d.outcome for d in found.decisions)
    requested = outcomes.pop(REQUESTED, 0)
    measured = len(found.windows)
    return {
        "name": run.name,
        "settings": dict(run.swept),
        "windows": {"measured": measured, "final": sum(w.final_at is not None for w in found.windows)},
        "rules": [_rule(rule, found, measured) for rule in plan.rules],
        "retrains": {
            "requested": requested,
            "per_1000_windows": _per_thousand(requested, measured),
            "suppressed": dict(sorted(outcomes.items())),
        },
        "detection": [_detection(c, plan, found, changes, size) for c in changes],
        "transitions": [
            {
                "at": at.isoformat(),
                "window_end": key.end.isoformat(),
                "version": key.version,
                "rule": t.rule,
                "before": t.before.value,
                "after": t.after.value,
                "reason": t.reason,
            }
            for at, key, t in found.transitions
        ],
        "decisions": [
            {
                "at": d.recorded_at.isoformat(),
                "outcome": d.outcome,
                "trigger": d.trigger,
                "cause": d.cause,
                "detail": d.detail,
                "words": d.to_words(),
            }
            for d in found.decisions
        ],
        "measured": [
            {
                "window_end": w.key.end.isoformat(),
                "version": w.key.version,
                "rows": w.rows,
                "labelled": w.labelled,
                "performance": w.performance,
                "lower": w.lower,
                "upper": w.upper,
                "drop": w.drop,
                "estimated": w.estimated,
                "drift_share": w.drift_share,
            }
            for w in found.windows
        ],
    }


def _rule(rule: Any, found: Replayed, measured: int) -> dict[str, Any]:
    fired = [at for at, _, t in found.transitions if t.rule == rule.name and t.after is Phase.FIRING]
    judged = found.judged.get(rule.name, 0)
    return {
        "rule": rule.name,
        "measure": rule.measure.value,
        "severity": rule.severity.value,
        "action": rule.action.value,
        "judged": judged,
        "fired": len(fired),
        "alarms_per_1000_windows": _per_thousand(len(fired), judged or measured),
        "first_fired": fired[0].isoformat() if fired else None,
    }


def _detection(
    change: datetime, plan: ModelPlan, found: Replayed, changes: Sequence[datetime], size: timedelta
) -> dict[str, Any]:
    """The first alarm of each rule between this change and the next."""
    until = min((c for c in changes if c > change), default=None)
    detected: dict[str, Any] = {}
    for rule in plan.rules:
        at = next(
            (
                at
                for at, _, t in found.transitions
                if t.rule == rule.name and t.after is Phase.FIRING and at >= change and (until is None or at < until)
            ),
            None,
        )
        detected[rule.name] = None if at is None else {"at": at.isoformat(), "windows": round((at - change) / size, 2)}
    return {"change": change.isoformat(), "detected": detected}


def _closed_loop(history: History, plan: ModelPlan, policies: Sequence[PolicyResult]) -> dict[str, Any]:
    metric = plan.metrics[0]
    never = next((p.performance for p in policies if p.name == "never"), None)
    every = next((p.performance for p in policies if p.name == "every window"), None)
    return {
        "metric": metric,
        "better": SCORES[metric].better.value,
        "window_ends": [end.isoformat() for _, end in history.windows(plan.windows.size)],
        "policies": [
            {**p.to_json(), "share_of_the_way": share_of_the_way(p.performance, never, every)} for p in policies
        ],
    }


def _per_thousand(count: int, windows: int) -> float | None:
    return round(1000 * count / windows, 2) if windows else None
