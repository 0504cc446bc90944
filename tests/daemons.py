"""Real `driftd run` processes for tests, each on a config of its own, asked over their HTTP port; no pytest in here.

Invariant: a daemon started here ends with the test that started it, whatever state it is in (`Daemons` is a context).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import tomli_w
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError
from sqlalchemy import text

from retrain.control.database import open_engine, reading

MODEL = "fraud"
T = TypeVar("T")


class NotYet(AssertionError):
    """A deadline passed; the text says what was waited for and what there was instead."""


PATIENCE = 3.0
"""Deadlines are for a quiet machine; a busy one gets this many times as long."""


def until(what: str, look: Callable[[], T], within: float = 60.0, every: float = 0.05) -> T:
    """Look again and again, less and less often, until the answer is true. Returns it. Raises NotYet with the last
    answer."""
    within *= PATIENCE
    began = time.monotonic()
    deadline = began + within
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise NotYet(f"waited {within:.0f} s for {what}; last seen: {seen!r}")
        time.sleep(max(every, min(0.5, (time.monotonic() - began) / 10)))
    return seen


def configuration(state: Path, source: Mapping[str, Any], **sections: Mapping[str, Any]) -> dict[str, Any]:
    """A small model in one-minute windows that tick fast; `sections` replace or add keys of whole tables."""
    config: dict[str, Any] = {
        "daemon": {"state": str(state), "tick": "200ms", "log_format": "json"},
        "http": {"port": 0},
        "source": {"batch_wait": "100ms", **source},
        "models": {
            MODEL: {
                "task": "binary",
                "metrics": ["accuracy"],
                "features": {"amount": "number", "age": "number", "country": "category"},
                "windows": {
                    "size": "1m", "lateness": "2s", "min_rows": 20, "idle_after": "5s",
                    "min_coverage": 0.7, "max_delay": "1d",
                },
                "rules": [
                    {
                        "name": "ages_missing", "measure": "missing_share", "feature": "age", "above": 0.2,
                        "for": "1 of 1 windows",
                    },
                    {
                        "name": "amount_drifts", "measure": "feature_drift", "feature": "amount",
                        "for": "1 of 2 windows",
                    },
                ],
            }
        },
    }  # fmt: skip
    for name, section in sections.items():
        if name == "model":
            config["models"][MODEL] |= section
        else:
            config[name] = config.get(name, {}) | section
    return config


def kafka(bootstrap: str, predictions: str, labels: str, group: str, **more: Any) -> dict[str, Any]:
    """The `source` section for a broker."""
    options = {"bootstrap": [bootstrap], "predictions": [predictions], "labels": [labels], "group": group}
    return {"kind": "kafka", "kafka": {"session_timeout": "6s", **options, **more}}


@dataclass
class Daemon:
    """One daemon, started as often as a test likes on one config; each start writes its own log."""

    folder: Path
    config: dict[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    starts: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write_config()

    @property
    def config_path(self) -> Path:
        return self.folder / "config.toml"

    @property
    def state(self) -> Path:
        return Path(self.config["daemon"]["state"])

    @property
    def lake(self) -> str:
        return str(self.config.get("lake", {}).get("uri") or self.state / "lake")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> Path:
        return self.folder / f"daemon-{self.starts}.log"

    def write_config(self) -> None:
        self.config_path.write_text(tomli_w.dumps(self.config), encoding="utf-8")

    # -- the process

    def launch(self) -> Daemon:
        """Start it and return at once."""
        assert self._process is None or self._process.poll() is not None, "it runs"
        (self.state / "url").unlink(missing_ok=True)  # left behind by a kill
        self.starts += 1
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "monitor.cli", "--config", str(self.config_path), "run"],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment, "PYTHONUNBUFFERED": "1"},
            )
        return self

    def start(self) -> Daemon:
        """Start it and wait until it answers."""
        self.launch()
        until("the daemon to start", self.started)
        return self

    def started(self) -> bool:
        self.must_run()
        return (self.state / "url").exists()

    def must_run(self) -> None:
        assert self._process is not None
        code = self._process.poll()
        assert code is None, f"the daemon ended with {code}:\n{self.tail()}"

    def exit_code(self, within: float = 15.0) -> int:
        """Wait for its end."""
        assert self._process is not None
        return self._process.wait(within)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> tuple[int, float]:
        """SIGTERM. Returns the exit code and the seconds it took."""
        began = time.monotonic()
        self.signal(signal.SIGTERM)
        return self.exit_code(30.0), time.monotonic() - began

    # -- what it says

    @property
    def url(self) -> str:
        return (self.state / "url").read_text()

    def request(self, path: str, body: Any = None, token: str | None = None) -> tuple[int, str]:
        """Status and text of a GET, or of a POST when there is a body."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metrics(self) -> dict[str, float]:
        """Sample, as the exposition spells it -> value."""
        self.must_run()
        found = {}
        for line in self.request("/metrics")[1].splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name] = float(value)
        return found

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples with these labels; 0 when there are none."""
        wanted = [f'{k}="{v}"' for k, v in labels.items()]
        return sum(
            value
            for sample, value in self.metrics().items()
            if sample.split("{")[0] == name and all(w in sample for w in wanted)
        )

    def ready(self) -> tuple[bool, dict[str, str]]:
        status, text = self.request("/readyz")
        return status == 200, json.loads(text)["components"]

    def faults(self) -> list[str]:
        """What has failed and not succeeded since, in words."""
        return list(json.loads(self.request("/readyz")[1])["faults"])

    def lines(self) -> list[dict[str, Any]]:
        """The log of this start; lines that are no JSON (tracebacks) come as `{"event": line}`."""
        found = []
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found.append(dict(json.loads(line)))
            except (ValueError, TypeError):
                found.append({"event": line})
        return found

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["event"] == event]

    def tail(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-4000:]

    def workers(self) -> list[int]:
        """Process ids of its measuring processes: children of a child of it."""
        parents: dict[int, int] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if b"multiprocessing.forkserver" in (entry / "cmdline").read_bytes():
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        return [pid for pid, parent in parents.items() if parents.get(parent) == self.pid]

    # -- what it stored

    def rows(self, table: str, model: str = MODEL, columns: list[str] | None = None) -> pl.DataFrame:
        return rows(self.lake, table, model, columns)

    def count(self, table: str, model: str = MODEL) -> int:
        return rows(self.lake, table, model, ["date"]).height

    def status(self) -> dict[str, Any]:
        """What `driftd status` says of the model; works with the daemon stopped."""
        done = self.command("status", MODEL, "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout)["models"][MODEL])

    def transitions(self) -> list[dict[str, Any]]:
        """All that are recorded, oldest first."""
        engine = open_engine(self.config["daemon"].get("control_url") or f"sqlite:///{self.state / 'control.db'}")
        query = text("SELECT * FROM monitor_transitions WHERE model = :model ORDER BY id")
        try:
            with reading(engine) as connection:
                return [dict(row) for row in connection.execute(query, {"model": MODEL}).mappings()]
        finally:
            engine.dispose()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "monitor.cli", "--config", str(self.config_path), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, **self.environment},
        )


class Daemons:
    """Starts daemons in a folder; kills what still runs at the end."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._all: list[Daemon] = []

    def make(self, source: Mapping[str, Any], name: str = "d", **sections: Any) -> Daemon:
        environment = sections.pop("environment", {})
        state = Path(sections.get("daemon", {}).get("state") or self.folder / name / "state")
        config = configuration(state, source, **sections)
        self._all.append(Daemon(self.folder / name, config, environment))
        return self._all[-1]

    def __enter__(self) -> Daemons:
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in self._all:
            daemon.kill()


def rows(lake: str, table: str, model: str = MODEL, columns: list[str] | None = None) -> pl.DataFrame:
    """All rows of a table, read apart from driftd's own code; empty when there is none."""
    try:
        delta = DeltaTable("/".join(filter(None, (lake, model, table))))
    except TableNotFoundError:
        return pl.DataFrame()
    return pl.DataFrame(delta.to_pyarrow_table(columns=columns))


def window_of(ts: datetime, seconds: int = 60) -> int:
    """The number of the tumbling window that holds `ts`."""
    return int(ts.timestamp()) // seconds
