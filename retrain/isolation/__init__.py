"""Code that is not driftd's, run apart: a program goes in, how it ended comes out. It gets a scrubbed environment,
limits, a folder and a bounded log.

Guarantee: whatever the code does (hangs, prints without end, leaves children behind, starts too many of them, fills the
disk), `run_apart` comes back in time, and nothing of it is left running.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

from retrain.isolation import keeper

LOG_BYTES = 1 << 20
MOST_PROCESSES = 256
FREE_BYTES = 256 * 2**20
"""A program that leaves less room than this on its disk is ended: others need it too."""
GRACE = 3.0
"""Seconds that a keeper has for ending what it keeps."""
SHORT_SPIN = "GOMP_SPINCOUNT", "1000"
"""Threads of libgomp that wait spin only for a moment: not at all costs 5 times the time for boosting on small data
(every wait is a system call), the default 3 times on a machine that is busy with something else."""
HARMLESS = (
    *("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "SSL_CERT_FILE"),
    *("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"),  # in a job of a Ray cluster: where it is
)
_ROOT = str(Path(__file__).resolve().parents[2])


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
    told = {
        "command": list(command),
        "processes": MOST_PROCESSES,
        "file_bytes": file_bytes,
        "folder": str(folder),
        "free_bytes": FREE_BYTES,
    }
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


def child_environment(names: Iterable[str], environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The harmless variables and those of `names`; HOME is `folder`, so that no credential file of the daemon's user is
    found by name. Python looks for modules beside driftd and where PYTHONPATH says, not in whatever folder it is in."""
    env = {name: environ[name] for name in (*HARMLESS, *names) if name in environ}
    env["PYTHONPATH"] = os.pathsep.join(p for p in (env.get("PYTHONPATH"), _ROOT) if p)
    env.setdefault("HOME", str(folder))
    env.setdefault(*SHORT_SPIN)
    env["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # its own reserves a gigabyte at once, which counts as the code's
    env |= {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    return env


def keep_files_to_oneself() -> None:
    """What this process and those that it starts write is read by its user and group alone."""
    os.umask(os.umask(0o077) | 0o027)


def keep_to_oneself() -> None:
    """Called by a process that holds secrets: no other process of its user may read its environment and memory, as
    those may do that it starts (Linux; whoever is root may all the same); and as `keep_files_to_oneself`."""
    keep_files_to_oneself()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(4, 0)  # PR_SET_DUMPABLE


def die_with_parent() -> None:
    """Called by a child: one whose parent is killed goes too (Linux; elsewhere its time limit ends it)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _wait(process: subprocess.Popen[bytes], deadline: float, stopping: threading.Event | None) -> Cut | None:
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
