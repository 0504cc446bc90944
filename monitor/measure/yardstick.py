"""A version's reference with all that is learned from it: what chance gives, estimates without labels, importances.

Invariant: each part is made when it is first asked for, once per process, and depends on the reference alone; what took
seconds to find out is kept beside the reference as JSON, for the next process and for people.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import polars as pl

from monitor.measure.calibration import (
    MIN_ROWS,
    Calibration,
    calibrate,
    load_calibration,
    save_calibration,
    size_class,
    with_chance,
    write_json,
)
from monitor.measure.drift.importance import surrogate_importance
from monitor.measure.estimate.without_labels import Estimate, Estimator, estimate, fit_estimator
from monitor.measure.performance.compute import prepare_reference, with_errors
from monitor.measure.performance.scores import drop
from monitor.measure.reference import Reference
from monitor.measure.settings import Settings
from monitor.rules.measurement import Measure, Measurement


class Yardstick:
    """`name` tells people where the reference is from. `keep`: folder for what is found out; None keeps nothing."""

    def __init__(
        self,
        name: str,
        frame: pl.DataFrame,
        settings: Settings,
        *,
        max_rows: int = 10_000,
        keep: Path | None = None,
        identity: str = "",
    ):
        self.name = name
        self._frame = frame
        self._settings = settings
        self._keep = keep
        self._identity = identity
        self.reference: Reference = prepare_reference(
            frame, settings.schema, settings.metrics, settings.segment_min_rows, max_rows=max_rows
        )
        self._calibrations: dict[int, Calibration] = {}

    # -- chance

    def calibration(self, rows: int) -> Calibration | None:
        """What chance gives in windows of `rows` rows (of their size class); None for too few."""
        if rows < MIN_ROWS:
            return None
        size = size_class(rows)
        if size not in self._calibrations:
            path = self._path(f"chance-{size}")
            found = load_calibration(path) if path is not None else None
            if found is None:
                found = calibrate(self.reference, self._settings.schema, self._settings.methods, size)
                with suppress(OSError):  # a full disk: the next process finds it out again
                    if path is not None:
                        save_calibration(found, path)
            self._calibrations[size] = found
        return self._calibrations[size]

    def with_chance(self, measurements: list[Measurement], rows: int) -> list[Measurement]:
        found = self.calibration(rows)
        return measurements if found is None else with_chance(measurements, found)

    def error_inflation(self, rows: int) -> float:
        found = self.calibration(rows)
        return 1.0 if found is None else found.error_inflation

    # -- without labels

    @cached_property
    def estimator(self) -> Estimator | str:
        return fit_estimator(self._frame, self._settings.schema, self._settings.metrics)

    def estimates(self, window: pl.DataFrame) -> list[Measurement]:
        """`estimated_performance` and `estimated_drop` of each metric; undefined ones with the reason."""
        found: list[Measurement] = []
        for metric, value in self._estimated(window).items():
            if isinstance(value, str):
                undefined = Measurement(Measure.ESTIMATED_PERFORMANCE, None, window.height, metric=metric, reason=value)
                found += [undefined, replace(undefined, measure=Measure.ESTIMATED_DROP)]
                continue
            around = (value.low, value.high)
            estimated = Measurement(
                Measure.ESTIMATED_PERFORMANCE, value.value, window.height, metric=metric, interval=around
            )
            found += [estimated, self._estimated_drop(estimated, value)]
        return found

    def _estimated(self, window: pl.DataFrame) -> dict[str, Estimate | str]:
        if isinstance(self.estimator, str):
            return dict.fromkeys(self._settings.metrics, self.estimator)
        return estimate(self.estimator, window)

    def _estimated_drop(self, estimated: Measurement, value: Estimate) -> Measurement:
        at = (estimated.metric, "")
        before, around = self.reference.performance.get(at), self.reference.intervals.get(at)
        if before is None:
            reason = "the reference has no such performance"
            return replace(estimated, measure=Measure.ESTIMATED_DROP, value=None, interval=None, reason=reason)
        worse = replace(
            estimated, measure=Measure.ESTIMATED_DROP, value=drop(estimated.metric, value.value, before), interval=None
        )
        if around is None:
            return worse
        return with_errors(worse, estimated.metric, (value.value, (value.low, value.high)), (before, around))

    def estimation_errors(self, outcomes: pl.DataFrame, performance: Iterable[Measurement]) -> list[Measurement]:
        """`estimation_error`: by how much the realized performance is worse than the estimate for the same rows.

        Its interval is that of the estimate around it: when it does not hold zero, labels tell what the inputs do not,
        which is a change of what the inputs mean (concept drift).
        """
        realized = {m.metric: m.value for m in performance if m.measure is Measure.PERFORMANCE and not m.segment}
        found = []
        for metric, value in self._estimated(outcomes).items():
            known = realized.get(metric)
            if isinstance(value, str) or known is None:
                reason = value if isinstance(value, str) else "performance is undefined"
                found.append(Measurement(Measure.ESTIMATION_ERROR, None, outcomes.height, metric=metric, reason=reason))
                continue
            ends = sorted((drop(metric, known, value.low), drop(metric, known, value.high)))
            found.append(
                Measurement(
                    Measure.ESTIMATION_ERROR, drop(metric, known, value.value), outcomes.height, metric=metric,
                    interval=(ends[0], ends[1]),
                )
            )  # fmt: skip
        return found

    # -- what the features are worth

    @cached_property
    def importance(self) -> Mapping[str, float]:
        """Share of each feature in what moves the model's answers; they sum to 1. Empty when it cannot be told."""
        path = self._path("importance")
        with suppress(OSError, ValueError):
            if path is not None:
                return dict(json.loads(path.read_text(encoding="utf-8")))
        found = surrogate_importance(self.reference, self._settings.schema)
        with suppress(OSError):
            if path is not None:
                write_json(path, found)
        return found

    def _path(self, name: str) -> Path | None:
        """By the reference's identity: what was learned from another one is not taken for this one's."""
        return self._keep / f"{self._identity}-{name}.json" if self._keep is not None else None
