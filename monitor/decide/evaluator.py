"""One tick of one model: join labels, close windows, measure, judge, decide.

Invariant: each step reads what the step before has made durable and leaves its own result durable before the next
begins, so a kill between any two loses and doubles nothing. The first to commit wins; the loser starts over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import polars as pl
import structlog

from monitor.base.errors import TransientError
from monitor.base.faults import Failed, Unit, UnitKind
from monitor.config.plan import ModelPlan
from monitor.decide.decider import Decider, JobHistoryOf
from monitor.decide.ledger import Ledger
from monitor.decide.units import Units
from monitor.lake.lake import Conflict, HistoryGone, Lake, Table, collect
from monitor.lake.matching import ROWS, OutcomeWriter
from monitor.lake.progress import DRIFT, PERFORMANCE, Followed, Progress
from monitor.measure.measurement_table import to_rows, windows_in
from monitor.measure.reference import gaps, open_reference
from monitor.measure.worker import MeasureResult, MeasureTask, freeze_warmup
from monitor.metrics import Metrics
from monitor.rules.measurement import Measure, Measurement, WindowKey
from monitor.rules.phases import Phase
from monitor.rules.tracking import Records
from monitor.rules.triggers import Cause, Suppressed
from monitor.rules.windows import superseded
from retrain.terms.request import RetrainRequest

log = structlog.get_logger()

_FULL = -1
MAX_TASKS = 64
"""Windows measured in one tick at most, so that a backlog leaves ticks short."""


class ModelEvaluator:
    """Drives one model. Not thread-safe: one tick at a time."""

    def __init__(
        self,
        plan: ModelPlan,
        lake: Lake,
        ledger: Ledger,
        measure: Callable[[Sequence[MeasureTask]], Sequence[MeasureResult | Failed]],
        metrics: Metrics,
        job_history: JobHistoryOf,
        on_breach: Callable[[str, WindowKey], None],
        units: Units,
        serving: Callable[[str], Collection[str]] = lambda _model: (),
    ):
        self.plan = plan
        self._units = units
        self._serving = serving
        self._lake = lake
        self._ledger = ledger
        self._measure_all = measure
        self._metrics = metrics
        self._decider = Decider(plan, ledger, metrics, job_history, on_breach)
        self.progress = Progress(lake, plan.model, plan.windows)
        self.outcomes = OutcomeWriter(
            lake, plan.model, plan.windows.max_delay, metrics.orphan_labels.labels(plan.model).inc
        )
        self._warmed: dict[str, str] = {}
        self._referenced: set[str] = set()
        self._exported = False

    def tick(self, now: datetime) -> bool:
        """Advance everything as far as the events allow. True when there is more to do at once."""
        try:
            joined = self.outcomes.advance()
            followed = self.progress.follow(now, partial(self._serving, self.plan.model))
            self._note(joined, followed)
            results = self._measure(now)
            self._store(results, now)
            self._judge(now)
            self._decider.trigger(now, self._count_outcomes)
        except Conflict as exc:
            log.info("evaluation_superseded", model=self.plan.model, detail=str(exc))
            self.reset()
            return True
        return bool(self._due(now))

    def take_over(self) -> None:
        """Another replica may have judged meanwhile: export what stands, and not what stood here before.

        The same after a restart, which must not look as if every rule had resolved.
        """
        self._exported = False

    def reset(self) -> None:
        """Drop everything derived; the next tick rebuilds it from the lake."""
        self.outcomes.reset()
        self.progress.reset()
        self._referenced.clear()

    def _note(self, joined: int, followed: Followed) -> None:
        model, m = self.plan.model, self._metrics
        m.outcomes.labels(model).inc(joined)
        m.late_rows.labels(model).inc(followed.late)
        m.other_version_rows.labels(model).inc(followed.others)
        m.other_versions.labels(model).set(self.progress.live.others)
        pending = self.outcomes.pending
        m.pending_labels.labels(model).set(pending.height if pending is not None else 0)
        if self.progress.mark is not None:
            m.watermark.labels(model).set(self.progress.mark.timestamp())

    # -- measuring

    def _measure(self, now: datetime) -> Sequence[MeasureResult]:
        due = self._due(now)
        started = time.monotonic()
        found = self._measure_all([self._task(key, kind) for key, kind in due])
        if found:
            self._metrics.measure_seconds.observe((time.monotonic() - started) / len(found))
        results = [self._settled(key, kind, result, now) for (key, kind), result in zip(due, found, strict=True)]
        return [result for result in results if result is not None]

    def _due(self, now: datetime) -> list[tuple[WindowKey, str]]:
        """What is measured next. Of a version without a reference no more than the windows that will become it: what
        comes after them is compared with them, however many windows have come at once."""
        due: list[tuple[WindowKey, str]] = []
        room: dict[str, int] = {}
        for key, kind in self.progress.to_measure():
            if len(due) == MAX_TASKS:
                break
            if key.version not in self._referenced and key not in self.progress.drift_measured:
                missing = room.setdefault(key.version, self._missing(key.version))
                if missing == _FULL:
                    continue
                if missing and kind == DRIFT and self.progress.windows[key].rows >= self.plan.min_rows:
                    room[key.version] = missing - 1 or _FULL
            if self._units.due(_unit(key, kind), now):
                due.append((key, kind))
        return due

    def _missing(self, version: str) -> int:
        """How many windows more make the reference of a version that has none."""
        return self.plan.warmup_windows - len(self._warm_windows(version))

    def _warm_windows(self, version: str) -> list[WindowKey]:
        """The first measured windows of a version with enough rows to say anything."""
        rows = self.progress.drift_measured
        enough = (k for k, count in rows.items() if k.version == version and count >= self.plan.min_rows)
        return sorted(enough)[: self.plan.warmup_windows]

    def _settled(self, key: WindowKey, kind: str, found: MeasureResult | Failed, now: datetime) -> MeasureResult | None:
        """The result, None when it must be tried again; of a window that is given up, that it was."""
        unit, reference = _unit(key, kind), Unit(UnitKind.REFERENCE, key.model, key.version)
        if isinstance(found, Failed):
            fault = self._units.failed(unit, found, now, may_give_up=True)
            if not fault.given_up:
                return None
            state = self.progress.windows[key]
            told = Measurement(Measure.FAILED, 1.0, state.rows, reason=found.error)
            return MeasureResult(key, kind == PERFORMANCE, state.rows, state.labelled, "", (told,))
        self._units.done(unit)
        if found.problem and self._units.due(reference, now):
            self._units.failed(reference, Failed(found.problem), now)
        elif not found.problem:
            self._units.done(reference)
        if found.reference or self.plan.reference.path:
            self._referenced.add(key.version)
        return found

    def _task(self, key: WindowKey, kind: str) -> MeasureTask:
        plan = self.plan
        return MeasureTask(
            lake_uri=self._lake.uri,
            storage_options=self._lake.options,
            key=key,
            performance=kind == PERFORMANCE,
            settings=plan.settings,
            season=plan.season,
            reference=plan.reference,
        )

    def _store(self, results: Sequence[MeasureResult], now: datetime) -> None:
        if not results:
            return
        rows: list[pl.DataFrame] = []
        for result in results:
            kind = PERFORMANCE if result.performance else DRIFT
            final = self.progress.measured(result.key, kind, result.rows, result.labelled)
            rows.append(to_rows(result, kind, final, now))
            self._log(result, kind, final)
        before, after = {"sequence": self.progress.sequence}, {"sequence": self.progress.sequence + 1}
        try:
            self._lake.append_next(Table.MEASUREMENTS, pl.concat(rows), self.plan.model, before, after)
        except TransientError:
            self.progress.reset()  # it noted measurements that are not durable
            raise
        self.progress.sequence += 1
        for result in results:
            if (
                result.rows >= self.plan.min_rows
            ):  # of fewer there is nothing to say, and strays would use up the series
                dropped = self._metrics.measurements.update(result.key, result.measurements)
                self._metrics.series_dropped.labels(self.plan.model).inc(dropped)
            kind = PERFORMANCE if result.performance else DRIFT
            self._metrics.windows.labels(self.plan.model, kind).inc()
        self._warm_up(results)

    def _log(self, result: MeasureResult, kind: str, final: bool) -> None:
        key = result.key
        found = {m.key: m.value for m in result.measurements}
        first = self.plan.metrics[0]
        log.info(
            "window_measured",
            model=key.model,
            version=key.version,
            window_end=key.end.isoformat(),
            kind=kind,
            rows=result.rows,
            **({"labelled": result.labelled, "final": final} if result.performance else {}),
            reference=result.reference or "none",
            drift_share=found.get((Measure.DRIFT_SHARE.value, "", "", "")),
            **({first: found.get((Measure.PERFORMANCE.value, "", first, ""))} if result.performance else {}),
        )

    def _warm_up(self, results: Iterable[MeasureResult]) -> None:
        """Freeze the first windows of a version that came without a reference: rows first, labels when final."""
        if self.plan.reference.path:
            return  # there is one, even if it cannot be read at the moment
        for version in {r.key.version for r in results if not r.reference or r.reference.startswith("warmup:")}:
            first = self._warm_windows(version)
            if len(first) < self.plan.warmup_windows:
                continue
            labelled = all(k in self.progress.final for k in first)
            stage = "labelled" if labelled else "warmup"
            if self._warmed.get(version) in (stage, "labelled"):
                continue
            folder = Path(self.plan.reference.folder)
            frozen = freeze_warmup(self._lake, first, folder, with_labels=labelled)
            self._warmed[version] = stage
            if frozen is not None:
                self._referenced.add(version)
                log.info(
                    "reference_frozen",
                    model=self.plan.model,
                    version=version,
                    stage=stage,
                    windows=len(first),
                    without_values=gaps(open_reference(Path(frozen), self.plan.schema), self.plan.schema),
                )

    # -- judging

    def _judge(self, now: datetime) -> None:
        model = self.plan.model
        before = self._ledger.cursor(model)
        newest = self._lake.version(Table.MEASUREMENTS, model)
        if newest < before:
            raise TransientError(lake_replaced(self._lake.table_uri(Table.MEASUREMENTS, model), newest, before))
        if not self._exported:
            self._ledger.keep_rules(model, [r.name for r in self.plan.rules], now)
        if newest == before:
            if not self._exported:
                self._export(self._ledger.rule_records(model))
            return
        try:
            rows = self._lake.new_rows(Table.MEASUREMENTS, model, before, newest)
        except HistoryGone:
            lazy = self._lake.scan(Table.MEASUREMENTS, model)
            rows = collect(lazy) if lazy is not None else None
        judged = self._decider.judge(windows_in(rows, model), before, newest, now, self._retired)
        self._export(judged.records)
        self._metrics.measurements.retire(model, set(self.progress.versions()) - set(judged.retired))

    def _retired(self, stored: set[str]) -> list[str]:
        """Versions that no window speaks of any more: superseded by a newer one for longer than labels take."""
        versions = self.progress.versions()
        if not versions:
            return []
        newest = max(versions.values())
        grace = self.plan.windows.size * 4 + self.plan.windows.lateness
        pending = {k.version for k in self.progress.windows}
        return sorted(v for v in stored if v not in pending and (v not in versions or newest - versions[v] > grace))

    def _export(self, records: Records) -> None:
        """A rule's phase over the versions that serve: the most alarmed one counts."""
        order = [Phase.INACTIVE, Phase.PENDING, Phase.FIRING]
        gone = superseded(self.progress.versions(), self.plan.windows.size)
        for rule in self.plan.rules:
            mine = [r for (version, name), r in records.items() if name == rule.name and version not in gone]
            phase = max((r.state.phase for r in mine), key=order.index, default=Phase.INACTIVE)
            self._metrics.set_phase(self.plan.model, rule.name, phase)
            latest = max(mine, key=lambda r: r.state.at or r.firing_since or _NEVER, default=None)
            if latest is not None and latest.value is not None:
                self._metrics.rule_value.labels(self.plan.model, rule.name).set(latest.value)
        self._exported = True

    def decide(self, cause: Cause, now: datetime) -> RetrainRequest | Suppressed:
        """Decide on a cause that no window gave (a schedule) and record the answer."""
        return self._decider.decide(cause, now, self._count_outcomes())

    def _count_outcomes(self) -> int:
        """Outcomes ever appended: unlike the rows stored, retention does not take from it."""
        return self._lake.position(Table.OUTCOMES, self.plan.model, ROWS) or 0


def _unit(key: WindowKey, kind: str) -> Unit:
    return Unit(UnitKind.WINDOW, key.model, f"{key.version} {key.end:%Y-%m-%dT%H:%M:%SZ} {kind}")


def lake_replaced(table: str, version: int, judged: int) -> str:
    """Said when the control database remembers more of a table than there is."""
    return (
        f"{table} is at version {version}, but version {judged} has been judged: is the right lake mounted? "
        "To start over with an empty lake, give daemon.control_url (default: in daemon.state) a new database too"
    )


_NEVER = datetime.min.replace(tzinfo=UTC)
