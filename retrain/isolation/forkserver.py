"""A process that loads the libraries once and makes children of itself, each of which then starts in a moment.

Invariant: it holds no secrets (a child is told those it needs), and it ends with the process that started it, whatever
way that ends. What the children do is decided by `retrain.train.forkserver_process`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path

from retrain.isolation import child_environment

NUMBER = struct.Struct("!i")
ENDED = b"W"
_SECONDS = 300.0
"""For loading the libraries and for an answer."""
_TAIL = 4000


class Kind(Enum):
    """What a child becomes."""

    SCORER = b"S"
    TRAINER = b"T"


class ForkServer:
    """A context; the process starts when the first child is asked for, and again if it has ended. `environ`: what
    children may be told of; the process itself gets the harmless part."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """A private place, gone when this is closed."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="driftd-fork-"))
        return self._folder

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def child(self, kind: Kind, *descriptors: int) -> int:
        """The process id of a new one; it has the descriptors too."""
        with self._lock:
            if self._control is not None:
                with suppress(OSError, RuntimeError):  # it has ended since
                    return self._answer(self._control, kind.value, descriptors)
            return self._answer(self._begin(), kind.value, descriptors)

    def ended(self, pid: int) -> int:
        """How a child ended, as os.waitpid tells; it has ended or is about to."""
        with self._lock:
            if self._control is not None:
                with suppress(OSError, RuntimeError):
                    return self._answer(self._control, ENDED + NUMBER.pack(pid))
            return signal.SIGKILL  # it went with the process that it was a child of

    def close(self) -> None:
        self._end()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    def _begin(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs, (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "retrain.train.forkserver_process", str(theirs.fileno())],
                env=child_environment((), self.environ, self.folder),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        ours.settimeout(_SECONDS)
        self._control = ours
        return ours

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._control = self._process = None

    def _answer(self, control: socket.socket, question: bytes, descriptors: Sequence[int] = ()) -> int:
        """A question without its answer ends the process: a late answer would be taken for that to the next one."""
        try:
            socket.send_fds(control, [question], descriptors)
            found = control.recv(NUMBER.size, socket.MSG_WAITALL)
            if len(found) != NUMBER.size:
                raise RuntimeError(f"the process that children are made of has ended:\n{tail_of(self.folder / 'log')}")
            return int(NUMBER.unpack(found)[0])
        except BaseException:
            self._end()
            raise


def tail_of(log: Path) -> str:
    """The end of what was printed; empty where nothing can be read."""
    try:
        return log.read_bytes()[-_TAIL:].decode(errors="replace")
    except OSError:
        return ""
