"""The model-quality metrics on offer, and which way each of them is better.

Invariant: pure and light (config validation imports it); computing them is `performance.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from retrain.terms.schema import Task


class Better(StrEnum):
    HIGHER = "higher"
    LOWER = "lower"
    NEAR_ZERO = "near_zero"


@dataclass(frozen=True, slots=True)
class Score:
    """A metric by name; `from_scores`: computed from class probabilities, so undefined without score
    columns."""

    name: str
    tasks: frozenset[Task]
    better: Better
    from_scores: bool = False


_BINARY = frozenset({Task.BINARY})
_MULTICLASS = frozenset({Task.MULTICLASS})
_CLASSES = _BINARY | _MULTICLASS
_REGRESSION = frozenset({Task.REGRESSION})

SCORES: Mapping[str, Score] = {
    spec.name: spec
    for spec in (
        Score("accuracy", _CLASSES, Better.HIGHER),
        Score("balanced_accuracy", _CLASSES, Better.HIGHER),
        Score("f1", _BINARY, Better.HIGHER),
        Score("precision", _BINARY, Better.HIGHER),
        Score("recall", _BINARY, Better.HIGHER),
        Score("f1_macro", _MULTICLASS, Better.HIGHER),
        Score("roc_auc", _BINARY, Better.HIGHER, from_scores=True),
        Score("log_loss", _CLASSES, Better.LOWER, from_scores=True),
        Score("brier", _BINARY, Better.LOWER, from_scores=True),
        Score("mae", _REGRESSION, Better.LOWER),
        Score("rmse", _REGRESSION, Better.LOWER),
        Score("r2", _REGRESSION, Better.HIGHER),
        Score("mape", _REGRESSION, Better.LOWER),
        Score("bias", _REGRESSION, Better.NEAR_ZERO),
    )
}


def metrics_for(task: Task) -> tuple[str, ...]:
    """Names of the metrics that suit this task."""
    return tuple(name for name, spec in SCORES.items() if task in spec.tasks)


def drop(metric: str, current: float, reference: float) -> float:
    """How much worse `current` is than `reference`, in the metric's units; negative = better."""
    better = SCORES[metric].better
    match better:
        case Better.HIGHER:
            return reference - current
        case Better.LOWER:
            return current - reference
        case Better.NEAR_ZERO:
            return abs(current) - abs(reference)
        case _:
            assert_never(better)
