"""driftd's numbers are Evidently's: each offered method and metric against `Report.run` on the same data."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import polars as pl
import pytest

from monitor.measure._evidently import column_type, load, quiet
from monitor.measure.drift.compare import measure_drift
from monitor.measure.drift.methods import METHODS, DriftMethod, Statistic, drift_method
from monitor.measure.performance.compute import measure_performance
from monitor.measure.reference import Reference, prepare
from monitor.rules.measurement import Measure, Measurement
from retrain.terms.schema import Feature, FeatureKind, ModelSchema, Task

ROWS = 300
INF = math.inf


def numbers() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (window, reference)."""
    rng = np.random.default_rng(7)
    base, moved = rng.normal(size=ROWS), rng.normal(0.3, 1.2, size=ROWS)
    gaps, infinite = moved.copy(), moved.copy()
    gaps[::4] = np.nan
    infinite[:3] = [INF, -INF, INF]
    return {
        "plain": (moved, base),
        "same": (base, base),
        "longer_window": (rng.normal(size=ROWS + 100), base),
        "missing": (gaps, base),
        "missing_both": (gaps, np.where(base > 1, np.nan, base)),
        "infinite": (infinite, base),
        "infinite_both": (infinite, np.where(base > 2, INF, base)),
        "few_values": (rng.integers(0, 4, ROWS).astype(float), rng.integers(0, 5, ROWS).astype(float)),
        "constant_window": (np.ones(ROWS), base),
        "constant_both": (np.ones(ROWS), np.ones(ROWS)),
        "tiny_window": (moved[:3], base),
        "one_row": (moved[:1], base),
        "tiny_both": (moved[:4], base[:4]),
    }


def labels() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(8)
    two = rng.choice(["no", "yes"], ROWS, p=[0.7, 0.3]).astype(object)
    two_moved = rng.choice(["no", "yes"], ROWS).astype(object)
    many = rng.choice(list("abcdefg"), ROWS).astype(object)
    many_moved = rng.choice(list("abcdefg"), ROWS, p=[0.4, *[0.1] * 6]).astype(object)
    gaps = many_moved.copy()
    gaps[::4] = None
    return {
        "two": (two_moved, two),
        "two_longer_window": (np.concatenate([two_moved, two_moved]), two),
        "many": (many_moved, many),
        "missing": (gaps, many),
        "unseen": (np.where(many_moved == "a", "A new one", many_moved), many),
        "vanished": (np.where(many_moved == "a", "b", many_moved), many),
        "constant_window": (np.array(["a"] * ROWS, dtype=object), many),
        "constant_both": (np.array(["a"] * ROWS, dtype=object), np.array(["a"] * ROWS, dtype=object)),
        "tiny_window": (many_moved[:2], many),
        "bools": (two_moved == "yes", two == "yes"),
    }


SLOW = {"TVD", "empirical_mmd"}  # permutation tests: seconds each
SLOW_CASES = {"plain", "infinite", "tiny_both", "two", "missing"}


def cases() -> list[tuple[str, str, FeatureKind]]:
    found: list[tuple[str, str, FeatureKind]] = []
    for method, spec in METHODS.items():
        if FeatureKind.NUMBER in spec.kinds:
            found += [(method, case, FeatureKind.NUMBER) for case in numbers()]
        if FeatureKind.CATEGORY in spec.kinds:
            kinds = {"bools": FeatureKind.BOOL}
            found += [(method, case, kinds.get(case, FeatureKind.CATEGORY)) for case in labels()]
    return [c for c in found if c[0] not in SLOW or c[1] in SLOW_CASES]


def schema(kind: FeatureKind) -> ModelSchema:
    return ModelSchema("m", Task.REGRESSION, (Feature("x", kind),))


def frame(values: np.ndarray, kind: FeatureKind) -> pl.DataFrame:
    dtype = {
        FeatureKind.NUMBER: pl.Float64,
        FeatureKind.CATEGORY: pl.String,
        FeatureKind.BOOL: pl.Boolean,
    }[kind]
    return pl.DataFrame({"feature_x": pl.Series(values.tolist(), dtype=dtype)})


def ours(window: np.ndarray, reference: np.ndarray, kind: FeatureKind, method: DriftMethod) -> Measurement:
    prepared = prepare(frame(reference, kind), schema(kind))
    return measure_drift(frame(window, kind), prepared, schema(kind), {"x": method})[0]


def theirs(window: np.ndarray, reference: np.ndarray, kind: FeatureKind, method: DriftMethod) -> tuple[float, bool]:
    """Evidently's score and verdict, or its exception."""
    evidently = load()
    from evidently.legacy.tests.base_test import TestStatus
    from evidently.metrics import ValueDrift

    columns = {"numerical_columns" if kind is FeatureKind.NUMBER else "categorical_columns": ["x"]}
    definition = evidently.DataDefinition(**columns)
    report = evidently.Report(
        [ValueDrift(column="x", method=method.name, threshold=method.threshold)], include_tests=True
    )
    with quiet():
        sides = [
            evidently.Dataset.from_pandas(pd.DataFrame({"x": pd.Series(side)}), definition)
            for side in (window, reference)
        ]
        np.random.seed(0)
        result = report.run(*sides)
    [metric], [test] = result.dict()["metrics"], result.dict()["tests"]
    return float(metric["value"]), test["status"] == TestStatus.FAIL


@pytest.mark.parametrize(("method", "case", "kind"), cases())
def test_drift_is_evidently_s_own(method: str, case: str, kind: FeatureKind) -> None:
    window, reference = (numbers() if kind is FeatureKind.NUMBER else labels())[case]
    chosen = drift_method(method)
    measured = ours(window, reference, kind, chosen)
    by_missing = measured.reason.startswith("missing in ")  # which Evidently leaves out of account
    if by_missing:
        measured = replace(measured, drifted=None, reason="")
    assert measured.rows == (~pd.isna(pd.Series(window).replace([INF, -INF], np.nan))).sum()
    try:
        score, drifted = theirs(window, reference, kind, chosen)
    except Exception:  # noqa: BLE001  Evidently raises whatever SciPy does
        if METHODS[method].equal_rows and measured.value is not None:
            assert len(window) != len(reference) or case == "missing"  # driftd cuts the longer side
        else:
            assert (measured.value, measured.drifted) == (None, None)
            assert by_missing or measured.reason.startswith(f"{method} failed: ")
        return
    if math.isnan(score):
        assert not drifted  # Evidently: "no drift"; driftd: undecided
        assert (measured.value, measured.drifted) == (None, None)
        assert by_missing or measured.reason == f"{method} is undefined on these values"
        return
    assert by_missing or measured.drifted == drifted
    if math.isinf(score):
        assert measured.value is None
        assert measured.reason == f"{method} is infinite"
    else:
        assert measured.value == pytest.approx(score, rel=1e-9, abs=1e-9)
        assert (measured.method, measured.threshold, measured.reason) == (method, chosen.threshold, "")


@pytest.mark.parametrize("method", [m for m, s in METHODS.items() if not s.as_is])
def test_verdict_turns_at_the_configured_threshold(method: str) -> None:
    spec = METHODS[method]
    kind = FeatureKind.NUMBER if FeatureKind.NUMBER in spec.kinds else FeatureKind.CATEGORY
    window, reference = numbers()["plain"] if kind is FeatureKind.NUMBER else labels()["two"]
    score = ours(window, reference, kind, drift_method(method)).value
    assert score is not None
    for threshold in (score * 0.9, score * 1.1):
        measured = ours(window, reference, kind, DriftMethod(method, threshold))
        assert measured.drifted == theirs(window, reference, kind, DriftMethod(method, threshold))[1]
        assert measured.drifted == (score < threshold if spec.statistic is Statistic.P_VALUE else score > threshold)


def test_catalogue_agrees_with_evidently_s_registry() -> None:
    load()
    from evidently.legacy.calculations.stattests import registry

    registered = {name: tests for name, tests in registry._registered_stat_tests.items() if "text" not in name}
    assert set(METHODS) == set(registered)
    for name, tests in registered.items():
        kinds = {k for k in FeatureKind if column_type(k) in tests}
        assert METHODS[name].kinds == kinds
        assert {t.default_threshold for t in tests.values()} == {METHODS[name].threshold}


def wide(seed: int, shift: float = 0.0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    columns = {f"feature_n{i}": rng.normal(shift * (i % 2), 1, 1500) for i in range(4)}
    columns |= {f"feature_c{i}": rng.choice(list("abcd"), 1500) for i in range(3)}
    return pl.DataFrame(columns)


WIDE = ModelSchema(
    "m",
    Task.REGRESSION,
    tuple(Feature(f"n{i}", FeatureKind.NUMBER) for i in range(4))
    + tuple(Feature(f"c{i}", FeatureKind.CATEGORY) for i in range(3)),
)


def preset(window: pl.DataFrame, reference: pl.DataFrame) -> dict[str, float]:
    """Metric name -> value of the whole drift preset with driftd's default methods."""
    evidently = load()
    definition = evidently.DataDefinition(
        numerical_columns=[f.column for f in WIDE.features if f.kind is FeatureKind.NUMBER],
        categorical_columns=[f.column for f in WIDE.features if f.kind is FeatureKind.CATEGORY],
    )
    report = evidently.Report(
        [
            evidently.presets.DataDriftPreset(
                num_method="wasserstein", cat_method="jensenshannon", num_threshold=0.1, cat_threshold=0.1
            )
        ]
    )
    with quiet():
        result = report.run(
            *(evidently.Dataset.from_pandas(f.to_pandas(), definition) for f in (window, reference))
        ).dict()
    values = {m["config"].get("column", "share"): m["value"] for m in result["metrics"]}
    return {**values, "share": values["share"]["share"]}


def test_whole_preset_gives_the_same_values_and_share() -> None:
    window, reference = wide(1, shift=0.4), wide(2)
    expected = preset(window, reference)
    measured = measure_drift(window, prepare(reference, WIDE), WIDE, {})
    drifts = {f"feature_{m.feature}": m.value for m in measured if m.measure is Measure.FEATURE_DRIFT}
    assert drifts == {c: pytest.approx(v) for c, v in expected.items() if c != "share"}
    [share] = [m.value for m in measured if m.measure is Measure.DRIFT_SHARE]
    assert share == pytest.approx(expected["share"])
    assert 0 < expected["share"] < 1


@pytest.mark.parametrize("gone", ["null", "absent"])
def test_one_missing_column_aborts_the_report_but_not_driftd(gone: str) -> None:
    window, reference = wide(1), wide(2)
    broken = window.drop("feature_n0") if gone == "absent" else window.with_columns(feature_n0=pl.lit(None, pl.Float64))
    with pytest.raises(Exception, match="n0"):
        preset(broken, reference)
    measured = {m.feature: m for m in measure_drift(broken, prepare(reference, WIDE), WIDE, {}) if m.feature}
    assert measured["n0"].drifted
    assert measured["n0"].value is None
    assert measured["n0"].reason.startswith("went missing")
    assert all(m.value is not None for name, m in measured.items() if name != "n0")


def test_the_report_s_share_takes_infinite_values_in_while_driftd_leaves_them_out() -> None:
    """`ValueDrift` cleans infinite values; the preset's `DriftedColumnsCount` does not if nothing is null."""
    window, reference = wide(1), wide(2)
    infinite = window.with_columns(
        feature_n1=pl.when(pl.int_range(pl.len()) == 0).then(INF).otherwise(pl.col("feature_n1"))
    )
    [share] = [
        m.value for m in measure_drift(infinite, prepare(reference, WIDE), WIDE, {}) if m.measure is Measure.DRIFT_SHARE
    ]
    assert share == 0
    expected = preset(infinite, reference)
    assert expected["feature_n1"] < 0.1  # its own `ValueDrift` sees no drift in this column
    assert expected["share"] == pytest.approx(1 / 7)


BINARY = ModelSchema("m", Task.BINARY, (), classes=("no", "yes"), positive="yes")
MULTICLASS = ModelSchema("m", Task.MULTICLASS, (), classes=("c", "a", "b"))
REGRESSION = ModelSchema("m", Task.REGRESSION, ())


def evidently_values(
    outcomes: pl.DataFrame, metrics: dict[str, object], task: dict[str, list[object]]
) -> dict[str, float]:
    evidently = load()
    definition = evidently.DataDefinition(
        numerical_columns=[c for c in outcomes.columns if outcomes[c].dtype.is_float()],
        categorical_columns=[c for c in outcomes.columns if not outcomes[c].dtype.is_float()],
        **task,
    )
    with quiet():
        result = evidently.Report(list(metrics.values())).run(
            evidently.Dataset.from_pandas(outcomes.to_pandas(), definition), None
        )
    values = [m["value"] for m in result.dict()["metrics"]]
    return {name: float(v["mean"] if isinstance(v, dict) else v) for name, v in zip(metrics, values, strict=True)}


def driftd_values(outcomes: pl.DataFrame, schema: ModelSchema, names: list[str]) -> dict[str, float | None]:
    empty: Reference = prepare(outcomes.clear(), schema)
    found = measure_performance(outcomes, empty, schema, names, 1)
    return {m.metric: m.value for m in found if m.measure is Measure.PERFORMANCE}


def test_binary_metrics_are_evidently_s() -> None:
    evidently = load()
    from evidently import metrics as em

    rng = np.random.default_rng(3)
    score = rng.random(400)
    outcomes = pl.DataFrame(
        {
            "score": score,
            "prediction": np.where(score >= 0.5, "yes", "no"),
            "label": np.where(rng.random(400) < score, "yes", "no"),
        }
    )
    metrics = {
        "accuracy": em.Accuracy(),
        "precision": em.Precision(),
        "recall": em.Recall(),
        "f1": em.F1Score(),
        "roc_auc": em.RocAuc(),
        "log_loss": em.LogLoss(),
    }
    task = evidently.BinaryClassification(
        target="label", prediction_labels="prediction", prediction_probas="score", pos_label="yes"
    )
    expected = evidently_values(outcomes, metrics, {"classification": [task]})
    assert driftd_values(outcomes, BINARY, list(metrics)) == pytest.approx(expected)


def test_multiclass_metrics_are_evidently_s() -> None:
    evidently = load()
    from evidently import metrics as em

    rng = np.random.default_rng(4)
    scores = rng.dirichlet([1, 1, 1], 400)
    classes = np.array(MULTICLASS.classes)
    plain = pl.DataFrame(
        {
            **{c: scores[:, i] for i, c in enumerate(classes)},
            "prediction": classes[scores.argmax(axis=1)],
            "label": [rng.choice(classes, p=p) for p in scores],
        }
    )
    task = evidently.MulticlassClassification(
        target="label", prediction_labels="prediction", prediction_probas=list(MULTICLASS.classes)
    )
    metrics = {"accuracy": em.Accuracy(), "f1_macro": em.F1Score(), "log_loss": em.LogLoss()}
    expected = evidently_values(plain, metrics, {"classification": [task]})
    outcomes = plain.rename({c: f"score_{c}" for c in MULTICLASS.classes})
    assert driftd_values(outcomes, MULTICLASS, list(metrics)) == pytest.approx(expected)


def test_regression_metrics_are_evidently_s() -> None:
    evidently = load()
    from evidently import metrics as em

    rng = np.random.default_rng(5)
    label = rng.normal(10, 2, 400)
    outcomes = pl.DataFrame({"prediction": label + rng.normal(0.2, 1, 400), "label": label})
    metrics = {
        "mae": em.MAE(),
        "rmse": em.RMSE(),
        "r2": em.R2Score(),
        "mape": em.MAPE(),
        "bias": em.MeanError(),
    }
    task = evidently.Regression(target="label", prediction="prediction")
    expected = evidently_values(outcomes, metrics, {"regression": [task]})
    expected["mape"] /= 100  # Evidently's is in percent, driftd's a ratio
    assert driftd_values(outcomes, REGRESSION, list(metrics)) == pytest.approx(expected)
