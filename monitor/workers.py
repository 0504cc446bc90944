"""The processes that measure: a pool that survives the loss of a process.

Invariant: the daemon itself never imports Evidently, and a measuring process never outlives the daemon.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from monitor.errors import TransientError
from retrain.isolation import keep_to_oneself

_T = TypeVar("_T")
_R = TypeVar("_R")


class Workers:
    """`count` processes, started with the first task. `timeout` bounds one task in seconds."""

    def __init__(self, count: int, timeout: float = 600.0):
        self._count = count
        self._timeout = timeout
        self._pool: ProcessPoolExecutor | None = None
        self._lock = threading.Lock()
        self._ended = False

    def map(self, function: Callable[[_T], _R], tasks: Iterable[_T]) -> list[_R]:
        """Results in order. Raises what a task raised, TransientError when a process was lost or hung."""
        try:
            futures = [self.submit(function, task) for task in tasks]
            return [future.result(timeout=self._timeout) for future in futures]
        except (BrokenProcessPool, TimeoutError) as exc:
            self.close()
            raise TransientError(f"a measuring process was lost: {exc or 'it hung'}") from exc

    def submit(self, function: Callable[[_T], _R], task: _T) -> Future[_R]:
        with self._lock:
            if self._ended:
                raise TransientError("driftd is stopping")
            try:
                return self._started().submit(function, task)
            except BrokenProcessPool:  # a process was lost since the last task
                self._pool = None
                return self._started().submit(function, task)

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._count,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_become_worker,
                initargs=(os.getpid(),),
            )
        return self._pool

    def end(self) -> None:
        """Close for good: a tick that is under way starts no processes again."""
        with self._lock:
            self._ended = True
        self.close()

    def close(self) -> None:
        """End all processes at once; the next task starts new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            processes = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()


def _become_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.nice(5)
    keep_to_oneself()
    os.environ["DO_NOT_TRACK"] = "1"
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)
