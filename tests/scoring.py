"""A real scoring service for tests, and people who ask it without a pause; no pytest in here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from tests.broker import free_ports
from tests.daemons import until

ROW = {"features": {"amount": 1.5, "kind": "k1", "new": True}, "segment": {"country": "de"}}
SCHEMA = {
    "task": "binary", "classes": ["ok", "fraud"], "positive": "fraud", "segments": ["country"],
    "features": {"amount": "number", "kind": "category", "new": "bool"},
}  # fmt: skip


class Scoring:
    """One service on a folder of its own, started as often as a test likes."""

    def __init__(self, folder: Path, python: str = sys.executable, cwd: Path | None = None, **settings: Any) -> None:
        self.folder, self._python, self._cwd = folder, python, cwd
        folder.mkdir(parents=True, exist_ok=True)
        (self.port,) = free_ports(1)
        self.path = folder / "service.toml"
        base = {"model": "fraud", "registered_model": "fraud", "follow_every": "500ms", "schema": SCHEMA}
        self.path.write_text(tomli_w.dumps({**base, "outbox": str(folder / "outbox"), **settings}))
        self._process: subprocess.Popen[bytes] | None = None

    def start(
        self, environment: Mapping[str, str] = os.environ, settings: Path | None = None, ready: int = 200
    ) -> Scoring:
        """Start it and wait for what it answers on `/readyz`."""
        with (self.folder / "service.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._python, "-m", "serving", str(settings or self.path), "--port", str(self.port)],
                stdout=log,
                stderr=log,
                cwd=self._cwd,
                env=dict(environment),
            )
        until("the service to answer", lambda: self.must_run() or self.get("/readyz")[0] == ready)
        return self

    def must_run(self) -> None:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "service.log").read_text()[-3000:]

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> int:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(30)

    def get(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON; status 0 when nobody answers."""
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=data, headers={"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"null")
        except OSError:
            return 0, None

    def predict(self, *ids: str) -> tuple[int, list[dict[str, Any]]]:
        status, found = self.get("/predict", {"rows": [{**ROW, "prediction_id": i} for i in ids]})
        return status, found["predictions"] if status == 200 else []

    def model(self) -> dict[str, Any]:
        return dict(self.get("/model")[1] or {})


class Crowd:
    """Threads that ask for two rows at a time until told to stop; remembers what was answered, and what was not."""

    def __init__(self, scoring: Scoring, people: int = 3) -> None:
        self._scoring = scoring
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.answered: dict[str, str] = {}
        self.failed: list[int] = []
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(people)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, person: int) -> None:
        n = 0
        while not self._stop.is_set():
            status, answers = self._scoring.predict(f"{person}-{n}-a", f"{person}-{n}-b")
            with self._lock:
                if status == 200:
                    self.answered |= {a["prediction_id"]: a["model_version"] for a in answers}
                else:
                    self.failed.append(status)
            n += 1
            time.sleep(0.01)

    def versions(self) -> set[str]:
        with self._lock:
            return set(self.answered.values())

    def wait_for(self, more: int) -> None:
        """Until so many more rows have been answered."""
        enough = len(self.answered) + more
        until(f"{more} more answers", lambda: len(self.answered) >= enough)
