"""What the status page shows, as JSON values: the fleet, one model over time, one window's features.

Invariant: reads only. Numbers come from the measurements table, states and words from the control database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl

from monitor.activity import Activity, ActivityKind, activities
from monitor.history import History
from monitor.join import first_predictions
from monitor.judging import RuleRecord
from monitor.lake import Lake, Table, collect, day
from monitor.ledger import Ledger
from monitor.measure.distributions import side_by_side
from monitor.measure.methods import METHODS, Statistic
from monitor.measure.scores import SCORES, Better
from monitor.measure.worker import reference_file
from monitor.measurement import Measure, WindowKey
from monitor.plan import ModelPlan
from monitor.reference import answer_kind, read_file, sample, to_lake_columns
from monitor.rules import Phase, Rule, Severity
from monitor.status import model_status, summary
from monitor.windows import superseded
from retrain.store import Store

SPARK = 60
"""Windows in a sparkline."""
HISTORIES = 40
"""Features that come with their scores over time: those that drifted most."""
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
_DRIFT = ("value", "threshold", "method", "drifted", "reason")
_PER_FEATURE = {
    "missing": Measure.MISSING_SHARE,
    "unseen": Measure.UNSEEN_SHARE,
    "out_of_range": Measure.OUT_OF_RANGE_SHARE,
    "invalid": Measure.INVALID_SHARE,
}


class Views:
    """Safe to use from several threads. Raises TransientError while a store is away."""

    def __init__(
        self,
        plans: Callable[[], Mapping[str, ModelPlan]],
        lake: Lake,
        ledger: Ledger,
        store: Store,
        reports: Path,
        tracking_uri: str,
    ):
        self._plans = plans
        self._lake = lake
        self._ledger = ledger
        self._store = store
        self._reports = reports
        self._tracking_uri = tracking_uri
        self._history = History(lake)

    def fleet(self, now: datetime) -> dict[str, Any]:
        """Every model in one line each, worst first."""
        lines = [self._line(plan, now) for plan in self._plans().values()]
        lines.sort(key=lambda m: (-m["badness"], m["model"]))
        return {"at": now.isoformat(), "models": lines}

    def _line(self, plan: ModelPlan, now: datetime) -> dict[str, Any]:
        records = list(self._ledger.rule_records(plan.model).values())
        jobs = self._store.list_jobs(plan.model, limit=1)
        moves = self._store.alias_moves(plan.model, "champion")
        severities = {r.name: r.severity for r in plan.rules}
        champion = moves[0].version if moves else None
        overview = self._history.overview(plan.model, plan.metrics[0], now)
        gone = superseded(_ends(overview.select("model_version", "window_end")), plan.windows.size)
        alarmed = [
            r for r in records if r.state.phase is not Phase.INACTIVE and r.rule in severities and r.version not in gone
        ]
        alarmed.sort(key=lambda r: _badness(r, severities[r.rule]), reverse=True)
        windows = _served(overview, champion)
        measured = windows.filter(pl.col("value").is_not_null())
        last = measured.row(-1, named=True) if measured.height else {}
        newest = windows.row(-1, named=True) if windows.height else {}
        state = alarmed[0].state.phase.value if alarmed else "ok" if windows.height else "waiting"
        return {
            "model": plan.model,
            "task": plan.schema.task.value,
            "metric": plan.metrics[0],
            "state": state,
            "badness": _badness(alarmed[0], severities[alarmed[0].rule]) if alarmed else 0 if windows.height else -1,
            "alarms": [
                {
                    "rule": r.rule,
                    "version": r.version,
                    "phase": r.state.phase.value,
                    "severity": severities[r.rule].value,
                    "reason": r.reason,
                }
                for r in alarmed
            ],
            "champion": champion,
            "version": newest.get("model_version"),
            "measured_version": last.get("model_version"),
            "value": last.get("value"),
            "lower": last.get("lower"),
            "upper": last.get("upper"),
            "drop": last.get("drop"),
            "final": last.get("final"),
            "performance_at": _iso(last.get("window_end")),
            "window_at": _iso(newest.get("window_end")),
            "drift_share": _last(windows, "drift_share"),
            "coverage": _last(windows, "coverage"),
            "spark": measured["value"].tail(SPARK).to_list(),
            "summary": summary(self._ledger.decisions(plan.model, 1), jobs),
        }

    def model(self, model: str, days: int, now: datetime) -> dict[str, Any]:
        """One model over time. Raises LookupError for an unknown model."""
        plan = self._plan(model)
        frame = self._history.detail(model, days, now)
        windows = _windows(frame)
        records = self._ledger.rule_records(model)
        gone = superseded(_ends(windows), plan.windows.size)
        current = [r for (version, _), r in records.items() if version not in gone]
        status = model_status(model, self._ledger, self._store, decisions=50)
        done = activities(self._ledger, self._store, model, 100)
        return {
            "at": now.isoformat(),
            "model": model,
            "task": plan.schema.task.value,
            "metric": plan.metrics[0],
            "days": days,
            "window_seconds": plan.windows.size.total_seconds(),
            "champion": status["champion"],
            "champions": status["champions"],
            "summary": status["summary"],
            "state": _state(current, windows.height),
            "windows": _columns(frame, windows, plan),
            "features": _features(frame, windows, plan),
            "segments": _segments(frame, plan),
            "rules": self._rules(plan, current, _ends(windows)),
            "activity": [_activity(a) for a in done],
            "marks": _marks(done, windows),
            "jobs": [self._job(job) for job in status["jobs"][:20]],
            "reports": self._report_links(model),
        }

    def features(self, model: str, version: str, end: datetime) -> dict[str, Any]:
        """The distributions of one window's features and predictions beside the reference's. Raises LookupError."""
        plan = self._plan(model)
        measured = self._history.window(model, version, end, plan.windows.size)
        start = measured["window_start"][0] if measured.height else end - plan.windows.size
        rows, total = self._rows(plan, WindowKey(model, version, start, end))
        if not total:
            raise LookupError(f"{model}: no rows of version {version!r} in the window that ends at {end.isoformat()}")
        found = reference_file(plan.reference, version)
        reference = to_lake_columns(read_file(found), plan.schema) if found is not None else rows.clear()
        reference = sample(reference, plan.reference.max_rows, 0)
        kind = answer_kind(plan.schema)
        return {
            "version": version,
            "end": end.isoformat(),
            "rows": total,
            "reference_rows": reference.height,
            "features": {
                f.name: side_by_side(rows, reference, f.column, f.kind) | _feature(measured, f.name)
                for f in plan.schema.features
            },
            "prediction": side_by_side(rows, reference, "prediction", kind),
        }

    def _rows(self, plan: ModelPlan, key: WindowKey) -> tuple[pl.DataFrame, int]:
        """The columns that are drawn of a window's predictions, of some `max_rows` at most, and how many there are."""
        lazy = self._lake.scan(Table.PREDICTIONS, plan.model, (day(key.start), day(key.end)))
        if lazy is None:
            return pl.DataFrame(), 0
        within = lazy.filter(
            pl.col("model_version") == key.version, pl.col("ts").is_between(key.start, key.end, closed="left")
        )
        total = int(collect(within.select(pl.col("prediction_id").n_unique())).item())
        if total > plan.max_rows:  # the same row again and again: by id, so that what came twice stays together
            within = within.filter(pl.col("prediction_id").hash(seed=0) % -(-total // plan.max_rows) == 0)
        wanted = ["prediction_id", "source_offset", "ts", "prediction", *plan.schema.feature_columns]
        known = lazy.collect_schema().names()
        return first_predictions(collect(within.select(c for c in wanted if c in known))), total

    def _plan(self, model: str) -> ModelPlan:
        plans = self._plans()
        if model not in plans:
            raise LookupError(f"no model {model!r}; configured are {', '.join(sorted(plans))}")
        return plans[model]

    def _rules(
        self, plan: ModelPlan, records: Iterable[RuleRecord], ends: Mapping[str, datetime]
    ) -> list[dict[str, Any]]:
        known = list(records)
        transitions = self._ledger.transitions(plan.model, 1000)
        size = plan.windows.size
        return [
            _rule(rule, known, [t for t in transitions if t["rule"] == rule.name], ends, size) for rule in plan.rules
        ]

    def _job(self, job: dict[str, Any]) -> dict[str, Any]:
        """A job with its gates, and its steps in words."""
        result = job["result"]
        run = result.get("run_id")
        steps = [
            {"at": s.at.isoformat(), "state": s.to_state.value, "actor": s.actor, "detail": s.detail}
            for s in self._store.history(job["id"])
        ]
        link = f"{self._tracking_uri.rstrip('/')}/#/runs/{run}" if run and self._served else None
        shown = {k: result.get(k) for k in ("version", "compared_with", "gates", "reasons", "decision", "run_id")}
        return {**{k: v for k, v in job.items() if k != "result"}, **shown, "steps": steps, "mlflow": link}

    @property
    def _served(self) -> bool:
        return self._tracking_uri.startswith(("http://", "https://"))

    def _report_links(self, model: str) -> list[dict[str, str]]:
        found = sorted((self._reports / model).glob("*.html"), key=lambda p: p.stat().st_mtime, reverse=True)
        return [{"name": p.stem, "url": f"/reports/{quote(model)}/{quote(p.name)}"} for p in found[:50]]


def _ends(windows: pl.DataFrame) -> dict[str, datetime]:
    """The end of each version's newest window."""
    return {str(version): end for version, end in windows.sort("window_end").iter_rows()}


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
        "for": str(rule.sustained),
        "severity": rule.severity.value,
        "action": rule.action.value,
        "phase": worst.state.phase.value if worst else Phase.INACTIVE.value,
        "reason": worst.reason if worst else "not judged yet",
        "spans": _spans(mine, transitions, ends, size),
    }


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


def _activity(a: Activity) -> dict[str, Any]:
    return {
        "at": a.at.isoformat(),
        "kind": a.kind.value,
        "text": a.text,
        "version": a.version,
        "rule": a.rule,
        "job": a.job,
        "window_end": _iso(a.window_end),
    }


_MARKED = (
    ActivityKind.RETRAIN_REQUESTED,
    ActivityKind.PROMOTED,
    ActivityKind.REJECTED,
    ActivityKind.FAILED,
    ActivityKind.ROLLED_BACK,
)


def _marks(done: Sequence[Activity], windows: pl.DataFrame) -> list[dict[str, Any]]:
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


def _badness(record: RuleRecord, severity: Severity) -> int:
    return 10 * _PHASES.index(record.state.phase) + _SEVERITIES.index(severity)


def _state(records: Iterable[RuleRecord], windows: int) -> str:
    worst = max((r.state.phase for r in records), key=_PHASES.index, default=Phase.INACTIVE)
    if worst is not Phase.INACTIVE:
        return worst.value
    return "ok" if windows else "waiting"


def _served(windows: pl.DataFrame, champion: str | None) -> pl.DataFrame:
    """One row per time: where several versions answered, that of the champion, else of the one with most rows."""
    order = windows.sort("window_end", pl.col("model_version") == (champion or ""), "volume", nulls_last=False)
    return order.unique("window_end", keep="last", maintain_order=True)


def _last(windows: pl.DataFrame, column: str) -> float | None:
    known = windows[column].drop_nulls()
    return float(known[-1]) if len(known) else None


def _iso(at: datetime | None) -> str | None:
    return at.astimezone(UTC).isoformat() if at else None


def _windows(frame: pl.DataFrame) -> pl.DataFrame:
    """The windows themselves, oldest first: what every column of the answer is aligned to."""
    if not frame.height:
        return pl.DataFrame(schema={"model_version": pl.String, "window_end": pl.Datetime("us", "UTC")})
    return frame.select("model_version", "window_end").unique().sort("window_end", "model_version")


def _aligned(windows: pl.DataFrame, part: pl.DataFrame, column: str) -> list[Any]:
    found = part.select("model_version", "window_end", column)
    found = found.unique(["model_version", "window_end"], keep="last")
    joined = windows.join(found, on=["model_version", "window_end"], how="left", maintain_order="left")
    return joined[column].to_list()


def _columns(frame: pl.DataFrame, windows: pl.DataFrame, plan: ModelPlan) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "end": [int(e.timestamp()) for e in windows["window_end"]],
        "version": windows["model_version"].to_list(),
        "performance": {},
    }
    if not frame.height:
        return {**answer, **{name: [] for name in _PER_WINDOW}, "final": [], "limit": []}
    overall = frame.filter(pl.col("segment") == "")
    for name, measure in _PER_WINDOW.items():
        answer[name] = _aligned(windows, overall.filter(pl.col("measure") == measure.value), "value")
    performance = overall.filter(pl.col("measure") == Measure.PERFORMANCE.value)
    for metric in plan.metrics:
        part = performance.filter(pl.col("metric") == metric)
        answer["performance"][metric] = {c: _aligned(windows, part, c) for c in ("value", "lower", "upper")}
    answer["final"] = _aligned(windows, performance.filter(pl.col("metric") == plan.metrics[0]), "final")
    drops = overall.filter(pl.col("measure") == Measure.PERFORMANCE_DROP.value, pl.col("metric") == plan.metrics[0])
    values = answer["performance"][plan.metrics[0]]["value"]
    answer["limit"] = _limits(plan, values, _aligned(windows, drops, "value"))
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


def _features(frame: pl.DataFrame, windows: pl.DataFrame, plan: ModelPlan) -> list[dict[str, Any]]:
    """Features by their newest drift, worst first; the first `HISTORIES` with their scores over time."""
    drift = frame.filter(pl.col("measure") == Measure.FEATURE_DRIFT.value) if frame.height else frame
    parts = {str(name): part for (name,), part in drift.group_by(["feature"])} if drift.height else {}
    found = []
    for feature in plan.schema.features:
        part = parts.get(feature.name)
        newest = part.row(-1, named=True) if part is not None else {}
        found.append({"feature": feature.name, **{k: newest.get(k) for k in _DRIFT}, "p_value": _is_p_value(newest)})
    found.sort(key=_how_drifted, reverse=True)
    for line in found[:HISTORIES]:
        part = parts.get(str(line["feature"]))
        line["history"] = _aligned(windows, part, "value") if part is not None else []
        line["drifted_history"] = _aligned(windows, part, "drifted") if part is not None else []
    return found


def _feature(measured: pl.DataFrame, name: str) -> dict[str, Any]:
    """What was measured of one feature in one window."""
    part = measured.filter(pl.col("feature") == name) if measured.height else measured
    found = {str(r["measure"]): r for r in part.iter_rows(named=True)}
    drift = found.get(Measure.FEATURE_DRIFT.value, {})
    shares = {k: found[m.value]["value"] for k, m in _PER_FEATURE.items() if m.value in found}
    return {**{k: drift.get(k) for k in _DRIFT}, "p_value": _is_p_value(drift), **shares}


def _is_p_value(drift: Mapping[str, Any]) -> bool:
    """Whether small is drifted."""
    method = METHODS.get(drift.get("method") or "")
    return method is not None and method.statistic is Statistic.P_VALUE


def _how_drifted(line: Mapping[str, Any]) -> tuple[bool, float]:
    """How far beyond its threshold; a drifted feature without a value (it went missing) is worst."""
    value, threshold = line["value"], line["threshold"]
    if value is None or not threshold:
        return bool(line["drifted"]), float("inf") if line["drifted"] else -1.0
    return bool(line["drifted"]), threshold / max(value, 1e-12) if line["p_value"] else value / threshold


def _segments(frame: pl.DataFrame, plan: ModelPlan) -> list[dict[str, Any]]:
    """The judged metric of each segment in its newest window."""
    if not frame.height:
        return []
    wanted = (Measure.PERFORMANCE.value, Measure.PERFORMANCE_DROP.value)
    part = frame.filter(pl.col("measure").is_in(wanted), pl.col("segment") != "", pl.col("metric") == plan.metrics[0])
    part = part.filter(pl.col("window_end") == pl.col("window_end").max()).unique(
        ["segment", "measure"], keep="last", maintain_order=True
    )
    rows: dict[str, dict[str, Any]] = {}
    for r in part.iter_rows(named=True):
        line = rows.setdefault(r["segment"], {"segment": r["segment"], "value": None, "drop": None})
        if r["measure"] == Measure.PERFORMANCE.value:
            line |= {k: r[k] for k in ("value", "lower", "upper", "rows", "reason")}
        else:
            line["drop"] = r["value"]
    return sorted(rows.values(), key=lambda s: -(s["drop"] if s["drop"] is not None else -1e9))


def days_of(text: str | None) -> int:
    """The `days` of a query; ValueError names what is allowed."""
    try:
        days = int(text or 7)
    except ValueError:
        days = 0
    if not 1 <= days <= 30:
        raise ValueError(f"days must be a whole number from 1 to 30 (got {text!r})")
    return days
