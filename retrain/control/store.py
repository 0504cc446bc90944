"""The store of retrain jobs: who is in which state, since when, why, and who drives it.

Invariant: a state changes only by compare-and-set on the state it was read in, together with its history row; a
job is driven by at most one process, the holder of an unexpired lease. Time is always passed in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, RowMapping, and_, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from retrain.base.redaction import redact
from retrain.config.spec import JobSpec
from retrain.control import audit
from retrain.control.audit import AuditKind
from retrain.control.database import create_tables, open_engine, reading, writing
from retrain.control.records import AliasMove, Job, Step, Submission, SubmitOutcome, approval_due, job_of
from retrain.control.tables import alias_history, job_history, jobs
from retrain.terms.aliases import CHAMPION
from retrain.terms.errors import LeaseLost, LostRace, UnknownJob
from retrain.terms.states import IN_FLIGHT, JobState, check_transition

MOST_AHEAD = timedelta(minutes=10)
"""No lease lasts so long: one that seems to was written by a clock that was wrong, and counts as free."""
UNSUCCESSFUL = frozenset({JobState.REJECTED, JobState.FAILED, JobState.ROLLED_BACK})
_in_flight = [s.value for s in IN_FLIGHT]
__all__ = ["AliasMove", "Job", "Step", "Store", "Submission", "SubmitOutcome", "approval_due", "open_store"]


def open_store(url: str) -> Store:
    """Opens the control database and creates missing tables."""
    engine = open_engine(url)
    create_tables(engine)
    return Store(engine)


class Store:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    # -- submitting and reading

    def submit(self, spec: JobSpec, now: datetime) -> Submission:
        """Records a job in state `requested`. The same request id again, or a second job for a model that has one
        in flight, records nothing."""
        spec.refuse_secrets()
        request = spec.request
        values = {
            "id": request.id,
            "model": request.model,
            "state": JobState.REQUESTED.value,
            "spec": spec.to_json(),
            "created_at": now,
            "updated_at": now,
            "result": {},
        }
        try:
            with writing(self.engine) as connection:
                connection.execute(insert(jobs).values(values))
                step = Step(
                    None, JobState.REQUESTED, now, request.trigger.value, f"{request.trigger}: {request.reason}"
                )
                _record(connection, request.id, request.model, step, {"spec": values["spec"]})
        except IntegrityError:
            with reading(self.engine) as connection:
                if connection.scalar(select(jobs.c.id).where(jobs.c.id == request.id)) is not None:
                    return Submission(request.id, SubmitOutcome.EXISTING)
                query = select(jobs.c.id).where(jobs.c.model == request.model, jobs.c.state.in_(_in_flight))
                other = connection.scalar(query)
            if other is None:  # it ended between the two statements
                return self.submit(spec, now)
            return Submission(other, SubmitOutcome.IN_FLIGHT)
        return Submission(request.id, SubmitOutcome.CREATED)

    def get(self, job_id: str) -> Job:
        found = self.find(job_id)
        if found is None:
            raise UnknownJob(f"no job {job_id!r}")
        return found

    def find(self, job_id: str) -> Job | None:
        return next(iter(self._select(jobs.c.id == job_id)), None)

    def find_by_run(self, run_id: str) -> Job | None:
        """The job that made this MLflow run."""
        return next(iter(self._select(jobs.c.result["run_id"].as_string() == run_id)), None)

    def count_states(self) -> dict[tuple[str, JobState], int]:
        """(model, state) -> how many jobs."""
        query = select(jobs.c.model, jobs.c.state, func.count()).group_by(jobs.c.model, jobs.c.state)
        with reading(self.engine) as connection:
            return {(model, JobState(state)): count for model, state, count in connection.execute(query)}

    def newest_states(self, model: str) -> dict[JobState, datetime]:
        """When a job of the model entered each state last; states that none ever entered are absent."""
        query = (
            select(job_history.c.to_state, func.max(job_history.c.at))
            .join(jobs, jobs.c.id == job_history.c.job_id)
            .where(jobs.c.model == model)
            .group_by(job_history.c.to_state)
        )
        with reading(self.engine) as connection:
            return {JobState(state): at for state, at in connection.execute(query)}

    def list_jobs(
        self, model: str | None = None, states: Collection[JobState] | None = None, limit: int = 100
    ) -> list[Job]:
        """Newest first."""
        where = [] if model is None else [jobs.c.model == model]
        if states is not None:
            where.append(jobs.c.state.in_([s.value for s in states]))
        return self._select(*where, limit=limit)

    def last_job(self, model: str) -> Job | None:
        return next(iter(self.list_jobs(model, limit=1)), None)

    def in_flight(self, model: str) -> Job | None:
        return next(iter(self.list_jobs(model, IN_FLIGHT, limit=1)), None)

    def count_since(self, model: str, since: datetime) -> int:
        """Jobs of the model created at or after `since` (the day's budget)."""
        query = select(func.count()).where(jobs.c.model == model, jobs.c.created_at >= since)
        with reading(self.engine) as connection:
            return connection.scalar(query) or 0

    def drivable(self, now: datetime) -> list[Job]:
        """Jobs that need a process and have none: in flight and not leased. One that awaits approval is listed
        once it was approved or its time to wait is over."""
        found = self._select(jobs.c.state.in_(_in_flight), _free(now), limit=1000)
        return [job for job in found if job.state is not JobState.AWAITING_APPROVAL or approval_due(job, now)]

    def history(self, job_id: str) -> list[Step]:
        query = select(job_history).where(job_history.c.job_id == job_id).order_by(job_history.c.id)
        with reading(self.engine) as connection:
            return [_step(r) for r in connection.execute(query).mappings()]

    def recent_steps(self, model: str, limit: int) -> list[tuple[int, Job, Step]]:
        """The newest steps of the model's jobs, newest first: row number, the job as it is now, the step."""
        query = (
            select(job_history)
            .join(jobs, jobs.c.id == job_history.c.job_id)
            .where(jobs.c.model == model)
            .order_by(job_history.c.id.desc())
            .limit(limit)
        )
        with reading(self.engine) as connection:
            rows = connection.execute(query).mappings().all()
        wanted = jobs.c.id.in_({r["job_id"] for r in rows})
        known = {job.id: job for job in self._select(wanted, limit=limit)}
        return [(r["id"], known[r["job_id"]], _step(r)) for r in rows]

    def trained_before(self, model: str, fingerprint: str, except_job: str) -> str | None:
        """An earlier job of the model that trained on the same snapshot, code and config, and came to a verdict: one
        that failed on its way may be repeated."""
        query = (
            select(jobs.c.id)
            .join(job_history, job_history.c.job_id == jobs.c.id)
            .where(
                jobs.c.model == model,
                jobs.c.fingerprint == fingerprint,
                jobs.c.id != except_job,
                jobs.c.state != JobState.FAILED.value,
                job_history.c.to_state == JobState.EVALUATING.value,
            )
            .limit(1)
        )
        with reading(self.engine) as connection:
            return connection.scalar(query)

    # -- changing state

    def advance(
        self,
        job_id: str,
        from_state: JobState,
        to_state: JobState,
        detail: str,
        now: datetime,
        *,
        owner: str | None = None,
        actor: str = "job",
        error: str | None = None,
    ) -> None:
        """One transition with its history row. Without `owner` somebody else than its process decides, and takes the
        lease from it: it must not act any more. Raises IllegalTransition, LostRace when the job is no longer in
        `from_state`, LeaseLost when `owner` is given and does not hold the lease."""
        check_transition(from_state, to_state)
        values: dict[str, Any] = {"state": to_state.value, "updated_at": now, "waiting": None, "attempt": 0}
        if from_state in IN_FLIGHT and to_state not in IN_FLIGHT:
            values["ended_at"] = now
        if error is not None:
            values["error"] = redact(error)
        if owner is None:
            values |= {"lease_owner": None, "lease_until": None}
        with writing(self.engine) as connection:
            where = (jobs.c.id == job_id, jobs.c.state == from_state.value, *_held(owner))
            changed = update(jobs).where(*where).values(values).returning(jobs.c.model, jobs.c.result)
            if (found := connection.execute(changed).first()) is None:
                state = connection.scalar(select(jobs.c.state).where(jobs.c.id == job_id))
                raise _refusal(job_id, state, from_state, to_state)
            step = Step(from_state, to_state, now, actor, detail)
            _record(connection, job_id, found.model, step, _facts(from_state, found.result or {}))

    def update(self, job_id: str, owner: str | None, *, note: audit.Entry | None = None, **values: Any) -> None:
        """Sets `result`, `fingerprint`, `waiting` or `attempt`, and appends `note` to the audit log with it. Raises
        LeaseLost when `owner` does not hold the lease."""
        if values.get("waiting"):
            values["waiting"] = redact(values["waiting"])
        with writing(self.engine) as connection:
            if connection.execute(update(jobs).where(jobs.c.id == job_id, *_held(owner)).values(values)).rowcount != 1:
                raise LeaseLost(f"job {job_id}: another process holds its lease")
            if note is not None:
                audit.append(connection, note)

    def approve(self, job_id: str, actor: str, now: datetime, reason: str = "") -> None:
        """Records the approval, of which there is one; the job goes on when it is run again. Raises LostRace when it
        does not wait, or not any more; UnknownJob."""
        waiting = JobState.AWAITING_APPROVAL
        with writing(self.engine) as connection:
            where = and_(jobs.c.id == job_id, jobs.c.state == waiting.value, jobs.c.approved_by.is_(None))
            changed = update(jobs).where(where).values(approved_by=actor, updated_at=now).returning(jobs.c.model)
            if (model := connection.scalar(changed)) is None:
                found = connection.execute(select(jobs.c.state, jobs.c.approved_by).where(jobs.c.id == job_id)).first()
                if found is not None and found.state == waiting.value:
                    raise LostRace(f"job {job_id} has been approved already, by {found.approved_by}")
                raise _refusal(job_id, found.state if found else None, waiting, JobState.PROMOTED)
            detail = "approved" + (f": {reason}" if reason else "")
            _record(connection, job_id, model, Step(waiting, waiting, now, actor, detail), {})

    # -- leases

    def acquire(self, job_id: str, owner: str, now: datetime, ttl: timedelta) -> bool:
        """Takes the lease if it is free, expired or already `owner`'s; counts one attempt."""
        free = or_(_free(now), jobs.c.lease_owner == owner)
        values = {"lease_owner": owner, "lease_until": now + ttl, "attempt": jobs.c.attempt + 1}
        with writing(self.engine) as connection:
            return connection.execute(update(jobs).where(jobs.c.id == job_id, free).values(values)).rowcount == 1

    def renew(self, job_id: str, owner: str, now: datetime, ttl: timedelta) -> bool:
        """False: the lease expired and somebody else took it; the caller must stop."""
        where = and_(jobs.c.id == job_id, jobs.c.lease_owner == owner)
        with writing(self.engine) as connection:
            return connection.execute(update(jobs).where(where).values(lease_until=now + ttl)).rowcount == 1

    def holds(self, job_id: str, owner: str) -> bool:
        """Whether nobody has taken the lease from `owner`."""
        query = select(jobs.c.lease_owner).where(jobs.c.id == job_id)
        with reading(self.engine) as connection:
            return connection.scalar(query) == owner

    def release(self, job_id: str, owner: str) -> None:
        """Gives the lease back; also for a daemon that saw the process of `owner` die."""
        where = and_(jobs.c.id == job_id, jobs.c.lease_owner == owner)
        with writing(self.engine) as connection:
            connection.execute(update(jobs).where(where).values(lease_owner=None, lease_until=None))

    # -- aliases

    def record_alias(self, move: AliasMove) -> None:
        """Appends one alias move; the same move by the same job again is recorded once."""
        values = {name: getattr(move, name) for name in AliasMove.__dataclass_fields__}
        try:
            with writing(self.engine) as connection:
                connection.execute(insert(alias_history).values(values))
                result = connection.scalar(select(jobs.c.result).where(jobs.c.id == move.job_id))
                audit.append(connection, _moved(move, (result or {}).get("gates", [])))
        except IntegrityError:
            if move.job_id is None:
                raise

    def champion_moves(self, model: str) -> list[AliasMove]:
        """Moves of the alias `champion`, newest first."""
        return [move for move in self.alias_moves(model) if move.alias == CHAMPION]

    def alias_moves(self, model: str) -> list[AliasMove]:
        """Newest first."""
        query = select(alias_history).where(alias_history.c.model == model).order_by(alias_history.c.id.desc())
        with reading(self.engine) as connection:
            names = AliasMove.__dataclass_fields__
            return [AliasMove(**{n: row[n] for n in names}) for row in connection.execute(query).mappings()]

    def _select(
        self, *where: ColumnElement[bool], by: ColumnElement[Any] = jobs.c.created_at, limit: int = 1
    ) -> list[Job]:
        query = select(jobs).where(*where).order_by(by.desc(), jobs.c.id).limit(limit)
        with reading(self.engine) as connection:
            return [job_of(row) for row in connection.execute(query).mappings()]


def _step(row: RowMapping) -> Step:
    before = None if row["from_state"] is None else JobState(row["from_state"])
    return Step(before, JobState(row["to_state"]), row["at"], row["actor"], row["detail"])


def _free(now: datetime) -> ColumnElement[bool]:
    until = jobs.c.lease_until
    return or_(until.is_(None), until <= now, until > now + MOST_AHEAD)


def _held(owner: str | None) -> list[ColumnElement[bool]]:
    return [] if owner is None else [jobs.c.lease_owner == owner]


def _refusal(job_id: str, state: str | None, wanted: JobState, to: JobState) -> Exception:
    if state is None:
        return UnknownJob(f"no job {job_id!r}")
    if state == wanted.value:
        return LeaseLost(f"job {job_id}: another process holds its lease")
    return LostRace(f"job {job_id} cannot go from {wanted} to {to}: it is {state} by now")


def _facts(left: JobState, result: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the audit log keeps with the step out of a state."""
    match left:
        case JobState.EVALUATING:
            return {"result": result}
        case JobState.SHADOW | JobState.CANARY:
            return {left.value: result.get(left.value)}
        case _:
            return {}


def _record(connection: Connection, job_id: str, model: str, step: Step, facts: Mapping[str, Any]) -> None:
    """One row of the job's history and one entry of the audit log, `facts` in its body."""
    before = None if step.from_state is None else step.from_state.value
    row = {"from_state": before, "to_state": step.to_state.value, "at": step.at, "actor": step.actor}
    connection.execute(insert(job_history).values(job_id=job_id, detail=redact(step.detail), **row))
    audit.append(
        connection,
        audit.Entry(
            at=step.at,
            kind=AuditKind.JOB_APPROVED if step.from_state is step.to_state else AuditKind.JOB_MOVED,
            model=model,
            actor=step.actor,
            subject=job_id,
            detail=step.detail,
            body={"from_state": before, "to_state": step.to_state.value, **facts},
        ),
    )


def _moved(move: AliasMove, gates: Sequence[Mapping[str, Any]]) -> audit.Entry:
    body: dict[str, Any] = {"version": move.version, "previous_version": move.previous_version, "job": move.job_id}
    if gates and move.alias == CHAMPION:
        body["gates"] = gates
    return audit.Entry(
        at=move.at,
        kind=AuditKind.ALIAS_MOVED,
        model=move.model,
        actor=move.actor,
        subject=move.alias,
        detail=move.reason,
        body=body,
    )
