"""The door to Evidently: quiet, without telemetry, opened only when something is to be measured.

Invariant: nothing else in driftd imports Evidently (importing it takes seconds and some 300 MB).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from retrain.terms.schema import FeatureKind


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings (undefined results are reported as such) and one BLAS thread. Not thread-safe.

    BLAS threads waiting for each other on a busy machine make a short dot product 100 times slower.
    """
    with (
        warnings.catch_warnings(),
        np.errstate(all="ignore"),
        _blas().limit(limits=1, user_api="blas"),
    ):
        warnings.simplefilter("ignore")
        yield


@cache
def load() -> Any:
    """The `evidently` package. Sets `DO_NOT_TRACK` first: it would phone home otherwise."""
    os.environ["DO_NOT_TRACK"] = "1"
    with quiet():
        import evidently
        import evidently.legacy.calculations.stattests
        import evidently.presets
    return evidently


@cache
def stat_test(name: str, kind: FeatureKind) -> Any:
    """Evidently's registered test for this kind. Raises ValueError when there is none."""
    load()
    from evidently.legacy.calculations.stattests.registry import get_registered_stattest

    return get_registered_stattest(name, column_type(kind))


@cache
def column_type(kind: FeatureKind) -> Any:
    load()
    from evidently.legacy.core import ColumnType

    return ColumnType.Numerical if kind is FeatureKind.NUMBER else ColumnType.Categorical
