"""What a column of truths asks for: a task, and labels."""

from __future__ import annotations

import polars as pl

from retrain.terms.schema import Task

MAX_CLASSES = 20


class UnfitTable(ValueError):
    """The table cannot be used; the text names the column and the fix."""


def task_of(target: pl.Series) -> tuple[Task, pl.Series]:
    """The task that a column of truths asks for, and the column as labels. Raises UnfitTable when there is none."""
    known = target.drop_nulls()
    if known.dtype.is_float():
        target = target.fill_nan(None)
        known = target.drop_nulls()
    distinct = known.n_unique()
    if distinct < 2:
        raise UnfitTable(f"target {target.name!r} has {distinct} distinct value(s): nothing to predict")
    if known.dtype.is_numeric():
        whole = known.dtype.is_integer() or bool((known == known.round()).all())
        if not whole or distinct > MAX_CLASSES:
            return Task.REGRESSION, target.cast(pl.Float64)
        target = target.cast(pl.Int64)
    elif distinct > MAX_CLASSES:
        raise UnfitTable(f"target {target.name!r} has {distinct} classes; at most {MAX_CLASSES} are supported here")
    return (Task.BINARY if distinct == 2 else Task.MULTICLASS), target.cast(pl.String)
