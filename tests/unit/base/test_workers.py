"""The pool of measuring processes survives the loss of one."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import operator
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.base.errors import TransientError
from monitor.base.workers import Workers, _become_worker


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers(1, timeout=30)
    yield workers
    workers.close()


def test_results_come_in_order_and_no_task_starts_no_process() -> None:
    workers = Workers(1)
    assert workers.map(math.sqrt, []) == []
    assert workers._pool is None


def test_what_a_task_raises_is_raised(workers: Workers) -> None:
    assert workers.map(math.sqrt, [4.0, 9.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
        workers.map(math.sqrt, [-1.0])
    assert workers.map(operator.neg, [1]) == [-1]


def test_lost_process_is_transient_and_the_next_task_starts_another(workers: Workers) -> None:
    with pytest.raises(TransientError):
        workers.map(os._exit, [3])
    assert workers.map(math.sqrt, [4.0]) == [2.0]


def test_process_lost_between_two_maps_is_replaced(workers: Workers) -> None:
    """A report, say, that nobody waits for."""
    assert workers.submit(os._exit, 3).exception(timeout=30) is not None
    assert workers.map(math.sqrt, [4.0]) == [2.0]


def _measures_as_nobody() -> None:
    """What a daemon that is not root starts: root's rights, which tests may have, are given up first."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
        ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE, as after any exec
    _become_worker(None)
    assert Path("/proc/self/oom_score_adj").read_text().strip() == "500"


def test_one_that_is_not_root_measures_too() -> None:
    child = multiprocessing.get_context("fork").Process(target=_measures_as_nobody)
    child.start()
    child.join(60)
    assert child.exitcode == 0


def test_closing_ends_what_runs() -> None:
    workers = Workers(1, timeout=30)
    workers.map(math.sqrt, [4.0])
    workers.close()
    workers.close()
    assert workers._pool is None
