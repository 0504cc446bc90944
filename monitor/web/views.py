"""What the status page shows, as JSON values: the fleet, one model over time, one window's features.

Invariant: reads only. Numbers come from the measurements table, states and words from the control database.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl

from monitor.config.plan import ModelPlan
from monitor.decide.ledger import Ledger
from monitor.decide.units import recorded
from monitor.jobs.activity import activities
from monitor.jobs.status import FAULTS, champions, job_line, summary
from monitor.lake.history import History
from monitor.lake.join import first_predictions
from monitor.lake.lake import Lake, Table, collect
from monitor.measure.drift.distributions import side_by_side
from monitor.measure.reference import answer_kind, read_file, sample, to_lake_columns
from monitor.measure.worker import reference_file, scan_window
from monitor.rules.measurement import WindowKey
from monitor.rules.phases import Phase
from monitor.rules.windows import superseded
from monitor.web.estimates import estimation
from monitor.web.features import feature_line, features, segments
from monitor.web.series import (
    activity_line,
    badness,
    columns,
    iso,
    marks,
    newest_ends,
    newest_value,
    rules,
    served,
    state,
    windows_of,
)
from retrain.control.holds import own_pause, why_held
from retrain.control.store import Job, Store
from retrain.control.traffic import traffic

SPARK = 60
"""Windows in a sparkline."""
JOBS = 20
"""Jobs on the page of a model."""


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
        moves = self._store.champion_moves(plan.model)
        severities = {r.name: r.severity for r in plan.rules}
        champion = moves[0].version if moves else None
        overview = self._history.overview(plan.model, plan.metrics[0], now)
        gone = superseded(newest_ends(overview.select("model_version", "window_end")), plan.windows.size)
        alarmed = [
            r for r in records if r.state.phase is not Phase.INACTIVE and r.rule in severities and r.version not in gone
        ]
        alarmed.sort(key=lambda r: badness(r, severities[r.rule]), reverse=True)
        windows = served(overview, champion)
        measured = windows.filter(pl.col("value").is_not_null())
        last = measured.row(-1, named=True) if measured.height else {}
        newest = windows.row(-1, named=True) if windows.height else {}
        return {
            "model": plan.model,
            "task": plan.schema.task.value,
            "metric": plan.metrics[0],
            "state": state(alarmed, windows.height),
            "badness": badness(alarmed[0], severities[alarmed[0].rule]) if alarmed else 0 if windows.height else -1,
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
            "performance_at": iso(last.get("window_end")),
            "window_at": iso(newest.get("window_end")),
            "drift_share": newest_value(windows, "drift_share"),
            "coverage": newest_value(windows, "coverage"),
            "spark": measured["value"].tail(SPARK).to_list(),
            "held": self._held(plan, now),
            "faults": self._faults(plan.model),
            "summary": summary(self._ledger.decisions(plan.model, 1), jobs),
        }

    def model(self, model: str, days: int, now: datetime) -> dict[str, Any]:
        """One model over time. Raises LookupError for an unknown model.

        `windows`: a column per number, by window, oldest first (`series.columns`). `estimation`: how the newest
        estimate turned out, or null (`estimates.estimation`). `features`: by impact (`features.features`). `rules`:
        how each stands (`series.rules`).
        """
        plan = self._plan(model)
        frame = self._history.detail(model, days, now)
        windows = windows_of(frame)
        ends = newest_ends(windows)
        gone = superseded(ends, plan.windows.size)
        current = [r for (version, _), r in self._ledger.rule_records(model).items() if version not in gone]
        jobs = self._store.list_jobs(model, limit=JOBS)
        moves = self._store.champion_moves(model)
        done = activities(self._ledger, self._store, model, 100)
        return {
            "at": now.isoformat(),
            "model": model,
            "task": plan.schema.task.value,
            "metric": plan.metrics[0],
            "days": days,
            "window_seconds": plan.windows.size.total_seconds(),
            "champion": moves[0].version if moves else None,
            "champions": champions(moves),
            "held": self._held(plan, now),
            "faults": self._faults(model),
            "paused": own_pause(self._store.engine, model, now) is not None,
            "summary": summary(self._ledger.decisions(model, 1), jobs),
            "state": state(current, windows.height),
            "windows": columns(frame, windows, plan),
            "traffic": traffic(self._store, model).to_json(),
            "estimation": estimation(frame, plan.metrics[0]),
            "features": features(frame, windows, plan),
            "segments": segments(frame, plan),
            "rules": rules(plan, current, self._ledger.transitions(model, 1000), ends, frame),
            "activity": [activity_line(a) for a in done],
            "marks": marks(done, windows),
            "jobs": [self._job(job) for job in jobs],
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
                f.name: side_by_side(rows, reference, f.column, f.kind) | feature_line(measured, f.name)
                for f in plan.schema.features
            },
            "prediction": side_by_side(rows, reference, "prediction", kind),
        }

    def _rows(self, plan: ModelPlan, key: WindowKey) -> tuple[pl.DataFrame, int]:
        """The columns that are drawn of a window's predictions, of some `max_rows` at most, and how many there are."""
        within = scan_window(self._lake, Table.PREDICTIONS, key)
        if within is None:
            return pl.DataFrame(), 0
        total = int(collect(within.select(pl.col("prediction_id").n_unique())).item())
        if (
            total > plan.settings.max_rows
        ):  # the same row again and again: by id, so that what came twice stays together
            within = within.filter(pl.col("prediction_id").hash(seed=0) % -(-total // plan.settings.max_rows) == 0)
        wanted = ["prediction_id", "source_offset", "ts", "prediction", *plan.schema.feature_columns]
        known = within.collect_schema().names()
        return first_predictions(collect(within.select(c for c in wanted if c in known))), total

    def _held(self, plan: ModelPlan, now: datetime) -> str | None:
        """Why the model must be left as it is now."""
        return why_held(self._store.engine, plan.model, plan.retrain.maintenance, now) or None

    def _faults(self, model: str) -> list[str]:
        return [fault.to_words() for fault in recorded(self._store.engine, model)[:FAULTS]]

    def _plan(self, model: str) -> ModelPlan:
        plans = self._plans()
        if model not in plans:
            raise LookupError(f"no model {model!r}; configured are {', '.join(sorted(plans))}")
        return plans[model]

    def _job(self, job: Job) -> dict[str, Any]:
        """A job with its gates, and its steps in words."""
        line = job_line(job)
        result = line.pop("result")
        run = result.get("run_id")
        steps = [
            {"at": s.at.isoformat(), "state": s.to_state.value, "actor": s.actor, "detail": s.detail}
            for s in self._store.history(job.id)
        ]
        has_pages = self._tracking_uri.startswith(("http://", "https://"))
        link = f"{self._tracking_uri.rstrip('/')}/#/runs/{run}" if run and has_pages else None
        shown = {k: result.get(k) for k in ("version", "compared_with", "gates", "reasons", "decision", "run_id")}
        trials = [{"name": name, **result[name]} for name in ("shadow", "canary") if result.get(name)]
        odd = [c for c in result.get("validation", []) if c["level"] != "ok"]
        return {**line, **shown, "trials": trials, "validation": odd, "steps": steps, "mlflow": link}

    def _report_links(self, model: str) -> list[dict[str, str]]:
        found = sorted((self._reports / model).glob("*.html"), key=lambda p: p.stat().st_mtime, reverse=True)
        return [{"name": p.stem, "url": f"/reports/{quote(model)}/{quote(p.name)}"} for p in found[:50]]


def days_of(text: str | None) -> int:
    """The `days` of a query; ValueError names what is allowed."""
    try:
        days = int(text or 7)
    except ValueError:
        days = 0
    if not 1 <= days <= 30:
        raise ValueError(f"days must be a whole number from 1 to 30 (got {text!r})")
    return days
