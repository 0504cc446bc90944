"""What people ask for: approve, reject, roll back, register a first model.

Invariant: each is recorded with who asked for it; one that the recorded state does not allow raises `Refused` and
changes nothing. The decision is recorded first, except that an alias move is recorded once it happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime

import polars as pl
import structlog

from retrain.config.spec import JobSpec
from retrain.control.store import AliasMove, Job, Store
from retrain.control.traffic import changed, share_of
from retrain.data.snapshot import remove_rows, write_snapshot
from retrain.isolation.forkserver import ForkServer
from retrain.job import publish
from retrain.judge.evaluate import score
from retrain.models.model_files import UnusableModel
from retrain.models.registry import Conflict, Registry
from retrain.scorer import Scorers
from retrain.terms.aliases import CHALLENGER, CHAMPION, PREVIOUS, TRAFFIC_TAG
from retrain.terms.errors import LostRace, Refused
from retrain.terms.states import REFUSABLE, JobState
from retrain.train.trainer import TrainingFailed, run_trainer

log = structlog.get_logger()


def approve(store: Store, job_id: str, actor: str, now: datetime, reason: str = "") -> None:
    """The waiting challenger may be promoted; the job goes on when it is run again (`Store.drivable`)."""
    try:
        store.approve(job_id, actor, now, reason)
    except LostRace as exc:
        raise Refused(str(exc)) from exc
    log.info("challenger_approved", job_id=job_id, actor=actor, reason=reason)


def reject(store: Store, registry: Registry, job_id: str, actor: str, reason: str, now: datetime) -> None:
    """The challenger is not wanted: one that waits for approval, or is on trial. Raises TransientError when the
    registry is away, with the rejection recorded when only the alias `challenger` could not be removed."""
    job = store.get(job_id)
    if job.state not in REFUSABLE:
        raise Refused(f"job {job_id} is {job.state}: only a challenger that waits or is on trial can be rejected")
    name = job.spec.registered_model
    if job.result.get("promoting") and registry.resolve_alias(name, CHAMPION) == job.result.get("version"):
        raise Refused(f"job {job_id} has promoted version {job.result['version']} by now: roll it back")
    if job.state is JobState.CANARY:  # or a layer that splits traffic would never hear of it
        registry.set_tag(name, TRAFFIC_TAG, None)
        if share_of(job.result) > 0:
            result = {**job.result, "canary": {**job.result["canary"], "share": 0.0}}
            store.update(job_id, None, note=changed(job, 0.0, actor, now), result=result)
    try:
        store.advance(job_id, job.state, JobState.REJECTED, reason, now, actor=actor)
    except LostRace as exc:
        raise Refused(str(exc)) from exc
    log.info("challenger_rejected", job_id=job_id, actor=actor, reason=reason)
    remove_rows(job.spec)
    registry.set_tag(name, TRAFFIC_TAG, None)  # the job's process may have set it again just before
    if registry.resolve_alias(name, CHALLENGER) == job.result.get("version"):
        registry.set_alias(name, CHALLENGER, None)


def job_of_version(store: Store, model: str, version: str | None) -> Job:
    """The job that made a version, the champion's by default. Raises Refused where driftd knows of none."""
    moves = store.champion_moves(model)
    if version is None and moves:
        version = moves[0].version
    for job in store.list_jobs(model, limit=10_000):
        if version is not None and job.result.get("version") == version:
            return job
    raise Refused(f"{model}: no job of driftd made version {version or '(there is no champion)'}")


def rollback(
    store: Store,
    registry: Registry,
    model: str,
    registered_model: str,
    actor: str,
    reason: str,
    now: datetime,
    to: str | None = None,
) -> str:
    """Makes an earlier champion the champion again and answers its version: `to`, or the alias `previous`. The version
    before it, where known, becomes `previous`. The job that promoted the one rolled back ends as rolled_back."""
    champion = registry.resolve_alias(registered_model, CHAMPION)
    moves = store.champion_moves(model)
    recorded = moves[0].version if moves else None
    if to is not None and to == champion != recorded:  # moved, and then the record was cut off
        store.record_alias(AliasMove(model, CHAMPION, champion, recorded, None, actor, now, reason))
        return champion
    if to is None and moves and champion == moves[0].previous_version != recorded:  # the same, not told where to
        to, champion = champion, recorded
    past = {v for move in moves for v in (move.version, move.previous_version) if v not in (None, champion)}
    if to is not None and to not in past:
        known = ", ".join(sorted(map(str, past))) or "none"
        raise Refused(f"{model}: version {to} is no earlier champion that driftd knows of; these are: {known}")
    previous = to or registry.resolve_alias(registered_model, PREVIOUS)
    if previous is None or previous == champion:
        raise Refused(f"{model}: there is no previous champion to go back to")
    older = next((m.previous_version for m in moves if m.version == previous and m.job_id is not None), None)
    _end_promotion(store, model, champion, f"rolled back: {reason}", now, actor)  # or it would promote again
    registry.set_alias(registered_model, CHAMPION, previous)
    registry.set_alias(registered_model, PREVIOUS, None if older == champion and to is None else older)
    store.record_alias(AliasMove(model, CHAMPION, previous, champion, None, actor, now, reason))
    moves = store.champion_moves(model)
    job_id = next((m.job_id for m in moves if m.version == champion and m.job_id is not None), None)
    if job_id is not None and job_id in {j.id for j in store.list_jobs(model, limit=1000)}:
        state = store.get(job_id).state
        if state in (JobState.PROMOTED, JobState.WATCHED):
            store.advance(job_id, state, JobState.ROLLED_BACK, reason, now, actor=actor)
            remove_rows(store.get(job_id).spec)
    log.warning("model_rolled_back", model=model, version=previous, from_version=champion, actor=actor, reason=reason)
    return previous


def _end_promotion(store: Store, model: str, version: str | None, reason: str, now: datetime, actor: str) -> None:
    """End the job that has moved the alias to `version` and has not put that on record yet."""
    job = store.in_flight(model)
    if job is not None and job.result.get("promoting") and job.result.get("version") == version:
        with suppress(LostRace):  # it has done so by now
            store.advance(job.id, job.state, JobState.REJECTED, reason, now, actor=actor)


def register_initial(
    store: Store,
    spec: JobSpec,
    train: pl.DataFrame,
    holdout: pl.DataFrame,
    environ: Mapping[str, str],
    now: datetime,
    actor: str,
) -> str:
    """Trains a first model on rows in lake columns (`holdout` for its reference), registers it as champion and
    answers its version. `spec.request.id` makes it repeatable. Raises Refused when there is another champion or the
    training fails."""
    registry = Registry(spec.tracking_uri)
    snapshot = write_snapshot(spec, train, holdout, {"delta_version": ""})
    with ForkServer(environ) as server:
        trained = run_trainer(spec.recipe, snapshot.train_path, spec.job_dir, server, scratch=spec.scratch)
        if isinstance(trained, TrainingFailed):
            raise Refused(trained.message)
        scorers = Scorers(server, spec.trust, spec.scorer_limits)
        try:
            with scorers.open(trained.model_dir, spec.schema) as model:
                side = score(model, holdout, spec.schema, source="initial")
        except UnusableModel as exc:
            raise Refused(f"the model {exc}") from exc
    run_id = publish.open_run(registry, spec, snapshot)
    publish.log_inputs(registry, run_id, spec, snapshot, now)
    folder = snapshot.folder
    publish.log_challenger(registry, run_id, folder / "model", folder, holdout, side, spec.schema)
    version = publish.register(registry, run_id, spec)
    moved = registry.promote(spec.registered_model, version, None)
    if isinstance(moved, Conflict):
        raise Refused(f"{spec.registered_model} has a champion already: version {moved.found}")
    registry.end_run(run_id)
    reason = spec.request.reason
    store.record_alias(AliasMove(spec.request.model, CHAMPION, version, None, spec.request.id, actor, now, reason))
    log.info("initial_model_registered", model=spec.request.model, version=version)
    return version
