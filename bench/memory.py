"""Resident memory of a real daemon (`driftd run`) that works off a backlog of two million events.

Invariant: the daemon is the shipped command with its shipped settings; it is only looked at from outside. Its
measuring processes are counted apart: they come and go, and hold Evidently.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import tomli_w

from bench.events import MODEL, SCHEMA
from bench.kafka import broker, topic_of
from bench.say import Say, quietly

EVENTS = 2_000_000
SAMPLE_EVERY = 0.5
PATIENCE = 1800.0
MB = 1e6


def run(say: Say = quietly) -> list[dict[str, Any]]:
    """Peak and growth of the daemon's resident memory."""
    with (
        broker() as bootstrap,
        topic_of(bootstrap, EVENTS, say) as predictions,
        topic_of(bootstrap, 0, say) as labels,
        tempfile.TemporaryDirectory(prefix="driftd-bench-") as folder,
    ):
        samples, seconds = _watch(Path(folder), _config(Path(folder), bootstrap, predictions, labels), say)
    quarter = len(samples.daemon) // 4
    second, last = samples.daemon[quarter : 2 * quarter], samples.daemon[-quarter:]
    what = f"resident memory of the daemon while ingesting {EVENTS:,} events"
    return [
        {
            "what": f"{what}: peak",
            "megabytes": max(samples.daemon) / MB,
            "children_megabytes": max(samples.children) / MB,
            "events_per_s": EVENTS / seconds,
            "series_megabytes": [round(each / MB) for each in samples.daemon[:: max(1, len(samples.daemon) // 40)]],
            "at_least": 700.0,
            "aim": 400.0,
            "less_is_better": True,
        },
        {
            "what": f"{what}: last quarter against second quarter",
            "second_quarter_megabytes": median(second) / MB,
            "last_quarter_megabytes": median(last) / MB,
            "ratio": median(last) / median(second),
            "at_least": 1.1,
            "aim": 1.0,
            "less_is_better": True,
        },
    ]


@dataclass
class _Samples:
    """Bytes resident in the daemon, and in all processes below it."""

    daemon: list[int] = field(default_factory=list)
    children: list[int] = field(default_factory=list)

    def take(self, process: psutil.Process) -> None:
        self.daemon.append(process.memory_info().rss)
        below = 0
        for child in process.children(recursive=True):
            try:
                below += child.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        self.children.append(below)


def _watch(folder: Path, config: Path, say: Say) -> tuple[_Samples, float]:
    samples, began = _Samples(), 0.0
    with _daemon(folder, config) as daemon:
        process, deadline = psutil.Process(daemon.pid), time.monotonic() + PATIENCE
        stored = 0.0
        while stored < EVENTS:
            assert daemon.poll() is None, f"the daemon ended: {(folder / 'log').read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"{stored:,.0f} events after {PATIENCE:.0f} s"
            time.sleep(SAMPLE_EVERY)
            stored = _stored(folder / "state" / "url")
            if stored:
                began = began or time.monotonic()
                samples.take(process)
            say(f"ingested {stored:,.0f} of {EVENTS:,} events")
        return samples, time.monotonic() - began


@contextmanager
def _daemon(folder: Path, config: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "monitor.cli", "--config", str(config), "run"],
            cwd=Path(__file__).parents[1],
            stdout=log,
            stderr=log,
        )
    try:
        yield daemon
    finally:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _stored(url: Path) -> float:
    """Predictions in the lake, as the daemon's metrics say; 0 while it starts."""
    if not url.exists():
        return 0.0
    try:
        with urllib.request.urlopen(f"{url.read_text()}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        return 0.0
    name = f'driftd_events_total{{model="{MODEL}",stream="predictions"}} '
    return next((float(line[len(name) :]) for line in text.splitlines() if line.startswith(name)), 0.0)


def _config(folder: Path, bootstrap: str, predictions: str, labels: str) -> Path:
    path = folder / "config.toml"
    kafka = {
        "bootstrap": bootstrap.split(","),
        "group": predictions,
        "predictions": [predictions],
        "labels": [labels],
    }
    model = {
        "task": SCHEMA.task.value,
        "classes": list(SCHEMA.classes),
        "positive": SCHEMA.positive,
        "features": {f.name: f.kind.value for f in SCHEMA.features},
    }
    text = tomli_w.dumps(
        {
            "daemon": {"state": str(folder / "state")},
            "http": {"port": 0},
            "source": {"kind": "kafka", "kafka": kafka},
            "models": {MODEL: model},
        }
    )
    path.write_text(text, encoding="utf-8")
    return path
