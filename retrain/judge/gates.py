"""Evaluation x Evaluation -> Promote | Reject(reasons).

Invariant: pure; every gate is listed with its numbers whether it passed or not, and what cannot be measured does not
pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from retrain.config.settings import GatesConfig
from retrain.judge.evaluate import Evaluation
from retrain.models.quality import LOWER_IS_BETTER, Comparison
from retrain.terms.schema import ModelSchema


@dataclass(frozen=True, slots=True)
class GateResult:
    """`value` is held against `limit`; `interval` is the confidence interval of `value` where there is one. One that
    `asks` and has not passed rejects nothing: a person decides."""

    name: str
    passed: bool
    value: float | None
    limit: float | None
    detail: str
    interval: tuple[float, float] | None = None
    asks: bool = False

    @property
    def rejects(self) -> bool:
        return not self.passed and not self.asks

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Promote:
    gates: tuple[GateResult, ...]


@dataclass(frozen=True, slots=True)
class Reject:
    gates: tuple[GateResult, ...]
    reasons: tuple[str, ...]


Decision = Promote | Reject


@dataclass(frozen=True, slots=True)
class SmokeTest:
    """The registered version, loaded again from the registry and asked to score holdout rows."""

    passed: bool
    detail: str


def judge(
    champion: Evaluation,
    challenger: Evaluation,
    comparison: Comparison,
    schema: ModelSchema,
    config: GatesConfig,
    *,
    renewing: bool = False,
) -> tuple[GateResult, ...]:
    """Every gate that needs no registry. `renewing`: to pass the quality gate it suffices not to be worse."""
    return (
        _quality(champion, challenger, comparison, config, renewing),
        *_segments(champion, challenger, comparison.metric, config),
        _inputs(champion, challenger, schema),
        _latency(champion, challenger, config),
    )


def decide(gates: Sequence[GateResult], smoke: SmokeTest | None) -> Decision:
    """No gate rejects, the smoke test neither -> Promote. `smoke` is None when it was not worth running."""
    results = tuple(gates)
    if smoke is not None:
        results = (*results, GateResult("smoke_test", smoke.passed, None, None, smoke.detail))
    reasons = tuple(f"{g.name}: {g.detail}" for g in results if g.rejects)
    if not reasons and smoke is None:
        reasons = ("smoke_test: not run",)
    return Reject(results, reasons) if reasons else Promote(results)


def _quality(
    champion: Evaluation, challenger: Evaluation, comparison: Comparison, config: GatesConfig, renewing: bool
) -> GateResult:
    name = comparison.metric
    ours, theirs = challenger.metrics.get(name), champion.metrics.get(name)
    if comparison.low is None or comparison.high is None or comparison.difference is None:
        missing = champion.source if theirs is None else challenger.source
        why = comparison.note if ours is not None and theirs is not None else f"cannot be measured for {missing}"
        detail = f"{name} {why}; the challenger stays out"
        return GateResult("quality", False, comparison.difference, config.margin, detail)
    better = comparison.low > config.margin
    passed = better or (renewing and comparison.high >= 0)
    detail = (
        f"{name} {in_words(ours)} against {in_words(theirs)} ({champion.source}): better by "
        f"{comparison.difference:+.4g}, {comparison.confidence:.0%} interval "
        f"[{comparison.low:+.4g}, {comparison.high:+.4g}] "
        f"{'lies above' if better else 'does not lie above'} {config.margin:g}"
    )
    if passed and not better:
        detail += ", but it is not shown to be worse, and what is promoted knows newer rows"
    if comparison.note:
        detail += f" ({comparison.note})"
    interval = (comparison.low, comparison.high)
    return GateResult("quality", passed, comparison.difference, config.margin, detail, interval)


def _segments(champion: Evaluation, challenger: Evaluation, metric: str, config: GatesConfig) -> list[GateResult]:
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    judged, failed, skipped = 0, [], 0
    worst: float | None = None
    for segment, theirs in champion.segments.items():
        ours = challenger.segments.get(segment)
        if theirs.rows < config.segment_min_rows or theirs.value is None:
            skipped += 1
            continue
        judged += 1
        if ours is None or ours.value is None:
            detail = f"{segment}: {metric} cannot be measured for the challenger"
            failed.append(GateResult("segment", False, None, -config.segment_tolerance, detail))
            continue
        difference = sign * (ours.value - theirs.value)
        worst = difference if worst is None else min(worst, difference)
        if difference < -config.segment_tolerance:
            detail = (
                f"{segment}: {metric} {ours.value:.4g} against {theirs.value:.4g} on {ours.rows} rows is worse by "
                f"{-difference:.4g}, {config.segment_tolerance:g} is allowed"
            )
            failed.append(GateResult("segment", False, difference, -config.segment_tolerance, detail))
    if failed:
        return failed
    detail = f"{judged} segments judged, none worse than allowed"
    detail += f"; {skipped} too small or undefined" if skipped else ""
    return [GateResult("segment", True, worst, -config.segment_tolerance, detail)]


def _inputs(champion: Evaluation, challenger: Evaluation, schema: ModelSchema) -> GateResult:
    expected = {f.name: f.kind.value for f in schema.features}
    problems = []
    if challenger.inputs is None:
        problems.append("the challenger has no signature")
    else:
        problems += _differences("the configured schema", expected, challenger.inputs)
        if champion.inputs is not None:
            problems += _differences("the champion", champion.inputs, challenger.inputs)
    detail = "; ".join(problems) or "inputs equal to the schema" + (" and the champion's" if champion.inputs else "")
    return GateResult("signature", not problems, None, None, detail)


def _differences(of: str, expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    problems = []
    if absent := sorted(set(expected) - set(found)):
        problems.append(f"lacks {', '.join(absent)} of {of}")
    if extra := sorted(set(found) - set(expected)):
        problems.append(f"takes {', '.join(extra)}, unknown to {of}")
    for name in sorted(set(expected) & set(found)):
        if expected[name] != found[name]:
            problems.append(f"takes {name} as {found[name]}, {of} as {expected[name]}")
    return problems


@dataclass(frozen=True, slots=True)
class Took:
    """How long something took the challenger and, if known, the champion, and how long it may take, in seconds."""

    what: str
    ours: float
    theirs: float | None
    budget: float


def _latency(champion: Evaluation, challenger: Evaluation, config: GatesConfig) -> GateResult:
    ours, theirs = challenger.latency, champion.latency
    if ours is None:
        return GateResult("latency", True, None, None, "not timed")
    request, row = (None, None) if theirs is None else (theirs.request, theirs.row)
    took = (
        Took("a request for one row takes", ours.request, request, config.max_latency.total_seconds()),
        Took("a row of many takes", ours.row, row, config.max_row_latency.total_seconds()),
    )
    return latency_gate(took, config.max_latency_ratio)


FLOOR = 0.1
"""Below this share of what is allowed nobody asks how many times the champion's time it is."""


def latency_gate(took: Sequence[Took], ratio: float | None) -> GateResult:
    """Fast enough for what the service needs, or no slower than what it has. `value`: the largest share of what is
    allowed. `ratio` is the most that it may be of the champion's times, None: as much as it likes."""
    parts, failed, shares = [], [], []
    for t in took:
        allowed = max(t.budget, t.theirs or 0.0)
        if ratio is not None and t.theirs is not None:
            allowed = min(allowed, max(ratio * t.theirs, FLOOR * t.budget))
        told = f"{t.what} {_milliseconds(t.ours)}"
        told += f" (the champion {_milliseconds(t.theirs)})" if t.theirs is not None else ""
        parts.append(f"{told}, allowed are {_milliseconds(allowed)}")
        shares.append(t.ours / allowed)
        failed += [parts[-1]] if t.ours > allowed else []
    return GateResult("latency", not failed, max(shares), 1.0, "; ".join(failed or parts))


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"


def in_words(value: float | None) -> str:
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.4g}"
