"""Features and segments of a model, as the lines that the status page lists.

Invariant: pure. Values are JSON's; what matters most comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from monitor.config.plan import ModelPlan
from monitor.measure.drift.methods import METHODS
from monitor.rules.measurement import Measure
from monitor.web.series import aligned

HISTORIES = 40
"""Features that come with their scores over time: the first ones."""
_DRIFT = ("value", "threshold", "method", "drifted", "reason", "p_value")
_PER_FEATURE = {
    "missing": Measure.MISSING_SHARE,
    "unseen": Measure.UNSEEN_SHARE,
    "out_of_range": Measure.OUT_OF_RANGE_SHARE,
    "invalid": Measure.INVALID_SHARE,
}


def features(frame: pl.DataFrame, windows: pl.DataFrame, plan: ModelPlan) -> list[dict[str, Any]]:
    """Features in their newest window: by impact where it is known, else by drift, worst first.

    `value` against `threshold` by `method`; `statistic`: `distance` drifts above its threshold, `p_value` below.
    `drifted` by its values or, as `reason` then says, by its missing ones. `p_value`: the chance of such a window when
    nothing has changed. `impact`: the drift's strength times the feature's importance to the model. The first
    `HISTORIES` come with `history` and `drifted_history`, by window.
    """
    parts, impacts = _by_feature(frame, Measure.FEATURE_DRIFT), _by_feature(frame, Measure.DRIFT_IMPACT)
    found = [_line(f.name, parts.get(f.name), impacts.get(f.name)) for f in plan.schema.features]
    found.sort(key=_how_bad, reverse=True)
    for line in found[:HISTORIES]:
        part = parts.get(line["feature"])
        line["history"] = aligned(windows, part, "value") if part is not None else []
        line["drifted_history"] = aligned(windows, part, "drifted") if part is not None else []
    return found


def _by_feature(frame: pl.DataFrame, measure: Measure) -> dict[str, pl.DataFrame]:
    part = frame.filter(pl.col("measure") == measure.value) if frame.height else frame
    return {str(name): of for (name,), of in part.group_by(["feature"])} if part.height else {}


def _line(name: str, drift: pl.DataFrame | None, impact: pl.DataFrame | None) -> dict[str, Any]:
    newest = drift.row(-1, named=True) if drift is not None else {}
    weighed = impact.row(-1, named=True) if impact is not None else {}
    if any(weighed.get(k) != newest.get(k) for k in ("window_end", "model_version")):
        weighed = {}  # of another window: this one's reference does not know the importance
    return {"feature": name, **_drift(newest), "impact": weighed.get("value")}


def _drift(measured: Mapping[str, Any]) -> dict[str, Any]:
    method = METHODS.get(measured.get("method") or "")
    return {**{k: measured.get(k) for k in _DRIFT}, "statistic": method.statistic.value if method else None}


def feature_line(measured: pl.DataFrame, name: str) -> dict[str, Any]:
    """What was measured of one feature in one window: as in `features`, and the shares of bad values."""
    part = measured.filter(pl.col("feature") == name) if measured.height else measured
    found = {str(r["measure"]): r for r in part.iter_rows(named=True)}
    shares = {k: found[m.value]["value"] for k, m in _PER_FEATURE.items() if m.value in found}
    impact = found.get(Measure.DRIFT_IMPACT.value, {}).get("value")
    return {**_drift(found.get(Measure.FEATURE_DRIFT.value, {})), "impact": impact, **shares}


def _how_bad(line: Mapping[str, Any]) -> tuple[float, bool, float]:
    """Impact first; then how far beyond its threshold, where a feature that drifted without a value is worst."""
    impact = -1.0 if line["impact"] is None else line["impact"]
    value, threshold, drifted = line["value"], line["threshold"], bool(line["drifted"])
    if value is None or not threshold:
        return impact, drifted, float("inf") if drifted else -1.0
    beyond = threshold / max(value, 1e-12) if line["statistic"] == "p_value" else value / threshold
    return impact, drifted, beyond


def segments(frame: pl.DataFrame, plan: ModelPlan) -> list[dict[str, Any]]:
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
