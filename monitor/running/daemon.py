"""The running daemon: everything wired by `monitor.running.build`, then poll, tick, supervise, until told to stop.

Invariant: constructed means usable; a signal only sets an event. What fails is set aside by `monitor.decide.units`, and
all else goes on; a bug in the polling loop alone ends the process, without committing, so that the next start repeats
what was not durable.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any

import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from monitor.base.errors import ConfigError, TransientError
from monitor.base.faults import Unit, UnitKind
from monitor.base.state_folder import StateFolder
from monitor.base.workers import Workers
from monitor.config.configured import note_configuration
from monitor.config.loading import LoadedConfig, load
from monitor.config.plan import ModelPlan, plans
from monitor.config.sections import Config
from monitor.decide.evaluator import ModelEvaluator
from monitor.decide.ledger import Ledger
from monitor.decide.units import Units
from monitor.intake.ingest import Ingest
from monitor.jobs.champions import Champions
from monitor.jobs.job_metrics import Observer
from monitor.jobs.supervisor import Supervisor
from monitor.jobs.window_reports import clean_reports
from monitor.lake.lake import Lake, Table, day
from monitor.metrics import Metrics
from monitor.outlets.annotations import Annotator
from monitor.outlets.sender import Sender
from monitor.rules.triggers import Cause
from monitor.running.actions import STUCK_AFTER, Actions
from monitor.web.app import build_app
from retrain.config.settings import MaintenanceConfig
from retrain.control.store import Store
from retrain.terms.cron import cron_trigger
from retrain.terms.request import TriggerKind

log = structlog.get_logger()

EXIT_WITHIN = 9.5
"""Seconds after which a stop is forced; the lake makes that safe."""
LEASE = timedelta(seconds=30)
_SUPERVISION = Unit(UnitKind.SUPERVISION)
ASK_EVERY = 60.0
"""Seconds between two looks at who is champion in the registry."""


@dataclass(slots=True)
class Daemon:
    """Made by `monitor.running.build`. `run` returns the exit code."""

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
    evaluator_for: Callable[[ModelPlan], ModelEvaluator]
    evaluators: dict[str, ModelEvaluator]
    supervisor: Supervisor
    observer: Observer
    listener: socket.socket
    champions: Champions
    annotator: Annotator | None
    senders: list[Sender]
    units: Units
    stop: threading.Event
    reload: threading.Event
    scheduler: BackgroundScheduler | None = None
    failure: BaseException | None = None
    busy_since: float | None = None
    leads: bool = False

    @property
    def config(self) -> Config:
        return self.loaded.config

    @property
    def maintenance(self) -> dict[str, tuple[MaintenanceConfig, ...]]:
        """The maintenance windows in force, by model."""
        return {model: evaluator.plan.retrain.maintenance for model, evaluator in self.evaluators.items()}

    @property
    def url(self) -> str:
        host, port = self.listener.getsockname()[:2]
        return f"http://{host}:{port}"

    def run(self) -> int:
        """Until SIGTERM or SIGINT (exit 0) or a bug (exit 1)."""
        signal.signal(signal.SIGTERM, lambda *_: self.stop.set())
        signal.signal(signal.SIGINT, lambda *_: self.stop.set())
        signal.signal(signal.SIGHUP, lambda *_: self.reload.set())
        for sender in self.senders:
            sender.begin()
        note_configuration(self.store.engine, self.config, datetime.now(UTC))
        actions = Actions(self)
        server = _serve(self, actions)
        ingest = threading.Thread(target=self._guard(lambda: self.ingest.run(self.stop)), name="ingest")
        ingest.start()
        self.scheduler = scheduler = self._schedule(actions)
        self.folder.tell(self.url)
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
        self.folder.untell()
        self._resign()
        self.folder.release()
        log.info("daemon_stopped", failed=self.failure is not None)
        return 1 if self.failure is not None else 0

    # -- periodic work

    def _schedule(self, actions: Actions) -> BackgroundScheduler:
        scheduler = BackgroundScheduler(
            timezone=UTC,
            job_defaults={"max_instances": 1, "coalesce": True, "misfire_grace_time": None},
            executors={"default": ThreadPoolExecutor(10), "outlets": ThreadPoolExecutor(max(1, len(self.senders)))},
        )
        now = datetime.now(UTC)
        every = self.config.daemon.tick.total_seconds()
        scheduler.add_job(self.tick, IntervalTrigger(seconds=every), id="tick", next_run_time=now)
        often = IntervalTrigger(seconds=min(2.0, every))
        scheduler.add_job(self._apart, often, args=[_SUPERVISION, self.supervise], id="supervise")
        if self.annotator is not None:  # a job of its own: a Grafana that hangs keeps nothing else waiting
            often = IntervalTrigger(seconds=min(5.0, every))
            scheduler.add_job(self._apart, often, args=[Unit(UnitKind.ANNOTATIONS), self.annotate], id="annotate")
        for sender in self.senders:
            often, unit = IntervalTrigger(seconds=min(5.0, every)), Unit(UnitKind.OUTLET, subject=sender.outlet.name)
            telling = [unit, partial(self.tell, sender)]
            scheduler.add_job(self._apart, often, args=telling, id=f"outlet:{sender.outlet.name}", executor="outlets")
        for seconds, kind, work in (
            (self.config.lake.maintain_every.total_seconds(), UnitKind.MAINTENANCE, self.maintain),
            (ASK_EVERY, UnitKind.CHAMPIONS, self.look_at_champions),
        ):
            scheduler.add_job(self._apart, IntervalTrigger(seconds=seconds), args=[Unit(kind), work], id=kind.value)
        reading = [Unit(UnitKind.PAGE), actions.read_ahead]
        scheduler.add_job(self._apart, IntervalTrigger(seconds=30), args=reading, id="read_ahead", next_run_time=now)
        self._schedule_retrains(scheduler)
        scheduler.start()
        return scheduler

    def _schedule_retrains(self, scheduler: BackgroundScheduler) -> None:
        for model, evaluator in self.evaluators.items():
            job_id = f"schedule:{model}"
            if evaluator.plan.schedule:
                cron = cron_trigger(evaluator.plan.schedule, UTC)
                planned = [Unit(UnitKind.SCHEDULE, model), partial(self.on_schedule, model)]
                scheduler.add_job(self._apart, cron, args=planned, id=job_id, replace_existing=True)
            elif scheduler.get_job(job_id) is not None:
                scheduler.remove_job(job_id)

    def _apart(self, unit: Unit, work: Callable[[], None]) -> None:
        """A periodic job: its failure is its own."""
        try:
            self.units.run(unit, work, datetime.now(UTC))
        except TransientError as exc:
            log.warning("job_waits", job=unit.to_words(), detail=str(exc))

    def tick(self) -> None:
        """Evaluate every model, if this replica leads. One model's trouble is not the others'."""
        started = time.monotonic()
        problems: list[str] = []
        try:
            if self._lead():
                for model, evaluator in list(self.evaluators.items()):
                    problems += self._evaluate(model, evaluator)
        except TransientError as exc:
            problems.append(str(exc))
        finally:
            self.busy_since = None
        if self.stop.is_set():
            return
        if problems:
            self.metrics.ticks.labels("failed").inc()
            self.metrics.ready.bad("evaluation", "; ".join(problems))
            log.warning("tick_failed", problems=problems)
            return
        self.metrics.ticks.labels("ok").inc()
        self.metrics.ready.good("evaluation")
        self.metrics.tick_seconds.observe(time.monotonic() - started)
        self.metrics.ticked_at.set_to_current_time()

    def _evaluate(self, model: str, evaluator: ModelEvaluator) -> list[str]:
        """As far as the events of one model allow. Answers what stood in the way."""
        unit, more = Unit(UnitKind.MODEL, model), True
        while more and self.leads and not self.stop.is_set():
            self.busy_since = time.monotonic()
            now = datetime.now(UTC)
            try:
                if (found := self.units.run(unit, partial(evaluator.tick, now), now)) is None:
                    evaluator.reset()
                more = bool(found)
            except TransientError as exc:
                return [f"{model}: {exc}"]
        return []

    def _lead(self) -> bool:
        """Take or keep the lease of the evaluating replica."""
        now = datetime.now(UTC)
        leads = self.ledger.lead("evaluator", self.folder.holder, now, now + LEASE)
        if leads and not self.leads:
            self.units.load()
            for evaluator in list(self.evaluators.values()):
                evaluator.take_over()
        self.leads = leads
        self.metrics.leader.set(float(leads))
        return leads

    @property
    def stuck(self) -> float:
        """Seconds that one model has been evaluated for without an end; 0 while nothing is."""
        since = self.busy_since
        return 0.0 if since is None else time.monotonic() - since

    def supervise(self) -> None:
        """Hand over requests, keep job processes going, say how they do, and keep the lease while a tick is long."""
        try:
            if self.leads and self.stuck < STUCK_AFTER:
                self._lead()
            self.supervisor.supervise(datetime.now(UTC))
            self.observer.observe(self.maintenance, datetime.now(UTC))
            self.metrics.ready.good("control")
        except TransientError as exc:
            self.metrics.ready.bad("control", str(exc))
            log.warning("supervision_failed", detail=str(exc))

    def annotate(self) -> None:
        """Tell Grafana what happened. Only the leader does, so that it hears everything once."""
        if self.leads and self.annotator is not None:
            try:
                self.annotator.send(list(self.evaluators), datetime.now(UTC))
            except TransientError as exc:  # `supervise` says so, and the readiness of `control`
                log.debug("annotations_waiting", detail=str(exc))

    def tell(self, sender: Sender) -> None:
        """Deliver what happened. Only the leader does, so that an outlet hears everything once."""
        if self.leads:
            sender.send(datetime.now(UTC))

    def maintain(self) -> None:
        """Compact, expire and vacuum the lake (one replica does it for all); drop old reports."""
        now = datetime.now(UTC)
        try:
            if self.leads:
                self._maintain_lake(now)
                self.units.forget(now, self.evaluators)
            clean_reports(self.folder.reports, now - self.config.daemon.report_retention)
        except (TransientError, OSError) as exc:
            self.metrics.maintenance.labels("failed").inc()
            log.warning("maintenance_failed", detail=str(exc))
            return
        self.metrics.maintenance.labels("ok").inc()

    def _maintain_lake(self, now: datetime) -> None:
        lake, config = self.lake.clone(), self.config.lake
        keep_since = day(now - config.retention)
        for model in self.evaluators:
            for table in (Table.PREDICTIONS, Table.LABELS, Table.OUTCOMES, Table.MEASUREMENTS):
                lake.maintain(table, model, keep_since, config.keep_versions_for)
        lake.maintain(Table.DEAD_LETTERS, "", keep_since, config.keep_versions_for)

    def look_at_champions(self) -> None:
        """Has somebody else moved the alias `champion`?"""
        if not self.leads:
            return
        names = {m: e.plan.reference.registered_model for m, e in self.evaluators.items()}
        try:
            self.champions.look(names, datetime.now(UTC))
        except TransientError as exc:
            log.info("champions_not_asked_for", detail=str(exc))

    def on_schedule(self, model: str, due: datetime | None = None) -> None:
        """Decide on a scheduled retrain; while the control database is away, again a minute later."""
        now = datetime.now(UTC)
        due = due or now
        if not self.leads:
            return
        cause = Cause(
            model=model,
            trigger=TriggerKind.SCHEDULE,
            occasion=f"{due:%Y-%m-%dT%H:%M}",
            reason=f"schedule {self.evaluators[model].plan.schedule}",
            evidence={},
        )
        try:
            self.evaluators[model].decide(cause, now)
        except TransientError as exc:
            log.warning("schedule_waits", model=model, detail=str(exc))
            if self.scheduler is not None:
                again = DateTrigger(now + timedelta(minutes=1))
                self.scheduler.add_job(self.on_schedule, again, args=[model, due])

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
            self.ledger.resign("evaluator", self.folder.holder)
        except TransientError as exc:
            log.warning("lease_kept", detail=str(exc))

    # -- reload

    def declare(self) -> None:
        """Let every series of the configuration in force exist."""
        rules = {model: evaluator.plan.rules for model, evaluator in self.evaluators.items()}
        self.metrics.declare(distribution_version("driftd"), rules, [s.outlet.name for s in self.senders])
        self.metrics.model_info.clear()
        for model, evaluator in self.evaluators.items():
            plan = evaluator.plan
            self.metrics.model_info.labels(model, plan.schema.task.value, plan.metrics[0]).set(1)
            self.metrics.window_size.labels(model).set(plan.windows.size.total_seconds())
        self.metrics.config_info.clear()
        self.metrics.config_info.labels(self.config.digest()).set(1)

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
            note_configuration(self.store.engine, loaded.config, datetime.now(UTC))
        except (ConfigError, TransientError) as exc:
            self.metrics.config_reloads.labels("failed").inc()
            self.metrics.config_ok.set(0)
            problems = exc.problems if isinstance(exc, ConfigError) else [f"cannot be put on record: {exc}"]
            log.error("config_refused", problems=problems)
            return
        self.loaded = loaded
        for model, plan in plans(loaded).items():
            evaluator = self.evaluators[model]
            if plan != evaluator.plan:
                self.evaluators[model] = self.evaluator_for(plan)
        if self.scheduler is not None:
            self._schedule_retrains(self.scheduler)
        self.declare()
        self.metrics.config_reloads.labels("ok").inc()
        self.metrics.config_ok.set(1)
        log.info("config_reloaded", digest=self.config.digest())


_FIXED = ("daemon", "http", "lake", "source", "mlflow", "grafana", "webhooks", "events", "openlineage", "engine")


def _serve(daemon: Daemon, actions: Actions) -> Any:
    import uvicorn

    token = daemon.config.http.token
    app = build_app(daemon.metrics, actions, daemon.folder.reports, token.reveal() if token else None)
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
