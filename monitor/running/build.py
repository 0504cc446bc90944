"""The composition root: a loaded configuration -> a daemon that is ready to run, and the jobs it starts.

Invariant: nothing runs before everything has been wired; what a configuration cannot have is said here, at once.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

import structlog

from monitor.base.errors import ConfigError, TransientError
from monitor.base.faults import Failed
from monitor.base.kinds import Stream
from monitor.base.state_folder import StateFolder
from monitor.base.workers import Workers
from monitor.config.loading import LoadedConfig
from monitor.config.plan import ModelPlan, job_environment, job_storage_options, plans
from monitor.config.sections import Config
from monitor.decide.evaluator import ModelEvaluator, lake_replaced
from monitor.decide.ledger import Ledger
from monitor.decide.units import Units
from monitor.intake.events import empty_frame
from monitor.intake.ingest import Ingest, IngestPolicy, Writer
from monitor.intake.sources.build import build_source
from monitor.jobs.activity import activities
from monitor.jobs.champions import Champions, ask
from monitor.jobs.job_metrics import Observer
from monitor.jobs.supervisor import SpecOf, Supervisor, job_history, serving_versions
from monitor.jobs.window_reports import ReportTask, make_report
from monitor.lake.lake import Lake, Table
from monitor.measure.cluster import Batch, measure_on_cluster
from monitor.measure.reference_folders import take_over_references
from monitor.measure.worker import MeasureResult, MeasureTask, measure
from monitor.metrics import Metrics
from monitor.outlets.annotations import Annotator, GrafanaAnnotations, SentLog
from monitor.outlets.kafka import KafkaTopic
from monitor.outlets.openlineage import OpenLineage
from monitor.outlets.sender import Outlet, Sender
from monitor.outlets.webhook import Webhook
from monitor.rules.measurement import WindowKey
from monitor.running.daemon import Daemon
from retrain.config.spec import JobSpec
from retrain.control.store import Job, Store, open_store
from retrain.job.trials import awaited, due
from retrain.terms.fields import Secret
from retrain.terms.request import RetrainRequest
from retrain.terms.states import ON_TRIAL, JobState

log = structlog.get_logger()


def build(loaded: LoadedConfig, config_path: Path | None = None) -> Daemon:
    """Wire a daemon. Raises StateLocked, ConfigError (port in use, schedule) before anything runs."""
    config = loaded.config
    folder = StateFolder(config.state)
    metrics = Metrics()
    lake = Lake(config.lake_uri, config.storage_options())
    store = open_store(config.control_url)
    ledger = Ledger(store.engine)
    ledger.create()
    if (away := _check_tables(loaded, lake, ledger)) is None:
        metrics.ready.good("lake")
    else:
        metrics.ready.bad("lake", away)
    policy = IngestPolicy(
        config.source.batch_rows,
        config.source.batch_wait,
        config.source.max_age,
        config.source.max_future,
        config.source.max_bytes,
    )
    writer = Writer(lake.clone(), loaded.schemas, policy, metrics)
    reporters = Workers(1)  # a report takes seconds: windows must not wait for it
    workers = Workers(config.daemon.measure_workers)
    measure_all = _measuring(config, workers)
    units = Units(store.engine, metrics)
    for plan in plans(loaded).values():
        for text in take_over_references(Path(plan.reference.folder), plan.min_rows):
            log.warning("reference_set_aside", model=plan.model, detail=text)

    def evaluator(plan: ModelPlan) -> ModelEvaluator:
        def on_breach(rule: str, key: WindowKey) -> None:
            task = ReportTask(lake.uri, lake.options, plan, key, str(folder.reports))
            reporters.submit(make_report, task).add_done_callback(lambda done: _log_report(key, done))

        history = partial(job_history, store)
        serving = partial(serving_versions, store)
        return ModelEvaluator(plan, lake.clone(), ledger, measure_all, metrics, history, on_breach, units, serving)

    stop = threading.Event()
    daemon = Daemon(
        loaded=loaded,
        config_path=config_path,
        folder=folder,
        lake=lake,
        ledger=ledger,
        store=store,
        workers=workers,
        reporters=reporters,
        metrics=metrics,
        ingest=Ingest(build_source(config, metrics), writer, policy, metrics),
        evaluator_for=evaluator,
        evaluators={model: evaluator(plan) for model, plan in plans(loaded).items()},
        supervisor=_supervisor(config, lambda req: job_spec(daemon.loaded, req), ledger, store, lake, metrics),
        observer=Observer(ledger, store, metrics),
        champions=Champions(store, config.tracking_uri, lambda question: reporters.map(ask, [question])[0]),
        listener=_listen(config.http.host, config.http.port),
        annotator=_annotator(config, ledger, store, metrics, stop),
        units=units,
        senders=[Sender(o, store.engine, metrics, stop, lambda: daemon.leads) for o in _outlets(config, store)],
        stop=stop,
        reload=threading.Event(),
    )
    daemon.declare()
    return daemon


def _measuring(config: Config, workers: Workers) -> Callable[[Sequence[MeasureTask]], Sequence[MeasureResult | Failed]]:
    """On this machine, or by one of its processes on a Ray cluster."""
    ray = config.engine.ray
    if ray is None or ray.measure is None:
        return partial(workers.each, measure)
    batch = Batch(ray.measure, ray.runtime_env, ())

    def on_cluster(tasks: Sequence[MeasureTask]) -> Sequence[MeasureResult | Failed]:
        return workers.map(measure_on_cluster, [replace(batch, tasks=tuple(tasks))])[0] if tasks else ()

    return on_cluster


def _check_tables(loaded: LoadedConfig, lake: Lake, ledger: Ledger) -> str | None:
    """What keeps the lake away, or None. Tables that do not belong to this configuration: ConfigError."""
    problems = []
    for model, schema in loaded.schemas.items():
        try:
            for stream, table in ((Stream.PREDICTIONS, Table.PREDICTIONS), (Stream.LABELS, Table.LABELS)):
                found = lake.mismatches(table, model, empty_frame(stream, schema))
                problems += [f"{loaded.path}: models.{model}: {text}: give it a new name" for text in found]
            stored, judged = lake.version(Table.MEASUREMENTS, model), ledger.cursor(model)
        except TransientError as exc:
            log.warning("lake_unavailable", detail=str(exc))
            return str(exc)
        if stored < judged:
            text = lake_replaced(lake.table_uri(Table.MEASUREMENTS, model), stored, judged)
            problems.append(f"{loaded.path}: lake.uri: {text}")
    if problems:
        raise ConfigError(problems)
    return None


def _log_report(key: WindowKey, done: Future[str | None]) -> None:
    if not done.cancelled() and (problem := done.exception()) is not None:
        log.warning("report_failed", model=key.model, window_end=key.end.isoformat(), detail=str(problem))


def _supervisor(
    config: Config, spec_of: SpecOf, ledger: Ledger, store: Store, lake: Lake, metrics: Metrics
) -> Supervisor:
    return Supervisor(
        ledger,
        store,
        spec_of,
        partial(_due, lake.clone(), store),
        config.control_url,
        job_environment(config),
        config.state.absolute() / "jobs" / "logs",
        metrics,
    )


def _due(lake: Lake, store: Store, job: Job, now: datetime) -> bool:
    """Whether there is something to do for a process of this job's; what waits for rows has them counted here."""
    if job.state is not JobState.PROMOTED and job.state not in ON_TRIAL:
        return True
    moves = store.champion_moves(job.model)
    if moves and moves[0].version != job.result["version" if job.state is JobState.PROMOTED else "compared_with"]:
        return True
    wanted = awaited(job.state, job.result)
    counted = lake.count_outcomes(job.model, wanted.version, wanted.after)
    if job.state is JobState.PROMOTED:
        return counted >= job.spec.config.watch_rows
    return due(job, counted, now)


def _annotator(
    config: Config, ledger: Ledger, store: Store, metrics: Metrics, stop: threading.Event
) -> Annotator | None:
    if (grafana := config.grafana) is None:
        return None
    sink = GrafanaAnnotations(grafana.url, grafana.token.reveal())
    return Annotator(sink, SentLog(store.engine), partial(activities, ledger, store), metrics, stop, grafana.dashboard)


def _outlets(config: Config, store: Store) -> list[Outlet]:
    def revealed(value: str | Secret | None) -> str | None:
        return value.reveal() if isinstance(value, Secret) else value

    found: list[Outlet] = [
        Webhook(w.name, str(revealed(w.url)), revealed(w.secret), frozenset(w.events), w.template)
        for w in config.webhooks
    ]
    if config.events is not None and config.source.kafka is not None:
        found.append(KafkaTopic(config.events.topic, config.events.events, config.source.kafka.client_options()))
    if (lineage := config.openlineage) is not None:
        found.append(OpenLineage(lineage.url, lineage.namespace, revealed(lineage.api_key), store.find))
    return found


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
        engine=config.engine,
        reports=str(config.state.absolute() / "reports" / request.model),
        predictions_uri=Lake(config.lake_uri).table_uri(Table.PREDICTIONS, request.model),
        code=str(loaded.base.absolute()),
        scratch=config.daemon.scratch or "",
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as exc:
        reason = str(exc.strerror).partition(" (while ")[0]  # the rest repeats the address
        raise ConfigError([f"http: cannot listen on {host}:{port}: {reason}: choose another http.port"]) from exc
