"""Everything that is measured about one window, from its rows and its reference.

Invariant: rows in, measurements out, wherever the rows come from: the daemon's lake, or recorded history in a backtest.
"""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from monitor.measure.data_quality import measure_quality
from monitor.measure.drift.compare import measure_drift, measure_label_drift
from monitor.measure.drift.impact import drift_impact
from monitor.measure.performance.compute import measure_performance
from monitor.measure.reference import prepare
from monitor.measure.settings import Settings
from monitor.measure.yardstick import Yardstick
from monitor.rules.measurement import Measure, Measurement

SAMPLE_SEED = 0


def measure_unlabelled(
    window: pl.DataFrame, yardstick: Yardstick | None, settings: Settings, compared: Yardstick | None = None
) -> list[Measurement]:
    """What can be told without labels. `window`: the predictions, each once; `yardstick`: the version's reference.

    `compared`, where given, is what the inputs are compared with instead: the same season of earlier weeks.
    """
    schema, sample = settings.schema, _sample(window, settings.max_rows)
    against = compared or yardstick
    if against is None:
        empty = prepare(window.clear(), schema)
        known = (Measure.UNSEEN_SHARE, Measure.OUT_OF_RANGE_SHARE)
        found = [m for m in measure_quality(sample, empty, schema) if m.measure not in known]
        return [_with_volume(m, window.height) for m in found]
    found = measure_quality(sample, against.reference, schema)
    found += measure_drift(sample, against.reference, schema, settings.methods, settings.methods.get("prediction"))
    if settings.calibrate:
        found = against.with_chance(found, sample.height)
    found = [_with_volume(m, window.height) for m in found]
    if yardstick is not None:
        found += drift_impact(found, yardstick.importance)
        found += yardstick.estimates(sample)
    return found


def measure_labelled(
    predictions: pl.DataFrame, outcomes: pl.DataFrame, yardstick: Yardstick | None, settings: Settings
) -> list[Measurement]:
    """What labels tell. `outcomes`: the labelled ones of `predictions`, each once with its newest label."""
    coverage = outcomes.height / predictions.height if predictions.height else 0.0
    found = [
        Measurement(Measure.LABEL_COVERAGE, min(1.0, coverage), predictions.height),
        _label_delay(outcomes),
    ]
    if not outcomes.height:
        return found
    schema, sample = settings.schema, _sample(outcomes, settings.max_rows)
    reference = yardstick.reference if yardstick is not None else prepare(predictions.clear(), schema)
    inflation = yardstick.error_inflation(sample.height) if yardstick is not None and settings.calibrate else 1.0
    performance = measure_performance(sample, reference, schema, settings.metrics, settings.segment_min_rows, inflation)
    drift = measure_label_drift(sample, reference, schema, settings.methods.get("label"))
    if yardstick is not None and settings.calibrate:
        drift = yardstick.with_chance(drift, sample.height)
    found += [*performance, *drift]
    if yardstick is not None:
        found += yardstick.estimation_errors(sample, performance)
    return found


def _sample(frame: pl.DataFrame, max_rows: int) -> pl.DataFrame:
    return frame if frame.height <= max_rows else frame.sample(max_rows, seed=SAMPLE_SEED)


def _with_volume(m: Measurement, rows: int) -> Measurement:
    return replace(m, value=float(rows), rows=rows) if m.measure is Measure.VOLUME else m


def _label_delay(outcomes: pl.DataFrame) -> Measurement:
    if not outcomes.height:
        return Measurement(Measure.LABEL_DELAY, None, 0, reason="no labelled rows")
    seconds = (outcomes["label_ts"] - outcomes["ts"]).dt.total_seconds(fractional=True).median()
    return Measurement(Measure.LABEL_DELAY, max(0.0, float(seconds)), outcomes.height)  # type: ignore[arg-type]
