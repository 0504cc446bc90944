"""What a model takes in and answers: the contract both halves of driftd share.

Invariant: immutable, JSON-serializable, and the only place that spells lake column names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

LARGEST = 1e100
"""A number beyond this is treated as missing: a sum of squares of such could not be represented."""


class Task(StrEnum):
    BINARY = "binary"
    MULTICLASS = "multiclass"
    REGRESSION = "regression"


class FeatureKind(StrEnum):
    NUMBER = "number"
    CATEGORY = "category"
    BOOL = "bool"


@dataclass(frozen=True, slots=True)
class Feature:
    name: str
    kind: FeatureKind

    @property
    def column(self) -> str:
        """The feature's column in the lake and in training frames."""
        return f"feature_{self.name}"


@dataclass(frozen=True, slots=True)
class ModelSchema:
    """Typed shape of one model's events.

    `classes` is empty for regression; for binary it holds two names, of which `positive` is one.
    `score` columns: one `score` (probability of `positive`) for binary, `score_<class>` each for multiclass.
    """

    model: str
    task: Task
    features: tuple[Feature, ...]
    classes: tuple[str, ...] = ()
    positive: str | None = None
    segments: tuple[str, ...] = ()

    @property
    def feature_columns(self) -> tuple[str, ...]:
        return tuple(f.column for f in self.features)

    @property
    def segment_columns(self) -> tuple[str, ...]:
        return tuple(f"segment_{s}" for s in self.segments)

    @property
    def score_columns(self) -> tuple[str, ...]:
        match self.task:
            case Task.BINARY:
                return ("score",)
            case Task.MULTICLASS:
                return tuple(f"score_{c}" for c in self.classes)
            case Task.REGRESSION:
                return ()

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "task": self.task.value,
            "features": {f.name: f.kind.value for f in self.features},
            "classes": list(self.classes),
            "positive": self.positive,
            "segments": list(self.segments),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelSchema:
        return cls(
            model=data["model"],
            task=Task(data["task"]),
            features=tuple(Feature(n, FeatureKind(k)) for n, k in data["features"].items()),
            classes=tuple(data["classes"]),
            positive=data["positive"],
            segments=tuple(data["segments"]),
        )
