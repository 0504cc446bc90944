"""`driftd calibrate`: what chance gives in a model's windows, and the numbers that "auto" amounts to.

Invariant: reads a reference that is here already; changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from monitor.base.errors import ConfigError
from monitor.config.explain import hint
from monitor.config.loading import LoadedConfig
from monitor.config.plan import ModelPlan, plans
from monitor.lake.lake import Lake, Table, collect
from monitor.measure.calibration import MIN_ROWS, Calibration, size_class
from monitor.measure.drift.methods import METHODS, Statistic, default_method
from monitor.measure.performance.intervals import Z
from monitor.measure.worker import yardstick_of
from monitor.measure.yardstick import Yardstick
from monitor.rules.measurement import Measure
from monitor.rules.rules import ForEvidence, Rule


@dataclass(frozen=True, slots=True)
class Chance:
    """A feature's drift as chance gives it. `usual` and `rare`: exceeded in half, and at the rule's level, of unchanged
    windows; `threshold` is the method's own, `effective` what a window must pass under "auto"."""

    feature: str
    method: str
    usual: float
    rare: float
    threshold: float
    effective: float
    block: int
    draws: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Calibrated:
    """`rows` is the window size that was asked for, `size` the class it was calibrated as."""

    model: str
    reference: str
    reference_rows: int
    rows: int
    size: int
    error_inflation: float
    features: tuple[Chance, ...]
    drops: tuple[tuple[str, float, float], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "reference": self.reference,
            "reference_rows": self.reference_rows,
            "window_rows": self.rows,
            "calibrated_for_rows": self.size,
            "error_inflation": self.error_inflation,
            "features": [{name: getattr(f, name) for name in Chance.__slots__} for f in self.features],
            "performance": [{"metric": m, "reference": v, "drop_beyond_chance": d} for m, v, d in self.drops],
        }


def calibrate_model(loaded: LoadedConfig, model: str, version: str | None, rows: int | None) -> Calibrated:
    """Raises ConfigError when there is no reference, or nothing says how large windows are."""
    if model not in loaded.schemas:
        raise ConfigError([f"no model {model!r} is configured{hint(model, loaded.schemas)}"])
    plan = plans(loaded)[model]
    lake = Lake(loaded.config.lake_uri, loaded.config.storage_options())
    newest, usual = _measured(lake, model)
    rows = rows or usual
    if rows is None:
        raise ConfigError([f"{model}: no window has been measured yet: give --rows, the rows of a usual window"])
    if rows < MIN_ROWS:
        raise ConfigError([f"--rows {rows}: windows with fewer than {MIN_ROWS} rows cannot be calibrated"])
    version = version or newest or "1"
    yardstick = yardstick_of(plan.reference, version, plan.settings)
    if yardstick is None:
        raise ConfigError([f"{model}: version {version} has no reference yet: give reference.path, or let it warm up"])
    found = yardstick.calibration(rows)
    assert found is not None
    return Calibrated(
        model=model,
        reference=yardstick.name,
        reference_rows=yardstick.reference.rows,
        rows=rows,
        size=size_class(rows),
        error_inflation=found.error_inflation,
        features=tuple(_features(plan, found)),
        drops=tuple(_drops(plan, yardstick, found, rows)),
    )


def _measured(lake: Lake, model: str) -> tuple[str | None, int | None]:
    """The newest measured version, and the median rows of its windows."""
    lazy = lake.scan(Table.MEASUREMENTS, model)
    if lazy is None:
        return None, None
    windows = collect(lazy.select("model_version", "window_end", "window_rows").unique().sort("window_end"))
    if not windows.height:
        return None, None
    version = str(windows["model_version"][-1])
    rows = windows.filter(model_version=version)["window_rows"].median()
    return version, int(rows) if rows is not None else None  # type: ignore[arg-type]


def _features(plan: ModelPlan, found: Calibration) -> Iterator[Chance]:
    level = _level(plan, Measure.FEATURE_DRIFT) / max(1, len(plan.schema.features))
    for f in plan.schema.features:
        tail = found.tails.get((Measure.FEATURE_DRIFT.value, f.name))
        if tail is None:
            continue
        method = plan.methods.get(f.name) or default_method(f.kind)
        backwards = METHODS[method.name].statistic is Statistic.P_VALUE
        usual, rare = tail.at(0.5), tail.at(level)
        if backwards:
            usual, rare = math.exp(-usual), math.exp(-rare)
        effective = min(method.threshold, rare) if backwards else max(method.threshold, rare)
        yield Chance(f.name, method.name, usual, rare, method.threshold, effective, tail.block, tail.draws, tail.chunks)


def _drops(plan: ModelPlan, yardstick: Yardstick, found: Calibration, rows: int) -> Iterator[tuple[str, float, float]]:
    """Per metric: the reference's value, and the drop that chance exceeds in one window only at the rule's level.

    A window's standard error is that of the reference, scaled to its rows.
    """
    reference = yardstick.reference
    bar = NormalDist().inv_cdf(1 - _level(plan, Measure.PERFORMANCE_DROP))
    for metric in plan.metrics:
        value, around = reference.performance.get((metric, "")), reference.intervals.get((metric, ""))
        if value is None or around is None:
            continue
        error = (around[1] - around[0]) / 2 / Z * found.error_inflation
        yield metric, value, bar * error * math.sqrt(1 + reference.rows / rows)


def _level(plan: ModelPlan, measure: Measure) -> float:
    """Of the model's calibrated rule on this measure; a rule that sums up evidence is taken as one window."""
    rule: Rule | None = next((r for r in plan.rules if r.measure is measure and r.calibrated), None)
    if rule is None:
        return 0.001
    return 1 / rule.sustained.per_windows if isinstance(rule.sustained, ForEvidence) else rule.level


def proposal(found: Calibrated) -> str:
    """Numbers for config.toml, for those who want them fixed instead of "auto"."""
    lines = [f"[models.{found.model}.drift]"]
    lines += [f'{_key(f.feature)} = {{ method = "{f.method}", threshold = {f.effective:.3g} }}' for f in found.features]
    for metric, _, drop in found.drops[:1]:
        lines += [
            "",
            f"[[models.{found.model}.rules]]",
            'name = "performance_drop"',
            'measure = "performance_drop"',
            f'metric = "{metric}"',
            f"above = {drop:.3g}",
            'for = "1 of 1 windows"',
            'action = "retrain"',
        ]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    plain = name.replace("_", "").replace("-", "")
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return name if plain.isascii() and plain.isalnum() else f'"{escaped}"'
