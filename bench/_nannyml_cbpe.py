"""NannyML's own estimates, run by bench/estimates.py in an interpreter that has NannyML (driftd's has not).

`python _nannyml_cbpe.py CAR_LOAN_PARQUET OUT` writes OUT/numbers.json (table -> metric -> one estimate per chunk) and,
for each table, OUT/<table>.parquet: NannyML's rows with `y_true` and `period`.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"  # it would phone home otherwise

import nannyml  # type: ignore[import-not-found]
import pandas as pd

CHUNK_ROWS = 5000
SCORES = "y_pred_proba_"


def main() -> None:
    warnings.simplefilter("ignore")
    car_loan, out = Path(sys.argv[1]), Path(sys.argv[2])
    frames = {
        "car loan": pd.read_parquet(car_loan).rename(columns={"repaid": "y_true", "partition": "period"}),
        "credit card": _shipped(nannyml.datasets.load_synthetic_multiclass_classification_dataset()),
        "car price": _shipped(nannyml.datasets.load_synthetic_car_price_dataset()),
    }
    numbers = {"version": nannyml.__version__, "chunk_rows": CHUNK_ROWS, "tables": {}}
    for name, frame in frames.items():
        frame.to_parquet(out / f"{name}.parquet")
        reference = frame[frame["period"] == "reference"].drop(columns="period").reset_index(drop=True)
        later = frame[frame["period"] != "reference"].drop(columns=["period", "y_true"]).reset_index(drop=True)
        estimator = _estimator(name, reference)
        estimator.fit(reference)
        result = estimator.estimate(later).filter(period="analysis").to_df()
        found = {
            m: result[m]["value"].tolist() for m in dict.fromkeys(result.columns.get_level_values(0)) if m != "chunk"
        }
        numbers["tables"][name] = _with_balanced_accuracy(found)
    (out / "numbers.json").write_text(json.dumps(numbers))


def _shipped(parts: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]) -> pd.DataFrame:
    reference, later, labels = parts
    later = later.assign(y_true=later["id"].map(labels.set_index("id")["y_true"]))
    return pd.concat([reference.assign(period="reference"), later.assign(period="analysis")], ignore_index=True)


def _estimator(name: str, reference: pd.DataFrame) -> nannyml.base.AbstractEstimator:
    common = {"y_pred": "y_pred", "y_true": "y_true", "chunk_size": CHUNK_ROWS}
    if name == "car price":
        other = ("id", "timestamp", "y_true", "y_pred")
        features = [c for c in reference.columns if c not in other]
        return nannyml.DLE(feature_column_names=features, metrics=["mae", "rmse", "mape"], **common)
    if name == "car loan":
        metrics = ["roc_auc", "accuracy", "f1", "precision", "recall", "confusion_matrix"]
        return nannyml.CBPE(
            problem_type="classification_binary", y_pred_proba="y_pred_proba", metrics=metrics, **common
        )
    scores = {c.removeprefix(SCORES): c for c in reference.columns if c.startswith(SCORES)}
    return nannyml.CBPE(
        problem_type="classification_multiclass", y_pred_proba=scores, metrics=["accuracy", "f1"], **common
    )


def _with_balanced_accuracy(found: dict[str, list[float]]) -> dict[str, list[float]]:
    """NannyML has none; its documentation makes it from the estimated confusion matrix."""
    names = ("true_positive", "false_negative", "true_negative", "false_positive")
    if names[0] not in found:
        return found
    cells = zip(*(found.pop(name) for name in names), strict=True)
    return found | {"balanced_accuracy": [(tp / (tp + fn) + tn / (tn + fp)) / 2 for tp, fn, tn, fp in cells]}


if __name__ == "__main__":
    main()
