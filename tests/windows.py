"""Windows of a lake and the tasks to measure them; no pytest in here."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from monitor.config.loading import from_dict
from monitor.config.plan import plans
from monitor.measure.settings import Season, Settings
from monitor.measure.worker import MeasureTask
from monitor.rules.measurement import WindowKey
from tests.builders import HOUR, NOW

FEATURES = {"x": "number", "c": "category"}
START = NOW.replace(hour=0)


def rows(n: int, at: Any, mean: float, seed: int, offset: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "prediction_id": [f"p{seed}-{i}" for i in range(n)],
            "ts": [at + timedelta(seconds=i) for i in range(n)],
            "date": [f"{at:%Y-%m-%d}"] * n,
            "model_version": ["1"] * n,
            "feature_x": rng.normal(mean, 1, n),
            "feature_c": rng.choice(["a", "b"], n),
            "prediction": rng.normal(size=n),
            "source_partition": ["t:0"] * n,
            "source_offset": list(range(offset, offset + n)),
        },
        schema_overrides={"ts": pl.Datetime("us", "UTC"), "source_offset": pl.Int64},
    )


def task(folder: Path, season: Season | None, start: Any) -> MeasureTask:
    document = {
        "daemon": {"state": str(folder)},
        "models": {"m": {"task": "regression", "features": FEATURES, "rules": []}},
    }
    plan = plans(from_dict(document))["m"]
    settings: Settings = plan.settings
    return MeasureTask(
        str(folder / "lake"), {}, WindowKey("m", "1", start, start + HOUR), False, settings, plan.reference, season
    )
