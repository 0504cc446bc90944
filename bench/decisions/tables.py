"""What was found, in words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from bench.decisions.policies import EVERY, NEVER, POLICIES, SLIDING, Results
from bench.decisions.streams import QUIET, RECORDED
from monitor.backtest.policies import share_of_the_way

RECORDED_COLUMNS = (
    "stream", "policy", "windows", "trainings", "promoted", "performance", "of the way to a sliding span",
    "of the way to every window", "alarms per 1,000 windows", "windows from change to alarm", "false alarms",
)  # fmt: skip
QUIET_COLUMNS = ("stream", "policy", "windows", "alarms per 1,000 windows", "retrains per 1,000 windows")
Cells = tuple[str, ...]


def recorded_table(results: Results) -> list[Cells]:
    """One row per recorded stream and policy; the stream's name stands in its first row."""
    rows: list[Cells] = []
    for name in [s.name for s in RECORDED if s.name in results]:
        found = results[name]
        title = f"{name} ({found['metric']}, {_direction(found)})"
        for n, (policy, mine) in enumerate(_in_order(found)):
            ways = (_way(found, policy, SLIDING), _way(found, policy, EVERY))
            counts = (f"{found['windows']}", f"{mine['trainings']}", f"{mine['promoted']}")
            alarms = _alarms(found, mine)
            rows.append(("" if n else title, policy, *counts, _show(mine["performance"]), *ways, *alarms))
    return rows


def quiet_table(results: Results) -> list[Cells]:
    rows: list[Cells] = []
    for name in [s.name for s in QUIET if s.name in results]:
        found = results[name]
        for n, (policy, mine) in enumerate(_in_order(found)):
            retrains = f"{1000 * len(mine['jobs']) / found['windows']:.1f}"
            rows.append(("" if n else name, policy, f"{found['windows']}", _alarms(found, mine)[0], retrains))
    return rows


def _alarms(found: Results, mine: Results) -> tuple[str, str, str]:
    """Alarms per 1,000 windows, windows from each change to the first one, and those before the first change."""
    changes = found["changes"]
    per_thousand = _by_rule(mine, lambda at: f"{1000 * len(at) / found['windows']:.1f}")
    if not changes:
        return per_thousand, "-", "-"
    delays = _by_rule(mine, lambda at: ", ".join(_delays(at, changes)))
    return per_thousand, delays, _by_rule(mine, lambda at: str(sum(a < changes[0] for a in at)))


def _way(found: Results, policy: str, ceiling: str) -> str:
    """From never (0 %) to the ceiling (100 %)."""
    scores = (found["policies"].get(p, {}).get("performance") for p in (policy, NEVER, ceiling))
    share = share_of_the_way(*scores)
    return "-" if share is None else f"{share:.0%}"


def curve(found: Results) -> list[Cells]:
    """Performance in tenths of the stream: windows, then a mean per policy."""
    policies = [(name, mine["windows"]) for name, mine in _in_order(found)]
    edges = np.linspace(0, found["windows"], 11).round().astype(int)
    rows = []
    for first, last in itertools.pairwise(edges):
        if last > first:
            means = (_mean(windows[first:last]) for _, windows in policies)
            rows.append((f"{first + 1}-{last}", *(_show(mean) for mean in means)))
    return rows


def _in_order(found: Results) -> list[tuple[str, Results]]:
    return [(name, found["policies"][name]) for name in POLICIES if name in found["policies"]]


def _by_rule(mine: Results, say: Callable[[list[float]], str]) -> str:
    """One figure, or one per rule with its name."""
    said = {rule: say(at) for rule, at in mine["alarms"].items()}
    if len(said) <= 1:
        return next(iter(said.values()), "-")
    return "; ".join(f"{rule} {text}" for rule, text in said.items())


def _delays(alarms: Sequence[float], changes: Sequence[float]) -> list[str]:
    """Windows from each change to the first alarm before the next change; "none" where there is no such alarm."""
    until = [*changes[1:], math.inf]
    first = [min((a for a in alarms if c <= a < u), default=None) for c, u in zip(changes, until, strict=True)]
    return ["none" if a is None else f"{a - c:.1f}" for a, c in zip(first, changes, strict=True)]


def _direction(found: Results) -> str:
    return "more is better" if found["better"] == "higher" else "less is better"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def markdown(kept: Results) -> str:
    results = kept["streams"]
    parts = [_markdown(RECORDED_COLUMNS, recorded_table(results)), "### Quiet streams"]
    parts.append(_markdown(QUIET_COLUMNS, quiet_table(results)))
    for name in [s.name for s in RECORDED if s.name in results]:
        found = results[name]
        head = ("windows", *(policy for policy, _ in _in_order(found)))
        parts += [f"### {name}: {found['metric']}, {_direction(found)}", _markdown(head, curve(found))]
    machine, runs = kept["machine"], [(n, p, mine) for n, found in results.items() for p, mine in _in_order(found)]
    checked = sum(mine["evidently_checked"] for _, _, mine in runs)
    libraries = ", ".join(f"{name} {number}" for name, number in machine["libraries"].items())
    times = sorted(mine["measured_at"] for _, _, mine in runs)
    parts.append(
        f"Python {machine['python']}, {libraries}. Run between {times[0]} and {times[-1]}. {_same_code(runs)} "
        f"Windows of which Evidently's own report was held against its tests called alone: {checked}, all equal."
    )
    return "\n\n".join(parts)


def _same_code(runs: Sequence[tuple[str, str, Results]]) -> str:
    """Of which code of driftd the rows are; rows of a policy that are not all of the same are named."""
    codes = {mine["code"] for _, _, mine in runs}
    if len(codes) == 1:
        return f"Code of driftd: {codes.pop()}."
    of: dict[str, dict[str, list[str]]] = {}
    for name, policy, mine in runs:
        of.setdefault(policy, {}).setdefault(mine["code"], []).append(name)
    parts = []
    for code in sorted(codes):
        whole = [policy for policy, by in of.items() if list(by) == [code]]
        split = [f"{policy} ({', '.join(by[code])})" for policy, by in of.items() if code in by and len(by) > 1]
        parts.append(f"{code}: {', '.join([*whole, *split])}")
    return f"**The rows are of different code of driftd**: {'; '.join(parts)}."


def _markdown(head: Sequence[str], rows: Sequence[Cells]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(cells)} |" for cells in rows)]
    return "\n".join(lines)
