"""One tick of one model: join labels, close windows, measure, judge, decide.

Invariant: each step reads what the step before has made durable and leaves its own result durable before the next
begins, so a kill between any two loses and doubles nothing. The first to commit wins; the loser starts over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import structlog

from monitor.errors import TransientError
from monitor.judging import Records, RuleRecord, firing, judge_windows
from monitor.lake import Conflict, HistoryGone, Lake, Table, collect
from monitor.ledger import Ledger, Round
from monitor.measure.worker import MeasureResult, MeasureTask, freeze_warmup, measure
from monitor.measurement import Measure, WindowKey
from monitor.measurement_table import to_rows, windows_in
from monitor.metrics import Metrics
from monitor.outcomes import ROWS, OutcomeWriter
from monitor.plan import ModelPlan
from monitor.progress import DRIFT, PERFORMANCE, Progress
from monitor.rules import Action, Phase, Transition, Verdict
from monitor.triggers import Cause, JobHistory, Suppressed, decide, request_id
from monitor.windows import superseded
from monitor.workers import Workers
from retrain.request import RetrainRequest, TriggerKind

log = structlog.get_logger()

MAX_TASKS = 64
"""Windows measured in one tick at most, so that a backlog leaves ticks short."""


JobHistoryOf = Callable[[str, datetime | None, datetime], JobHistory]
"""(model, since when it fires, now) -> what the control database knows of its jobs."""


class ModelEvaluator:
    """Drives one model. Not thread-safe: one tick at a time."""

    def __init__(
        self,
        plan: ModelPlan,
        lake: Lake,
        ledger: Ledger,
        workers: Workers,
        metrics: Metrics,
        job_history: JobHistoryOf,
        on_breach: Callable[[str, WindowKey], None],
    ):
        self.plan = plan
        self._lake = lake
        self._ledger = ledger
        self._workers = workers
        self._metrics = metrics
        self._job_history = job_history
        self._on_breach = on_breach
        self.progress = Progress(lake, plan.model, plan.windows)
        self.outcomes = OutcomeWriter(
            lake, plan.model, plan.windows.max_delay, metrics.orphan_labels.labels(plan.model).inc
        )
        self._warmed: dict[str, str] = {}
        self._exported = False

    def tick(self, now: datetime) -> bool:
        """Advance everything as far as the events allow. True when there is more to do at once."""
        try:
            joined = self.outcomes.advance()
            late = self.progress.follow(now)
            self._note(joined, late)
            results = self._measure()
            self._store(results, now)
            self._judge(now)
            self._trigger(now)
        except Conflict as exc:
            log.info("evaluation_superseded", model=self.plan.model, detail=str(exc))
            self.reset()
            return True
        return len(results) >= MAX_TASKS

    def take_over(self) -> None:
        """Another replica may have judged meanwhile: export what stands, and not what stood here before.

        The same after a restart, which must not look as if every rule had resolved.
        """
        self._exported = False

    def reset(self) -> None:
        """Drop everything derived; the next tick rebuilds it from the lake."""
        self.outcomes.reset()
        self.progress.reset()

    def _note(self, joined: int, late: int) -> None:
        model, m = self.plan.model, self._metrics
        m.outcomes.labels(model).inc(joined)
        m.late_rows.labels(model).inc(late)
        pending = self.outcomes.pending
        m.pending_labels.labels(model).set(pending.height if pending is not None else 0)
        if self.progress.mark is not None:
            m.watermark.labels(model).set(self.progress.mark.timestamp())

    # -- measuring

    def _measure(self) -> list[MeasureResult]:
        due = list(self.progress.to_measure())[:MAX_TASKS]
        started = time.monotonic()
        results = self._workers.map(measure, [self._task(key, kind) for key, kind in due])
        if results:
            self._metrics.measure_seconds.observe((time.monotonic() - started) / len(results))
        return results

    def _task(self, key: WindowKey, kind: str) -> MeasureTask:
        plan = self.plan
        return MeasureTask(
            lake_uri=self._lake.uri,
            storage_options=self._lake.options,
            schema=plan.schema,
            key=key,
            performance=kind == PERFORMANCE,
            methods=plan.methods,
            metrics=plan.metrics,
            segment_min_rows=plan.segment_min_rows,
            max_rows=plan.max_rows,
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
        for version in {r.key.version for r in results if not r.reference or r.reference.startswith("warmup:")}:
            known = {k for k in (*self.progress.drift_measured, *self.progress.final) if k.version == version}
            first = sorted(known)[: self.plan.warmup_windows]
            if len(first) < self.plan.warmup_windows:
                continue
            labelled = all(k in self.progress.final for k in first)
            stage = "labelled" if labelled else "warmup"
            if self._warmed.get(version) in (stage, "labelled"):
                continue
            folder = Path(self.plan.reference.folder)
            frozen = freeze_warmup(self._lake, first, folder, labelled=labelled)
            self._warmed[version] = stage
            if frozen is not None:
                log.info("reference_frozen", model=self.plan.model, version=version, stage=stage, windows=len(first))

    # -- judging

    def _judge(self, now: datetime) -> None:
        model = self.plan.model
        before = self._ledger.cursor(model)
        newest = self._lake.version(Table.MEASUREMENTS, model)
        if newest < before:
            raise TransientError(lake_replaced(self._lake.table_uri(Table.MEASUREMENTS, model), newest, before))
        if not self._exported:
            self._ledger.keep_rules(model, [r.name for r in self.plan.rules])
        if newest == before:
            if not self._exported:
                self._export(self._ledger.rule_records(model))
            return
        try:
            rows = self._lake.new_rows(Table.MEASUREMENTS, model, before, newest)
        except HistoryGone:
            lazy = self._lake.scan(Table.MEASUREMENTS, model)
            rows = collect(lazy) if lazy is not None else None
        judged = judge_windows(
            self.plan.rules, self.plan.min_rows, self._ledger.rule_records(model), windows_in(rows, model), now
        )
        retired = self._retired({version for version, _ in judged.records})
        done = Round(
            model=model,
            before=before,
            cursor=newest,
            records=[judged.records[at] for at in judged.changed if at[0] not in retired],
            transitions=[(key.version, t) for t, key in judged.transitions],
            retired=retired,
        )
        self._ledger.record(done, now)
        self._announce(judged.transitions)
        self._export({at: r for at, r in judged.records.items() if at[0] not in retired})
        self._metrics.measurements.retire(model, set(self.progress.versions()) - set(retired))

    def _retired(self, stored: set[str]) -> list[str]:
        """Versions that no window speaks of any more: superseded by a newer one for longer than labels take."""
        versions = self.progress.versions()
        if not versions:
            return []
        newest = max(versions.values())
        grace = self.plan.windows.size * 4 + self.plan.windows.lateness
        pending = {k.version for k in self.progress.windows}
        return sorted(v for v in stored if v not in pending and (v not in versions or newest - versions[v] > grace))

    def _announce(self, transitions: Iterable[tuple[Transition, WindowKey]]) -> None:
        severities = {r.name: r.severity.value for r in self.plan.rules}
        for t, key in transitions:
            event = "rule_fired" if t.after is Phase.FIRING else "rule_changed"
            log.info(
                event, model=self.plan.model, version=key.version, rule=t.rule, phase=t.after.value,
                window_end=t.at.isoformat(), reason=t.reason,
            )  # fmt: skip
            if t.after is Phase.FIRING:
                self._metrics.rules_fired.labels(self.plan.model, t.rule, severities[t.rule]).inc()
                self._on_breach(t.rule, key)

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

    # -- deciding

    def _trigger(self, now: datetime) -> None:
        records = self._ledger.rule_records(self.plan.model)
        actions = {r.name: r.action for r in self.plan.rules}
        for record in firing(records):
            if actions.get(record.rule) is Action.RETRAIN and record.verdict is Verdict.BREACH:
                self.decide(self._cause(record), now, record.firing_since, record.judged)
        if self.plan.new_labels:
            self._trigger_on_labels(now)

    def _cause(self, record: RuleRecord) -> Cause:
        at = record.state.at
        return Cause(
            model=self.plan.model,
            trigger=TriggerKind.RULE,
            occasion=f"{record.version}/{record.rule}/{at.isoformat() if at else ''}",
            reason=f"rule {record.rule} fires on version {record.version}: {record.reason}",
            evidence={
                "rule": record.rule,
                "version": record.version,
                "value": record.value,
                "judged": record.judged,
                "window_end": at.isoformat() if at else None,
            },
            version=record.version,
        )

    def decide(
        self, cause: Cause, now: datetime, since: datetime | None = None, judged: int = 0
    ) -> RetrainRequest | Suppressed:
        """Decide on a cause and record the answer with its evidence; an occasion answered before stays answered."""
        last = self._ledger.last_request(self.plan.model)
        if last is not None and last.id == request_id(cause):
            return last
        cause = replace(cause, evidence={**cause.evidence, "outcomes": self._count_outcomes()})
        history = self._job_history(self.plan.model, since, now)
        same = last is not None and all(last.evidence.get(k) == cause.evidence.get(k) for k in ("rule", "version"))
        before = int(last.evidence.get("judged", 0)) if last is not None and same else 0
        history = replace(history, windows_since_last=judged - before)
        decision = decide(cause, self.plan.triggers, history, now)
        if self._ledger.decide(decision, now):
            if isinstance(decision, Suppressed):
                log.info(
                    "retrain_suppressed", model=cause.model, reason=decision.reason.value,
                    detail=decision.detail, cause=cause.reason,
                )  # fmt: skip
                self._metrics.suppressed.labels(cause.model, decision.reason.value).inc()
            else:
                log.info(
                    "retrain_requested", model=cause.model, request=decision.id,
                    trigger=cause.trigger.value, reason=cause.reason,
                )  # fmt: skip
                self._metrics.requests.labels(cause.model, cause.trigger.value).inc()
        return decision

    def _trigger_on_labels(self, now: datetime) -> None:
        assert self.plan.new_labels is not None
        total = self._count_outcomes()
        last = self._ledger.last_request(self.plan.model)
        before = int(last.evidence.get("outcomes", 0)) if last else 0
        if total - before >= self.plan.new_labels:
            self.decide(
                Cause(
                    model=self.plan.model,
                    trigger=TriggerKind.LABELS,
                    occasion=f"{before}+{self.plan.new_labels}",
                    reason=f"{total - before} new labels since the last retrain",
                    evidence={},
                ),
                now,
            )

    def _count_outcomes(self) -> int:
        """Outcomes ever appended: unlike the rows stored, retention does not take from it."""
        return self._lake.position(Table.OUTCOMES, self.plan.model, ROWS) or 0


def lake_replaced(table: str, version: int, judged: int) -> str:
    """Said when the control database remembers more of a table than there is."""
    return (
        f"{table} is at version {version}, but version {judged} has been judged: is the right lake mounted? "
        "To start over with an empty lake, give daemon.control_url (default: in daemon.state) a new database too"
    )


_NEVER = datetime.min.replace(tzinfo=UTC)
