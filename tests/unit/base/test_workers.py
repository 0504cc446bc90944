"""The pool of measuring processes survives the loss of one."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterator

import pytest

from monitor.base.errors import TransientError
from monitor.base.workers import Workers


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


def test_closing_ends_what_runs() -> None:
    workers = Workers(1, timeout=30)
    workers.map(math.sqrt, [4.0])
    workers.close()
    workers.close()
    assert workers._pool is None
