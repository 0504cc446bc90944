"""Performance estimated without labels, against NannyML and the labels: the tables of docs/estimated-performance.md.

`python -m bench.estimates --data FOLDER --nannyml PYTHON` runs NannyML in that interpreter (it does not fit next to
driftd's requirements), driftd on the same windows, and the coverage of driftd's intervals on generated rows; it keeps
the raw numbers in bench/results/estimates.json and rewrites the tables. Without `--nannyml` only the coverage is new.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bench.doc import rewrite
from monitor.measure.estimate.without_labels import Estimate, Estimator, estimate, fit_estimator
from monitor.measure.performance._scored import compute, scored_rows
from monitor.measure.performance.scores import metrics_for
from retrain.terms.schema import Feature, FeatureKind, ModelSchema, Task

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "estimates.json"
DOC = ROOT / "docs" / "estimated-performance.md"
CAR_LOAN = "nannyml_synthetic_car_loan.parquet"
NOT_FEATURES = {"id", "timestamp", "period", "y_true", "y_pred", "y_pred_proba"}
THEIRS = {"f1_macro": "f1"}
"""Names of NannyML's that differ from driftd's."""

FEATURES = (
    Feature("x", FeatureKind.NUMBER),
    Feature("z", FeatureKind.NUMBER),
    Feature("kind", FeatureKind.CATEGORY),
)
SCHEMAS = {
    Task.BINARY: ModelSchema("m", Task.BINARY, FEATURES, ("no", "yes"), "yes"),
    Task.MULTICLASS: ModelSchema("m", Task.MULTICLASS, FEATURES, ("a", "b", "c")),
    Task.REGRESSION: ModelSchema("m", Task.REGRESSION, FEATURES),
}
REFERENCES, WINDOWS = (1000, 10_000), (200, 1000)


def world(task: Task, rng: np.random.Generator, rows: int, *, shift: float = 0.0, concept: float = 0.0) -> pl.DataFrame:
    """Served and labelled rows of a model whose scores are overconfident, or whose errors depend on the inputs.

    `shift` moves the inputs (covariate shift). `concept` is the share of labels that mean something else now, for
    regression by how many times the errors have grown (concept drift).
    """
    x, z = rng.normal(shift, 1, rows), rng.normal(0, 1, rows)
    kind = rng.choice(["u", "v"], rows)
    features = {"feature_x": x, "feature_z": z, "feature_kind": kind}
    if task is Task.REGRESSION:
        spread = np.exp(0.4 * x) + (kind == "u")
        label = 20 + 3 * x + rng.normal(0, 1, rows) * spread * (1 + concept)
        return pl.DataFrame({**features, "prediction": 20 + 3 * x, "label": label})
    turned = rng.random(rows) < concept
    if task is Task.BINARY:
        logit = 2 * x - 1
        score = 1 / (1 + np.exp(-1.6 * logit - 0.6))
        truth = (rng.random(rows) < 1 / (1 + np.exp(-logit))) ^ turned
        names = np.array(["no", "yes"])
        answer = names[(score > 0.5).astype(int)]
        return pl.DataFrame({**features, "score": score, "prediction": answer, "label": names[truth.astype(int)]})
    logits = np.stack([1.5 * x, 1.5 * z, -x - z - 0.5], axis=1)
    given = _softmax(1.7 * logits + np.array([0.3, 0.0, 0.0]))
    chosen = (rng.random((rows, 1)) > _softmax(logits).cumsum(axis=1)).sum(axis=1).clip(0, 2)
    names = np.array(["a", "b", "c"])
    scores = {f"score_{name}": given[:, n] for n, name in enumerate(names)}
    label = names[np.where(turned, (chosen + 1) % 3, chosen)]
    return pl.DataFrame({**features, **scores, "prediction": names[given.argmax(axis=1)], "label": label})


def _softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers: np.ndarray[Any, Any] = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True)


def coverage(
    task: Task, reference_rows: int, rows: int, references: int, windows: int, metrics: Sequence[str] = ()
) -> dict[str, float]:
    """Share of windows, like the reference, whose realized value lies in the interval, by metric (all by default)."""
    rng = np.random.default_rng([reference_rows, rows])
    schema, inside = SCHEMAS[task], defaultdict(list)
    for _ in range(references):
        estimator = fitted(world(task, rng, reference_rows), schema, metrics or metrics_for(task))
        for _ in range(windows):
            window = world(task, rng, rows)
            scored = scored_rows(window, schema)
            for metric, found in estimate(estimator, window).items():
                if isinstance(found, Estimate):
                    inside[metric].append(found.low <= compute(metric, scored) <= found.high)
    return {metric: float(np.mean(each)) for metric, each in inside.items()}


def fitted(reference: pl.DataFrame, schema: ModelSchema, metrics: Sequence[str]) -> Estimator:
    estimator = fit_estimator(reference, schema, metrics)
    assert isinstance(estimator, Estimator), estimator
    return estimator


def lake_rows(name: str, frame: pl.DataFrame) -> tuple[pl.DataFrame, ModelSchema]:
    """NannyML's table in lake columns (and `period`), and what its model takes and answers."""
    scores = [c for c in frame.columns if c.startswith("y_pred_proba_")]
    features = [c for c in frame.columns if c not in {*NOT_FEATURES, *scores}]
    kinds = tuple(
        Feature(c, FeatureKind.NUMBER if frame.schema[c].is_numeric() else FeatureKind.CATEGORY) for c in features
    )
    task = {"car loan": Task.BINARY, "credit card": Task.MULTICLASS, "car price": Task.REGRESSION}[name]
    answer: Callable[[str], pl.Expr] = pl.col
    if task is Task.BINARY:
        answer = _whole
    rows = frame.select(
        *(pl.col(c).alias(f"feature_{c}") for c in features),
        *(pl.col(c).alias("score" + c.removeprefix("y_pred_proba")) for c in ("y_pred_proba", *scores) if c in frame),
        answer("y_pred").alias("prediction"),
        answer("y_true").alias("label"),
        pl.col("period"),
    )
    classes = () if task is Task.REGRESSION else tuple(sorted(rows["label"].unique()))
    return rows, ModelSchema(name, task, kinds, classes, "1" if task is Task.BINARY else None)


def _whole(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.Int64).cast(pl.String)


def car_loan(data: Path) -> pl.DataFrame:
    """The recorded table with NannyML's usual column names, as `_nannyml_cbpe.py` writes it."""
    return pl.read_parquet(data / CAR_LOAN).rename({"repaid": "y_true", "partition": "period"})


def windows_of(rows: pl.DataFrame, size: int) -> Iterator[pl.DataFrame]:
    later = rows.filter(pl.col("period") != "reference")
    return (later[start : start + size] for start in range(0, later.height, size))


def compared(name: str, frame: pl.DataFrame, theirs: dict[str, list[float]], size: int) -> dict[str, Any]:
    """By metric: the reference's value and, per window, NannyML's estimate (if it has one), driftd's, the realized."""
    rows, schema = lake_rows(name, frame)
    reference = rows.filter(pl.col("period") == "reference")
    estimator = fitted(reference, schema, metrics_for(schema.task))
    known = scored_rows(reference, schema)
    found: dict[str, Any] = {
        m: {"reference": compute(m, known), "nannyml": theirs.get(THEIRS.get(m, m)), "driftd": [], "realized": []}
        for m in metrics_for(schema.task)
        if m not in ("r2", "bias")
    }
    for window in windows_of(rows, size):
        scored, estimates = scored_rows(window, schema), estimate(estimator, window)
        for metric, each in found.items():
            ours = estimates[metric]
            assert isinstance(ours, Estimate), (metric, ours)
            each["driftd"].append([ours.value, ours.low, ours.high])
            each["realized"].append(compute(metric, scored))
    return found


def against_nannyml(data: Path, python: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(__file__).with_name("_nannyml_cbpe.py")
        subprocess.run([python, str(script), str(data / CAR_LOAN), folder], check=True)
        numbers = json.loads((Path(folder) / "numbers.json").read_text())
        tables = {
            name: compared(name, pl.read_parquet(Path(folder) / f"{name}.parquet"), theirs, numbers["chunk_rows"])
            for name, theirs in numbers["tables"].items()
        }
    return {"nannyml": numbers["version"], "window_rows": numbers["chunk_rows"], "tables": tables}


def all_coverages() -> list[dict[str, Any]]:
    found = []
    for task in Task:
        references, windows = (30, 10) if task is Task.REGRESSION else (100, 5)
        for reference_rows in REFERENCES:
            for rows in WINDOWS:
                shares = coverage(task, reference_rows, rows, references, windows)
                facts = {"task": task.value, "reference_rows": reference_rows, "window_rows": rows}
                found.append({**facts, "windows": references * windows, "inside": shares})
    return found


def distance(found: dict[str, Any], one: str, other: str) -> float | None:
    """Mean absolute difference over the windows; None without one of them."""
    if found[one] is None or found[other] is None:
        return None
    a, b = (
        np.array([v[0] if isinstance(v, list) else v for v in np.atleast_1d(found[k]).tolist()]) for k in (one, other)
    )
    return float(np.mean(np.abs(a - b)))


def inside(found: dict[str, Any]) -> int:
    """Windows whose realized value lies in driftd's interval."""
    both = zip(found["driftd"], found["realized"], strict=True)
    return sum(low <= realized <= high for (_, low, high), realized in both)


def table(results: dict[str, Any]) -> str:
    lines = []
    if "tables" in results:
        lines += [
            f"NannyML {results['nannyml']}, windows of {results['window_rows']} rows; mean absolute differences.\n\n",
            "| table | metric | driftd - NannyML | driftd - realized | NannyML - realized | reference - realized "
            "| realized in the interval |\n",
            f"|{'---|' * 7}\n",
        ]
    for name, metrics in results.get("tables", {}).items():
        for metric, found in metrics.items():
            pairs = [("driftd", "nannyml"), ("driftd", "realized"), ("nannyml", "realized"), ("reference", "realized")]
            shown = " | ".join(_show(distance(found, *pair)) for pair in pairs)
            lines.append(f"| {name} | {metric} | {shown} | {inside(found)} of {len(found['realized'])} |\n")
    lines += [
        "\nHow often the realized value lies in the 95 % interval, on generated windows like the reference.\n\n",
        "| task | reference rows | window rows | windows | in the interval, by metric |\n|---|---|---|---|---|\n",
    ]
    for row in results.get("coverage", []):
        shares = ", ".join(f"{metric} {share:.1%}" for metric, share in row["inside"].items())
        lines.append(
            f"| {row['task']} | {row['reference_rows']} | {row['window_rows']} | {row['windows']} | {shares} |\n"
        )
    return "".join(lines)


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.5f}" if value < 1 else f"{value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help=f"folder with {CAR_LOAN}")
    parser.add_argument("--nannyml", help="an interpreter that has NannyML")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if options.nannyml:
        if options.data is None:
            parser.error("--nannyml needs --data")
        results |= against_nannyml(options.data, options.nannyml)
    results |= {"coverage": all_coverages()}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    rewrite(DOC, table(results).rstrip())


if __name__ == "__main__":
    main()
