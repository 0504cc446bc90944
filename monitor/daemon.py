"""The running daemon: everything wired by `build`, then poll, tick, supervise, until told to stop.

Invariant: constructed means usable; a signal only sets an event. A bug in any loop ends the process with a traceback
and without committing, so that the next start repeats what was not durable.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any

import structlog
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_MISSED, JobExecutionEvent
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from monitor.config import LoadedConfig, load
from monitor.errors import ConfigError, StateLocked, TransientError
from monitor.evaluator import ModelEvaluator
from monitor.events import empty_frame
from monitor.ingest import Ingest, IngestPolicy, Writer
from monitor.lake import Lake, Table, day
from monitor.ledger import Ledger
from monitor.measure.reports import ReportTask, clean_reports, make_report
from monitor.measurement import WindowKey
from monitor.metrics import Metrics
from monitor.operate import request_retrain
from monitor.plan import ModelPlan, job_environment, job_storage_options, plans
from monitor.sections import Config
from monitor.sources import Stream
from monitor.sources.build import build_source
from monitor.status import model_status
from monitor.supervisor import SpecOf, Supervisor, job_history
from monitor.triggers import Cause
from monitor.web.app import WebActions, build_app
from monitor.workers import Workers
from retrain.request import RetrainRequest, TriggerKind
from retrain.spec import JobSpec
from retrain.store import Job, Store, open_store

log = structlog.get_logger()

EXIT_WITHIN = 9.5
"""Seconds after which a stop is forced; the lake makes that safe."""
LEASE = timedelta(seconds=30)
_ALIVE_WITHIN = 120.0


class StateFolder:
    """The daemon's own folder, locked so that a second daemon is refused."""

    def __init__(self, path: Path):
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = (path / "lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            raise StateLocked(
                f"{path} is in use by another driftd (process {holder}): stop it, or give this one its own daemon.state"
            ) from exc
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        self.holder = self._holder()

    def _holder(self) -> str:
        """A name that stays over restarts: killed, the next daemon of this folder need not wait for its own lease."""
        path = self.path / "replica"
        name = path.read_text().strip() if path.exists() else ""
        if not name:
            name = uuid.uuid4().hex
            path.write_text(name)
        return f"{socket.gethostname()}:{name}"

    def release(self) -> None:
        self._lock.close()


@dataclass(slots=True)
class Daemon:
    """Use `build`. `run` returns the exit code."""

    loaded: LoadedConfig
    config_path: Path | None
    folder: StateFolder
    lake: Lake
    ledger: Ledger
    store: Store
    workers: Workers
    reporters: Workers
    metrics: Metrics
    ingest: Ingest
    evaluators: dict[str, ModelEvaluator]
    supervisor: Supervisor
    listener: socket.socket
    holder: str
    stop: threading.Event
    reload: threading.Event
    scheduler: BackgroundScheduler | None = None
    failure: BaseException | None = None
    ticked_at: float = 0.0
    leads: bool = False

    @property
    def config(self) -> Config:
        return self.loaded.config

    @property
    def url(self) -> str:
        host, port = self.listener.getsockname()[:2]
        return f"http://{host}:{port}"

    def run(self) -> int:
        """Until SIGTERM or SIGINT (exit 0) or a bug (exit 1)."""
        signal.signal(signal.SIGTERM, lambda *_: self.stop.set())
        signal.signal(signal.SIGINT, lambda *_: self.stop.set())
        signal.signal(signal.SIGHUP, lambda *_: self.reload.set())
        server = _serve(self)
        ingest = threading.Thread(target=self._guard(lambda: self.ingest.run(self.stop)), name="ingest")
        ingest.start()
        self.scheduler = scheduler = self._schedule()
        (self.folder.path / "url").write_text(self.url)
        log.info("daemon_started", url=self.url, models=sorted(self.evaluators), config=self.config.digest())
        while not self.stop.wait(0.2):
            if self.reload.is_set():
                self.reload.clear()
                self._reload()
        log.info("daemon_stopping")
        _force_exit_after(EXIT_WITHIN)
        scheduler.shutdown(wait=False)
        self.workers.end()
        self.reporters.end()
        ingest.join()
        server.should_exit = True
        self.supervisor.close()
        (self.folder.path / "url").unlink(missing_ok=True)
        self._resign()
        self.folder.release()
        log.info("daemon_stopped", failed=self.failure is not None)
        return 1 if self.failure is not None else 0

    # -- periodic work

    def _schedule(self) -> BackgroundScheduler:
        scheduler = BackgroundScheduler(
            timezone=UTC, job_defaults={"max_instances": 1, "coalesce": True, "misfire_grace_time": None}
        )
        scheduler.add_listener(self._on_job_error, EVENT_JOB_ERROR | EVENT_JOB_MISSED)
        now = datetime.now(UTC)
        every = self.config.daemon.tick.total_seconds()
        scheduler.add_job(self.tick, IntervalTrigger(seconds=every), id="tick", next_run_time=now)
        scheduler.add_job(self.supervise, IntervalTrigger(seconds=min(2.0, every)), id="supervise")
        maintain = self.config.lake.maintain_every.total_seconds()
        scheduler.add_job(self.maintain, IntervalTrigger(seconds=maintain), id="maintain")
        self._schedule_retrains(scheduler)
        scheduler.start()
        return scheduler

    def _schedule_retrains(self, scheduler: BackgroundScheduler) -> None:
        for model, evaluator in self.evaluators.items():
            job_id = f"schedule:{model}"
            if evaluator.plan.schedule:
                cron = CronTrigger.from_crontab(evaluator.plan.schedule, timezone=UTC)
                scheduler.add_job(self.on_schedule, cron, args=[model], id=job_id, replace_existing=True)
            elif scheduler.get_job(job_id) is not None:
                scheduler.remove_job(job_id)

    def tick(self) -> None:
        """Evaluate every model, if this replica leads."""
        now = datetime.now(UTC)
        started = time.monotonic()
        try:
            leads = self.ledger.lead("evaluator", self.holder, now, now + LEASE)
            self.leads = leads
            self.metrics.leader.set(float(leads))
            if leads:
                for evaluator in list(self.evaluators.values()):
                    while evaluator.tick(datetime.now(UTC)) and not self.stop.is_set():
                        self.ledger.lead("evaluator", self.holder, datetime.now(UTC), datetime.now(UTC) + LEASE)
        except TransientError as exc:
            if self.stop.is_set():
                return
            self.metrics.ticks.labels("failed").inc()
            self.metrics.ready.labels("evaluation").set(0)
            log.warning("tick_failed", detail=str(exc))
            return
        self.metrics.ticks.labels("ok").inc()
        self.metrics.ready.labels("evaluation").set(1)
        self.metrics.tick_seconds.observe(time.monotonic() - started)
        self.metrics.ticked_at.set_to_current_time()
        self.ticked_at = time.monotonic()

    def supervise(self) -> None:
        """Hand over requests, keep job processes going, and keep the lease while a tick is long."""
        now = datetime.now(UTC)
        try:
            if self.leads:
                self.ledger.lead("evaluator", self.holder, now, now + LEASE)
            self.supervisor.supervise(now)
            self.metrics.ready.labels("control").set(1)
        except TransientError as exc:
            self.metrics.ready.labels("control").set(0)
            log.warning("supervision_failed", detail=str(exc))

    def maintain(self) -> None:
        """Compact, expire and vacuum the lake; drop old reports."""
        now = datetime.now(UTC)
        if not self.ledger.lead("evaluator", self.holder, now, now + LEASE):
            return
        lake, config = self.lake.clone(), self.config.lake
        keep_since = day(now - config.retention)
        try:
            for model in self.evaluators:
                for table in (Table.PREDICTIONS, Table.LABELS, Table.OUTCOMES, Table.MEASUREMENTS):
                    lake.maintain(table, model, keep_since, config.keep_versions_for)
            lake.maintain(Table.DEAD_LETTERS, "", keep_since, config.keep_versions_for)
        except TransientError as exc:
            self.metrics.maintenance.labels("failed").inc()
            log.warning("maintenance_failed", detail=str(exc))
            return
        clean_reports(self.reports, now - self.config.daemon.report_retention)
        self.metrics.maintenance.labels("ok").inc()

    def on_schedule(self, model: str) -> None:
        now = datetime.now(UTC)
        cause = Cause(
            model=model,
            trigger=TriggerKind.SCHEDULE,
            occasion=f"{now:%Y-%m-%dT%H:%M}",
            reason=f"schedule {self.evaluators[model].plan.schedule}",
            evidence={},
        )
        self.evaluators[model].decide(cause, now)

    def _on_job_error(self, event: JobExecutionEvent) -> None:
        if event.exception is not None and not self.stop.is_set():
            self._fail(event.exception)

    def _guard(self, loop: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                loop()
            except BaseException as exc:  # noqa: BLE001 - whatever it is, the daemon must end and say so
                self._fail(exc)

        return run

    def _fail(self, exc: BaseException) -> None:
        self.failure = exc
        log.error("daemon_failed", exc_info=exc)
        self.stop.set()

    def _resign(self) -> None:
        self.leads = False
        try:
            self.ledger.resign("evaluator", self.holder)
        except TransientError as exc:
            log.warning("lease_kept", detail=str(exc))

    # -- reload

    def _reload(self) -> None:
        if self.config_path is None:
            return
        try:
            loaded = load(self.config_path)
            if fixed := [s for s in _FIXED if getattr(loaded.config, s) != getattr(self.config, s)]:
                raise ConfigError([f"{loaded.path}: {', '.join(fixed)}: changes here need a restart"])
            if set(loaded.config.models) != set(self.config.models):
                raise ConfigError([f"{loaded.path}: models: adding or removing a model needs a restart"])
            if loaded.schemas != self.loaded.schemas:
                raise ConfigError([f"{loaded.path}: models: a changed feature list needs a restart"])
        except ConfigError as exc:
            self.metrics.config_reloads.labels("failed").inc()
            self.metrics.config_ok.set(0)
            log.error("config_refused", problems=exc.problems)
            return
        self.loaded = loaded
        for model, plan in plans(loaded).items():
            evaluator = self.evaluators[model]
            if plan != evaluator.plan:
                self.evaluators[model] = _evaluator(self, plan)
        if self.scheduler is not None:
            self._schedule_retrains(self.scheduler)
        _declare(self)
        self.metrics.config_reloads.labels("ok").inc()
        self.metrics.config_ok.set(1)
        log.info("config_reloaded", digest=self.config.digest())

    # -- what the HTTP port asks for

    @property
    def reports(self) -> Path:
        return self.folder.path / "reports"

    def actions(self) -> WebActions:
        return WebActions(
            alive=self._alive,
            ready=self._ready,
            status=lambda: {"models": {m: model_status(m, self.ledger, self.store) for m in self.evaluators}},
            retrain=self._retrain,
            approve=lambda job, actor: self.store.approve(job, actor, datetime.now(UTC)),
            reject=lambda job, actor, reason: self._command("reject", job, "--actor", actor, "--reason", reason),
            rollback=self._rollback,
        )

    def _alive(self) -> str:
        silent = time.monotonic() - self.ingest.polled_at
        return f"the source was last polled {silent:.0f} s ago" if silent > _ALIVE_WITHIN else ""

    def _ready(self) -> dict[str, str]:
        components = ("source", "lake", "control", "evaluation")
        sample = self.metrics.registry.get_sample_value
        values = {c: sample("driftd_ready", {"component": c}) for c in components}
        return {c: "" if v == 1 else "unavailable: see the log" for c, v in values.items()}

    def _retrain(self, model: str, actor: str, reason: str) -> dict[str, Any]:
        if model not in self.evaluators:
            raise LookupError(f"no model {model!r}; configured are {', '.join(sorted(self.evaluators))}")
        now = datetime.now(UTC)
        decision = request_retrain(self.loaded, self.ledger, self.store, model, actor, reason, now)
        return {"job": decision.request.id if decision.request else None, "decision": decision.to_words()}

    def _rollback(self, model: str, actor: str, reason: str) -> dict[str, Any]:
        self._command("rollback", model, "--actor", actor, "--reason", reason)
        return {"rolled_back": model}

    def _command(self, *arguments: str) -> None:
        """Run a driftd command apart: it needs MLflow, which the daemon does not load."""
        config = ["--config", str(self.config_path)] if self.config_path else []
        done = subprocess.run(
            [sys.executable, "-m", "monitor.cli", *config, *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode != 0:
            raise ValueError(done.stderr.strip() or done.stdout.strip())


_FIXED = ("daemon", "http", "lake", "source", "mlflow")


def build(loaded: LoadedConfig, config_path: Path | None = None) -> Daemon:
    """Wire a daemon. Raises StateLocked, ConfigError (port in use, schedule) before anything runs."""
    config = loaded.config
    folder = StateFolder(config.state)
    metrics = Metrics()
    lake = Lake(config.lake_uri, config.storage_options())
    metrics.ready.labels("lake").set(float(_check_tables(loaded, lake)))
    store = open_store(config.control_url)
    ledger = Ledger(store.engine)
    ledger.create()
    policy = IngestPolicy(
        config.source.batch_rows,
        config.source.batch_wait,
        config.source.max_age,
        config.source.max_future,
        config.source.max_bytes,
    )
    writer = Writer(lake.clone(), loaded.schemas, policy, metrics)
    daemon = Daemon(
        loaded=loaded,
        config_path=config_path,
        folder=folder,
        lake=lake,
        ledger=ledger,
        store=store,
        workers=Workers(config.daemon.measure_workers),
        reporters=Workers(1),  # a report takes seconds: windows must not wait for it
        metrics=metrics,
        ingest=Ingest(build_source(config, metrics), writer, policy, metrics),
        evaluators={},
        supervisor=_supervisor(config, lambda req: job_spec(daemon.loaded, req), ledger, store, lake, metrics),
        listener=_listen(config.http.host, config.http.port),
        holder=folder.holder,
        stop=threading.Event(),
        reload=threading.Event(),
    )
    daemon.evaluators = {model: _evaluator(daemon, plan) for model, plan in plans(loaded).items()}
    _declare(daemon)
    return daemon


def _check_tables(loaded: LoadedConfig, lake: Lake) -> bool:
    """False when the lake is away. A feature that changed its kind does not fit what is stored: ConfigError."""
    problems = []
    for model, schema in loaded.schemas.items():
        for stream, table in ((Stream.PREDICTIONS, Table.PREDICTIONS), (Stream.LABELS, Table.LABELS)):
            try:
                found = lake.mismatches(table, model, empty_frame(stream, schema))
            except TransientError as exc:
                log.warning("lake_unavailable", detail=str(exc))
                return False
            problems += [f"{loaded.path}: models.{model}: {text}: give it a new name" for text in found]
    if problems:
        raise ConfigError(problems)
    return True


def _evaluator(daemon: Daemon, plan: ModelPlan) -> ModelEvaluator:
    def on_breach(rule: str, key: WindowKey) -> None:
        task = ReportTask(daemon.lake.uri, daemon.lake.options, plan, key, str(daemon.reports))
        daemon.reporters.submit(make_report, task).add_done_callback(lambda done: _log_report(key, done))

    return ModelEvaluator(
        plan,
        daemon.lake.clone(),
        daemon.ledger,
        daemon.workers,
        daemon.metrics,
        lambda model, since, now: job_history(daemon.store, model, since, now),
        on_breach,
    )


def _log_report(key: WindowKey, done: Future[str | None]) -> None:
    if not done.cancelled() and (problem := done.exception()) is not None:
        log.warning("report_failed", model=key.model, window_end=key.end.isoformat(), detail=str(problem))


def _supervisor(
    config: Config, spec_of: SpecOf, ledger: Ledger, store: Store, lake: Lake, metrics: Metrics
) -> Supervisor:
    watching = lake.clone()

    def watch_due(job: Job) -> bool:
        rows = watching.count_outcomes(job.model, str(job.result.get("version", "")))
        return rows >= job.spec.config.watch_rows

    return Supervisor(
        ledger,
        store,
        spec_of,
        watch_due,
        config.control_url,
        job_environment(config),
        config.state.absolute() / "jobs" / "logs",
        metrics,
    )


def job_spec(loaded: LoadedConfig, request: RetrainRequest) -> JobSpec:
    """Everything a job needs, from the configuration in force. Raises KeyError for an unknown model."""
    config, plan = loaded.config, plans(loaded)[request.model]
    return JobSpec(
        request=request,
        schema=plan.schema,
        outcomes_uri=Lake(config.lake_uri).table_uri(Table.OUTCOMES, request.model),
        tracking_uri=config.tracking_uri,
        registered_model=plan.registered_model,
        work_dir=str(config.state.absolute() / "jobs"),
        config=plan.retrain,
        storage_options=tuple(sorted(job_storage_options(config).items())),
    )


def _declare(daemon: Daemon) -> None:
    rules: Mapping[str, Any] = {m: e.plan.rules for m, e in daemon.evaluators.items()}
    daemon.metrics.declare(distribution_version("driftd"), rules)
    daemon.metrics.config_info.clear()
    daemon.metrics.config_info.labels(daemon.config.digest()).set(1)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as exc:
        reason = str(exc.strerror).partition(" (while ")[0]  # the rest repeats the address
        raise ConfigError([f"http: cannot listen on {host}:{port}: {reason}: choose another http.port"]) from exc


def _serve(daemon: Daemon) -> Any:
    import uvicorn

    token = daemon.config.http.token
    app = build_app(daemon.metrics, daemon.actions(), daemon.reports, token.reveal() if token else None)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    threading.Thread(target=server.run, kwargs={"sockets": [daemon.listener]}, name="http", daemon=True).start()
    return server


def _force_exit_after(seconds: float) -> None:
    def exit_hard() -> None:
        log.error("stop_forced", after=seconds)
        os._exit(0)

    timer = threading.Timer(seconds, exit_hard)
    timer.daemon = True
    timer.start()
