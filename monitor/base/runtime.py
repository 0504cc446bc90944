"""How the daemon's process uses its processors and its memory.

Invariant: called first thing, before polars is imported (it reads its part once) and before other threads exist.
"""

from __future__ import annotations

import ctypes
import os
import sys

SWITCH_INTERVAL = 1e-4
"""Seconds a thread keeps the interpreter while others wait (Python's default is 5e-3). Decoder, writer and the
Kafka client take it thousands of times a second for moments only; each would wait that long for the polling thread."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc


def tune_process() -> None:
    """Leave a processor to the polling thread, hand the interpreter over quickly, give freed memory back.

    By itself glibc raises the size from which memory is mapped to that of the largest block freed, and keeps an
    arena per thread: batches of some MiB that wander from thread to thread are then kept many times over.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("POLARS_MAX_THREADS", str(max(1, usable - 1)))
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from other C libraries
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)
        mallopt(_M_MMAP_THRESHOLD, 1024 * 1024)
        mallopt(_M_TRIM_THRESHOLD, 1024 * 1024)
