"""Why, in one sentence with numbers: what drifted and matters, and whether the inputs or their meaning changed.

Invariant: pure; says only what was measured, and nothing where nothing was.
"""

from __future__ import annotations

from collections.abc import Iterable

from monitor.measure.drift.impact import drift_strength
from monitor.rules.measurement import Measure, Measurement

MOST = 3


def what_drifted(measurements: Iterable[Measurement]) -> str:
    """The drifted features that matter most: `amount (wasserstein 0.45, 38 % of what moves the model), ..`."""
    found = list(measurements)
    impacts = {m.feature: m.value for m in found if m.measure is Measure.DRIFT_IMPACT and m.value}
    drifted = [m for m in found if m.measure is Measure.FEATURE_DRIFT and m.drifted and m.feature in impacts]
    drifted.sort(key=lambda m: -(impacts[m.feature] or 0.0))
    return ", ".join(_drifted(m, impacts[m.feature] or 0.0) for m in drifted[:MOST])


def _drifted(m: Measurement, impact: float) -> str:
    weight = impact / (drift_strength(m) or 1.0)
    size = m.reason or f"{m.method} {m.value:.2g}"
    return f"{m.feature} ({size}, {weight:.0%} of what moves the model)"


def what_changed(measurements: Iterable[Measurement], metric: str) -> str:
    """Concept or covariate: how much of a drop the inputs explain, by the estimate that knows nothing but them.

    The estimate is what the performance would be if the same inputs still meant the same. Where the realized
    performance is worse than that by more than the estimate's interval allows, their meaning has changed.
    """
    mine = {m.measure: m for m in measurements if m.metric == metric and not m.segment}
    dropped, missed = mine.get(Measure.PERFORMANCE_DROP), mine.get(Measure.ESTIMATION_ERROR)
    if dropped is None or missed is None or dropped.value is None or missed.value is None or missed.interval is None:
        return ""
    explained = dropped.value - missed.value
    share = f"the inputs explain {explained:.2g} of the drop of {dropped.value:.2g}"
    if missed.interval[0] > 0:
        return f"{share}: what they mean has changed (concept drift)"
    if dropped.interval is not None and dropped.interval[0] > 0:
        return f"{share}: other inputs, the same meaning (covariate drift)"
    return ""
