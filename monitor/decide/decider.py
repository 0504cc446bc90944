"""Measured windows -> transitions -> retrain requests, recorded in the ledger: every decision driftd takes.

Invariant: the one code path for decisions. The daemon, the demo and the backtest differ in where windows come from
and in who tells the time, not in what happens to a window once it is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import structlog

from monitor.config.plan import ModelPlan
from monitor.decide.ledger import Ledger, Round
from monitor.decide.reasons import what_changed, what_drifted
from monitor.metrics import Metrics
from monitor.rules.combining import combined
from monitor.rules.measurement import Measure, Measurement, WindowKey
from monitor.rules.phases import Phase, Transition
from monitor.rules.rules import Action, Verdict
from monitor.rules.tracking import Records, RuleRecord, firing, judge_windows
from monitor.rules.triggers import (
    LOOK_BACK,
    PACED,
    Cause,
    JobHistory,
    Requests,
    Suppressed,
    decide,
    follow_up_due,
    follow_up_paced,
    request_id,
)
from retrain.control.holds import maintenance_words
from retrain.terms.cron import last_time
from retrain.terms.request import RetrainRequest, TriggerKind

log = structlog.get_logger()

POSITION = "position"
SCHEDULE_HOLDS = timedelta(hours=1)
"""How long a time of a combination's schedule waits for the others."""
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
        plan, outcomes = self._plan, cache(outcomes)  # a query: once, and only if it is needed
        actions = {r.name: r.action for r in plan.rules}
        breaching = [r for r in firing(self._ledger.rule_records(plan.model)) if r.verdict is Verdict.BREACH]
        for record in breaching:
            if actions.get(record.rule) is Action.RETRAIN:
                self.decide(self._cause(record), now, outcomes())
        for combination in plan.combinations:
            rules = [self._cause(r) for r in breaching if r.rule in combination.rules]
            others = [self._labels(combination.new_labels, outcomes), self._scheduled(combination.schedule, now)]
            for cause in combined(combination, rules, [c for c in others if c is not None]):
                self.decide(cause, now, outcomes())
        if actions:
            self._follow_up(now, outcomes)
        if (labels := self._labels(plan.new_labels, outcomes)) is not None:
            self.decide(labels, now, outcomes())

    def _cause(self, record: RuleRecord) -> Cause:
        at, since = record.state.at, record.state.amiss_since
        amiss = (at - since) / self._plan.windows.size if at and since else 0.0
        if record.state.evidence_since is None:
            amiss += 1  # since the end of the first bad window
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
                "window_end": at.isoformat() if at else None,
                "since": since.isoformat() if since else None,
            },
            version=record.version,
            since=record.firing_since,
            windows_amiss=amiss,
        )

    def _follow_up(self, now: datetime, outcomes: Callable[[], int]) -> None:
        policy, model = self._plan.triggers, self._plan.model
        last = self._ledger.last_request(model)
        if last is None or not follow_up_paced(policy, requests := requests_of(self._ledger, self._plan, last)):
            return
        if follow_up_due(policy, replace(self._job_history(model, now), requests=requests)):
            reason = f"{requests.since_last:.0f} windows after the last training there are more rows to learn from"
            self.decide(Cause(model, TriggerKind.FOLLOW_UP, last.id, reason, {}), now, outcomes())

    def _labels(self, new_labels: int | None, outcomes: Callable[[], int]) -> Cause | None:
        """So many labels since the newest request."""
        if new_labels is None:
            return None
        evidence = self._ledger.request_evidence(self._plan.model, list(TriggerKind), LOOK_BACK)
        before = next((int(e["outcomes"]) for e in evidence if "outcomes" in e), 0)
        if (count := outcomes() - before) < new_labels:
            return None
        reason = f"{count} new labels since the last retrain"
        return Cause(self._plan.model, TriggerKind.LABELS, f"{before}+{new_labels}", reason, {})

    def _scheduled(self, schedule: str | None, now: datetime) -> Cause | None:
        """A time of the schedule was less than SCHEDULE_HOLDS ago, and no request since."""
        if schedule is None or (at := last_time(schedule, UTC, now, SCHEDULE_HOLDS)) is None:
            return None
        last = self._ledger.last_request(self._plan.model)
        if last is not None and last.requested_at >= at:
            return None
        return Cause(self._plan.model, TriggerKind.SCHEDULE, f"{at:%Y-%m-%dT%H:%M}", f"schedule {schedule}", {})

    def decide(self, cause: Cause, now: datetime, outcomes: int) -> RetrainRequest | Suppressed:
        """Decide on a cause and record the answer with its evidence; an occasion answered before stays answered."""
        last = self._ledger.last_request(self._plan.model)
        if last is not None and last.id == request_id(cause):
            return last
        history = all_known(self._job_history(self._plan.model, now), self._ledger, self._plan, last, now)
        cause = placed(replace(cause, evidence={**cause.evidence, "outcomes": outcomes}), history.requests)
        decision = decide(cause, self._plan.triggers, history, now)
        if self._ledger.decide(decision, now):
            self._metrics.count_decision(decision)
            if isinstance(decision, Suppressed):
                log.info(
                    "retrain_suppressed", model=cause.model, reason=decision.reason.value,
                    detail=decision.detail, cause=cause.reason,
                )  # fmt: skip
            else:
                log.info(
                    "retrain_requested", model=cause.model, request=decision.id,
                    trigger=cause.trigger.value, reason=cause.reason,
                )  # fmt: skip
        return decision


def all_known(
    jobs: JobHistory, ledger: Ledger, plan: ModelPlan, last: RetrainRequest | None, now: datetime
) -> JobHistory:
    """What is known of the jobs, with what the ledger and the configuration know; `last` is the newest request."""
    maintenance = maintenance_words(plan.retrain.maintenance, now)
    return replace(jobs, requests=requests_of(ledger, plan, last), maintenance=maintenance)


def requests_of(ledger: Ledger, plan: ModelPlan, last: RetrainRequest | None) -> Requests:
    """Where in the stream of windows things stand, and how many windows ago requests were made, `last` the newest."""
    ends = [r.state.at for r in ledger.rule_records(plan.model).values() if r.state.at is not None]
    if not ends:
        return Requests()
    position = max(ends)

    def ago(evidence: Mapping[str, Any]) -> float | None:
        then = evidence.get(POSITION)
        return None if then is None else max(0.0, (position - datetime.fromisoformat(then)) / plan.windows.size)

    paced = map(ago, ledger.request_evidence(plan.model, PACED, LOOK_BACK))
    return Requests(
        position=position,
        windows_ago=[windows for windows in paced if windows is not None],
        since_last=None if last is None else ago(last.evidence),
    )


def placed(cause: Cause, requests: Requests) -> Cause:
    """The cause with where in the stream of windows it came up, for `requests_of` to read later."""
    position = requests.position
    return replace(cause, evidence={**cause.evidence, POSITION: position.isoformat() if position else None})
