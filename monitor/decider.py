"""Measured windows -> transitions -> retrain requests, recorded in the ledger: every decision driftd takes.

Invariant: the one code path for decisions. The daemon, the demo and the backtest differ in where windows come from
and in who tells the time, not in what happens to a window once it is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from monitor.judging import Records, RuleRecord, firing, judge_windows
from monitor.ledger import Ledger, Round
from monitor.measurement import Measure, Measurement, WindowKey
from monitor.metrics import Metrics
from monitor.phases import Phase, Transition
from monitor.plan import ModelPlan
from monitor.reasons import what_changed, what_drifted
from monitor.rules import Action, Verdict
from monitor.triggers import (
    KNOWN_REQUESTS,
    Cause,
    JobHistory,
    Suppressed,
    decide,
    follow_up_due,
    follow_up_paced,
    request_id,
)
from retrain.request import RetrainRequest, TriggerKind

log = structlog.get_logger()

JobHistoryOf = Callable[[str, datetime], JobHistory]
"""(model, now) -> what the control database knows of its jobs."""
MeasuredWindows = Iterable[tuple[WindowKey, Sequence[Measurement]]]


@dataclass(frozen=True, slots=True)
class Judged:
    """What one round of judging left: the records of all but the retired versions, and the transitions."""

    records: Records
    retired: Collection[str]
    transitions: Sequence[tuple[Transition, WindowKey]]


class Decider:
    """Decides for one model. `on_breach` is told of each rule that begins to fire, with its window."""

    def __init__(
        self,
        plan: ModelPlan,
        ledger: Ledger,
        metrics: Metrics,
        job_history: JobHistoryOf,
        on_breach: Callable[[str, WindowKey], None],
    ):
        self._plan = plan
        self._ledger = ledger
        self._metrics = metrics
        self._job_history = job_history
        self._on_breach = on_breach
        self._drifted: dict[str, str] = {}
        self._changed: dict[str, str] = {}

    def judge(
        self,
        windows: MeasuredWindows,
        before: int,
        cursor: int,
        now: datetime,
        retired: Callable[[set[str]], Collection[str]],
    ) -> Judged:
        """Judge windows (in event-time order) and record the round, moving the ledger's cursor from `before`.

        `retired` answers which of the versions with a record no window speaks of any more. Raises Conflict when
        somebody else has judged meanwhile.
        """
        model, windows = self._plan.model, list(windows)
        self._explain(windows)
        judged = judge_windows(self._plan.rules, self._plan.min_rows, self._ledger.rule_records(model), windows, now)
        gone = sorted(retired({version for version, _ in judged.records}))
        done = Round(
            model=model,
            before=before,
            cursor=cursor,
            records=[judged.records[at] for at in judged.changed if at[0] not in gone],
            transitions=[(key.version, t) for t, key in judged.transitions],
            retired=gone,
        )
        self._ledger.record(done, now)
        self._announce(judged.transitions)
        standing = {at: r for at, r in judged.records.items() if at[0] not in gone}
        return Judged(standing, gone, judged.transitions)

    def _explain(self, windows: MeasuredWindows) -> None:
        """Keep, per version, what the newest window says of the why: drift comes before labels do."""
        for key, measurements in windows:
            if any(m.measure is Measure.FEATURE_DRIFT for m in measurements):
                self._drifted[key.version] = what_drifted(measurements)
            if any(m.measure is Measure.PERFORMANCE for m in measurements):
                self._changed[key.version] = what_changed(measurements, self._plan.metrics[0])

    def _announce(self, transitions: Iterable[tuple[Transition, WindowKey]]) -> None:
        severities = {r.name: r.severity.value for r in self._plan.rules}
        for t, key in transitions:
            event = "rule_fired" if t.after is Phase.FIRING else "rule_changed"
            log.info(
                event, model=self._plan.model, version=key.version, rule=t.rule, phase=t.after.value,
                window_end=t.at.isoformat(), reason=t.reason,
            )  # fmt: skip
            if t.after is Phase.FIRING:
                self._metrics.rules_fired.labels(self._plan.model, t.rule, severities[t.rule]).inc()
                self._on_breach(t.rule, key)

    def trigger(self, now: datetime, outcomes: Callable[[], int]) -> None:
        """Decide on every cause there is now. `outcomes` counts the labelled rows ever joined."""
        actions = {r.name: r.action for r in self._plan.rules}
        records = self._ledger.rule_records(self._plan.model)
        for record in firing(records):
            if actions.get(record.rule) is Action.RETRAIN and record.verdict is Verdict.BREACH:
                self.decide(self._cause(record), now, outcomes(), record.judged)
        if self._plan.triggers.follow_up and actions:
            self._follow_up(records, now, outcomes)
        if self._plan.new_labels:
            self._trigger_on_labels(self._plan.new_labels, now, outcomes())

    def _cause(self, record: RuleRecord) -> Cause:
        at, since = record.state.at, record.state.amiss_since
        text = f"rule {record.rule} fires on version {record.version}: {record.reason}"
        if drifted := self._drifted.get(record.version, ""):
            drifted = f"drifted most by importance: {drifted}"
        return Cause(
            model=self._plan.model,
            trigger=TriggerKind.RULE,
            occasion=f"{record.version}/{record.rule}/{at.isoformat() if at else ''}",
            reason="; ".join(filter(None, [text, self._changed.get(record.version), drifted])),
            evidence={
                "rule": record.rule,
                "version": record.version,
                "value": record.value,
                "judged": record.judged,
                "window_end": at.isoformat() if at else None,
                "since": since.isoformat() if since else None,
            },
            version=record.version,
            since=record.firing_since,
            windows_amiss=(at - since) / self._plan.windows.size if at and since else 0.0,
        )

    def _follow_up(self, records: Records, now: datetime, outcomes: Callable[[], int]) -> None:
        ends = [r.state.at for r in records.values() if r.state.at is not None]
        last = self._ledger.last_request(self._plan.model) if ends else None
        if last is None:
            return
        newest, policy = max(ends), self._plan.triggers
        if not follow_up_paced(policy, ago := self._windows_ago(newest)):
            return
        if follow_up_due(policy, replace(self._job_history(self._plan.model, now), windows_ago=ago)):
            reason = f"{min(ago):.0f} windows after the last training there are more rows to learn from"
            evidence = {"window_end": newest.isoformat()}
            self.decide(Cause(self._plan.model, TriggerKind.FOLLOW_UP, last.id, reason, evidence), now, outcomes())

    def _history(self, window_end: datetime | None, now: datetime) -> JobHistory:
        history = self._job_history(self._plan.model, now)
        return history if window_end is None else replace(history, windows_ago=self._windows_ago(window_end))

    def _windows_ago(self, window_end: datetime) -> Sequence[float]:
        ends = self._ledger.request_windows(self._plan.model, KNOWN_REQUESTS)
        return [(window_end - end) / self._plan.windows.size for end in ends]

    def _trigger_on_labels(self, new_labels: int, now: datetime, outcomes: int) -> None:
        last = self._ledger.last_request(self._plan.model)
        before = int(last.evidence.get("outcomes", 0)) if last else 0
        if outcomes - before >= new_labels:
            cause = Cause(
                model=self._plan.model,
                trigger=TriggerKind.LABELS,
                occasion=f"{before}+{new_labels}",
                reason=f"{outcomes - before} new labels since the last retrain",
                evidence={},
            )
            self.decide(cause, now, outcomes)

    def decide(self, cause: Cause, now: datetime, outcomes: int, judged: int = 0) -> RetrainRequest | Suppressed:
        """Decide on a cause and record the answer with its evidence; an occasion answered before stays answered."""
        last = self._ledger.last_request(self._plan.model)
        if last is not None and last.id == request_id(cause):
            return last
        cause = replace(cause, evidence={**cause.evidence, "outcomes": outcomes})
        end = cause.evidence.get("window_end")
        history = self._history(datetime.fromisoformat(end) if end else None, now)
        same = last is not None and all(last.evidence.get(k) == cause.evidence.get(k) for k in ("rule", "version"))
        before = int(last.evidence.get("judged", 0)) if last is not None and same else 0
        history = replace(history, windows_since_last=judged - before)
        decision = decide(cause, self._plan.triggers, history, now)
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
