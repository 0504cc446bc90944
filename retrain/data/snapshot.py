"""Lake version -> training rows + holdout + manifest, on disk in the job's folder.

Invariant: every holdout row is strictly later than every training row; once the manifest is written, a resumed job
reads exactly the same rows. Too little data is a value (`TooLittle`), not an exception.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from retrain.base.files import write_whole
from retrain.config.spec import JobSpec
from retrain.data.labelled_rows import MissingColumns, digest, newest_labelled, open_outcomes, timestamps
from retrain.data.provenance import code_digest, environment, git_commit
from retrain.terms.errors import RowsGone, TransientError
from retrain.terms.schema import Task

MANIFEST = "manifest.json"
CLASS_ROWS = 10
_NO_FILE = re.compile("no such file|not found|NoSuchKey", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Files of one job and their manifest (JSON values: Delta version, predicate, rows, times, digests, schema)."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def train_path(self) -> Path:
        return self.folder / "train.parquet"

    @property
    def holdout_path(self) -> Path:
        return self.folder / "holdout.parquet"

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    def train(self) -> pl.DataFrame:
        return pl.read_parquet(self.train_path)

    def holdout(self) -> pl.DataFrame:
        return pl.read_parquet(self.holdout_path)


@dataclass(frozen=True, slots=True)
class TooLittle:
    reason: str


def take_snapshot(
    spec: JobSpec, storage_options: Mapping[str, str], version: int | None = None
) -> Snapshot | TooLittle:
    """Reads the outcomes at `version` (now the newest), or what an earlier run of this job has already written.
    Raises TransientError when the store is away, RowsGone when it no longer has the rows of `version`."""
    if (existing := load_snapshot(spec)) is not None:
        return existing
    table = open_outcomes(spec.outcomes_uri, version, storage_options)
    if table is None:
        return TooLittle("no labelled rows yet: there is no outcomes table")
    config = spec.config
    try:
        found = newest_labelled(table, spec.schema, max_rows=config.max_rows, span=config.span)
    except MissingColumns as exc:
        return TooLittle(str(exc))
    except TransientError as exc:
        if version is not None and _NO_FILE.search(str(exc)):
            raise RowsGone(f"version {version} of {spec.outcomes_uri}: {exc}") from exc
        raise
    parts = split(found.rows, spec)
    if isinstance(parts, TooLittle):
        return parts
    source = {"delta_version": found.version, "predicate": found.predicate, "rows_dropped": found.dropped}
    return write_snapshot(spec, *parts, source)


def load_snapshot(spec: JobSpec) -> Snapshot | None:
    path = spec.job_dir / MANIFEST
    if not path.exists():
        return None
    snapshot = Snapshot(spec.job_dir, json.loads(path.read_text()))
    return snapshot if snapshot.train_path.exists() and snapshot.holdout_path.exists() else None


def remove_rows(spec: JobSpec) -> None:
    """Rows and models of an ended job are in the lake and in MLflow; manifest, log and evaluation stay here."""
    folder = spec.job_dir
    for name in ("train.parquet", "holdout.parquet", "command_train.parquet"):
        (folder / name).unlink(missing_ok=True)
    models = ("model", "model.partial", "refit", "champion", "previous", "on_trial")
    for name in (*models, "smoke", "reference", "out", "back"):
        shutil.rmtree(folder / name, ignore_errors=True)


def split(rows: pl.DataFrame, spec: JobSpec) -> tuple[pl.DataFrame, pl.DataFrame] | TooLittle:
    """(training rows, holdout) of rows sorted by (ts, prediction_id); rows that share the time of the first holdout
    row belong to the holdout."""
    config = spec.config
    if len(rows) < config.min_rows:
        return TooLittle(f"{len(rows)} labelled rows, min_rows is {config.min_rows}")
    held = math.ceil(len(rows) * config.holdout_share)
    if (span := _holdout_span(rows, spec)) is not None:
        within = int((rows["ts"] > rows["ts"][-1] - span).sum())
        held = min(held, max(within, _rows_with_two_classes(rows["label"], spec)))
    held = max(held, config.holdout_min_rows)
    if held >= len(rows):
        return TooLittle(f"{len(rows)} labelled rows leave none to train on after a holdout of {held}")
    border = rows["ts"][len(rows) - held]
    train, holdout = rows.filter(pl.col("ts") < border), rows.filter(pl.col("ts") >= border)
    least = max(10, config.min_rows - held)
    if len(train) < least:
        return TooLittle(
            f"{len(train)} labelled rows are earlier than the holdout, at least {least} are needed "
            f"({len(holdout)} rows are not earlier than {border})"
        )
    if spec.schema.task is not Task.REGRESSION and train["label"].n_unique() < 2:
        return TooLittle(f"all {len(train)} training rows have the label {train['label'][0]!r}")
    return train, holdout


def _rows_with_two_classes(labels: pl.Series, spec: JobSpec) -> int:
    """How many of the newest rows hold CLASS_ROWS of a second class: with fewer no contest can be decided."""
    if spec.schema.task is Task.REGRESSION:
        return 0
    newest_first = labels.reverse()
    reached = []
    for name in newest_first.unique(maintain_order=True):
        at = (newest_first == name).arg_true()
        if at.len() >= CLASS_ROWS:
            reached.append(int(at[CLASS_ROWS - 1]) + 1)
    return sorted(reached)[1] if len(reached) > 1 else 0


def _holdout_span(rows: pl.DataFrame, spec: JobSpec) -> timedelta | None:
    """As configured; but of the time since something went amiss only half, or there were nothing new to train on."""
    span, since = spec.config.holdout_span, spec.request.evidence.get("since")
    if since is None:
        return span
    half: timedelta = (rows["ts"][-1] - datetime.fromisoformat(since)) / 2
    return half if span is None else min(span, max(half, timedelta(0)))


def write_snapshot(spec: JobSpec, train: pl.DataFrame, holdout: pl.DataFrame, source: Mapping[str, Any]) -> Snapshot:
    """Writes both parts, then the manifest, whose presence means that all is there."""
    folder = spec.job_dir
    folder.mkdir(parents=True, exist_ok=True)
    rows_digest = hashlib.sha256((digest(train) + digest(holdout)).encode()).hexdigest()
    code = code_digest(spec.config, spec.code)
    together = f"{rows_digest}:{code}:{spec.config_digest}"
    manifest = {
        "outcomes": spec.outcomes_uri,
        **source,
        "rows_digest": rows_digest,
        "code_digest": code,
        "config_digest": spec.config_digest,
        "fingerprint": hashlib.sha256(together.encode()).hexdigest(),
        "train": {"rows": len(train), **timestamps(train)},
        "holdout": {"rows": len(holdout), **timestamps(holdout)},
        "schema": spec.schema.to_json(),
        "git_commit": git_commit(),
        "environment": environment(),
    }
    snapshot = Snapshot(folder, manifest)
    train.write_parquet(snapshot.train_path)
    holdout.write_parquet(snapshot.holdout_path)
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=2))
    return snapshot
