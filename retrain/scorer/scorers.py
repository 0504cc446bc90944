"""The caller's side: start scorers, ask them, end them.

Invariant: every question is answered within its time or ends the scorer; nothing of a scorer is left running when its
`Scorers` is closed, or when the process that made it is killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrain.base.retry import Stopped
from retrain.isolation.forkserver import ForkServer, Kind, tail_of
from retrain.models.model_files import MAX_BYTES, UnusableModel
from retrain.models.quality import Predictions
from retrain.scorer import wire
from retrain.terms.schema import ModelSchema

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one scorer: bytes of memory beside the libraries', bytes that a model may unpack to, seconds per question."""

    memory: int = 4 * 2**30
    max_bytes: int = MAX_BYTES
    seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class Trust:
    """What models may hold beside `retrain.models.trusted_types`: `own` names, and what the module of `trainer` says,
    which is looked for in `code` too (both only in a scorer)."""

    own: tuple[str, ...] = ()
    trainer: str | None = None
    code: str | None = None


@dataclass(eq=False)
class Scorers:
    """A context: children of `server` open models, all of them gone at its end."""

    server: ForkServer
    trust: Trust = field(default_factory=Trust)
    limits: Limits = field(default_factory=Limits)
    stopping: threading.Event = field(default_factory=threading.Event)
    _open: list[Scorer] = field(default_factory=list)

    def __enter__(self) -> Scorers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, model: Path, schema: ModelSchema) -> Scorer:
        """A scorer with this model's directory open. Raises UnusableModel, Stopped."""
        scorer = self._start()
        try:
            told = scorer.ask(
                {
                    "do": "open",
                    "model": str(model.absolute()),
                    "own": list(self.trust.own),
                    "trainer": self.trust.trainer,
                    "code": self.trust.code,
                    "max_bytes": self.limits.max_bytes,
                    "schema": schema.to_json(),
                }
            )
            inputs, size = told.get("inputs"), told.get("size")
            scorer.inputs = None if inputs is None else {str(n): str(kind) for n, kind in dict(inputs).items()}
            scorer.size = int(size or 0)
        except BaseException:
            scorer.close()
            raise
        return scorer

    def own_types(self) -> tuple[str, ...]:
        """What the trainer's module lets models hold (`retrain.models.model_files.own_types`)."""
        if self.trust.trainer is None:
            return self.trust.own
        with self._start() as scorer:
            told = scorer.ask({"do": "own", "trainer": self.trust.trainer, "code": self.trust.code})
        return (*self.trust.own, *map(str, told.get("own") or ()))

    def close(self) -> None:
        for scorer in list(self._open):
            scorer.close()

    def _start(self) -> Scorer:
        folder = Path(tempfile.mkdtemp(prefix="scorer-", dir=self.server.folder))
        ours, theirs = socket.socketpair()
        with theirs:
            pid = self.server.child(Kind.SCORER, theirs.fileno())
        scorer = Scorer(self, ours, pid, folder)
        self._open.append(scorer)
        scorer.ask({"do": "begin", "folder": str(folder), "log": str(folder / "log"), "memory": self.limits.memory})
        return scorer

    def forget(self, scorer: Scorer) -> None:
        self._open.remove(scorer)


class Scorer:
    """One open model. `inputs`: feature name -> kind by its signature, None without one; `size`: bytes unpacked."""

    def __init__(self, scorers: Scorers, connection: socket.socket, pid: int, folder: Path) -> None:
        self._scorers = scorers
        self._connection = connection
        self._pid = pid
        self._folder = folder
        self._closed = False
        self.inputs: Mapping[str, str] | None = None
        self.size = 0

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def predictions(self, frame: pd.DataFrame, schema: ModelSchema) -> Predictions:
        """As `retrain.models.model_files.LoadedModel.predictions`. Raises UnusableModel for whatever goes wrong
        there."""
        head, body = wire.pack_frame(frame)
        told, packed = self._exchange({"do": "predict", **head}, body)
        try:
            return wire.unpack_predictions(told, packed, len(frame), schema)
        except wire.Nonsense as exc:
            raise UnusableModel(f"gave {exc}") from exc

    def processor_seconds(self, frame: pd.DataFrame, schema: ModelSchema) -> float:
        head, body = wire.pack_frame(frame)
        return float(self._exchange({"do": "time", **head}, body)[0].get("seconds") or 0.0)

    def check(self, frame: pd.DataFrame) -> None:
        """What a new model must be able to do (`retrain.models.estimators`). Raises UnusableModel."""
        head, body = wire.pack_frame(frame)
        self._exchange({"do": "check", **head}, body)

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        return self._exchange(question, b"")[0]

    def _exchange(self, question: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        if self._closed:
            raise UnusableModel("its scorer has ended")
        deadline = time.monotonic() + self._scorers.limits.seconds
        try:
            self._connection.settimeout(self._scorers.limits.seconds)
            wire.send(self._connection, question, body)
            told, packed = wire.receive(self._connection, 2**26, 2**32, lambda: self._wait(deadline))
        except wire.Closed:
            raise UnusableModel(self._why_gone()) from None
        except TimeoutError:
            self.close()
            raise UnusableModel(f"had not answered after {self._scorers.limits.seconds:g} s") from None
        except wire.Nonsense as exc:
            self.close()
            raise UnusableModel(f"gave {exc}") from exc
        if (reason := told.get("refused")) is not None:
            raise UnusableModel(str(reason)[:500])
        return told, packed

    def _wait(self, deadline: float) -> None:
        while not select.select([self._connection], [], [], 0.2)[0]:
            if self._scorers.stopping.is_set():
                self.close()
                raise Stopped("a model was being asked")
            if time.monotonic() >= deadline:
                raise TimeoutError

    def _why_gone(self) -> str:
        tail = tail_of(self._folder / "log")
        status = self.close()
        last = (tail.strip().splitlines() or ["nothing was printed"])[-1][:300]
        if status is not None and os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            return f"took its process down ({name}): {last}"
        return f"ended its process: {last}"

    def close(self) -> int | None:
        """How it ended, as os.waitpid tells; None when it was closed before."""
        if self._closed:
            return None
        self._closed = True
        self._connection.close()
        time_left = time.monotonic() + 0.5
        with contextlib.suppress(ProcessLookupError, PermissionError):
            while time.monotonic() < time_left and _runs(self._pid):
                time.sleep(0.005)
            os.kill(self._pid, signal.SIGKILL)
        self._scorers.forget(self)
        shutil.rmtree(self._folder, ignore_errors=True)
        return self._scorers.server.ended(self._pid)


def _runs(pid: int) -> bool:
    """Not ended, though nobody may have asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False
