"""How surprising is too surprising: from a wanted rate of false alarms to levels and thresholds.

Invariant: pure, without libraries (config validation imports it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

_NORMAL = NormalDist()
SHARED = 0.5
"""Correlation of the surprises of neighbouring windows that `sustained_level` allows for.

All windows of a version are held against the same reference, so they share its luck: with as many rows in the
reference as in the window, half of the variance is common.
"""
ALLOWANCE = 0.5
"""Standard errors per window that an evidence sum forgives (the usual half of a shift of one)."""


def rejected(p_values: Sequence[float], level: float) -> list[bool]:
    """Benjamini and Hochberg (1995): which of a family stand out, at false discovery rate `level`.

    When nothing has changed, the chance that any stands out is `level`, however many there are.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    most = 0
    for rank, at in enumerate(order, start=1):
        if p_values[at] <= level * rank / len(p_values):
            most = rank
    standing_out = set(order[:most])
    return [at in standing_out for at in range(len(p_values))]


@lru_cache(maxsize=64)
def sustained_level(per_windows: float, breaches: int, windows: int, shared: float = SHARED) -> float:
    """The level per window at which `breaches` of `windows` happen by chance once in `per_windows` windows.

    The surprises of the windows are normal with correlation `shared`, which is integrated over.
    """
    target = 1.0 / per_windows
    if breaches == 1 and windows == 1:
        return target
    low, high = 1e-9, 0.5
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _sustained_chance(middle, breaches, windows, shared) < target else (low, middle)
    return low


def _sustained_chance(level: float, breaches: int, windows: int, shared: float) -> float:
    bar, total, step = _NORMAL.inv_cdf(1 - level), 0.0, 0.05
    for at in range(-120, 121):
        common = at * step
        chance = 1 - _NORMAL.cdf((bar - math.sqrt(shared) * common) / math.sqrt(1 - shared))
        total += _NORMAL.pdf(common) * step * _at_least(chance, breaches, windows)
    return total


def _at_least(chance: float, breaches: int, windows: int) -> float:
    return sum(math.comb(windows, k) * chance**k * (1 - chance) ** (windows - k) for k in range(breaches, windows + 1))


@lru_cache(maxsize=64)
def evidence_threshold(per_windows: float) -> float:
    """Where a cumulative sum of standardised surprises fires once in `per_windows` windows when nothing has changed.

    Siegmund's approximation of the average run length of a one-sided CUSUM with allowance `ALLOWANCE` (Siegmund 1985,
    Sequential Analysis, eq. 2.57; Montgomery, Statistical Quality Control, 9.1).
    """

    def run_length(threshold: float) -> float:
        x = 2 * ALLOWANCE * (threshold + 1.166)
        return (math.exp(x) - x - 1) / (2 * ALLOWANCE**2)

    low, high = 0.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if run_length(middle) < per_windows else (low, middle)
    return high


def surprise(z: float) -> float:
    """The chance of a standard normal value above `z`."""
    return 0.5 * math.erfc(z / math.sqrt(2))
