"""One window's measurement against Evidently's own report with the same methods, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import polars as pl

from monitor.measure._evidently import load, quiet
from monitor.measure.data_quality import measure_quality
from monitor.measure.drift.compare import measure_drift
from monitor.measure.drift.methods import default_method
from monitor.measure.reference import prepare
from retrain.terms.schema import Feature, FeatureKind, ModelSchema, Task

NUMBERS, CATEGORIES, ROWS, REPEATS = 14, 6, 10_000, 5

SCHEMA = ModelSchema(
    "bench",
    Task.REGRESSION,
    tuple(Feature(f"n{i}", FeatureKind.NUMBER) for i in range(NUMBERS))
    + tuple(Feature(f"c{i}", FeatureKind.CATEGORY) for i in range(CATEGORIES)),
)


def frame(seed: int, shift: float) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {f"feature_n{i}": rng.normal(shift, 1, ROWS) for i in range(NUMBERS)}
    columns |= {f"feature_c{i}": rng.choice(list("abcdefgh"), ROWS) for i in range(CATEGORIES)}
    return pl.DataFrame({**columns, "prediction": rng.normal(shift, 1, ROWS)})


def run() -> list[dict[str, Any]]:
    """Drift, prediction drift and data quality of 20 features against `Report([DataDriftPreset()]).run`.

    Both get a reference that was prepared beforehand and a window as it comes from the lake; neither draws
    a page.
    """
    evidently = load()
    window, baseline = frame(1, 0.05), frame(2, 0.0)
    reference = prepare(baseline, SCHEMA)
    definition = evidently.DataDefinition(
        numerical_columns=[f"feature_n{i}" for i in range(NUMBERS)] + ["prediction"],
        categorical_columns=[f"feature_c{i}" for i in range(CATEGORIES)],
    )
    their_reference = evidently.Dataset.from_pandas(baseline.to_pandas(), definition)
    number, category = default_method(FeatureKind.NUMBER), default_method(FeatureKind.CATEGORY)
    preset = evidently.presets.DataDriftPreset(
        num_method=number.name,
        num_threshold=number.threshold,
        cat_method=category.name,
        cat_threshold=category.threshold,
    )

    def theirs() -> None:
        with quiet():
            current = evidently.Dataset.from_pandas(window.to_pandas(), definition)
            evidently.Report([preset]).run(current, their_reference)

    def ours() -> None:
        measure_drift(window, reference, SCHEMA, {})
        measure_quality(window, reference, SCHEMA)

    ours_s, theirs_s = _interleaved(ours, theirs)
    return [
        {
            "what": f"one window, {NUMBERS + CATEGORIES} features x {ROWS:,} rows against a {ROWS:,} reference",
            "ours_s": ours_s,
            "theirs_s": theirs_s,
            "ratio": theirs_s / ours_s,
            "at_least": 20.0,
            "aim": 100.0,
        }
    ]


def _interleaved(ours: Callable[[], None], theirs: Callable[[], None]) -> tuple[float, float]:
    """Median seconds of each; taken in turn, so that a busy machine slows both."""
    taken: tuple[list[float], list[float]] = ([], [])
    ours()
    theirs()
    for _ in range(REPEATS):
        for work, seconds in zip((ours, theirs), taken, strict=True):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
    return median(taken[0]), median(taken[1])


if __name__ == "__main__":
    for row in run():
        print(row)
