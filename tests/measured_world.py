"""A state folder with measured windows in it, without the days it takes to measure them: for the page and its bench.

Invariant: everything is written through the daemon's own lake, ledger and store; only the measured values are made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from monitor.config import LoadedConfig
from monitor.lake import Lake, Table
from monitor.measure.worker import MeasureResult
from monitor.measurement import Measure, Measurement, WindowKey
from monitor.measurement_table import to_rows
from monitor.plan import plans
from monitor.progress import DRIFT, PERFORMANCE
from retrain.request import RetrainRequest, TriggerKind
from retrain.spec import JobSpec
from retrain.states import JobState
from retrain.store import AliasMove, Store

SIZE = timedelta(hours=1)
FEATURES = {**{f"number_{n}": "number" for n in range(6)}, "channel": "category", "country": "category"}


def configuration(folder: Path, models: Sequence[str], **changes: Any) -> dict[str, Any]:
    """One binary model per name in hourly windows; nothing is retrained by itself."""
    model = {
        "task": "binary",
        "classes": ["0", "1"],
        "features": FEATURES,
        "segments": ["country"],
        "metrics": ["balanced_accuracy", "f1"],
        "windows": {"size": "1h", "min_rows": 100},
        "retrain": {"enabled": False},
    }
    document: dict[str, Any] = {
        "daemon": {"state": str(folder / "state"), "log_format": "json"},
        "http": {"port": 0, "token": {"env": "DRIFTD_TEST_TOKEN"}},
        "models": dict.fromkeys(models, model),
    }
    return document | changes


def newest_end() -> datetime:
    """The end of the newest window that may be closed by now."""
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
) -> None:
    """`windows` of them, ending now or `until` hours later.

    The last `bad_since` have a low performance and features that drift.
    """
    rng, end = np.random.default_rng(len(model)), newest_end() + until * SIZE
    rows = []
    for left in range(windows - 1, -1, -1):
        key = WindowKey(model, version, end - (left + 1) * SIZE, end - left * SIZE)
        bad = bad_since is not None and left < bad_since
        for performance in (False, True):
            found = tuple(_performance(rng, bad) if performance else _drift(rng, bad, tuple(FEATURES)))
            result = MeasureResult(key, performance, 500, 480 if performance else 0, "registry:1", found)
            rows.append(to_rows(result, PERFORMANCE if performance else DRIFT, True, datetime.now(UTC)))
    for _, part in pl.concat(rows).group_by("date", maintain_order=True):
        step = lake.position(Table.MEASUREMENTS, model, "sequence") or 0
        lake.append_next(Table.MEASUREMENTS, part, model, {"sequence": step} if step else {}, {"sequence": step + 1})


def _performance(rng: np.random.Generator, bad: bool) -> list[Measurement]:
    found = [Measurement(Measure.LABEL_COVERAGE, 0.96, 500), Measurement(Measure.LABEL_DELAY, 1800.0, 480)]
    for metric in ("balanced_accuracy", "f1"):
        for segment in ("", "country=de", "country=fr"):
            value = float((0.6 if bad else 0.85) + rng.normal(0, 0.01))
            of = {"metric": metric, "segment": segment}
            found += [
                Measurement(Measure.PERFORMANCE, value, 480, **of, interval=(value - 0.03, value + 0.03)),
                Measurement(Measure.PERFORMANCE_DROP, 0.85 - value, 480, **of),
            ]
    return found


def _drift(rng: np.random.Generator, bad: bool, features: Sequence[str]) -> list[Measurement]:
    found = [Measurement(Measure.VOLUME, 500.0, 500), Measurement(Measure.LATENCY_P95, 0.02, 500)]
    drifted = 0
    for n, feature in enumerate(features):
        value = abs(float(rng.normal(0.05, 0.02))) + (0.3 if bad and n % 3 else 0.0)
        drifted += value >= 0.1
        found.append(
            Measurement(
                Measure.FEATURE_DRIFT, value, 500, feature=feature, method="wasserstein", threshold=0.1,
                drifted=value >= 0.1,
            )
        )  # fmt: skip
        found.append(Measurement(Measure.MISSING_SHARE, 0.01, 500, feature=feature))
    return [*found, Measurement(Measure.DRIFT_SHARE, drifted / len(features), 500)]


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
