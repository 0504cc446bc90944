"""Runs code that is not driftd's: a program or a training goes in, how it ended comes out. It gets a scrubbed
environment, limits, a folder and a bounded log.

Guarantee: whatever the code does (hangs, prints without end, leaves children behind, starts too many of them, fills the
disk), `run_apart` and `train_apart` come back in time, and nothing of it is left running.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Protocol

from retrain.isolation import keeper
from retrain.isolation.forkserver import NUMBER, ForkServer, Kind

LOG_BYTES = 1 << 20
MOST_PROCESSES = 256
FREE_BYTES = 256 * 2**20
"""A program that leaves less room than this on its disk is ended: others need it too."""
GRACE = 3.0
"""Seconds that a keeper has for ending what it keeps."""


class Cut(StrEnum):
    """Why a process was not let run to its end."""

    TIME = "time"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Ended:
    """`code` as of subprocess.Popen.returncode; `tail` is the end of what was printed."""

    code: int
    cut: Cut | None
    tail: str


def run_apart(
    command: Sequence[str],
    env: Mapping[str, str],
    folder: Path,
    log: Path,
    deadline: float,
    file_bytes: int,
    stopping: threading.Event | None = None,
) -> Ended:
    """Runs a program in `folder` until it ends, `deadline` (of time.monotonic) comes or `stopping` is set; whatever it
    has started is ended with it. Its files may have `file_bytes` each. Its output goes into the file `log`, LOG_BYTES
    at most."""
    told = {"command": list(command), **_limits(folder, file_bytes)}
    with subprocess.Popen(
        [sys.executable, "-I", "-S", keeper.__file__, json.dumps(told)],
        env=dict(env),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        output = _BoundedLog(process.stdout, log)
        cut = _wait(process, deadline, stopping)
        output.join()
    return Ended(process.returncode, cut, output.tail)


def train_apart(
    server: ForkServer,
    request: Path,
    env: Mapping[str, str],
    folder: Path,
    log: Path,
    deadline: float,
    file_bytes: int,
    stopping: threading.Event | None = None,
) -> Ended:
    """As `run_apart`, of a training by a function (`retrain.train.trainer_process`) in a process that has the
    libraries."""
    told = json.dumps({"request": str(request), "environment": dict(env), **_limits(folder, file_bytes)}).encode()
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    with ours, open(reading, "rb", buffering=0) as printed:  # noqa: PTH123 - a pipe
        try:
            child = _Child(server, server.child(Kind.TRAINER, theirs.fileno(), writing), ours)
        finally:
            theirs.close()
            os.close(writing)
        output = _BoundedLog(printed, log)
        with contextlib.suppress(BrokenPipeError):  # ended already
            ours.sendall(NUMBER.pack(len(told)) + told)
        cut = _wait(child, deadline, stopping)
        output.join()
    assert child.returncode is not None
    return Ended(child.returncode, cut, output.tail)


def _limits(folder: Path, file_bytes: int) -> dict[str, int | str]:
    """What a keeper is told."""
    return {
        "processes": MOST_PROCESSES,
        "file_bytes": file_bytes,
        "folder": str(folder),
        "free_bytes": FREE_BYTES,
    }


class _Running(Protocol):
    """What is used here of subprocess.Popen."""

    pid: int

    def wait(self, timeout: float | None = None) -> int: ...

    def terminate(self) -> None: ...


class _Child:
    """A child of a fork server; `connection` ends with it."""

    def __init__(self, server: ForkServer, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server
        self._connection = connection

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("", timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(self._server.ended(self.pid))
        return self.returncode

    def terminate(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGTERM)


def _wait(process: _Running, deadline: float, stopping: threading.Event | None) -> Cut | None:
    cut: Cut | None = None
    while cut is None:
        try:
            process.wait(timeout=0.1)
            break
        except subprocess.TimeoutExpired:
            if time.monotonic() >= deadline:
                cut = Cut.TIME
            elif stopping is not None and stopping.is_set():
                cut = Cut.STOPPED
    with contextlib.suppress(ProcessLookupError, PermissionError):
        process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=GRACE)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return cut


class _BoundedLog:
    """Copies a pipe into a file up to LOG_BYTES, drains the rest, and remembers the end."""

    def __init__(self, pipe: IO[bytes], path: Path) -> None:
        self._pipe = pipe
        self._path = path
        self._tail = b""
        self._thread = threading.Thread(target=self._pump, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Something that has escaped may still hold the pipe: wait for it only a little."""
        self._thread.join(timeout=5)

    @property
    def tail(self) -> str:
        return self._tail.decode(errors="replace")

    def _pump(self) -> None:
        written = 0
        with self._path.open("wb") as file:
            while chunk := os.read(self._pipe.fileno(), 65536):
                self._tail = (self._tail + chunk)[-4000:]
                if written < LOG_BYTES:
                    written += file.write(chunk[: LOG_BYTES - written])
                    file.flush()
                    if written >= LOG_BYTES:
                        file.write(b"\n... the rest was not kept\n")
