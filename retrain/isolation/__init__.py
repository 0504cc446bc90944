"""Code that is not driftd's, and what keeps it apart.

`apart` runs it: a program goes in, how it ended comes out. `keeper` ends whatever it started. Scorers and trainers are
children of a `forkserver`. What they may see of the environment is decided here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

SHORT_SPIN = "GOMP_SPINCOUNT", "1000"
"""Threads of libgomp that wait spin only for a moment: not at all costs 5 times the time for boosting on small data
(every wait is a system call), the default 3 times on a machine that is busy with something else."""
HARMLESS = (
    *("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "SSL_CERT_FILE"),
    *("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"),  # in a job of a Ray cluster: where it is
)
_ROOT = str(Path(__file__).resolve().parents[2])


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


def keep_to_oneself_no_more() -> None:
    """Called by a child of such a process before it becomes somebody else's: its own /proc is its own again."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(4, 1)


def die_with_parent() -> None:
    """Called by a child: one whose parent is killed goes too (Linux; elsewhere its time limit ends it)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
