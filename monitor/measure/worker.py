"""What runs in a measuring process: read a window from the lake, find its reference, measure, answer.

Invariant: depends only on its task, so any process (or machine) gives the same answer; nothing large crosses the
process border. A reference is prepared once per process and version.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path

import polars as pl

from monitor.errors import TransientError
from monitor.join import first_predictions, last_outcomes
from monitor.lake import Lake, Table, day
from monitor.measure.methods import DriftMethod
from monitor.measurement import Measure, Measurement, WindowKey
from monitor.reference import Reference, prepare, read_file, to_lake_columns
from retrain.schema import ModelSchema

SAMPLE_SEED = 0


@dataclass(frozen=True, slots=True)
class ReferenceSource:
    """Where a version's reference comes from: its own folder (once found), the registry, a file, or warm-up."""

    folder: str
    path: str | None
    tracking_uri: str | None
    registered_model: str
    max_rows: int


@dataclass(frozen=True, slots=True)
class MeasureTask:
    """One window to measure; `performance` selects what is measured on labelled rows."""

    lake_uri: str
    storage_options: Mapping[str, str]
    schema: ModelSchema
    key: WindowKey
    performance: bool
    methods: Mapping[str, DriftMethod]
    metrics: tuple[str, ...]
    segment_min_rows: int
    max_rows: int
    reference: ReferenceSource


@dataclass(frozen=True, slots=True)
class MeasureResult:
    """`rows` and `labelled` count distinct predictions. `reference` names what was compared with, "" if nothing."""

    key: WindowKey
    performance: bool
    rows: int
    labelled: int
    reference: str
    measurements: tuple[Measurement, ...]


def measure(task: MeasureTask) -> MeasureResult:
    """Measure one window. Raises TransientError when the lake or the registry is away."""
    lake = Lake(task.lake_uri, task.storage_options)
    predictions = window_predictions(lake, task.key)
    found = reference_of(task)
    schema = task.schema
    if not task.performance:
        sample = _sample(predictions, task.max_rows)
        name, measured = _without_labels(sample, task, found)
        measured = [_with_volume(m, predictions.height) for m in measured]
        return MeasureResult(task.key, False, predictions.height, 0, name, tuple(measured))
    outcomes = window_outcomes(lake, task.key)
    coverage = outcomes.height / predictions.height if predictions.height else 0.0
    measured = [
        Measurement(Measure.LABEL_COVERAGE, min(1.0, coverage), predictions.height),
        _label_delay(outcomes),
    ]
    name = ""
    if outcomes.height:
        from monitor.measure.drift import measure_label_drift
        from monitor.measure.performance import measure_performance

        name, reference = found if found else ("", prepare(predictions.clear(), schema))
        sample = _sample(outcomes, task.max_rows)
        measured += measure_performance(sample, reference, schema, task.metrics, task.segment_min_rows)
        measured += measure_label_drift(sample, reference, schema, task.methods.get("label"))
    return MeasureResult(task.key, True, predictions.height, outcomes.height, name, tuple(measured))


def _without_labels(
    window: pl.DataFrame, task: MeasureTask, found: tuple[str, Reference] | None
) -> tuple[str, list[Measurement]]:
    from monitor.measure.quality import measure_quality

    if found is None:
        empty = prepare(window.clear(), task.schema)
        known = (Measure.UNSEEN_SHARE, Measure.OUT_OF_RANGE_SHARE)
        return "", [m for m in measure_quality(window, empty, task.schema) if m.measure not in known]
    from monitor.measure.drift import measure_drift

    name, reference = found
    quality = measure_quality(window, reference, task.schema)
    drift = measure_drift(window, reference, task.schema, task.methods, task.methods.get("prediction"))
    return name, [*quality, *drift]


def window_predictions(lake: Lake, key: WindowKey) -> pl.DataFrame:
    """The window's predictions, each id once."""
    return first_predictions(_window(lake, Table.PREDICTIONS, key))


def window_outcomes(lake: Lake, key: WindowKey) -> pl.DataFrame:
    """The window's labelled predictions, each id once with its newest label."""
    return last_outcomes(_window(lake, Table.OUTCOMES, key))


def scan_window(lake: Lake, table: Table, key: WindowKey) -> pl.LazyFrame | None:
    """The window's rows of a table, lazily; None without a table."""
    last = key.end - timedelta(microseconds=1)
    lazy = lake.scan(table, key.model, (day(key.start), day(last)))
    if lazy is None:
        return None
    return lazy.filter(
        pl.col("model_version") == key.version, pl.col("ts").is_between(key.start, key.end, closed="left")
    )


def _window(lake: Lake, table: Table, key: WindowKey) -> pl.DataFrame:
    lazy = scan_window(lake, table, key)
    if lazy is None:
        return pl.DataFrame(
            schema={
                "prediction_id": pl.String, "ts": pl.Datetime("us", "UTC"), "source_offset": pl.Int64,
                "label_ts": pl.Datetime("us", "UTC"),
            }
        )  # fmt: skip
    try:
        return lazy.collect()
    except (OSError, pl.exceptions.ComputeError) as exc:
        raise TransientError(f"{lake.table_uri(table, key.model)}: {exc}") from exc


def _sample(frame: pl.DataFrame, max_rows: int) -> pl.DataFrame:
    return frame if frame.height <= max_rows else frame.sample(max_rows, seed=SAMPLE_SEED)


def _with_volume(m: Measurement, rows: int) -> Measurement:
    return Measurement(Measure.VOLUME, float(rows), rows) if m.measure is Measure.VOLUME else m


def _label_delay(outcomes: pl.DataFrame) -> Measurement:
    if not outcomes.height:
        return Measurement(Measure.LABEL_DELAY, None, 0, reason="no labelled rows")
    seconds = (outcomes["label_ts"] - outcomes["ts"]).dt.total_seconds(fractional=True).median()
    return Measurement(Measure.LABEL_DELAY, max(0.0, float(seconds)), outcomes.height)  # type: ignore[arg-type]


def reference_of(task: MeasureTask) -> tuple[str, Reference] | None:
    """The frozen reference of the task's version and its name; None when a warm-up must make one first."""
    source, version = task.reference, task.key.version
    if _frozen(source, version) is None and source.tracking_uri:
        _from_registry(source, version, _folder(source, version) / "registry.parquet")
    path = reference_file(source, version)
    if path is None:
        return None
    name = f"{path.stem}:{version}" if path.parent == _folder(source, version) else f"file:{path.name}"
    return name, _prepared(
        str(path), path.stat().st_mtime_ns, task.schema, task.metrics, task.segment_min_rows, source.max_rows
    )


def reference_file(source: ReferenceSource, version: str) -> Path | None:
    """The file that a version's windows are compared with, as far as it is here already."""
    return _frozen(source, version) or (Path(source.path) if source.path else None)


def _frozen(source: ReferenceSource, version: str) -> Path | None:
    files = (_folder(source, version) / f"{stage}.parquet" for stage in ("labelled", "registry", "warmup"))
    return next((f for f in files if f.exists()), None)


def _folder(source: ReferenceSource, version: str) -> Path:
    return Path(source.folder) / version.replace("/", "_")


def _from_registry(source: ReferenceSource, version: str, target: Path) -> bool:
    """Fetch the artifact logged with the version; remembers for this process that a version has none."""
    if not version.isdigit() or source.tracking_uri is None:
        return False
    if (source.tracking_uri, source.registered_model, version) in _WITHOUT:
        return False
    if source.tracking_uri.startswith("sqlite:///"):
        store = Path(source.tracking_uri.removeprefix("sqlite:///"))
        if not store.exists():
            return False
    from retrain.registry import fetch_reference

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        found = fetch_reference(source.tracking_uri, source.registered_model, version, Path(folder))
        if found is None:
            _WITHOUT.add((source.tracking_uri, source.registered_model, version))
            return False
        found.replace(target)
    return True


_WITHOUT: set[tuple[str, str, str]] = set()


@lru_cache(maxsize=16)
def _prepared(
    path: str,
    _mtime_ns: int,
    schema: ModelSchema,
    metrics: tuple[str, ...],
    segment_min_rows: int,
    max_rows: int,
) -> Reference:
    from monitor.measure.performance import prepare_reference

    frame = to_lake_columns(read_file(Path(path)), schema)
    return prepare_reference(frame, schema, metrics, segment_min_rows, max_rows=max_rows)


def freeze_warmup(lake: Lake, windows: list[WindowKey], folder: Path, *, labelled: bool) -> str | None:
    """Make a version's first windows its reference; again, with their labels, once those have come.

    Returns the file; None when there is nothing to freeze (labels never came): what stands stays.
    """
    frames = [window_outcomes(lake, key) if labelled else window_predictions(lake, key) for key in sorted(windows)]
    found = [f for f in frames if f.height]
    if not found:
        return None
    frame = pl.concat(found, how="diagonal_relaxed")
    target = folder / windows[0].version.replace("/", "_") / ("labelled.parquet" if labelled else "warmup.parquet")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    frame.write_parquet(partial)
    partial.replace(target)
    return str(target)
