"""The processes that measure: a pool that survives the loss of a process.

Invariant: the daemon itself never imports Evidently, and a measuring process never outlives the daemon.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, TypeVar

from monitor.base.errors import TransientError
from monitor.base.faults import Failed
from retrain.base.logs import follow_logs
from retrain.isolation import keep_to_oneself

_T = TypeVar("_T")
_R = TypeVar("_R")
NICE = 5
"""Of processes that measure: reading the stream goes first."""
_LOST = Failed("its process was lost: killed, or out of memory", lost=True)


class Workers:
    """`count` processes, started with the first task. `timeout` bounds one task in seconds, `memory` the address space
    of a process in bytes: such a one begins with nothing loaded. The others are children of one that has Evidently."""

    def __init__(self, count: int, timeout: float = 600.0, memory: int | None = None):
        self._count = count
        self._timeout = timeout
        self._memory = memory
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

    def each(self, function: Callable[[_T], _R], tasks: Iterable[_T]) -> list[_R | Failed]:
        """Results in order, and for tasks that gave none why not. One that takes its process down is found by giving
        each that was lost with it a process of its own. Raises TransientError when driftd is stopping."""
        given = list(tasks)
        futures = [self.submit(function, task) for task in given]
        found: list[_R | Failed] = [self._outcome(future) for future in futures]
        for at, task in enumerate(given):
            if found[at] is _LOST:
                self.close()
                found[at] = self._outcome(self.submit(function, task))
        return found

    def _outcome(self, future: Future[Any]) -> Any:
        try:
            return future.result(timeout=self._timeout)
        except (BrokenProcessPool, CancelledError):
            return _LOST
        except TimeoutError:
            self.close()
            return Failed(f"had not come to an end after {self._timeout:g} s")
        except Exception as exc:  # noqa: BLE001 - a unit's, told as a value to `monitor.decide.units`
            return Failed.of(exc)

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
                self._count, mp_context=self._context(), initializer=_become_worker, initargs=(self._memory,)
            )
        return self._pool

    def _context(self) -> BaseContext:
        if self._memory is not None:
            return multiprocessing.get_context("spawn")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["monitor.measure.preloaded"])
        return context

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


def _become_worker(memory: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.nice(max(0, NICE - os.nice(0)))
    with suppress(OSError):  # no Linux
        Path("/proc/self/oom_score_adj").write_text("500")  # before the daemon itself
    keep_to_oneself()  # from here on /proc/self is root's
    follow_logs()
    os.environ["DO_NOT_TRACK"] = "1"
    if memory is not None:
        os.environ |= {"POLARS_MAX_THREADS": "1", "RUST_BACKTRACE": "0"}  # both take memory
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # its last words are no lines of the log
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)
