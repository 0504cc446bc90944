"""Which drift matters: the strength of each feature's drift, weighted with what the model makes of the feature.

Invariant: pure; made from measurements, so it ranks what was measured and measures nothing itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from monitor.measure.drift.methods import METHODS, Statistic
from monitor.rules.measurement import Measure, Measurement

STRONGEST = 10.0


def drift_impact(measurements: Iterable[Measurement], importance: Mapping[str, float]) -> list[Measurement]:
    """`drift_impact` of each feature: importance (a share) times strength.

    Strength is the distance in units of its threshold, or the logarithm of the p-value in units of that of its
    threshold, at most `STRONGEST`; a feature gone missing has the greatest. Without importances there is no impact.
    """
    drifts = [m for m in measurements if m.measure is Measure.FEATURE_DRIFT]
    if not importance:
        return []
    return [
        Measurement(
            Measure.DRIFT_IMPACT,
            None if (strength := drift_strength(m)) is None else importance.get(m.feature, 0.0) * strength,
            m.rows,
            feature=m.feature,
            method=m.method,
            reason=m.reason,
        )
        for m in drifts
    ]


def drift_strength(m: Measurement) -> float | None:
    """How strong a drift is, 1 at the method's own threshold."""
    if m.value is None or not m.threshold:
        return STRONGEST if m.drifted else None
    if METHODS[m.method].statistic is Statistic.P_VALUE:
        strength = math.log(max(m.value, 1e-300)) / math.log(m.threshold) if m.threshold < 1 else 0.0
    else:
        strength = m.value / m.threshold
    if m.drifted and strength < 1:  # by its missing values
        strength = 1.0
    return min(strength, STRONGEST)
