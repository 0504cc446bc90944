"""One number about one window: what every later step reasons about.

Invariant: a value that could not be computed is None with a reason, never NaN or infinite.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Measure(StrEnum):
    FEATURE_DRIFT = "feature_drift"
    DRIFT_SHARE = "drift_share"
    DRIFT_IMPACT = "drift_impact"
    PREDICTION_DRIFT = "prediction_drift"
    LABEL_DRIFT = "label_drift"
    PERFORMANCE = "performance"
    PERFORMANCE_DROP = "performance_drop"
    PERFORMANCE_DROP_RATIO = "performance_drop_ratio"
    ESTIMATED_PERFORMANCE = "estimated_performance"
    ESTIMATED_DROP = "estimated_drop"
    ESTIMATION_ERROR = "estimation_error"
    MISSING_SHARE = "missing_share"
    UNSEEN_SHARE = "unseen_share"
    OUT_OF_RANGE_SHARE = "out_of_range_share"
    INVALID_SHARE = "invalid_share"
    VOLUME = "volume"
    LATENCY_P50 = "latency_p50"
    LATENCY_P95 = "latency_p95"
    LATENCY_P99 = "latency_p99"
    LABEL_COVERAGE = "label_coverage"
    LABEL_DELAY = "label_delay"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measured value.

    Shares are in [0, 1], latencies and label delay in seconds, volume in rows. `performance_drop` is how much
    worse than the reference the metric is (positive = worse, whichever way the metric runs), in the metric's
    units; `performance_drop_ratio` is that over the reference's absolute value. `drifted` and `threshold` are set for
    drift measures only; `value` is then the test's p-value or distance.

    `failed` is 1 in a window that could not be measured, with the reason, and is there in no other.

    `interval` is the value's 95 % interval, where it has one. `p_value` is the chance of a value at least as extreme in
    a window of this size when nothing has changed (calibrated on the reference; None: not known). `standard_error`
    is the part of the value's uncertainty that comes from the window's rows, `reference_error` the part that comes
    from the reference's and is the same in every window.
    """

    measure: Measure
    value: float | None
    rows: int
    feature: str = ""
    metric: str = ""
    segment: str = ""
    method: str = ""
    threshold: float | None = None
    drifted: bool | None = None
    reason: str = ""
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    standard_error: float | None = None
    reference_error: float | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells this measurement from the others of its window."""
        return (self.measure.value, self.feature, self.metric, self.segment)


@dataclass(frozen=True, slots=True, order=True)
class WindowKey:
    """A tumbling event-time window `[start, end)` of one model version (aware UTC)."""

    model: str
    version: str
    start: datetime
    end: datetime
