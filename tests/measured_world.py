"""A state folder with measured windows in it, without the days it takes to measure them: for the page and its bench.

Invariant: everything is written through the daemon's own lake, ledger and store; only the measured values are made up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import polars as pl

from monitor.config.loading import LoadedConfig
from monitor.config.plan import plans
from monitor.lake.lake import Lake, Table
from monitor.lake.progress import DRIFT, PERFORMANCE
from monitor.measure.drift.impact import drift_impact
from monitor.measure.measurement_table import to_rows
from monitor.measure.worker import MeasureResult
from monitor.rules.measurement import Measure, Measurement, WindowKey
from retrain.config.spec import JobSpec
from retrain.control.store import AliasMove, Store
from retrain.terms.request import RetrainRequest, TriggerKind
from retrain.terms.states import JobState

SIZE = timedelta(hours=1)
NOISE = 0.03
"""Half of every interval."""
FEATURES = {**{f"number_{n}": "number" for n in range(6)}, "channel": "category", "country": "category"}
IMPORTANCE = dict(zip(FEATURES, (0.05, 0.15, 0.1, 0.25, 0.3, 0.05, 0.08, 0.02), strict=True))
METRICS = ("balanced_accuracy", "f1")
RULES: list[dict[str, Any]] = [
    {"name": "performance_drop", "measure": "performance_drop", "above": 0.05, "clear": 0.03, "for": "2 of 3 windows",
     "severity": "critical", "action": "retrain"},
    {"name": "many_features_drift", "measure": "drift_share", "above": 0.5, "for": "3 of 4 windows",
     "severity": "warning", "action": "alert"},
]  # fmt: skip
"""With numbers of their own: what chance gives was not found out here."""


def configuration(folder: Path, models: Sequence[str], **changes: Any) -> dict[str, Any]:
    """One binary model per name in hourly windows; nothing is retrained by itself."""
    model = {
        "task": "binary",
        "classes": ["0", "1"],
        "features": FEATURES,
        "segments": ["country"],
        "metrics": list(METRICS),
        "windows": {"size": "1h", "min_rows": 100},
        "rules": RULES,
        "retrain": {"enabled": False},
    }
    document: dict[str, Any] = {
        "daemon": {"state": str(folder / "state"), "log_format": "json"},
        "http": {"port": 0, "token": {"env": "DRIFTD_TEST_TOKEN"}},
        "models": dict.fromkeys(models, model),
    }
    return document | changes


@cache
def newest_end() -> datetime:
    """The end of the newest window that may be closed by now; the same for a whole run, which an hour may end in."""
    now = datetime.now(UTC)
    return now.replace(minute=0, second=0, microsecond=0)


def measure_windows(
    lake: Lake,
    model: str,
    windows: int,
    *,
    bad_since: int | None = None,
    version: str = "1",
    until: int = 0,
    unlabelled: int = 0,
) -> None:
    """`windows` of them, ending now or `until` hours later; of the last `unlabelled` no label has come.

    The last `bad_since` have a low performance, half of which the estimate foresees, and features that drift.
    """
    rng, end = np.random.default_rng(len(model)), newest_end() + until * SIZE
    rows = []
    for left in range(windows - 1, -1, -1):
        key = WindowKey(model, version, end - (left + 1) * SIZE, end - left * SIZE)
        bad = bad_since is not None and left < bad_since
        estimates = {metric: float((0.72 if bad else 0.85) + rng.normal(0, 0.005)) for metric in METRICS}
        for performance in (False, True) if left >= unlabelled else (False,):
            if performance:
                found = tuple(_performance(rng, bad, estimates))
            else:
                found = (*_drift(rng, bad, tuple(FEATURES)), *_estimates(estimates))
            result = MeasureResult(key, performance, 500, 480 if performance else 0, "registry:1", found)
            rows.append(to_rows(result, PERFORMANCE if performance else DRIFT, True, datetime.now(UTC)))
    append(lake, model, pl.concat(rows))


def append(lake: Lake, model: str, rows: pl.DataFrame) -> None:
    """Rows of the measurements table, a day at a time as the daemon writes them."""
    for _, part in rows.group_by("date", maintain_order=True):
        step = lake.position(Table.MEASUREMENTS, model, "sequence") or 0
        lake.append_next(Table.MEASUREMENTS, part, model, {"sequence": step} if step else {}, {"sequence": step + 1})


def _estimates(estimates: Mapping[str, float]) -> list[Measurement]:
    found = []
    for metric, value in estimates.items():
        around = (value - NOISE, value + NOISE)
        worse = (0.85 - around[1], 0.85 - around[0])
        found += [
            Measurement(Measure.ESTIMATED_PERFORMANCE, value, 500, metric=metric, interval=around),
            Measurement(Measure.ESTIMATED_DROP, 0.85 - value, 500, metric=metric, interval=worse),
        ]
    return found


def _performance(rng: np.random.Generator, bad: bool, estimates: Mapping[str, float]) -> list[Measurement]:
    found = [Measurement(Measure.LABEL_COVERAGE, 0.96, 500), Measurement(Measure.LABEL_DELAY, 1800.0, 480)]
    for metric in METRICS:
        for segment in ("", "country=de", "country=fr"):
            value = float((0.6 if bad else 0.85) + rng.normal(0, 0.01))
            of: dict[str, Any] = {"metric": metric, "segment": segment}
            found += [
                Measurement(Measure.PERFORMANCE, value, 480, **of, interval=(value - NOISE, value + NOISE)),
                Measurement(
                    Measure.PERFORMANCE_DROP,
                    0.85 - value,
                    480,
                    **of,
                    p_value=_chance(0.85 - value),
                    standard_error=NOISE / 2,
                    reference_error=NOISE / 4,
                ),
            ]
            if not segment:
                missed = estimates[metric] - value
                found.append(
                    Measurement(Measure.ESTIMATION_ERROR, missed, 480, **of, interval=(missed - NOISE, missed + NOISE))
                )
    return found


def _drift(rng: np.random.Generator, bad: bool, features: Sequence[str]) -> list[Measurement]:
    found = [Measurement(Measure.VOLUME, 500.0, 500), Measurement(Measure.LATENCY_P95, 0.02, 500)]
    drifts = []
    for n, feature in enumerate(features):
        value = abs(float(rng.normal(0.05, 0.02))) + (0.3 if bad and n % 3 else 0.0)
        gone = bad and feature == "number_3"  # it drifts by its missing values alone
        found.append(Measurement(Measure.MISSING_SHARE, 0.35 if gone else 0.01, 500, feature=feature))
        drifts.append(
            Measurement(
                Measure.FEATURE_DRIFT, value, 500, feature=feature, method="wasserstein", threshold=0.1,
                drifted=gone or value >= 0.1, p_value=1e-7 if gone else _chance(value - 0.05),
                reason="missing in 35% of the rows, 1% in the reference" if gone else "",
            )
        )  # fmt: skip
    share = Measurement(Measure.DRIFT_SHARE, sum(bool(m.drifted) for m in drifts) / len(features), 500)
    return [*found, *drifts, *drift_impact(drifts, IMPORTANCE), share]


def _chance(excess: float) -> float:
    return 1.0 - NormalDist(0.0, NOISE / 1.5).cdf(excess)


def predictions(lake: Lake, model: str, version: str = "1", rows: int = 500) -> None:
    """The rows of the newest window, so that its distributions can be looked at."""
    rng, end = np.random.default_rng(1), newest_end()
    ts = [end - timedelta(seconds=float(s)) for s in np.sort(rng.uniform(1, 3500, rows))]
    columns: dict[str, Any] = {
        "prediction_id": [f"{model}-{n}" for n in range(rows)],
        "ts": pl.Series(ts, dtype=pl.Datetime("us", "UTC")),
        "date": [f"{t:%Y-%m-%d}" for t in ts],
        "model_version": [version] * rows,
        "prediction": rng.choice(["0", "1"], rows),
        "score": rng.random(rows),
        "latency_ms": rng.random(rows),
        "segment_country": rng.choice(["de", "fr"], rows),
    }
    for name, kind in FEATURES.items():
        values = rng.normal(1, 1, rows) if kind == "number" else rng.choice(["a", "b", "c"], rows)
        columns[f"feature_{name}"] = values
    columns["invalid_features"] = pl.Series([None] * rows, dtype=pl.List(pl.String))
    columns |= {"source_partition": ["made/0"] * rows, "source_offset": list(range(rows))}
    lake.append(Table.PREDICTIONS, pl.DataFrame(columns), model)


def job(store: Store, loaded: LoadedConfig, model: str, name: str, *path: JobState, **result: Any) -> None:
    """A job that went along `path`, with what it found."""
    now = datetime.now(UTC)
    plan = plans(loaded)[model]
    request = RetrainRequest(name, model, TriggerKind.MANUAL, "asked for by ada", {"actor": "ada"}, now)
    uri = f"sqlite:///{loaded.config.state / 'mlflow.db'}"
    store.submit(JobSpec(request, plan.schema, "outcomes", uri, model, "jobs", plan.retrain), now)
    at = JobState.REQUESTED
    for following in path:
        store.advance(name, at, following, f"{following.value} of {name}", now)
        at = following
    store.update(name, None, result=result)


def champion(store: Store, model: str, version: str) -> None:
    store.record_alias(AliasMove(model, "champion", version, None, None, "ada", datetime.now(UTC), "the first model"))
