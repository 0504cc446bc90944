"""Keeps what it starts together: `python -I -S keeper.py JSON`, a file of its own that needs nothing of driftd's; or
`keep`, called in a process that has become one.

Invariant: when this process ends, whatever its command has started is gone too, in whatever session or process group it
went (Linux: orphans become children of the nearest subreaper, which this is). It ends when its command ends, when it is
told to, when the process that started it ends, or when there are too many processes or too little room on the disk.

JSON: `command`, a list; `processes`, how many there may be at once; `file_bytes`, how large a file may get; `folder`,
whose disk must keep `free_bytes`. Exit code: the command's; a signal that ended it ends this process too.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

REAP_EVERY, LOOK_EVERY = 0.05, 1.0
"""Seconds: for the command's end, and for what it has started (which reads all of /proc)."""
_PDEATHSIG, _SUBREAPER = 1, 36
OVERDONE = 71
"""EX_OSERR of sysexits.h."""


def main(given: str) -> int:
    told = json.loads(given)
    return keep(told, lambda: _run(told))


def keep(told: dict, begin: Callable[[], object], connection: socket.socket | None = None) -> int:  # type: ignore[type-arg]
    """Calls `begin` in a child and answers the code to exit with. Ends too when the other side closes `connection`."""
    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(1))
    parent = os.getppid()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PDEATHSIG, signal.SIGTERM)
        libc.prctl(_SUBREAPER, 1)
    if (pid := os.fork()) == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (told["file_bytes"], told["file_bytes"]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        begin()
    overdone, status, looked = "", None, time.monotonic()
    while status is None and not ending and not overdone and os.getppid() == parent:
        if select.select([] if connection is None else [connection], [], [], REAP_EVERY)[0]:
            ending.append(1)
        status = _reaped(pid)
        if status is None and time.monotonic() - looked >= LOOK_EVERY:
            looked = time.monotonic()
            overdone = _overdone(told)
    _end_all()
    if overdone:
        sys.stdout.write(f"{overdone}\n")
        return OVERDONE
    if status is None:
        return 128 + signal.SIGTERM
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL) if os.WTERMSIG(status) != signal.SIGKILL else None
        os.kill(os.getpid(), os.WTERMSIG(status))
    return os.waitstatus_to_exitcode(status)


def _run(told: dict) -> None:  # type: ignore[type-arg]
    try:
        os.execvp(told["command"][0], told["command"])  # noqa: S606 - the command that the configuration names
    except OSError as exc:
        sys.stdout.write(f"{told['command'][0]}: {exc.strerror}\n")
        sys.stdout.flush()
    finally:
        os._exit(127)


def _reaped(wanted: int):  # type: ignore[no-untyped-def]
    """How `wanted` ended, None as long as it runs; orphans that have ended are forgotten."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid == wanted:
            return status
        if pid == 0:
            return None


def _overdone(told: dict) -> str:  # type: ignore[type-arg]
    if len(_descendants()) > told["processes"]:
        return f"more than {told['processes']} processes at once"
    if shutil.disk_usage(told["folder"]).free < told["free_bytes"]:
        return f"less than {told['free_bytes']:,} bytes were left on the disk of {told['folder']}"
    return ""


def _descendants() -> list[int]:
    """Processes below this one, by /proc; none where there is no such folder."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
            parents[int(entry.parent.name)] = int(fields[1])
        except (OSError, IndexError, ValueError):
            continue
    found: list[int] = []
    border = {os.getpid()}
    while border:
        border = {pid for pid, parent in parents.items() if parent in border}
        found += border
    return found


def _end_all() -> None:
    """Until nothing is left: what is killed may have started something a moment before."""
    for _ in range(100):
        for pid in _descendants():
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
