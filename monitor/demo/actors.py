"""The demo's other processes: the stand-in scoring service and the daemon, for as long as they are needed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from monitor.build import job_spec
from monitor.config import LoadedConfig
from monitor.demo.stage import Stage
from retrain.request import RetrainRequest, TriggerKind


class Scorer:
    """The scoring service's process and its line protocol."""

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
            tail = self._log.read_text().strip().splitlines()[-5:]
            raise click.ClickException("the scoring service stopped:\n" + "\n".join(tail))
        return dict(json.loads(line))


@contextmanager
def scoring_service(stage: Stage, loaded: LoadedConfig) -> Iterator[Scorer]:
    options, model = stage.options, stage.world.schema.model
    request = RetrainRequest(f"{model}-first", model, TriggerKind.MANUAL, "the first model", {}, datetime.now(UTC))
    loaded.config.state.mkdir(parents=True, exist_ok=True)
    settings = {
        "stream": str(options.stream) if options.stream else None,
        "target": options.target,
        "drop": list(options.drop),
        "spec": job_spec(loaded, request).to_json(),
        "control_url": loaded.config.control_url,
        "events": str(loaded.config.events_path),
        "kafka": {"bootstrap": options.kafka, "topics": stage.topics} if options.kafka else None,
        "first_row": stage.first_row,
        "start": stage.start.isoformat(),
        "step": 1,
        "label_delay": stage.label_delay,
    }
    path, log = stage.folder / "scorer.json", stage.folder / "scorer.log"
    path.write_text(json.dumps(settings, indent=2))
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "monitor.demo.scorer", str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    try:
        yield Scorer(process, log)
    finally:
        process.kill()
        process.wait()


@contextmanager
def daemon_process(stage: Stage) -> Iterator[str]:
    log = stage.folder / "daemon.log"
    url_file = stage.folder / "state" / "url"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "monitor.cli", "--config", str(stage.folder / "config.toml"), "run"],
            stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not url_file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text().strip().splitlines()[-5:]
                raise click.ClickException("the daemon did not start:\n" + "\n".join(tail))
            time.sleep(0.1)
        yield url_file.read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
