"""Simulated time: windows of recorded history close, mature and are decided on, as the daemon would.

Invariant: measuring, judging and deciding are the daemon's (`measure.window`, `decider`); only the clock and the place
rows come from are different. Time goes forward: what is decided at a time knows no label that came later.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from monitor.backtest.history import History
from monitor.config.plan import ModelPlan
from monitor.decide.decider import Decider, JobHistoryOf
from monitor.decide.ledger import Decision, Ledger
from monitor.intake.event_columns import UTC_US
from monitor.measure.reference import measurable, open_reference
from monitor.measure.window import measure_labelled, measure_unlabelled
from monitor.measure.worker import WARMED_UP, reference_file
from monitor.measure.yardstick import Yardstick
from monitor.metrics import Metrics
from monitor.rules.measurement import Measure, Measurement, WindowKey
from monitor.rules.phases import Transition
from monitor.rules.windows import WindowPolicy
from retrain.control.database import open_engine
from retrain.terms.request import RetrainRequest


class Step(IntEnum):
    """In this order at one time."""

    CLOSED = 0
    FINAL = 1


@dataclass(frozen=True, slots=True, order=True)
class Event:
    """A window has closed, or its performance is final, at simulated time `at`."""

    at: datetime
    step: Step
    key: WindowKey
    rows: int


Measured = dict[tuple[WindowKey, Step], tuple[Measurement, ...]]
"""What configurations that measure alike have measured already."""


class Rows(Protocol):
    """Who served what: the rows of a window as they were predicted."""

    def window(self, start: datetime, end: datetime) -> pl.DataFrame:
        """Rows in lake columns with `model_version`, `prediction`, scores, `label`, `label_ts`."""

    def yardstick(self, version: str) -> Yardstick | None:
        """What a version's windows are held against, if that is known by now."""

    def noted(self, event: Event) -> None:
        """The event's window has been measured."""


@dataclass(slots=True)
class WindowResult:
    """One window of one version: what its chart shows. `performance` is final; `lower`, `upper`: its interval."""

    key: WindowKey
    rows: int
    labelled: int = 0
    performance: float | None = None
    lower: float | None = None
    upper: float | None = None
    drop: float | None = None
    estimated: float | None = None
    drift_share: float | None = None
    final_at: datetime | None = None


@dataclass(slots=True)
class Replayed:
    """What one configuration did with the history. `judged`: decided windows by rule, over all versions;
    `transitions` with the time they were decided at."""

    windows: list[WindowResult] = field(default_factory=list)
    judged: dict[str, int] = field(default_factory=dict)
    transitions: list[tuple[datetime, WindowKey, Transition]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)


class Replay:
    """One configuration over one history. `on_request` carries a retrain request out (closed loop), at its time."""

    def __init__(
        self,
        plan: ModelPlan,
        history: History,
        rows: Rows,
        job_history: JobHistoryOf,
        on_request: Callable[[RetrainRequest, datetime], None] = lambda _request, _at: None,
        measured: Measured | None = None,
    ):
        self._plan = plan
        self._history = history
        self._rows = rows
        self._on_request = on_request
        self._measured = measured
        self._engine = open_engine("sqlite://")
        self._ledger = Ledger(self._engine)
        self._ledger.create()
        metrics = Metrics()
        self._decider = Decider(plan, self._ledger, metrics, job_history, lambda _rule, _key: None)
        self._cursor = -1
        self._outcomes = 0
        self._found: dict[WindowKey, WindowResult] = {}
        self._judged: dict[tuple[str, str], int] = {}
        self.result = Replayed()

    def run(self, on_window: Callable[[int], None] = lambda _rows: None) -> Replayed:
        """Play it through. `on_window` hears of each window's rows, for a progress bar."""
        size, lateness = self._plan.windows.size, self._plan.windows.lateness
        coming = iter(self._history.windows(size))
        queue: list[Event] = []
        window = next(coming, None)
        while window is not None or queue:
            closes = window[1] + lateness if window is not None else None
            if window is not None and closes is not None and (not queue or closes <= queue[0].at):
                for event in self._close(*window, closes):
                    heapq.heappush(queue, event)
                on_window(self._count(*window))
                window = next(coming, None)
            else:
                self._mature(heapq.heappop(queue))
        self.result.windows = [self._found[k] for k in sorted(self._found, key=lambda k: (k.end, k.version))]
        self.result.decisions = list(reversed(self._ledger.decisions(self._plan.model, limit=1_000_000)))
        for (_, rule), judged in self._judged.items():
            self.result.judged[rule] = self.result.judged.get(rule, 0) + judged
        self._engine.dispose()
        return self.result

    def _count(self, start: datetime, end: datetime) -> int:
        a, b = self._history.positions(start, end)
        return b - a

    def _close(self, start: datetime, end: datetime, at: datetime) -> Iterator[Event]:
        frame = self._rows.window(start, end)
        for version, rows in _by_version(frame):
            key = WindowKey(self._plan.model, version, start, end)
            found = self._measure(key, Step.CLOSED, partial(self._unlabelled, rows, version))
            self._note_closed(key, rows.height, found)
            self._rows.noted(Event(at, Step.CLOSED, key, rows.height))
            self._decide(key, found, at)
            if (final := final_at(rows, at, end, self._plan.windows, self._history.until)) is not None:
                yield Event(final, Step.FINAL, key, rows.height)

    def _unlabelled(self, rows: pl.DataFrame, version: str) -> list[Measurement]:
        return measure_unlabelled(rows, self._rows.yardstick(version), self._plan.settings)

    def _mature(self, event: Event) -> None:
        frame = self._rows.window(event.key.start, event.key.end)
        rows = frame.filter(pl.col("model_version") == event.key.version)
        outcomes = rows.filter(pl.col("label").is_not_null() & (pl.col("label_ts") <= event.at))
        found = self._measure(
            event.key,
            Step.FINAL,
            lambda: measure_labelled(rows, outcomes, self._rows.yardstick(event.key.version), self._plan.settings),
        )
        self._rows.noted(event)
        self._outcomes += outcomes.height
        self._note_final(event, outcomes.height, found)
        self._decide(event.key, found, event.at)

    def _measure(self, key: WindowKey, step: Step, measure: Callable[[], list[Measurement]]) -> Sequence[Measurement]:
        """Settings that differ in their rules alone share what was measured."""
        if self._measured is None:
            return measure()
        if (key, step) not in self._measured:
            self._measured[key, step] = tuple(measure())
        return self._measured[key, step]

    def _decide(self, key: WindowKey, found: Sequence[Measurement], at: datetime) -> None:
        judged = self._decider.judge([(key, found)], self._cursor, self._cursor + 1, at, lambda _stored: [])
        self._cursor += 1
        self.result.transitions += [(at, k, t) for t, k in judged.transitions]
        self._judged |= {at: record.judged for at, record in judged.records.items()}
        self._decider.trigger(at, lambda: self._outcomes)
        for request in self._ledger.undispatched():
            self._ledger.mark_dispatched(request, at)
            self._on_request(request, at)

    def _note_closed(self, key: WindowKey, rows: int, found: Sequence[Measurement]) -> None:
        result = self._found[key] = WindowResult(key, rows)
        metric = self._plan.metrics[0]
        for m in found:
            if m.measure is Measure.DRIFT_SHARE:
                result.drift_share = m.value
            elif m.measure is Measure.ESTIMATED_PERFORMANCE and m.metric == metric:
                result.estimated = m.value

    def _note_final(self, event: Event, labelled: int, found: Sequence[Measurement]) -> None:
        result, metric = self._found[event.key], self._plan.metrics[0]
        result.labelled, result.final_at = labelled, event.at
        for m in found:
            if m.metric != metric or m.segment:
                continue
            if m.measure is Measure.PERFORMANCE:
                result.performance = m.value
                result.lower, result.upper = m.interval or (None, None)
            elif m.measure is Measure.PERFORMANCE_DROP:
                result.drop = m.value


def final_at(
    rows: pl.DataFrame, closed: datetime, end: datetime, policy: WindowPolicy, until: datetime
) -> datetime | None:
    """When the labels of a window (`rows`, closed at `closed`) cover enough of it, or the longest delay has passed;
    None when history, known `until` then, ends before."""
    came = rows.filter(pl.col("label").is_not_null())["label_ts"].sort()
    needed = max(1, math.ceil(policy.min_coverage * rows.height - 1e-9))
    covered: datetime | None = max(closed, came[needed - 1]) if needed <= came.len() else None
    given_up = end + policy.max_delay + policy.lateness
    if covered is not None and covered <= given_up:
        return covered
    return given_up if end + policy.max_delay <= until else covered


def _by_version(frame: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    parts: Mapping[Any, pl.DataFrame] = frame.partition_by("model_version", as_dict=True)
    for (version,) in sorted(parts):
        yield str(version), parts[version,]


class RecordedRows:
    """The predictions that were recorded, with references as the daemon finds them: kept, configured, or a warm-up.

    A version without a reference is warmed up on its first windows: on their rows once they have closed, again with
    their labels once these are final. `warm_again`: so are those that the daemon warmed up, because the windows it did
    that on are in this history.
    """

    def __init__(self, history: History, plan: ModelPlan, *, warm_again: bool = True):
        self._warm_again = warm_again
        self._history = history
        self._plan = plan
        self._yardsticks: dict[str, Yardstick] = {}
        self._closed: dict[str, list[WindowKey]] = {}
        self._final: dict[str, set[WindowKey]] = {}

    def window(self, start: datetime, end: datetime) -> pl.DataFrame:
        frame = measurable(self._history.between(start, end), self._plan.schema)
        if "label" in frame.columns:
            return frame
        return frame.with_columns(label=pl.lit(None, pl.String), label_ts=pl.lit(None, UTC_US))

    def yardstick(self, version: str) -> Yardstick | None:
        if version not in self._yardsticks and (path := self._reference(version)) is not None:
            frame = open_reference(path, self._plan.schema)
            self._yardsticks[version] = yardstick_on(frame, path.name, self._plan)
        return self._yardsticks.get(version)

    def _reference(self, version: str) -> Path | None:
        path = reference_file(self._plan.reference, version)
        if path is not None and self._warm_again and path.stem in WARMED_UP:
            return Path(self._plan.reference.path) if self._plan.reference.path else None
        return path

    def noted(self, event: Event) -> None:
        version, wanted = event.key.version, self._plan.warmup_windows
        if self._reference(version) is not None:
            return
        closed, final = self._closed.setdefault(version, []), self._final.setdefault(version, set())
        if event.step is Step.CLOSED:
            if len(closed) < wanted and event.rows >= self._plan.min_rows:
                closed.append(event.key)
                if len(closed) == wanted:
                    self._freeze(version, None)
        elif event.key in closed and len(final) < wanted:
            final.add(event.key)
            if len(final) == wanted:
                self._freeze(version, event.at)

    def _freeze(self, version: str, labels_until: datetime | None) -> None:
        windows = [self.window(k.start, k.end) for k in self._closed[version]]
        frame = pl.concat(windows, how="diagonal_relaxed").filter(pl.col("model_version") == version)
        if labels_until is None:
            frame = frame.drop("label", "label_ts")
        else:
            known = frame.filter(pl.col("label").is_not_null() & (pl.col("label_ts") <= labels_until))
            frame = known if known.height else frame
        self._yardsticks[version] = yardstick_on(frame, f"warmup:{version}", self._plan)


def yardstick_on(frame: pl.DataFrame, name: str, plan: ModelPlan) -> Yardstick:
    return Yardstick(name, frame, plan.settings, max_rows=plan.reference.max_rows)
