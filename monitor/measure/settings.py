"""How a model's windows are measured: what the configuration says, in the terms of measuring.

Invariant: light and picklable; it crosses process borders with every task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from monitor.measure.drift.methods import DriftMethod
from retrain.terms.schema import ModelSchema


@dataclass(frozen=True, slots=True)
class Settings:
    """`methods`: by feature, `prediction` and `label`. `calibrate`: whether it is found out what chance gives, which
    rules that ask for it need and which costs seconds per reference."""

    schema: ModelSchema
    methods: Mapping[str, DriftMethod]
    metrics: tuple[str, ...]
    segment_min_rows: int
    max_rows: int
    calibrate: bool = True

    def __hash__(self) -> int:
        methods = tuple(sorted(self.methods.items()))
        return hash((self.schema, methods, self.metrics, self.segment_min_rows, self.max_rows, self.calibrate))


@dataclass(frozen=True, slots=True)
class Season:
    """Inputs are compared with those of the same season: the windows 1 to `periods` times `period` earlier."""

    period: timedelta
    periods: int
