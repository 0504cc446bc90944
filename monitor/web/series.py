"""Measurements, rule states and what happened, as the columns and lines that the status page draws.

Invariant: pure; every column of a model's answer is as long as its windows. Values are JSON's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from monitor.base.kinds import ActivityKind
from monitor.config.plan import ModelPlan
from monitor.jobs.activity import Activity
from monitor.lake.progress import DRIFT
from monitor.measure.performance.scores import SCORES, Better
from monitor.rules.measurement import Measure
from monitor.rules.phases import Phase
from monitor.rules.rules import ForEvidence, Rule, Severity
from monitor.rules.tracking import RuleRecord

_PHASES = [Phase.INACTIVE, Phase.PENDING, Phase.FIRING]
_SEVERITIES = [Severity.INFO, Severity.WARNING, Severity.CRITICAL]
_PER_WINDOW = {
    "drift_share": Measure.DRIFT_SHARE,
    "prediction_drift": Measure.PREDICTION_DRIFT,
    "label_drift": Measure.LABEL_DRIFT,
    "coverage": Measure.LABEL_COVERAGE,
    "label_delay": Measure.LABEL_DELAY,
    "volume": Measure.VOLUME,
    "latency_p95": Measure.LATENCY_P95,
}
_PER_METRIC = {
    "performance": Measure.PERFORMANCE,
    "estimated": Measure.ESTIMATED_PERFORMANCE,
    "estimation_error": Measure.ESTIMATION_ERROR,
}


def newest_ends(windows: pl.DataFrame) -> dict[str, datetime]:
    """The end of each version's newest window."""
    return {str(version): end for version, end in windows.sort("window_end").iter_rows()}


def rules(
    plan: ModelPlan,
    records: Sequence[RuleRecord],
    transitions: Sequence[Mapping[str, Any]],
    ends: Mapping[str, datetime],
    frame: pl.DataFrame,
) -> list[dict[str, Any]]:
    """Each rule of the plan, how it stands, and when it was pending or firing.

    `auto`: chance decides instead of a number (`above = "auto"`), so `above` and `below` are null; `for_auto`: so does
    the evidence over windows (`for = "auto"`). `p_value`: of the newest window, the least that the rule looks at.
    """
    size = plan.windows.size
    return [
        _rule(rule, records, [t for t in transitions if t["rule"] == rule.name], ends, size)
        | {"p_value": newest_p_value(rule, frame)}
        for rule in plan.rules
    ]


def _rule(
    rule: Rule,
    records: Iterable[RuleRecord],
    transitions: Sequence[Mapping[str, Any]],
    ends: Mapping[str, datetime],
    size: timedelta,
) -> dict[str, Any]:
    mine = [r for r in records if r.rule == rule.name]
    worst = max(mine, key=lambda r: _PHASES.index(r.state.phase), default=None)
    return {
        "rule": rule.name,
        "measure": rule.measure.value,
        "subject": " ".join(filter(None, (rule.feature, rule.metric, rule.segment))),
        "above": rule.above,
        "below": rule.below,
        "auto": rule.calibrated,
        "significant": rule.significant,
        "for": str(rule.sustained),
        "for_auto": isinstance(rule.sustained, ForEvidence),
        "severity": rule.severity.value,
        "action": rule.action.value,
        "phase": worst.state.phase.value if worst else Phase.INACTIVE.value,
        "reason": worst.reason if worst else "not judged yet",
        "spans": _spans(mine, transitions, ends, size),
    }


def newest_p_value(rule: Rule, frame: pl.DataFrame) -> float | None:
    """Of a window that rules act on: provisional performance is not judged."""
    if not frame.height:
        return None
    segment = pl.col("segment") != "" if rule.segment == "*" else pl.col("segment") == (rule.segment or "")
    wanted = [pl.col("measure") == rule.measure.value, segment, (pl.col("kind") == DRIFT) | pl.col("final")]
    wanted += [pl.col(c) == v for c, v in (("feature", rule.feature), ("metric", rule.metric)) if v is not None]
    found = frame.filter(*wanted, pl.col("p_value").is_not_null())
    least = found.filter(pl.col("window_end") == pl.col("window_end").max())["p_value"]
    return float(least.sort()[0]) if len(least) else None


def _spans(
    records: Iterable[RuleRecord],
    transitions: Sequence[Mapping[str, Any]],
    ends: Mapping[str, datetime],
    size: timedelta,
) -> list[dict[str, Any]]:
    """When the rule was pending or firing on any version, in event time: from the start of the first window that left
    it so to the end of the last one, None for what still is.

    A version that is gone took its rule state with it: its last span ends with its last window.
    """
    live = {r.version for r in records}
    spans: list[dict[str, Any]] = []
    for version in dict.fromkeys(t["version"] for t in reversed(transitions)):
        moves = sorted((t for t in transitions if t["version"] == version), key=lambda t: t["at"])
        for at, following in zip(moves, [*moves[1:], None], strict=True):
            if Phase(at["after"]) is not Phase.INACTIVE:
                last = None if version in live else ends.get(version, at["at"])
                to = following["at"] - size if following else last
                spans.append(
                    {
                        "phase": at["after"],
                        "version": version,
                        "from": int((at["at"] - size).timestamp()),
                        "to": int(to.timestamp()) if to else None,
                    }
                )
    return spans


def activity_line(a: Activity) -> dict[str, Any]:
    return {
        "at": a.at.isoformat(),
        "kind": a.kind.value,
        "text": a.text,
        "version": a.version,
        "rule": a.rule,
        "job": a.job,
        "window_end": iso(a.window_end),
    }


_MARKED = (
    ActivityKind.RETRAIN_REQUESTED,
    ActivityKind.PROMOTED,
    ActivityKind.REJECTED,
    ActivityKind.FAILED,
    ActivityKind.ROLLED_BACK,
)


def marks(done: Sequence[Activity], windows: pl.DataFrame) -> list[dict[str, Any]]:
    """What happened to jobs, on the axis of event time.

    A request stands at the window that caused it and so does the end of its job, a promotion where the new version
    began to serve; what has neither stands at the time it happened.
    """
    caused = {a.job: a.window_end for a in done if a.kind is ActivityKind.RETRAIN_REQUESTED and a.window_end}
    began = {str(version): end for version, end in windows.sort("window_end", descending=True).iter_rows()}
    if began:  # when the version that is first in the picture began cannot be seen
        began.pop(min(began, key=lambda v: began[v]))
    marks = []
    for a in done:
        if a.kind in _MARKED:
            at = began.get(a.version) if a.kind is ActivityKind.PROMOTED else caused.get(a.job)
            marks.append({"kind": a.kind.value, "at": int((at or a.at).timestamp()), "text": a.text})
    return marks


def badness(record: RuleRecord, severity: Severity) -> int:
    return 10 * _PHASES.index(record.state.phase) + _SEVERITIES.index(severity)


def state(records: Iterable[RuleRecord], windows: int) -> str:
    worst = max((r.state.phase for r in records), key=_PHASES.index, default=Phase.INACTIVE)
    if worst is not Phase.INACTIVE:
        return worst.value
    return "ok" if windows else "waiting"


def served(windows: pl.DataFrame, champion: str | None) -> pl.DataFrame:
    """One row per time: where several versions answered, that of the champion, else of the one with most rows."""
    order = windows.sort("window_end", pl.col("model_version") == (champion or ""), "volume", nulls_last=False)
    return order.unique("window_end", keep="last", maintain_order=True)


def newest_value(windows: pl.DataFrame, column: str) -> float | None:
    known = windows[column].drop_nulls()
    return float(known[-1]) if len(known) else None


def iso(at: datetime | None) -> str | None:
    return at.astimezone(UTC).isoformat() if at else None


def windows_of(frame: pl.DataFrame) -> pl.DataFrame:
    """The windows themselves, oldest first: what every column of the answer is aligned to."""
    if not frame.height:
        return pl.DataFrame(schema={"model_version": pl.String, "window_end": pl.Datetime("us", "UTC")})
    return frame.select("model_version", "window_end").unique().sort("window_end", "model_version")


def aligned(windows: pl.DataFrame, part: pl.DataFrame, column: str) -> list[Any]:
    found = part.select("model_version", "window_end", column)
    found = found.unique(["model_version", "window_end"], keep="last")
    joined = windows.join(found, on=["model_version", "window_end"], how="left", maintain_order="left")
    return joined[column].to_list()


def columns(frame: pl.DataFrame, windows: pl.DataFrame, plan: ModelPlan) -> dict[str, Any]:
    """A column per number, by window. By metric: `performance` from labels, `estimated` without them, and
    `estimation_error`, by how much worse it turned out; each with its 95 % interval."""
    answer: dict[str, Any] = {
        "end": [int(e.timestamp()) for e in windows["window_end"]],
        "version": windows["model_version"].to_list(),
        **{name: {} for name in _PER_METRIC},
    }
    if not frame.height:
        return {**answer, **{name: [] for name in _PER_WINDOW}, "final": [], "limit": []}
    overall = frame.filter(pl.col("segment") == "")
    for name, measure in _PER_WINDOW.items():
        answer[name] = aligned(windows, overall.filter(pl.col("measure") == measure.value), "value")
    for name, measure in _PER_METRIC.items():
        for metric in plan.metrics:
            part = overall.filter(pl.col("measure") == measure.value, pl.col("metric") == metric)
            answer[name][metric] = {c: aligned(windows, part, c) for c in ("value", "lower", "upper")}
    performance = overall.filter(pl.col("measure") == Measure.PERFORMANCE.value)
    answer["final"] = aligned(windows, performance.filter(pl.col("metric") == plan.metrics[0]), "final")
    drops = overall.filter(pl.col("measure") == Measure.PERFORMANCE_DROP.value, pl.col("metric") == plan.metrics[0])
    values = answer["performance"][plan.metrics[0]]["value"]
    answer["limit"] = _limits(plan, values, aligned(windows, drops, "value"))
    return answer


def _limits(plan: ModelPlan, values: Sequence[float | None], drops: Sequence[float | None]) -> list[float | None]:
    """Per window, the value of the judged metric at which its rule breaches; None without a rule or a reference."""
    metric = plan.metrics[0]
    sign = {Better.HIGHER: 1.0, Better.LOWER: -1.0, Better.NEAR_ZERO: 0.0}[SCORES[metric].better]
    rule = next((r for r in plan.rules if _judges(r, metric)), None)
    limits: list[float | None] = []
    for value, drop in zip(values, drops, strict=True):
        limit: float | None = None
        if rule is not None and rule.measure is Measure.PERFORMANCE:
            limit = rule.below if rule.below is not None else rule.above
        elif rule is not None and rule.above is not None and value is not None and drop is not None and sign:
            reference = value + sign * drop
            allowed = rule.above * (abs(reference) if rule.measure is Measure.PERFORMANCE_DROP_RATIO else 1.0)
            limit = reference - sign * allowed
        limits.append(limit)
    return limits


def _judges(rule: Rule, metric: str) -> bool:
    measures = (Measure.PERFORMANCE, Measure.PERFORMANCE_DROP, Measure.PERFORMANCE_DROP_RATIO)
    return rule.measure in measures and rule.metric in (None, metric) and not rule.segment
