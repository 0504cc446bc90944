"""Full Evidently reports of a window, made in a measuring process and kept for a while.

Invariant: a report appears under its final name only when it is complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from monitor.config.plan import ModelPlan
from monitor.lake.lake import Lake
from monitor.measure.worker import window_outcomes, window_predictions, yardstick_of
from monitor.rules.measurement import WindowKey
from retrain.terms.names import path_name


@dataclass(frozen=True, slots=True)
class ReportTask:
    lake_uri: str
    storage_options: Mapping[str, str]
    plan: ModelPlan
    key: WindowKey
    folder: str

    @property
    def path(self) -> Path:
        """`<folder>/<model>/<version>-<window end>.html`."""
        name = f"{path_name(self.key.version)}-{self.key.end:%Y%m%dT%H%M%S}.html"
        return Path(self.folder) / self.key.model / name


def make_report(task: ReportTask) -> str | None:
    """Write the report and return its path; None when the window is empty or has no reference."""
    from monitor.measure.report import write_report

    plan, lake = task.plan, Lake(task.lake_uri, task.storage_options)
    found = yardstick_of(plan.reference, task.key.version, plan.settings)
    window = window_predictions(lake, task.key)
    if found is None or not window.height:
        return None
    outcomes = window_outcomes(lake, task.key)
    if outcomes.height:
        window = window.join(outcomes.select("prediction_id", "label"), on="prediction_id", how="left")
    task.path.parent.mkdir(parents=True, exist_ok=True)
    write_report(window, found.reference, plan.schema, task.path)
    return str(task.path)


def clean_reports(folder: Path, before: datetime) -> int:
    """Delete reports older than `before` (aware UTC). Returns how many."""
    old = [p for p in folder.rglob("*.html") if datetime.fromtimestamp(p.stat().st_mtime, UTC) < before]
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)
