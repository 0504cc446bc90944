"""The demo's other processes: customers, the scoring service and the daemon, for as long as they are needed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import tomli_w

from monitor.config.loading import LoadedConfig
from monitor.demo.stage import KEY_FILE, Stage
from monitor.running.build import job_spec
from monitor.start.packaging import service_settings
from retrain.terms.request import RetrainRequest, TriggerKind


class CustomersProcess:
    """The customers' process and its line protocol."""

    def __init__(self, process: subprocess.Popen[str], log: Path):
        self._process = process
        self._log = log
        self.registered = self._read()["registered"]

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise click.ClickException("the customers have gone:\n" + _tail(self._log))
        return dict(json.loads(line))


@contextmanager
def customers(stage: Stage, loaded: LoadedConfig) -> Iterator[CustomersProcess]:
    options, model = stage.options, stage.world.schema.model
    request = RetrainRequest(f"{model}-first", model, TriggerKind.MANUAL, "the first model", {}, datetime.now(UTC))
    loaded.config.state.mkdir(parents=True, exist_ok=True)
    settings = {
        "stream": str(options.stream) if options.stream else None,
        "target": options.target,
        "drop": list(options.drop),
        "spec": job_spec(loaded, request).to_json(),
        "control_url": loaded.config.control_url,
        "service": stage.service_url,
        "events": str(loaded.config.events_path),
        "kafka": {"bootstrap": options.kafka, "topics": stage.topics} if options.kafka else None,
        "first_row": stage.first_row,
        "start": stage.start.isoformat(),
        "step": 1,
        "label_delay": stage.label_delay,
    }
    path, log = stage.folder / "customers.json", stage.folder / "customers.log"
    path.write_text(json.dumps(settings, indent=2))
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "monitor.demo.customers", str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    try:
        yield CustomersProcess(process, log)
    finally:
        process.kill()
        process.wait()


@contextmanager
def scoring_service(stage: Stage, loaded: LoadedConfig) -> Iterator[None]:
    """The service that `driftd package` packs, on the demo's own settings."""
    settings = service_settings(loaded, stage.world.schema.model) | {
        "follow_every": "10s",  # the daemon's webhook tells it at once
        "reload_secret": {"file": str(stage.folder / KEY_FILE)},
        "outbox": str(stage.folder / "outbox"),
        "port": stage.service_port,
    }
    path = stage.folder / "service.toml"
    path.write_text(tomli_w.dumps(settings))
    with _process(stage, "scoring service", "serving", str(path)) as waiting:
        waiting(lambda: _answers(f"{stage.service_url}/readyz"))
        yield


@contextmanager
def daemon_process(stage: Stage) -> Iterator[str]:
    url_file = stage.folder / "state" / "url"
    with _process(stage, "daemon", "monitor.cli", "--config", str(stage.folder / "config.toml"), "run") as waiting:
        waiting(url_file.exists)
        yield url_file.read_text()


@contextmanager
def _process(stage: Stage, name: str, module: str, *arguments: str) -> Iterator[Callable[[Callable[[], bool]], None]]:
    """A process with its log in the demo's folder; call what is given with what must become true within a minute."""
    log = stage.folder / f"{name.replace(' ', '_')}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip

    def wait(ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise click.ClickException(f"the {name} did not start:\n" + _tail(log))
            time.sleep(0.1)

    try:
        yield wait
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own service's address
            return bool(answer.status == 200)
    except OSError:
        return False


def _tail(log: Path) -> str:
    return "\n".join(log.read_text().strip().splitlines()[-5:])
