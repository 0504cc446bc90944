"""Lake rows -> what trainers and models are given.

Invariant: training, evaluation, watching and the smoke test build their frames here, so they cannot differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from retrain.terms.schema import LARGEST, FeatureKind, ModelSchema, Task

if TYPE_CHECKING:
    import pandas as pd


def features_frame(rows: pl.DataFrame, schema: ModelSchema) -> pd.DataFrame:
    """pandas frame with the bare feature names in schema order: numbers float64 (NaN where they are missing, not
    finite, or beyond `LARGEST`), categories strings and bools, both as objects (missing None); a bool column without
    missing values has dtype bool."""
    import pandas as pd

    columns: dict[str, Any] = {}
    for feature in schema.features:
        values = rows[feature.column]
        match feature.kind:
            case FeatureKind.NUMBER:
                numbers = values.cast(pl.Float64).to_numpy()
                columns[feature.name] = np.where(np.abs(numbers) <= LARGEST, numbers, np.nan)
            case FeatureKind.CATEGORY:
                columns[feature.name] = np.array(values.cast(pl.String).to_list(), dtype=object)
            case FeatureKind.BOOL:
                plain = values.cast(pl.Boolean)
                dtype = bool if plain.null_count() == 0 else object
                columns[feature.name] = np.array(plain.to_list(), dtype=dtype)
    return pd.DataFrame(columns)


def labels_array(rows: pl.DataFrame, schema: ModelSchema) -> np.ndarray[Any, Any]:
    """Labels as objects (class names) or float64."""
    if schema.task is Task.REGRESSION:
        return rows["label"].cast(pl.Float64).to_numpy()
    return np.array(rows["label"].cast(pl.String).to_list(), dtype=object)
