"""One evaluation tick over a lake with 30 days stored against one with a single day.

Invariant: both lakes get the same new rows in the same commits, and both ticks are the daemon's own `ModelEvaluator`;
only what was stored before differs. Reading, joining and judging is counted apart from ticks that also close a window
and measure it, and both are counted again after the lake's own maintenance.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import polars as pl

from bench.events import MODEL, SCHEMA, VERSION, columns
from bench.say import Say, quietly
from monitor.base.workers import Workers
from monitor.config.loading import from_dict
from monitor.config.plan import ModelPlan, plans
from monitor.decide.evaluator import ModelEvaluator
from monitor.decide.ledger import Ledger
from monitor.decide.units import Units
from monitor.jobs.supervisor import job_history
from monitor.lake.lake import Lake, Table
from monitor.lake.matching import OutcomeWriter
from monitor.lake.progress import DRIFT, PERFORMANCE
from monitor.measure.measurement_table import to_rows
from monitor.measure.worker import MeasureResult, measure
from monitor.metrics import Metrics
from monitor.rules.measurement import Measure, Measurement, WindowKey
from retrain.control.store import open_store

DAYS, ROWS_PER_DAY, COMMITS_PER_DAY = (1, 30), 100_000, 5
NEW_ROWS, TICKS, WARM_UP = 5_000, 8, 3
BEGIN = datetime(2026, 6, 1, tzinfo=UTC)
STEP = timedelta(minutes=30)  # event time of one tick: every other tick closes a window of an hour


class Taken(NamedTuple):
    """One tick: wall time, and the processor time of the evaluating process."""

    seconds: float
    cpu_seconds: float


def run(say: Say = quietly) -> list[dict[str, Any]]:
    """Seconds of one tick with 5,000 new predictions and their labels: 30 days stored against 1."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="driftd-bench-") as folder, _workers() as workers:
        worlds = [_World.build(Path(folder) / str(days), days, workers, say) for days in DAYS]
        for state in ("", " after compaction"):
            for world in worlds if state else ():
                say(f"compacting {world.days} days")
                world.maintain()
            taken = _taken(worlds, say)
            rows += [_row(f"tick{state}", taken, 1, worlds), _row(f"tick that measures{state}", taken, 0, worlds)]
    return rows


def _taken(worlds: list[_World], say: Say) -> dict[int, list[Taken]]:
    """What each tick of each world took, in turn; ticks with an even number close a window."""
    taken: dict[int, list[Taken]] = {world.days: [] for world in worlds}
    for number in range(2 * (WARM_UP + TICKS)):
        say(f"tick {number + 1} of {2 * (WARM_UP + TICKS)}")
        for world in worlds if number % 4 < 2 else worlds[::-1]:
            taken[world.days].append(world.tick())
    return {days: seconds[2 * WARM_UP :] for days, seconds in taken.items()}


def _row(name: str, taken: dict[int, list[Taken]], odd: int, worlds: list[_World]) -> dict[str, Any]:
    few, many = (taken[world.days][odd::2] for world in worlds)
    ratios = [m.seconds / f.seconds for m, f in zip(many, few, strict=True)]
    return {
        "what": f"{name}: {worlds[1].days} days stored against {worlds[0].days}, {NEW_ROWS:,} new of each",
        "ours_s": median(t.seconds for t in many),
        "theirs_s": median(t.seconds for t in few),
        "ratio": median(ratios),
        "ratios": [round(each, 3) for each in ratios],
        "cpu_ratio": median(m.cpu_seconds / f.cpu_seconds for m, f in zip(many, few, strict=True)),
        "at_least": 1.2,
        "aim": 1.0,
        "less_is_better": True,
    }


@dataclass
class _World:
    """A lake with its evaluator, at a point in event time."""

    days: int
    lake: Lake
    evaluator: ModelEvaluator
    at: datetime = BEGIN
    offset: int = 0
    _pending: pl.DataFrame | None = field(default=None, init=False)

    @classmethod
    def build(cls, folder: Path, days: int, workers: Workers, say: Say) -> _World:
        plan = _plan(folder)
        store = open_store(f"sqlite:///{folder / 'control.db'}")
        ledger = Ledger(store.engine)
        ledger.create()
        lake = Lake(str(folder / "lake"))
        evaluator = ModelEvaluator(
            plan,
            lake.clone(),
            ledger,
            partial(workers.each, measure),
            metrics := Metrics(),
            partial(job_history, store),
            lambda *_: None,
            Units(store.engine, metrics),
        )
        world = cls(days, lake, evaluator)
        world._store(plan, say)
        evaluator.tick(world.at)
        return world

    def tick(self) -> Taken:
        """A tick that finds `NEW_ROWS` new predictions and as many new labels."""
        self._append(self.at, STEP, NEW_ROWS)
        self.at += STEP
        started, used = time.perf_counter(), time.process_time()
        self.evaluator.tick(self.at)
        return Taken(time.perf_counter() - started, time.process_time() - used)

    def maintain(self) -> None:
        for table in (Table.PREDICTIONS, Table.LABELS, Table.OUTCOMES, Table.MEASUREMENTS):
            self.lake.maintain(table, MODEL, "2000-01-01", timedelta(days=7))

    def _store(self, plan: ModelPlan, say: Say) -> None:
        """The past, as the daemon would have left it: events, outcomes, and every window measured."""
        writer = OutcomeWriter(self.lake, MODEL, plan.windows.max_delay, lambda _: None)
        for number in range(self.days):
            say(f"storing day {number + 1} of {self.days}")
            start = BEGIN - timedelta(days=self.days - number)
            part = timedelta(days=1) / COMMITS_PER_DAY
            for n in range(COMMITS_PER_DAY):
                self._append(start + n * part, part, ROWS_PER_DAY // COMMITS_PER_DAY)
                writer.advance()
            hours = [start + timedelta(hours=h) for h in range(24)]
            measured = pl.concat([_measured(hour, performance) for hour in hours for performance in (False, True)])
            before, after = {"sequence": number}, {"sequence": number + 1}
            self.lake.append_next(Table.MEASUREMENTS, measured, MODEL, before, after)

    def _append(self, start: datetime, span: timedelta, count: int) -> None:
        events = columns(self.offset, count, start, span)
        origin = {
            "source_partition": pl.lit("bench/0"),
            "source_offset": pl.int_range(self.offset, self.offset + count, dtype=pl.Int64),
        }
        date = pl.col("ts").dt.strftime("%Y-%m-%d").alias("date")
        predictions = events.drop("model").rename({c: f"feature_{c}" for c in SCHEMA_NAMES})
        self.lake.append(Table.PREDICTIONS, predictions.with_columns(date, **origin), MODEL)
        labels = events.select(
            "prediction_id",
            pl.col("ts") + timedelta(minutes=1),
            date,
            pl.col("prediction").alias("label"),
            pl.lit(None, pl.Datetime("us", "UTC")).alias("prediction_ts"),
        )
        self.lake.append(Table.LABELS, labels.with_columns(**origin), MODEL)
        self.offset += count


SCHEMA_NAMES = [f.name for f in SCHEMA.features]


def _measured(start: datetime, performance: bool) -> pl.DataFrame:
    """What one window's measuring leaves behind: about as many rows as the real one."""
    rows = ROWS_PER_DAY // 24
    names = ["roc_auc", "balanced_accuracy", "f1"] if performance else SCHEMA_NAMES
    measures = (
        [Measure.PERFORMANCE, Measure.PERFORMANCE_DROP]
        if performance
        else [Measure.FEATURE_DRIFT, Measure.MISSING_SHARE, Measure.INVALID_SHARE]
    )
    found = tuple(
        Measurement(m, 0.01, rows, *(("", name) if performance else (name, ""))) for m in measures for name in names
    )
    key = WindowKey(MODEL, VERSION, start, start + timedelta(hours=1))
    result = MeasureResult(key, performance, rows, rows, "file", found)
    return to_rows(result, PERFORMANCE if performance else DRIFT, True, BEGIN)


def _plan(folder: Path) -> ModelPlan:
    folder.mkdir(parents=True)
    reference = columns(0, 10_000, BEGIN - timedelta(days=400), timedelta(days=1))
    reference = reference.rename({c: f"feature_{c}" for c in SCHEMA_NAMES}).with_columns(label=pl.col("prediction"))
    reference.select(*SCHEMA.feature_columns, "prediction", "score", "label").write_parquet(
        folder / "reference.parquet"
    )
    model = {
        "task": SCHEMA.task.value,
        "classes": list(SCHEMA.classes),
        "positive": SCHEMA.positive,
        "features": {f.name: f.kind.value for f in SCHEMA.features},
        "reference": {"path": str(folder / "reference.parquet")},
    }
    return plans(from_dict({"daemon": {"state": str(folder)}, "models": {MODEL: model}}))[MODEL]


@contextmanager
def _workers() -> Iterator[Workers]:
    workers = Workers(1)
    try:
        yield workers
    finally:
        workers.close()
