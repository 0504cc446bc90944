"""What happens in a world, what a team's model looks like, and how good answers were."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

NUMBERS = ("amount", "age", "recent", "score_elsewhere")
KINDS = {"web": 1.0, "card": 0.0, "wire": -1.0}
FEATURES = {**dict.fromkeys(NUMBERS, "number"), "kind": "category", "is_new": "bool"}
BEFORE = np.array([2.4, 1.2, -0.8, 0.4])
"""Weights of the numbers before the change; the first feature matters most."""
ELSEWHERE = np.array([-0.4, 0.8, 1.2, 2.4])
STEEP = 3.0
OUTAGE_HOURS = 8


class Change(StrEnum):
    TURNS = "turns round"
    SLOWLY = "slowly"
    OUTAGE = "outage"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Truth:
    """Rows of one hour, `hours` after the change (negative: before it)."""

    change: Change
    positives: float
    slow_hours: int

    def hour(self, rng: np.random.Generator, n: int, after: int) -> tuple[pd.DataFrame, np.ndarray[Any, Any]]:
        """(features, whether it came out positive)."""
        numbers = rng.normal(size=(n, len(NUMBERS)))
        kinds, new = rng.choice(list(KINDS), n), rng.random(n) < 0.4
        others = 0.6 * np.vectorize(KINDS.get)(kinds) + 0.5 * (new - 0.4)
        weights, sign = self._meaning(after)
        signal = STEEP * (numbers @ weights + sign * others)
        came_true = rng.random(n) < 1 / (1 + np.exp(-(signal - _border(self.positives))))
        frame = pd.DataFrame(numbers, columns=list(NUMBERS)).assign(kind=kinds, is_new=new)
        if self.change is Change.OUTAGE and 0 <= after < OUTAGE_HOURS:
            frame["amount"] = np.nan
        return frame, came_true

    def _meaning(self, after: int) -> tuple[np.ndarray[Any, Any], float]:
        if after < 0 or self.change in (Change.OUTAGE, Change.NOTHING):
            return BEFORE, 1.0
        if self.change is Change.TURNS:
            return -BEFORE, -1.0
        angle = np.pi * min(1.0, (after + 1) / self.slow_hours)
        aside = ELSEWHERE - BEFORE * (ELSEWHERE @ BEFORE) / (BEFORE @ BEFORE)
        aside *= np.linalg.norm(BEFORE) / np.linalg.norm(aside)
        return np.cos(angle) * BEFORE + np.sin(angle) * aside, float(np.cos(angle))


@cache
def _border(positives: float) -> float:
    """The signal above which that share of the rows lies."""
    rng, n = np.random.default_rng(0), 200_000
    others = 0.6 * rng.choice(list(KINDS.values()), n) + 0.5 * ((rng.random(n) < 0.4) - 0.4)
    signal = STEEP * (rng.normal(size=(n, len(NUMBERS))) @ BEFORE + others)
    return float(np.quantile(signal, 1 - positives))


def pipeline(kind: str) -> Pipeline:
    """What a team would write."""
    if kind == "boosted":
        numbers: Any = "passthrough"
        last: Any = HistGradientBoostingClassifier(max_iter=60, class_weight="balanced", random_state=0)
    else:
        numbers = make_pipeline(SimpleImputer(), StandardScaler())
        last = LogisticRegression(class_weight="balanced")
    columns = [
        ("numbers", numbers, list(NUMBERS)),
        ("kind", OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["kind"]),
        ("is_new", "passthrough", ["is_new"]),
    ]
    return make_pipeline(ColumnTransformer(columns), last)


def quality(positives: float, came_true: np.ndarray[Any, Any], answered: pd.DataFrame) -> float:
    """Of answers (`positive`, `score`): balanced accuracy; with rare positives the area under the ROC curve."""
    if positives < 0.2:
        return float(roc_auc_score(came_true, answered["score"]))
    return float(balanced_accuracy_score(came_true, answered["positive"]))
