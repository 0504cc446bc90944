"""The streams of docs/decisions-quality.md: recorded tables, and rows that never change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from monitor.backtest.history import History
from monitor.backtest.run import Options, Setting, of_table


@dataclass(frozen=True, slots=True)
class Recorded:
    """A table in stream order. `changes`: rows of the file where the world is known to change; `every`: one row in so
    many is used."""

    name: str
    file: str
    target: str
    drop: tuple[str, ...] = ()
    changes: tuple[int, ...] = ()
    every: int = 1


@dataclass(frozen=True, slots=True)
class Quiet:
    """Independent rows that never change: whatever fires is a false alarm."""

    features: int
    window_rows: int
    windows: int
    seeds: int = 1

    @property
    def name(self) -> str:
        return f"quiet, {self.features} features, windows of {self.window_rows:,}"

    @property
    def training_rows(self) -> int:
        return max(2000, 2 * self.window_rows)


LEAKS = ("time_hour", "dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "tailnum")
RECORDED = (
    Recorded("electricity", "electricity_nsw.csv.gz", "class", ("date", "nswprice")),
    Recorded("bike sharing", "bike_sharing_hour.csv.gz", "cnt", ("instant", "casual", "registered", "dteday")),
    Recorded("occupancy, with Light", "occupancy_uci.csv.gz", "Occupancy", ("date", "part")),
    Recorded("occupancy, without Light", "occupancy_uci.csv.gz", "Occupancy", ("date", "part", "Light")),
    Recorded("keystroke", "keystroke.csv.gz", "class"),
    Recorded("SEA", "sea_vlosing_synthetic.csv.gz", "class", changes=(12_500, 25_000, 37_500)),
    Recorded(
        "car loan", "nannyml_synthetic_car_loan.parquet", "repaid",
        ("id", "timestamp", "y_pred_proba", "y_pred", "partition"), changes=(75_000,),
    ),
    Recorded("flights, every 10th", "nycflights13.parquet", "arr_delayed_15", LEAKS, every=10),
)  # fmt: skip
QUIET = (
    Quiet(10, 200, 1000, seeds=2),
    Quiet(10, 2000, 300),
    Quiet(10, 10_000, 100),
    Quiet(200, 200, 300),
    Quiet(200, 1000, 100),
)
STREAMS: dict[str, Recorded | Quiet] = {s.name: s for s in (*RECORDED, *QUIET)}


def quiet_rows(stream: Quiet, seed: int) -> pl.DataFrame:
    """Normal features, three of which say something about the label, always the same."""
    rng = np.random.default_rng(seed)
    rows = stream.training_rows + stream.window_rows * stream.windows
    values = rng.normal(size=(rows, stream.features))
    log_odds = 1.5 * values[:, 0] + values[:, 1] - 0.75 * values[:, 2]
    label = (rng.random(rows) < 1 / (1 + np.exp(-log_odds))).astype(np.int64)
    return pl.DataFrame({**{f"x{n}": values[:, n] for n in range(stream.features)}, "label": label})


def opened(stream: Recorded, data: Path, folder: Path) -> tuple[Setting, History]:
    """As `driftd backtest --stream` takes the table."""
    path = data / stream.file
    if stream.every > 1:
        thinned = folder / path.name
        pl.read_parquet(path).gather_every(stream.every).write_parquet(thinned)
        path = thinned
    settings, history = of_table(Options(stream=path, target=stream.target, drop=stream.drop), folder)
    return settings[0], history


def opened_quiet(stream: Quiet, seed: int, folder: Path) -> tuple[Setting, History]:
    rows = quiet_rows(stream, seed)
    path = folder / "quiet.parquet"
    rows.write_parquet(path)
    share = (stream.training_rows + 0.5) / rows.height
    settings, history = of_table(
        Options(stream=path, target="label", train_share=share, window_rows=stream.window_rows), folder
    )
    return settings[0], history
