"""What people ask for from outside the daemon: a retrain now, the report of a window.

Invariant: goes through the same policy, ledger and tables as the daemon's own decisions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import polars as pl
from sqlalchemy import Engine

from monitor.base.errors import ConfigError
from monitor.config.loading import LoadedConfig
from monitor.config.plan import plans
from monitor.decide.decider import all_known, placed
from monitor.decide.ledger import Ledger
from monitor.jobs.supervisor import job_history
from monitor.jobs.window_reports import ReportTask, make_report
from monitor.lake.lake import Lake, Table, collect
from monitor.rules.measurement import WindowKey
from monitor.rules.triggers import Cause, Suppressed, decide, request_id
from retrain.control import audit
from retrain.control.audit import AuditKind, Entry
from retrain.control.store import Store
from retrain.terms.request import RetrainRequest, TriggerKind
from retrain.terms.states import JobState


@dataclass(frozen=True, slots=True)
class Answer:
    """`recorded` None: this says nothing new, for instance because the same occasion has asked before. `job` None:
    refused, or the job of then failed."""

    recorded: RetrainRequest | Suppressed | None
    job: str | None
    words: str


def asked_by_person(model: str, actor: str, reason: str, now: datetime, git_ref: str | None = None) -> Cause:
    """`git_ref`: the code that the retrain is wanted for; the same one asks only once."""
    why = "; ".join(filter(None, [reason, git_ref and f"code at {git_ref}"]))
    return Cause(
        model=model,
        trigger=TriggerKind.MANUAL,
        occasion=f"git/{git_ref}" if git_ref else f"{actor}/{now.isoformat()}",
        reason=f"asked for by {actor}" + (f": {why}" if why else ""),
        evidence={"actor": actor, **({"git_ref": git_ref} if git_ref else {})},
    )


def answer(loaded: LoadedConfig, ledger: Ledger, store: Store, cause: Cause, now: datetime) -> Answer:
    """Decide on a cause from outside and record the decision; the daemon hands a request to a job."""
    if (asked := ledger.request_note(request_id(cause))) is not None:
        return _asked_before(store, request_id(cause), asked)
    plan = plans(loaded)[cause.model]
    last = ledger.last_request(cause.model)
    history = all_known(job_history(store, cause.model, now), ledger, plan, last, now)
    decision = decide(placed(cause, history.requests), plan.triggers, history, now)
    recorded = decision if ledger.decide(decision, now) else None
    if isinstance(decision, Suppressed):
        return Answer(recorded, None, f"not retrained: {decision.detail}")
    return Answer(recorded, decision.id, f"retrain requested, job {decision.id}")


def _asked_before(store: Store, name: str, dropped: str) -> Answer:
    job = store.find(name)
    if dropped or (job is not None and job.state is JobState.FAILED):
        why = dropped or f"job {name} failed: {job.error if job else ''}"
        return Answer(None, None, f"not retrained: this has asked before, and {why}; ask without --git-ref, or by hand")
    return Answer(None, name, f"this has asked before: job {name} is {job.state.value if job else 'requested'}")


def note_forgotten(
    engine: Engine, model: str, prediction_ids: Sequence[str], actor: str, reason: str, now: datetime
) -> None:
    """Put on record, before it happens, that these predictions are deleted; their ids only as a digest."""
    digest = hashlib.sha256("\n".join(sorted(prediction_ids)).encode()).hexdigest()
    subject = f"{len(prediction_ids)} prediction(s)"
    audit.note(engine, Entry(now, AuditKind.ROWS_FORGOTTEN, model, actor, subject, reason, {"ids_sha256": digest}))


def note_replayed(engine: Engine, reason: str | None, actor: str, now: datetime) -> None:
    """Put on record, before it happens, that dead letters are read again."""
    audit.note(engine, Entry(now, AuditKind.DEAD_LETTERS_REPLAYED, "", actor, reason or "all", ""))


def write_window_report(loaded: LoadedConfig, model: str, version: str | None, end: datetime | None) -> str:
    """Path of the HTML report of a measured window. Raises ConfigError naming what there is instead."""
    config, plan = loaded.config, plans(loaded)[model]
    lake = Lake(config.lake_uri, config.storage_options())
    lazy = lake.scan(Table.MEASUREMENTS, model)
    windows = (
        collect(lazy.select("model_version", "window_start", "window_end").unique().sort("window_end"))
        if lazy is not None
        else pl.DataFrame()
    )
    if not windows.height:
        raise ConfigError([f"{model}: no window has been measured yet"])
    chosen = windows
    if version is not None:
        chosen = chosen.filter(pl.col("model_version") == version)
    if end is not None:
        chosen = chosen.filter(pl.col("window_end") == end)
    if not chosen.height:
        first, last = windows["window_end"][0].isoformat(), windows["window_end"][-1].isoformat()
        versions = ", ".join(windows["model_version"].unique().sort().to_list())
        raise ConfigError([f"{model}: no such window; there are windows ending {first} to {last}, versions {versions}"])
    name, start, stop = chosen.row(-1)
    task = ReportTask(lake.uri, lake.options, plan, WindowKey(model, name, start, stop), str(config.state / "reports"))
    if (path := make_report(task)) is None:
        raise ConfigError([f"{model}: version {name} has no reference yet: it is still warming up"])
    return path
