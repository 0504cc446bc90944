"""After a promotion: does the new champion hold up on what came in since, against the one before it?

Invariant: decides only; moving the alias back is the job's step. Too few rows yet is a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

import polars as pl

from retrain.config.spec import JobSpec
from retrain.data.frame import labels_array
from retrain.data.labelled_rows import newest_labelled, open_outcomes
from retrain.judge.evaluate import quality_metric
from retrain.models.quality import Comparison, Predictions, compare

WATCH_ROWS_MOST = 20_000


@dataclass(frozen=True, slots=True)
class WatchVerdict:
    worse: bool
    detail: str


def watched_rows(spec: JobSpec, version: str, since: date, storage_options: Mapping[str, str]) -> pl.DataFrame:
    """Labelled rows that `version` served since that day, the newest WATCH_ROWS_MOST (or `watch_rows`) at most.
    Reads only the days since; cheap enough to ask every now and then. Raises TransientError."""
    table = open_outcomes(spec.outcomes_uri, None, storage_options)
    if table is None:
        return pl.DataFrame()
    most = max(spec.config.watch_rows, WATCH_ROWS_MOST)
    return newest_labelled(table, spec.schema, max_rows=most, model_version=version, since=since).rows


def compare_watched(spec: JobSpec, rows: pl.DataFrame, before: Predictions, now: Predictions) -> WatchVerdict:
    """Worse: the whole interval of the paired difference lies below zero."""
    gates = spec.config.gates
    found: Comparison = compare(
        quality_metric(spec.schema, gates.metric),
        labels_array(rows, spec.schema),
        before,
        now,
        spec.schema,
        confidence=gates.confidence,
        resamples=gates.bootstrap,
        seed=spec.config.seed,
    )
    if found.low is None or found.high is None:
        return WatchVerdict(False, f"not measurable on {len(rows)} rows: {found.note}")
    text = f"{found.metric} {found.difference:+.4g} [{found.low:+.4g}, {found.high:+.4g}] on {len(rows)} rows"
    if found.high < 0:
        return WatchVerdict(True, f"worse than the previous champion: {text}")
    return WatchVerdict(False, f"not worse than the previous champion: {text}")
