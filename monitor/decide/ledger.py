"""The ledger: rule states, transitions and decisions of the observing half, in the control database.

Invariant: one round of judging is one transaction that also moves the model's cursor over the measurements table,
by compare-and-set. So a round is recorded once, whoever tries, and its effects (handing a request over) come
after it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Integer,
    String,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from monitor.lake.lake import Conflict
from monitor.rules.phases import Phase, RuleState, Transition
from monitor.rules.rules import Verdict
from monitor.rules.tracking import RuleRecord
from monitor.rules.triggers import Suppressed
from retrain.control import audit
from retrain.control.audit import AuditKind, Entry
from retrain.control.database import UtcDateTime, create_tables, metadata, reading, writing
from retrain.terms.request import RetrainRequest, TriggerKind

_cursors = Table(
    "monitor_cursors",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("version", Integer, nullable=False),
)
_rule_states = Table(
    "monitor_rule_states",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("version", String(200), primary_key=True),
    Column("rule", String(200), primary_key=True),
    Column("state", JSON, nullable=False),
    Column("judged", Integer, nullable=False),
    Column("verdict", String(20), nullable=False),
    Column("value", JSON),
    Column("reason", Text, nullable=False),
    Column("firing_since", UtcDateTime),
)
_transitions = Table(
    "monitor_transitions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("model", String(200), nullable=False, index=True),
    Column("version", String(200), nullable=False),
    Column("rule", String(200), nullable=False),
    Column("before", String(20), nullable=False),
    Column("after", String(20), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("recorded_at", UtcDateTime, nullable=False),
    Column("reason", Text, nullable=False),
)
_decisions = Table(
    "monitor_decisions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("model", String(200), nullable=False, index=True),
    Column("recorded_at", UtcDateTime, nullable=False),
    Column("trigger", String(30), nullable=False),
    Column("outcome", String(40), nullable=False),
    Column("cause", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("evidence", JSON, nullable=False),
    Column("request_id", String(200), unique=True),
    Column("request", JSON),
    Column("dispatched", Boolean, nullable=False, server_default="0"),
)
_leases = Table(
    "monitor_leases",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("holder", String(200), nullable=False),
    Column("until", UtcDateTime, nullable=False),
)
REQUESTED = "requested"
_RECENT = 100


@dataclass(frozen=True, slots=True)
class Decision:
    id: int
    model: str
    recorded_at: datetime
    trigger: str
    outcome: str
    cause: str
    detail: str
    evidence: Mapping[str, Any]
    request_id: str | None

    def to_words(self) -> str:
        if self.outcome != REQUESTED:
            return f"not retrained: {self.detail}; wanted because {self.cause}"
        return f"retrain requested: {self.cause}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True, slots=True)
class Round:
    """What judging the measurements up to `cursor` changed."""

    model: str
    before: int
    cursor: int
    records: Sequence[RuleRecord] = ()
    transitions: Sequence[tuple[str, Transition]] = ()
    retired: Sequence[str] = field(default_factory=tuple)


class Ledger:
    """Constructed on a ready engine; creates its tables when told to."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def create(self) -> None:
        create_tables(self._engine)

    def cursor(self, model: str) -> int:
        """The measurements version judged last; -1 before the first."""
        with reading(self._engine) as db:
            found = db.scalar(select(_cursors.c.version).where(_cursors.c.model == model))
        return -1 if found is None else int(found)

    def rule_records(self, model: str) -> dict[tuple[str, str], RuleRecord]:
        """Stored states by (version, rule)."""
        query = select(_rule_states).where(_rule_states.c.model == model)
        with reading(self._engine) as db:
            rows = db.execute(query).mappings().all()
        return {
            (r["version"], r["rule"]): RuleRecord(
                r["version"],
                r["rule"],
                RuleState.from_json(r["state"]),
                r["judged"],
                Verdict(r["verdict"]),
                r["value"],
                r["reason"],
                r["firing_since"],
            )
            for r in rows
        }

    def keep_rules(self, model: str, names: Collection[str], now: datetime) -> None:
        """Forget the states of rules that are no longer configured."""
        gone = (_rule_states.c.model == model, _rule_states.c.rule.not_in(names))
        with writing(self._engine) as db:
            for entry in _forget(db, gone, "the rule is no longer configured", now):
                audit.append(db, entry)

    def record(self, done: Round, now: datetime) -> None:
        """Store one round. Raises Conflict, having stored nothing, when the cursor is not at `done.before`."""
        with writing(self._engine) as db:
            if done.before < 0:
                try:
                    with db.begin_nested():
                        db.execute(insert(_cursors).values(model=done.model, version=done.cursor))
                except IntegrityError as exc:
                    raise Conflict(f"{done.model}: somebody else judged first") from exc
            else:
                moved = db.execute(
                    update(_cursors)
                    .where(_cursors.c.model == done.model, _cursors.c.version == done.before)
                    .values(version=done.cursor)
                )
                if moved.rowcount != 1:
                    raise Conflict(f"{done.model}: the cursor has left {done.before}")
            for record in done.records:
                where = (
                    _rule_states.c.model == done.model,
                    _rule_states.c.version == record.version,
                    _rule_states.c.rule == record.rule,
                )
                db.execute(delete(_rule_states).where(*where))
                db.execute(
                    insert(_rule_states).values(
                        model=done.model,
                        version=record.version,
                        rule=record.rule,
                        state=record.state.to_json(),
                        judged=record.judged,
                        verdict=record.verdict.value,
                        value=record.value,
                        reason=record.reason,
                        firing_since=record.firing_since,
                    )
                )
            for version, t in done.transitions:
                db.execute(
                    insert(_transitions).values(
                        model=done.model,
                        version=version,
                        rule=t.rule,
                        before=t.before.value,
                        after=t.after.value,
                        at=t.at,
                        recorded_at=now,
                        reason=t.reason,
                    )
                )
            retired = (_rule_states.c.model == done.model, _rule_states.c.version.in_(done.retired))
            ended = _forget(db, retired, "the version serves no more", now) if done.retired else []
            changed = [_rule_changed(done.model, version, t, now) for version, t in done.transitions]
            for entry in (*changed, *ended):  # last: the audit log's lock comes after all others
                audit.append(db, entry)

    def decide(self, decision: RetrainRequest | Suppressed, now: datetime) -> bool:
        """Record a decision; False when it says nothing new (the same request, or the same refusal again)."""
        try:
            return self._decide(decision, now)
        except IntegrityError:  # another replica recorded the same request at this moment
            return False

    def _decide(self, decision: RetrainRequest | Suppressed, now: datetime) -> bool:
        with writing(self._engine) as db:
            if isinstance(decision, RetrainRequest):
                known = db.scalar(select(_decisions.c.id).where(_decisions.c.request_id == decision.id))
                if known is not None:
                    return False
                db.execute(
                    insert(_decisions).values(
                        model=decision.model,
                        recorded_at=now,
                        trigger=decision.trigger.value,
                        outcome=REQUESTED,
                        cause=decision.reason,
                        detail="",
                        evidence=dict(decision.evidence),
                        request_id=decision.id,
                        request=decision.to_json(),
                    )
                )
                audit.append(db, _requested(decision, now))
                return True
            cause = decision.cause
            recent = db.execute(
                select(_decisions.c.outcome, _decisions.c.detail, _decisions.c.evidence)
                .where(_decisions.c.model == cause.model, _decisions.c.trigger == cause.trigger.value)
                .order_by(_decisions.c.id.desc())
                .limit(_RECENT)
            )
            last = next((r for r in recent if _subject(r.evidence) == _subject(cause.evidence)), None)
            if last is not None and (last.outcome, last.detail) == (decision.reason.value, decision.detail):
                return False
            db.execute(
                insert(_decisions).values(
                    model=cause.model,
                    recorded_at=now,
                    trigger=cause.trigger.value,
                    outcome=decision.reason.value,
                    cause=cause.reason,
                    detail=decision.detail,
                    evidence=dict(cause.evidence),
                )
            )
            audit.append(db, _suppressed(decision, now))
            return True

    def undispatched(self) -> list[RetrainRequest]:
        """Requests recorded and not yet handed to the job store, oldest first."""
        query = (
            select(_decisions.c.request)
            .where(_decisions.c.outcome == REQUESTED, _decisions.c.dispatched.is_(False))
            .order_by(_decisions.c.id)
        )
        with reading(self._engine) as db:
            return [RetrainRequest.from_json(r) for r in db.scalars(query)]

    def mark_dispatched(self, request: RetrainRequest, now: datetime, dropped: str = "") -> None:
        """`dropped`: why it was not handed over."""
        asked = _decisions.c.request_id == request.id
        with writing(self._engine) as db:
            db.execute(update(_decisions).where(asked).values(dispatched=True, detail=dropped))
            if dropped:
                kind = AuditKind.REQUEST_DROPPED
                audit.append(db, Entry(now, kind, request.model, audit.DRIFTD, request.id, dropped))

    def request_note(self, request_id: str) -> str | None:
        """Why the request was dropped, empty when it was not; None when nobody asked for it."""
        query = select(_decisions.c.detail).where(_decisions.c.request_id == request_id)
        with reading(self._engine) as db:
            return db.scalar(query)

    def last_request(self, model: str) -> RetrainRequest | None:
        """The newest request of a model, whatever became of it."""
        query = (
            select(_decisions.c.request)
            .where(_decisions.c.model == model, _decisions.c.outcome == REQUESTED)
            .order_by(_decisions.c.id.desc())
            .limit(1)
        )
        with reading(self._engine) as db:
            found = db.scalar(query)
        return RetrainRequest.from_json(found) if found else None

    def request_evidence(self, model: str, triggers: Collection[TriggerKind], limit: int) -> list[Mapping[str, Any]]:
        """Evidence of the newest requests by these triggers, newest first."""
        query = (
            select(_decisions.c.evidence)
            .where(
                _decisions.c.model == model,
                _decisions.c.outcome == REQUESTED,
                _decisions.c.trigger.in_([t.value for t in triggers]),
            )
            .order_by(_decisions.c.id.desc())
            .limit(limit)
        )
        with reading(self._engine) as db:
            return list(db.scalars(query))

    def decisions(self, model: str, limit: int = 20) -> list[Decision]:
        """Newest first."""
        query = select(_decisions).where(_decisions.c.model == model).order_by(_decisions.c.id.desc()).limit(limit)
        with reading(self._engine) as db:
            return [
                Decision(
                    r["id"], r["model"], r["recorded_at"], r["trigger"], r["outcome"], r["cause"], r["detail"],
                    r["evidence"], r["request_id"],
                )
                for r in db.execute(query).mappings()
            ]  # fmt: skip

    def transitions(self, model: str, limit: int = 50) -> list[dict[str, Any]]:
        """Newest first."""
        query = (
            select(_transitions).where(_transitions.c.model == model).order_by(_transitions.c.id.desc()).limit(limit)
        )
        with reading(self._engine) as db:
            return [dict(r) for r in db.execute(query).mappings()]

    def newest_transitions(self, model: str) -> tuple[datetime | None, datetime | None]:
        """When a rule fired last, and when one resolved last (wall time)."""
        mine, firing = _transitions.c.model == model, Phase.FIRING.value
        newest = select(func.max(_transitions.c.recorded_at)).where(mine)
        with reading(self._engine) as db:
            return db.scalar(newest.where(_transitions.c.after == firing)), db.scalar(
                newest.where(_transitions.c.before == firing)
            )

    def newest_decisions(self, model: str) -> tuple[datetime | None, datetime | None]:
        """When a retrain was requested last, and when one was suppressed last."""
        newest = select(func.max(_decisions.c.recorded_at)).where(_decisions.c.model == model)
        with reading(self._engine) as db:
            return db.scalar(newest.where(_decisions.c.outcome == REQUESTED)), db.scalar(
                newest.where(_decisions.c.outcome != REQUESTED)
            )

    def lead(self, name: str, holder: str, now: datetime, until: datetime) -> bool:
        """Take or keep the lease `name` until `until`; False while somebody else holds it.

        One's own lease is renewed when half of it is over: a process that is frozen while it writes blocks everybody.
        One that ends later than twice as long ahead was written by a clock that was wrong, and is free.
        """
        with reading(self._engine) as db:
            found = db.execute(select(_leases).where(_leases.c.name == name)).mappings().first()
        length = until - now
        if found is not None and found["holder"] == holder and length / 2 < found["until"] - now <= length:
            return True
        with writing(self._engine) as db:
            if found is None:
                try:
                    with db.begin_nested():
                        db.execute(insert(_leases).values(name=name, holder=holder, until=until))
                except IntegrityError:
                    return False
                return True
            moved = db.execute(
                update(_leases)
                .where(
                    _leases.c.name == name,
                    (_leases.c.holder == holder) | (_leases.c.until < now) | (_leases.c.until > until + length),
                )
                .values(holder=holder, until=until)
            )
            return moved.rowcount == 1

    def resign(self, name: str, holder: str) -> None:
        """Give the lease up, so that another replica need not wait for it to expire."""
        with writing(self._engine) as db:
            db.execute(delete(_leases).where(_leases.c.name == name, _leases.c.holder == holder))


def _forget(db: Connection, where: tuple[ColumnElement[bool], ...], why: str, now: datetime) -> list[Entry]:
    """Delete rule states; the answer puts on record the end of those that fire."""
    rows = db.execute(select(_rule_states).where(*where)).mappings().all()
    db.execute(delete(_rule_states).where(*where))
    ended = []
    for row in rows:
        state = RuleState.from_json(row["state"])
        if state.phase is Phase.FIRING and state.at is not None:
            end = Transition(row["rule"], Phase.FIRING, Phase.INACTIVE, state.at, why)
            ended.append(_rule_changed(row["model"], row["version"], end, now))
    return ended


def _rule_changed(model: str, version: str, t: Transition, now: datetime) -> Entry:
    body = {"version": version, "before": t.before.value, "after": t.after.value, "window_end": t.at.isoformat()}
    return Entry(now, AuditKind.RULE_CHANGED, model, audit.DRIFTD, t.rule, t.reason, body)


def _requested(request: RetrainRequest, now: datetime) -> Entry:
    actor, body = _asked_by(request.evidence), {"trigger": request.trigger.value, "evidence": request.evidence}
    return Entry(now, AuditKind.RETRAIN_REQUESTED, request.model, actor, request.id, request.reason, body)


def _suppressed(refusal: Suppressed, now: datetime) -> Entry:
    cause, reason = refusal.cause, refusal.reason.value
    body = {"trigger": cause.trigger.value, "cause": cause.reason, "evidence": cause.evidence}
    return Entry(
        now, AuditKind.RETRAIN_SUPPRESSED, cause.model, _asked_by(cause.evidence), reason, refusal.detail, body
    )


def _asked_by(evidence: Mapping[str, Any]) -> str:
    return str(evidence.get("actor") or audit.DRIFTD)


def _subject(evidence: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a cause is about: two rules that fire at once are refused each for itself."""
    return tuple(evidence.get(k) for k in ("rule", "version", "actor", "alert"))
