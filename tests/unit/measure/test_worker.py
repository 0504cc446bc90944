"""What a measuring process makes of a task: seasons, references that are learned from, calibration that is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from monitor.base.errors import ConfigError
from monitor.config.loading import from_dict
from monitor.config.plan import plans
from monitor.lake.lake import Lake, Table
from monitor.measure.settings import Season
from monitor.measure.worker import measure
from monitor.rules.measurement import Measure, Measurement
from monitor.start.calibrating import calibrate_model, proposal
from tests.builders import DAY, HOUR
from tests.windows import FEATURES, START, rows, task


def drift_of_x(measurements: tuple[Measurement, ...]) -> Measurement:
    return next(m for m in measurements if m.measure is Measure.FEATURE_DRIFT and m.feature == "x")


def test_season_compares_a_night_with_nights_and_not_with_days(tmp_path: Path) -> None:
    """Nights are 5, days are 0; the frozen reference is a day."""
    lake, offset = Lake(str(tmp_path / "lake")), 0
    for day in range(5):
        for hour, mean in ((3, 5.0), (12, 0.0)):
            lake.append(
                Table.PREDICTIONS, rows(300, START + day * DAY + hour * HOUR, mean, 100 * day + hour, offset), "m"
            )
            offset += 300
    reference = tmp_path / "references" / "m" / "1" / "warmup.parquet"
    reference.parent.mkdir(parents=True)
    rows(600, START, 0.0, 999).write_parquet(reference)
    night = START + 4 * DAY + 3 * HOUR
    assert drift_of_x(measure(task(tmp_path, None, night)).measurements).drifted
    daily = measure(task(tmp_path, Season(DAY, 3), night))
    assert drift_of_x(daily.measurements).drifted is False
    assert daily.reference == "season:3 windows of 900 rows"


def test_season_without_a_past_leaves_drift_undecided(tmp_path: Path) -> None:
    Lake(str(tmp_path / "lake")).append(Table.PREDICTIONS, rows(300, START, 0.0, 1), "m")
    reference = tmp_path / "references" / "m" / "1" / "warmup.parquet"
    reference.parent.mkdir(parents=True)
    rows(600, START, 0.0, 999).write_parquet(reference)
    found = drift_of_x(measure(task(tmp_path, Season(7 * DAY, 4), START)).measurements)
    assert (found.value, found.drifted) == (None, None)
    assert "no usable value in the reference" in found.reason


def calibratable(folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    n = 2000
    truth = rng.normal(size=n)
    table = pl.DataFrame(
        {
            "x": rng.normal(size=n),
            "c": rng.choice(["a", "b"], n),
            "label": truth,
            "prediction": truth + rng.normal(size=n),
        }
    )
    table.write_parquet(folder / "rows.parquet")
    return {
        "daemon": {"state": str(folder / "state")},
        "models": {"m": {"task": "regression", "features": FEATURES, "reference": {"path": "rows.parquet"}}},
    }


def test_calibrate_says_what_chance_gives_and_proposes_numbers_that_are_accepted(tmp_path: Path) -> None:
    document = calibratable(tmp_path)
    found = calibrate_model(from_dict(document, base=tmp_path), "m", None, 200)
    x = next(f for f in found.features if f.feature == "x")
    assert x.usual < x.rare
    assert x.effective == max(x.threshold, x.rare)
    assert x.chunks >= 8
    metric, value, drop = found.drops[0]
    assert metric == "mae"
    assert 0 < drop < value
    import tomllib

    proposed = tomllib.loads(proposal(found))["models"]["m"]
    from_dict({**document, "models": {"m": {**document["models"]["m"], **proposed}}}, base=tmp_path)
    assert list((tmp_path / "state" / "references" / "m" / "1").glob("*-chance-*.json"))


@pytest.mark.parametrize(
    ("model", "rows_asked", "message"),
    [
        ("n", 200, "no model 'n' is configured"),
        ("m", None, "no window has been measured yet: give --rows"),
        ("m", 10, "fewer than 50 rows cannot be calibrated"),
    ],
)
def test_calibrate_names_what_is_missing(tmp_path: Path, model: str, rows_asked: int | None, message: str) -> None:
    loaded = from_dict(calibratable(tmp_path), base=tmp_path)
    with pytest.raises(ConfigError, match=message):
        calibrate_model(loaded, model, None, rows_asked)


def test_season_of_the_configuration_reaches_the_task(tmp_path: Path) -> None:
    model = {"task": "regression", "features": FEATURES, "reference": {"season": "weekly", "season_periods": 2}}
    plan = plans(from_dict({"daemon": {"state": str(tmp_path)}, "models": {"m": model}}))["m"]
    assert plan.season == Season(7 * DAY, 2)
