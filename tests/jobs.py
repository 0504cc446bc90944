"""Whole jobs for tests: submitted, driven here or in a child that is killed at a named place; no pytest in here."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path

import polars as pl

from retrain.base.retry import Backoff
from retrain.config.spec import JobSpec
from retrain.control.store import AliasMove, Store, SubmitOutcome, open_store
from retrain.data.frame import features_frame, labels_array
from retrain.isolation.forkserver import ForkServer
from retrain.job import publish
from retrain.job.driver import Driver, Limits, utc_now
from retrain.models.model_files import save_model
from retrain.models.registry import MODEL_PATH, Promoted, Registry, import_mlflow
from retrain.terms.aliases import CHAMPION
from retrain.terms.errors import LeaseLost
from retrain.terms.states import JobState
from retrain.train.trainer import TrainContext
from tests import retrain_data
from tests.retrain_data import NOW

LOGISTIC = "tests.retrain_data:trains_logistic"
LEASE = timedelta(seconds=2)
_forkserver = multiprocessing.get_context("forkserver")


@cache
def fork_server() -> ForkServer:
    """One for all that this process drives."""
    server = ForkServer(os.environ)
    atexit.register(server.close)
    return server


class _Lent(ForkServer):
    """That of another process, which waits for this one meanwhile."""

    def __init__(self, environ: Mapping[str, str], folder: Path, control: socket.socket) -> None:
        super().__init__(environ)
        self._folder = folder
        self._control = control
        control.settimeout(60)  # as the other end of it has one

    def close(self) -> None:
        """It is not ours."""


def store_of(folder: Path) -> Store:
    return open_store(f"sqlite:///{folder}/control.db")


def submit(folder: Path, wanted: JobSpec) -> Store:
    store = store_of(folder)
    assert store.submit(wanted, utc_now()).outcome is SubmitOutcome.CREATED
    return store


def first_champion(store: Store, wanted: JobSpec, rows: pl.DataFrame) -> JobSpec:
    """Version 1, made of rows (lake columns) here and now, is the champion of `wanted`'s model, ann says. Answers the
    spec of its making."""
    folder = wanted.job_dir.with_name("initial")
    folder.mkdir(parents=True)
    made = replace(wanted, request=replace(wanted.request, id="initial"))
    frame, labels = features_frame(rows, wanted.schema), labels_array(rows, wanted.schema)
    estimator = retrain_data.trains_logistic(frame, labels, TrainContext(wanted.schema, 0))
    save_model(estimator, folder / "model", wanted.schema, frame.head(5), ())
    registry, name = Registry(wanted.tracking_uri), wanted.registered_model
    run_id = registry.open_run(name, "initial", {})
    registry.log_files(run_id, folder / "model", MODEL_PATH)
    version = publish.register(registry, run_id, made)
    assert registry.promote(name, version, None) == Promoted("1", None)
    store.record_alias(
        AliasMove(wanted.request.model, CHAMPION, version, None, "initial", "ann", NOW, "the first model")
    )
    return made


def drive(
    folder: Path,
    job_id: str = "job-1",
    clock: Callable[[], datetime] = utc_now,
    checkpoint: Callable[[str], None] = lambda _: None,
) -> JobState:
    limits = Limits(backoff=Backoff(first=0.2, most=1.0))
    driver = Driver(
        store_of(folder),
        environ=dict(os.environ),
        stopping=threading.Event(),
        clock=clock,
        limits=limits,
        server=fork_server(),
        checkpoint=checkpoint,
    )
    return driver.drive(job_id)


def kill_at(folder: Path, name: str, job_id: str = "job-1", *, off: timedelta = timedelta(), free: bool = True) -> bool:
    """Drive the job in a process, its clock `off`, that is killed at the checkpoint `name`, and free its lease, as the
    daemon does that saw it die. False when it ended without reaching it."""
    child = _child(folder, name, job_id, signal.SIGKILL, off)
    child.join(120)
    if child.exitcode != -signal.SIGKILL:
        return False
    if not free:
        return True
    store = store_of(folder)
    owner = store.get(job_id).lease_owner
    assert owner is not None
    store.release(job_id, owner)
    return True


class Frozen:
    """A process that drives a job and stands still."""

    def __init__(self, child: BaseProcess) -> None:
        self._child = child

    def wake(self) -> int | None:
        """Let it go on, and answer its exit code: 3 when it has lost the job."""
        assert self._child.pid is not None
        os.kill(self._child.pid, signal.SIGCONT)
        self._child.join(60)
        return self._child.exitcode


@contextmanager
def freeze_at(folder: Path, name: str, job_id: str = "job-1") -> Iterator[Frozen]:
    """Drive the job in a process that is stopped at the checkpoint `name`."""
    child = _child(folder, name, job_id, signal.SIGSTOP, timedelta())
    assert child.pid is not None
    try:
        while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert child.is_alive(), f"it ended without reaching {name}"
            time.sleep(0.05)
        yield Frozen(child)
    finally:
        child.kill()


def _child(folder: Path, name: str, job_id: str, fate: signal.Signals, off: timedelta) -> BaseProcess:
    _forkserver.set_forkserver_preload(
        ["retrain.job.driver", "mlflow", "skops.io", "sklearn.ensemble", "tests.retrain_data"]
    )
    server = fork_server()
    if server._control is None:
        server._begin()
    lent = (dict(os.environ), server.folder, server._control)
    child = _forkserver.Process(target=_drive_until, args=(str(folder), name, job_id, fate, off, *lent))
    child.start()
    return child


def _drive_until(
    folder: str,
    name: str,
    job_id: str,
    fate: signal.Signals,
    off: timedelta,
    environ: dict[str, str],
    place: Path,
    control: socket.socket,
) -> None:
    os.environ.clear()
    os.environ.update(environ)  # the server's are those of the first test

    def checkpoint(reached: str) -> None:
        if reached == name:
            os.kill(os.getpid(), fate)

    driver = Driver(
        store_of(Path(folder)),
        environ=environ,
        stopping=threading.Event(),
        clock=lambda: utc_now() + off,
        limits=Limits(lease=LEASE),
        server=_Lent(environ, place, control),
        checkpoint=checkpoint,
    )
    try:
        driver.drive(job_id)
    except LeaseLost:
        sys.exit(3)


def versions(wanted: JobSpec) -> list[str]:
    client = import_mlflow().MlflowClient(wanted.tracking_uri, wanted.tracking_uri)
    return sorted(str(v.version) for v in client.search_model_versions(f"name = '{wanted.registered_model}'"))


def runs(wanted: JobSpec) -> list[dict[str, str]]:
    """The tags of each run."""
    client = import_mlflow().MlflowClient(wanted.tracking_uri, wanted.tracking_uri)
    experiment = client.get_experiment_by_name(wanted.registered_model)
    return [dict(r.data.tags) for r in client.search_runs([experiment.experiment_id])]


def model_tags(wanted: JobSpec) -> dict[str, str]:
    """Of the registered model."""
    client = import_mlflow().MlflowClient(wanted.tracking_uri, wanted.tracking_uri)
    return dict(client.get_registered_model(wanted.registered_model).tags)
