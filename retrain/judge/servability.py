"""Whether a registered version can be served: fetched by its name, opened by a process that knows nothing of the job.

Invariant: the answers must be those of the model that is to be promoted, for the same rows; whatever the model does
there (crashes, hangs, wants what is not there), the answer is a `SmokeTest`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import polars as pl

from retrain.data.frame import features_frame
from retrain.judge.gates import SmokeTest
from retrain.models.model_files import UnusableModel
from retrain.scorer import Scorer
from retrain.terms.schema import ModelSchema, Task

ROWS = 50


def smoke_test(
    version: str,
    holdout: pl.DataFrame,
    schema: ModelSchema,
    promoted: Callable[[], Scorer],
    registered: Callable[[], Scorer],
) -> SmokeTest:
    """Expects the answers of the model that is to be promoted from `version` as the registry hands it out; both are
    opened when they are asked for. Raises what `registered` raises besides UnusableModel."""
    frame, started = features_frame(holdout.head(ROWS), schema), time.monotonic()
    try:
        with promoted() as model:
            expected = model.predictions(frame, schema).values
    except UnusableModel as exc:
        return SmokeTest(False, f"the model that is to be promoted {exc}")
    try:
        with registered() as model:
            found = model.predictions(frame, schema).values
    except UnusableModel as exc:
        return SmokeTest(False, f"version {version} {exc}")
    numeric = schema.task is Task.REGRESSION
    same = np.allclose(found, expected, rtol=1e-6, atol=1e-9) if numeric else np.array_equal(found, expected)
    if not same:
        return SmokeTest(False, f"version {version} predicts otherwise than the model that is to be promoted")
    took = f"{time.monotonic() - started:.1f} s"
    told = f"a clean process opened version {version} as the registry has it and scored {len(frame)} rows in {took}"
    return SmokeTest(True, told)
