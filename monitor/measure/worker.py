"""What runs in a measuring process: read a window from the lake, find its reference, measure, answer.

Invariant: depends only on its task, so any process (or machine) gives the same answer; nothing large crosses the
process border. A reference is prepared once per process and version.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from monitor.base.errors import TransientError
from monitor.lake.join import first_predictions, last_outcomes
from monitor.lake.lake import Lake, Table, collect, day
from monitor.measure.reference import labelled, measurable, open_reference
from monitor.measure.settings import Season, Settings
from monitor.rules.measurement import Measurement, WindowKey
from retrain.terms.names import path_name

if TYPE_CHECKING:
    from monitor.measure.yardstick import Yardstick


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
    key: WindowKey
    performance: bool
    settings: Settings
    reference: ReferenceSource
    season: Season | None = None


@dataclass(frozen=True, slots=True)
class MeasureResult:
    """`rows` and `labelled` count distinct predictions. `reference` names what was compared with, "" if nothing.
    `problem`: why the configured reference cannot be used, for the operator."""

    key: WindowKey
    performance: bool
    rows: int
    labelled: int
    reference: str
    measurements: tuple[Measurement, ...]
    problem: str = ""


class UnusableReference(Exception):
    """The file of a reference cannot be read, or holds what no window can be compared with; the text says why."""


def measure(task: MeasureTask) -> MeasureResult:
    """Measure one window. Raises TransientError when the lake or the registry is away."""
    from monitor.measure.window import measure_labelled, measure_unlabelled  # heavy: not in the daemon's process

    lake, schema = Lake(task.lake_uri, task.storage_options), task.settings.schema
    predictions = measurable(window_predictions(lake, task.key), schema)
    yardstick, problem = None, ""
    try:
        yardstick = yardstick_of(task.reference, task.key.version, task.settings)
    except UnusableReference as exc:
        problem = str(exc)
    name = yardstick.name if yardstick is not None else ""
    if not task.performance:
        compared = _season(lake, task) if task.season is not None else None
        found = measure_unlabelled(predictions, yardstick, task.settings, compared)
        name = compared.name if compared is not None else name
        return MeasureResult(task.key, False, predictions.height, 0, name, tuple(found), problem)
    outcomes = labelled(measurable(window_outcomes(lake, task.key), schema))
    found = measure_labelled(predictions, outcomes, yardstick, task.settings)
    return MeasureResult(task.key, True, predictions.height, outcomes.height, name, tuple(found), problem)


def window_predictions(lake: Lake, key: WindowKey) -> pl.DataFrame:
    """The window's predictions, each id once."""
    return first_predictions(_window(lake, Table.PREDICTIONS, key))


def window_outcomes(lake: Lake, key: WindowKey) -> pl.DataFrame:
    """The window's labelled predictions, each id once with its newest label."""
    return last_outcomes(_window(lake, Table.OUTCOMES, key))


def scan_window(lake: Lake, table: Table, key: WindowKey, *, any_version: bool = False) -> pl.LazyFrame | None:
    """The window's rows of a table, lazily; None without a table."""
    last = key.end - timedelta(microseconds=1)
    lazy = lake.scan(table, key.model, (day(key.start), day(last)))
    if lazy is None:
        return None
    mine = pl.lit(any_version) | (pl.col("model_version") == key.version)
    return lazy.filter(mine, pl.col("ts").is_between(key.start, key.end, closed="left"))


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


def _season(lake: Lake, task: MeasureTask) -> Yardstick:
    """The inputs of the same season before: the windows one to so many periods earlier, of whatever version."""
    from monitor.measure.yardstick import Yardstick

    assert task.season is not None
    key, season = task.key, task.season
    earlier = []
    for back in range(1, season.periods + 1):
        shift = season.period * back
        at = WindowKey(key.model, "", key.start - shift, key.end - shift)
        lazy = scan_window(lake, Table.PREDICTIONS, at, any_version=True)
        if lazy is not None:
            earlier.append(first_predictions(collect(lazy)))
    rows = pl.concat(earlier, how="diagonal_relaxed") if earlier else pl.DataFrame()
    name = f"season:{len(earlier)} windows of {rows.height} rows"
    return Yardstick(name, rows, task.settings, max_rows=task.reference.max_rows)


def yardstick_of(source: ReferenceSource, version: str, settings: Settings) -> Yardstick | None:
    """The frozen reference of a version; None when a warm-up must make one first."""
    path = obtain_reference(source, version)
    if path is None:
        return None
    folder = version_folder(source, version)
    name = f"{path.stem}:{version}" if path.parent == folder else f"file:{path.name}"
    try:
        return _yardstick(name, str(path), path.stat().st_mtime_ns, settings, source.max_rows, str(folder))
    except (OSError, ValueError, pl.exceptions.PolarsError) as exc:
        raise UnusableReference(f"{path}: {type(exc).__name__}: {exc}"[:500]) from exc


def obtain_reference(source: ReferenceSource, version: str) -> Path | None:
    """The file that a version's windows are compared with, fetched from the registry if need be. Raises
    TransientError when that is away."""
    if _frozen(source, version) is None and source.tracking_uri:
        _from_registry(source, version, version_folder(source, version) / "registry.parquet")
    return reference_file(source, version)


def reference_file(source: ReferenceSource, version: str) -> Path | None:
    """The file that a version's windows are compared with, as far as it is here already."""
    return _frozen(source, version) or (Path(source.path) if source.path else None)


WARMED_UP = ("labelled", "warmup")


def _frozen(source: ReferenceSource, version: str) -> Path | None:
    files = (version_folder(source, version) / f"{stage}.parquet" for stage in ("labelled", "registry", "warmup"))
    return next((f for f in files if f.exists()), None)


def version_folder(source: ReferenceSource, version: str) -> Path:
    """Where a version's references lie that driftd has found or made."""
    return Path(source.folder) / path_name(version)


def _from_registry(source: ReferenceSource, version: str, target: Path) -> bool:
    """Fetch the artifact logged with the version; remembers for a while that a version has none, or is none of the
    registry's."""
    if not REGISTRY_VERSION.fullmatch(version) or source.tracking_uri is None:
        return False
    known, now = (source.tracking_uri, source.registered_model, version), time.monotonic()
    if now < _WITHOUT.get(known, 0.0):
        return False
    if now < (away := _AWAY.get(source.tracking_uri, (0.0, "")))[0]:
        raise TransientError(away[1])
    if source.tracking_uri.startswith("sqlite:///"):
        store = Path(source.tracking_uri.removeprefix("sqlite:///"))
        if not store.exists():
            return False
    from retrain.models.registry import NotThere, fetch_reference

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        try:
            found = fetch_reference(source.tracking_uri, source.registered_model, version, Path(folder))
        except NotThere:
            found = None
        except TransientError as exc:
            _AWAY[source.tracking_uri] = (time.monotonic() + AWAY_FOR, str(exc))
            raise
        if found is None:
            _WITHOUT[known] = time.monotonic() + ASK_AGAIN
            return False
        found.replace(target)
    return True


REGISTRY_VERSION = re.compile(r"[1-9][0-9]{0,8}")
"""What MLflow numbers versions with; any other text names none of them."""
ASK_AGAIN = 600.0
"""Seconds after which the registry is asked again for a version that it did not have."""
_WITHOUT: dict[tuple[str, str, str], float] = {}
AWAY_FOR = 10.0
"""Seconds in which a registry that is away is not asked again: many windows wait for it, and each would wait long."""
_AWAY: dict[str, tuple[float, str]] = {}


@lru_cache(maxsize=16)
def _yardstick(name: str, path: str, mtime_ns: int, settings: Settings, max_rows: int, keep: str) -> Yardstick:
    from monitor.measure.yardstick import Yardstick

    schema = settings.schema
    frame = open_reference(Path(path), schema)
    methods = tuple(sorted(settings.methods.items()))
    what = repr((path, mtime_ns, schema.to_json(), methods, settings.metrics, max_rows))
    identity = hashlib.sha256(what.encode()).hexdigest()[:12]
    return Yardstick(name, frame, settings, max_rows=max_rows, keep=Path(keep), identity=identity)


def freeze_warmup(lake: Lake, windows: list[WindowKey], folder: Path, *, with_labels: bool) -> str | None:
    """Make a version's first windows its reference; again, with their labels, once those have come.

    Returns the file; None when there is nothing to freeze (labels never came): what stands stays.
    """
    frames = [window_outcomes(lake, key) if with_labels else window_predictions(lake, key) for key in sorted(windows)]
    found = [f for f in frames if f.height]
    if not found:
        return None
    frame = pl.concat(found, how="diagonal_relaxed")
    target = folder / path_name(windows[0].version) / ("labelled.parquet" if with_labels else "warmup.parquet")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    frame.write_parquet(partial)
    partial.replace(target)
    return str(target)
