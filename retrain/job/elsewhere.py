"""A training that happens elsewhere: handed over, started, asked about until it has ended, taken back.

Invariant: a job that is killed at any point goes on with the training it has started: what was started is on record,
under a key that the other side knows it by. Trouble of the other side's machines is tried again; a trainer's failure
is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, assert_never

import structlog

from retrain.base.retry import Stopped
from retrain.config.recipe import Recipe
from retrain.engines.handover import Stage, hand_over, remove_handed_over, take_back
from retrain.engines.protocol import Engine, Order, Phase, Refused, Seen
from retrain.job.context import CONTROL, MLFLOW, JobContext
from retrain.terms.errors import TransientError
from retrain.train.trainer import FailureKind, Trained, TrainingFailed

log = structlog.get_logger()
MOST_STARTS = 3
"""Of one training, when machines are lost under it."""
MOST_REFUSALS = 5
"""Times in a row that the other side may refuse to say how a training is."""


def train_elsewhere(
    job: JobContext, engine: Engine, recipe: Recipe, rows: Path, stage: Stage, folder: Path, run_id: str
) -> Trained | TrainingFailed:
    """Train on `rows` (lake columns) and leave the model in `folder/model`. Raises Stopped when the job is asked to
    end: the training goes on, and the job finds it again."""
    trained = _train(job, engine, recipe, rows, stage, folder, run_id)
    if isinstance(trained, TrainingFailed):
        job.retry(MLFLOW, lambda: remove_handed_over(job.registry, run_id, stage))
    return trained


def _train(
    job: JobContext, engine: Engine, recipe: Recipe, rows: Path, stage: Stage, folder: Path, run_id: str
) -> Trained | TrainingFailed:
    folder.mkdir(parents=True, exist_ok=True)
    known = dict(job.result.get("elsewhere") or {}).get(stage.value) or {}
    if not known.get("handed_over"):
        job.retry(MLFLOW, lambda: hand_over(job.registry, run_id, job.spec.request, recipe, rows, stage, folder))
        known = {"handed_over": True, "start": 1, "since": job.clock().isoformat()}
        _note(job, stage, known)
        job.checkpoint("handed_over")
    while True:
        order = _order(job, stage, known, run_id)
        if order.asked is None:
            known |= {"asked": job.clock().isoformat()}
            _note(job, stage, known)
        started = known.get("id")
        try:
            if started is None:
                started = job.retry(engine.name, partial(engine.start, order))
                job.checkpoint("started_elsewhere")
                known |= {"id": started, "engine": engine.name}
                _note(job, stage, known)
                log.info("training_started", job_id=job.job.id, engine=engine.name, id=started, stage=stage.value)
            ended = _wait(job, engine, order, started, datetime.fromisoformat(known["since"]))
        except Refused as exc:
            if started is not None:
                _cancel(engine, order, started)
            return TrainingFailed(FailureKind.CRASHED, f"{engine.name} refuses: {exc}")
        match ended.phase:
            case Phase.ENDED:
                took = round((job.clock() - datetime.fromisoformat(known["since"])).total_seconds(), 1)
                back = partial(take_back, job.registry, job.scorers, run_id, job.spec, rows, stage, folder, took)
                return job.retry(MLFLOW, back)
            case Phase.FAILED:
                return _failed(engine, order, started, ended.detail)
            case Phase.LOST if known["start"] < MOST_STARTS:
                log.warning("training_lost", job_id=job.job.id, engine=engine.name, detail=ended.detail)
                known = {n: v for n, v in known.items() if n not in ("id", "asked")} | {"start": known["start"] + 1}
                _note(job, stage, known)
            case Phase.LOST:
                told = f"{engine.name} lost it {MOST_STARTS} times: {ended.detail}"
                return TrainingFailed(FailureKind.CRASHED, told)
            case Phase.RUNNING:  # beyond its time
                _cancel(engine, order, started)
                limit = job.spec.config.time_limit
                return TrainingFailed(FailureKind.TIMED_OUT, f"training timed out: stopped after {limit}")
            case unreachable:
                assert_never(unreachable)


def _wait(job: JobContext, engine: Engine, order: Order, started: str, since: datetime) -> Seen:
    """How it ended; RUNNING when its time is over."""
    told, refusals = "", 0
    while True:
        try:
            seen, refusals = job.retry(engine.name, partial(engine.look, order, started)), 0
        except Refused as exc:  # a token that is being renewed, a list that is not yet up to date
            if (refusals := refusals + 1) == MOST_REFUSALS:
                raise
            seen = Seen(Phase.RUNNING, f"refuses to say: {exc}")
        if seen.phase is not Phase.RUNNING or job.clock() >= since + job.spec.config.time_limit:
            job.retry(CONTROL, lambda: job.store.update(job.job.id, job.owner, waiting=None))
            return seen
        if (text := f"{engine.name}: {order.stage} training {started} {seen.detail or 'runs'}") != told:
            job.wait(told := text)
        if job.stopping.wait(engine.poll_every):
            raise Stopped(engine.name)


def _cancel(engine: Engine, order: Order, started: str) -> None:
    with contextlib.suppress(TransientError, Refused):
        engine.cancel(order, started)


def _failed(engine: Engine, order: Order, started: str, detail: str) -> TrainingFailed:
    tail = ""
    with contextlib.suppress(TransientError, Refused):
        tail = engine.log_tail(order, started)
    last = (tail.strip().splitlines() or [""])[-1][:300]
    return TrainingFailed(FailureKind.CRASHED, f"{engine.name}: training {started} failed: {last or detail}")


def _order(job: JobContext, stage: Stage, known: Mapping[str, Any], run_id: str) -> Order:
    """The key is a name that orchestrators take: lower case letters, digits and hyphens, 63 at most. The run tells the
    jobs of several driftd apart that use one orchestrator."""
    spec, start = job.spec, known["start"]
    readable = re.sub(r"[^a-z0-9]+", "-", spec.request.model.lower()).strip("-")[:30]
    digest = hashlib.sha256(f"{run_id}/{stage}/{start}".encode()).hexdigest()[:12]
    key = f"driftd-{readable}-{stage}-{digest}".replace("--", "-")
    asked = datetime.fromisoformat(known["asked"]).timestamp() if "asked" in known else None
    return Order(key, job.job.id, spec.request.model, stage, run_id, spec.tracking_uri, asked)


def _note(job: JobContext, stage: Stage, known: dict[str, Any]) -> None:
    job.save(elsewhere={**(job.result.get("elsewhere") or {}), stage.value: known})
