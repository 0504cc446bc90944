"""Servers that all processes of a test run share: started by the first that asks, stopped by the last that is done."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar


class Server(Protocol):
    """Picklable once it runs; can be stopped by a process that has not started it."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def leave(self) -> None:
        """It is for another process to end it."""


S = TypeVar("S", bound=Server)


@contextmanager
def shared(place: Path, make: Callable[[], S]) -> Iterator[S]:
    """The server that belongs to `place`, which all processes name alike."""
    place.mkdir(exist_ok=True)
    with _locked(place):
        users, server = _read(place)
        if server is None:
            server = make()
            server.start()
        _write(place, users + 1, server)
    try:
        yield server
    finally:
        with _locked(place):
            users, _ = _read(place)
            if users == 1:
                server.stop()
            else:
                server.leave()
            _write(place, users - 1, server if users > 1 else None)


def end(pid: int, within: float = 20.0) -> None:
    """End a process that may be nobody's child here: in order, or after `within` seconds at once."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + within
        with suppress(ProcessLookupError):
            os.kill(pid, how)
        while _runs(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        if not _runs(pid):
            return


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    with (place / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(place: Path) -> tuple[int, S | None]:
    path = place / "server.pickle"
    return pickle.loads(path.read_bytes()) if path.exists() else (0, None)


def _write(place: Path, users: int, server: Server | None) -> None:
    (place / "server.pickle").write_bytes(pickle.dumps((users, server)))
