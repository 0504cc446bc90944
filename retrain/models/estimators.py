"""What a trained estimator must be able to do before it is taken for a model.

Invariant: asks for predictions of rows it is given, changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retrain.terms.schema import ModelSchema, Task

if TYPE_CHECKING:
    import pandas as pd

CHECKED_ROWS = 500
"""Training rows that a new model is asked about."""


class Nonsense(Exception):
    """What the trainer returned is no model of this schema; the text says why."""


def check_estimator(estimator: Any, frame: pd.DataFrame, schema: ModelSchema) -> None:
    """Asks for predictions of a few training rows. Raises Nonsense."""
    import numpy as np

    if not callable(getattr(estimator, "predict", None)):
        raise Nonsense(f"{type(estimator).__name__} has no predict")
    values = np.asarray(estimator.predict(frame))
    if values.shape != (len(frame),):
        raise Nonsense(f"predict gives shape {values.shape} for {len(frame)} rows")
    if schema.task is Task.REGRESSION:
        if not np.issubdtype(values.dtype, np.number) or not np.isfinite(values).all():
            raise Nonsense("predict gives values that are no finite numbers")
        return
    unknown = sorted(set(map(str, values)) - set(schema.classes))
    if unknown:
        raise Nonsense(f"predict gives the unknown class {unknown[0]!r}; known: {', '.join(schema.classes)}")
    if callable(getattr(estimator, "predict_proba", None)):
        classes = [str(c) for c in getattr(estimator, "classes_", ())]
        shape = np.asarray(estimator.predict_proba(frame)).shape
        if shape != (len(frame), len(classes)) or not set(classes) <= set(schema.classes):
            raise Nonsense(f"predict_proba gives shape {shape}, classes_ is {classes}")
