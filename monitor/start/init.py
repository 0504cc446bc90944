"""`driftd init`: a recorded table, or a registered model, becomes a config.toml that loads as it is.

Invariant: nothing is written before the text was accepted by `monitor.config.loading`; files appear whole, and none is
replaced unasked.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from monitor.base.errors import ConfigError
from monitor.base.table_files import read_table
from monitor.config.loading import from_dict
from monitor.config.sections import RESERVED_NAMES, Config
from monitor.measure.reference import read_file, to_lake_columns
from monitor.start.columns import Asked, Findings, look
from monitor.start.proposal import Setup, Window, choose_window, propose, summary
from retrain.terms.fields import parse_duration
from retrain.terms.schema import ModelSchema

__all__ = ["Wishes", "init", "propose"]

_STORES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "file", "databricks", "databricks-uc", "uc")
_SAMPLED_ROWS = 50_000
"""A logged reference of so many rows was thinned out (retrain/job/publish.py): its rate is not the model's."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line says. `output` None is the terminal."""

    reference: Path | None
    registered: str | None
    asked: Asked
    model: str | None = None
    tracking_uri: str | None = None
    alias: str = "champion"
    window: str | None = None
    rows_per_day: float | None = None
    kafka: str | None = None
    output: Path | None = Path("config.toml")
    force: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """`text` is the config; `said` are the lines for the terminal."""

    text: str
    said: tuple[str, ...]


def init(wishes: Wishes) -> Done:
    """Looks, proposes, checks and writes. Raises ConfigError with one line per mistake, TransientError."""
    problems = list(_mistakes(wishes))
    if problems:
        raise ConfigError(problems)
    found, own_reference = _look(wishes)
    sampled = own_reference and found.rows >= _SAMPLED_ROWS
    size = parse_duration(wishes.window) if wishes.window else None
    window = choose_window(found.times, size, wishes.rows_per_day, sampled=sampled)
    folder = wishes.output.parent if wishes.output is not None else Path()
    made = None if own_reference or _usable_as_it_is(wishes.reference, found) else _reference_name(found.schema)
    setup = Setup(
        reference=None if own_reference else made or _relative(wishes.reference, folder),
        written_later=made is not None and wishes.output is None,
        registered_model=wishes.registered,
        tracking_uri=wishes.tracking_uri,
        kafka=tuple(wishes.kafka.split(",")) if wishes.kafka else (),
    )
    text = propose(found, window, setup)
    if wishes.output is None:
        _accepted(text, folder)
    else:
        _write(wishes, wishes.output, text, found.lake if made else None, made)
    return Done(text, tuple(_said(wishes, found, window, setup, folder)))


# -- what is asked


def _mistakes(wishes: Wishes) -> Iterator[str]:
    if wishes.reference is None and wishes.registered is None:
        yield "give a REFERENCE file with --target COLUMN, or --registered NAME"
    if wishes.window is not None:
        try:
            if not parse_duration(wishes.window):
                yield "--window: must be longer than nothing"
        except ValueError as exc:
            yield f"--window: {exc} (got {wishes.window!r})"
    if wishes.rows_per_day is not None and not 0 < wishes.rows_per_day < math.inf:
        yield f"--rows-per-day: must be > 0 (got {wishes.rows_per_day:g})"
    scheme, separated, _ = (wishes.tracking_uri or "").partition("://")
    if separated and scheme.partition("+")[0] not in _STORES:
        yield f"--tracking-uri: starts with none of {', '.join(_STORES)} (got {scheme!r})"
    for address in wishes.kafka.split(",") if wishes.kafka is not None else ():
        if not re.fullmatch(r"[^\s:/]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", address):
            yield f"--kafka: must be host:port (got {address!r})"
    if wishes.model is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", wishes.model):
        yield f"--model: letters, digits, _ . and - only, 64 at most (got {wishes.model!r})"
    if wishes.output is not None and wishes.output.exists() and not wishes.force:
        yield f"{wishes.output}: is there already: --force replaces it, --output names another file"
    if wishes.output is not None and not wishes.output.parent.is_dir():
        yield f"{wishes.output.parent}: no such folder: make it first"


def _look(wishes: Wishes) -> tuple[Findings, bool]:
    """What was found, and whether the registered version brings its own reference."""
    model = wishes.model or _model_name(wishes.registered or str(wishes.reference and wishes.reference.name))
    if wishes.registered is None:
        assert wishes.reference is not None
        return look(read_table(wishes.reference), wishes.asked, source=wishes.reference.name, model=model), False
    inputs, logged = _registered(wishes, wishes.registered)
    asked = replace(wishes.asked, inputs=inputs)
    if wishes.reference is not None:
        return look(read_table(wishes.reference), asked, source=wishes.reference.name, model=model), False
    source = f"{wishes.registered}@{wishes.alias}"
    if logged is None:
        command = f"driftd init FILE --target COLUMN --registered {shlex.quote(wishes.registered)}"
        text = "its run logged no reference/reference.parquet: give the rows it was trained or validated on"
        raise ConfigError([f"{source}: {text}: {command}"])
    return look(logged, asked, source=source, model=model), True


def _registered(wishes: Wishes, name: str) -> tuple[dict[str, str] | None, pl.DataFrame | None]:
    """The inputs by the version's signature and the reference logged with it, as far as it has them."""
    from retrain.models.model_files import UnusableModel
    from retrain.models.registry import Registry

    uri = wishes.tracking_uri or _default_store()
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise ConfigError([f"--tracking-uri: there is no MLflow store at {uri}: say where {name!r} is registered"])
    registry = Registry(uri)
    version = registry.resolve_alias(name, wishes.alias)
    if version is None:
        text = f"--registered: no version of {name!r} has the alias {wishes.alias!r} in {uri}"
        raise ConfigError([f"{text}: set it in MLflow, or give --alias"])
    with tempfile.TemporaryDirectory() as folder:
        try:
            inputs = registry.fetch_inputs(name, version, Path(folder) / "model")
        except UnusableModel as exc:
            raise ConfigError([f"--registered: version {version} of {name!r}: {exc}"]) from exc
        path = registry.fetch_reference(name, version, Path(folder) / "reference")
        return inputs, None if path is None else read_table(path)


def _default_store() -> str:
    return Config.model_validate({"models": {"m": {"task": "binary", "features": {"x": "number"}}}}).tracking_uri


def _model_name(name: str) -> str:
    """A file's or a registered model's name as the events' `model`."""
    for suffix in (".gz", ".parquet", ".csv", ".ndjson", ".jsonl"):
        name = name.removesuffix(suffix)
    found = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-_.")[:60] or "model"
    return f"{found}-model" if found in RESERVED_NAMES else found


# -- the reference


def _reference_name(schema: ModelSchema) -> str:
    return f"reference-{schema.model}.parquet"


def _usable_as_it_is(path: Path | None, found: Findings) -> bool:
    """driftd reads from the file what was found in it, so no other file is needed."""
    if path is None:
        return False
    try:
        read = to_lake_columns(read_file(path), found.schema)
    except (OSError, ValueError, pl.exceptions.PolarsError):
        return False
    lake = found.lake.drop("ts", strict=False)
    return set(read.columns) == set(lake.columns) and read.select(lake.columns).equals(lake)


def _relative(path: Path | None, folder: Path) -> str:
    return os.path.relpath(path, folder) if path is not None else ""


# -- writing


def _accepted(text: str, base: Path) -> None:
    """Raises ConfigError when driftd would not load it."""
    from_dict(tomllib.loads(text), base=base)


def _write(wishes: Wishes, output: Path, text: str, lake: pl.DataFrame | None, name: str | None) -> None:
    """Both files are made beside their places, checked there, and then moved."""
    folder = output.parent
    if name is not None and (folder / name).exists():
        if wishes.reference is not None and (folder / name).samefile(wishes.reference):
            raise ConfigError([f"{folder / name}: is read and would be replaced: give --model another name"])
        if not wishes.force:
            raise ConfigError([f"{folder / name}: is there already: --force replaces it, --model names another"])
    try:
        with tempfile.TemporaryDirectory(prefix=".driftd-init-", dir=folder) as scratch:
            draft = Path(scratch) / "draft.toml"
            draft.write_text(text, encoding="utf-8")
            if lake is not None and name is not None:
                lake.write_parquet(Path(scratch) / name)
            _accepted(draft.read_text(encoding="utf-8"), Path(scratch) if name is not None else folder)
            if name is not None:
                (Path(scratch) / name).replace(folder / name)
            draft.replace(output)
    except OSError as exc:
        raise ConfigError([f"{output}: cannot be written: {exc.strerror or exc}"]) from exc


def _said(wishes: Wishes, found: Findings, window: Window, setup: Setup, folder: Path) -> Iterator[str]:
    yield from summary(found, window, setup)
    if wishes.output is None:
        return
    yield f"{wishes.output}: written. Next:"
    yield f"  driftd --config {shlex.quote(str(wishes.output))} check"
    target, drop, stream = found.target, found.others, wishes.reference
    if stream is not None and not re.search(r"\.(parquet|csv(\.gz)?)$", stream.name):  # a backtest reads no other file
        target, drop = "label", tuple(c for c in found.lake.columns if not c.startswith("feature_") and c != "label")
        stream = folder / setup.reference if setup.reference == _reference_name(found.schema) else None
    if stream is None:
        yield f"  driftd --config {shlex.quote(str(wishes.output))} run"
        return
    dropped = f" --drop {shlex.quote(','.join(drop))}" if drop else ""
    yield f"  driftd backtest --stream {shlex.quote(str(stream))} --target {shlex.quote(target)}{dropped}"
