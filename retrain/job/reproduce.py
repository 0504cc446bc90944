"""A past job again: the same rows, trained on and judged again, held against what is on record.

Invariant: changes nothing but its own folder; what differs (rows, code, configuration, packages) is named, whether or
not the results do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from retrain.config.spec import JobSpec
from retrain.control.store import Job
from retrain.data.frame import labels_array
from retrain.data.snapshot import Snapshot, TooLittle, take_snapshot
from retrain.isolation.forkserver import ForkServer
from retrain.job.publish import reference_rows
from retrain.judge.evaluate import score
from retrain.models.model_files import UnusableModel
from retrain.models.quality import METRICS, measure
from retrain.models.registry import Registry
from retrain.scorer import Scorer, Scorers
from retrain.terms.errors import Refused, RowsGone, TransientError
from retrain.train.trainer import TrainingFailed, run_trainer

TOLERANCE = 1e-9
"""Numbers that differ by no more are the same."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing held against the record. `same` None: there is nothing on record to hold it against."""

    what: str
    same: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class Reproduced:
    job: str
    folder: str
    causes: tuple[Check, ...]
    results: tuple[Check, ...]

    @property
    def same(self) -> bool:
        """Metrics and predictions, what there is of them on record, are what they were."""
        verdicts = [check.same for check in self.results]
        return True in verdicts and False not in verdicts

    def to_json(self) -> dict[str, Any]:
        def lines(checks: tuple[Check, ...]) -> list[dict[str, Any]]:
            return [{"what": c.what, "same": c.same, "detail": c.detail} for c in checks]

        return {
            "job": self.job, "folder": self.folder, "same": self.same,
            "causes": lines(self.causes), "results": lines(self.results),
        }  # fmt: skip

    def to_words(self) -> Iterator[str]:
        for check in (*self.causes, *self.results):
            word = {True: "the same", False: "OTHER", None: "unknown"}[check.same]
            yield f"  {check.what:13} {word:9} {check.detail}"


def reproduce(job: Job, folder: Path, server: ForkServer) -> Reproduced:
    """Rebuild `job` below `folder`, in children of `server`. Raises Refused when it judged nothing, its rows cannot be
    read any more, or the folder holds it already."""
    recorded = job.result.get("snapshot")
    if recorded is None or job.result.get("challenger") is None:
        raise Refused(f"job {job.id} is {job.state}: it judged no challenger that could be compared with")
    spec = replace(job.spec, work_dir=str(folder))
    if spec.job_dir.exists():
        raise Refused(f"{spec.job_dir} is there already: choose another --folder")
    version = recorded["delta_version"]
    try:
        taken = take_snapshot(spec, spec.open_storage_options(server.environ), version)
    except (RowsGone, TransientError) as exc:
        raise Refused(f"version {version} of {spec.outcomes_uri} cannot be read; is it older than "
                      f"lake.keep_versions_for? {exc}") from exc  # fmt: skip
    if isinstance(taken, TooLittle):
        raise Refused(f"version {version} of {spec.outcomes_uri}: {taken.reason}")
    recipe = replace(spec.recipe, found=(job.result.get("search") or {}).get("parameters"))
    trained = run_trainer(recipe, taken.train_path, spec.job_dir, server, scratch=spec.scratch)
    if isinstance(trained, TrainingFailed):
        raise Refused(f"training failed: {trained.message}")
    causes = tuple(_causes(recorded, taken.manifest))
    try:
        with Scorers(server, spec.trust, spec.scorer_limits).open(trained.model_dir, spec.schema) as model:
            results = tuple(_results(job, spec, taken, model))
    except UnusableModel as exc:
        raise Refused(f"the rebuilt model {exc}") from exc
    return Reproduced(job.id, str(taken.folder), causes, results)


def _causes(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Check]:
    rows = f"{now['train']['rows']} training, {now['holdout']['rows']} holdout, sha256 {now['rows_digest']}"
    yield Check("rows", then["rows_digest"] == now["rows_digest"], rows)
    commits = f"commit {then.get('git_commit') or 'unknown'} then, {now['git_commit'] or 'unknown'} now"
    yield Check("code", then["code_digest"] == now["code_digest"], commits)
    if (before := then.get("environment")) is None:
        yield Check("packages", None, "the job is from before they were recorded")
        return
    after = now["environment"]
    versions = {"python": before["python"], **before["packages"]}, {"python": after["python"], **after["packages"]}
    changed = [f"{n} {versions[0].get(n)} then, {v} now" for n, v in versions[1].items() if versions[0].get(n) != v]
    same = before["digest"] == after["digest"]
    yield Check("packages", same, "; ".join(changed) or ("" if same else "others than the main ones"))


def _results(job: Job, spec: JobSpec, taken: Snapshot, model: Scorer) -> Iterator[Check]:
    schema, holdout = spec.schema, taken.holdout()
    side = score(model, holdout, schema, source="rebuilt", inputs=model.inputs)
    labels = labels_array(holdout, schema)
    yield _metrics(job, {name: measure(name, labels, side.predictions, schema) for name in METRICS[schema.task]})
    registry = Registry(spec.tracking_uri)
    run = job.result.get("run_id")
    path = registry.fetch_run_reference(run, taken.folder / "recorded") if run else None
    if path is None:
        yield Check("predictions", None, "the job left none in MLflow")
        return
    now = reference_rows(holdout, side, schema)
    yield _answers(pl.read_parquet(path), now, schema.score_columns)


def _metrics(job: Job, found: Mapping[str, float | None]) -> Check:
    challenger = job.result["challenger"]
    then = challenger["metrics"]
    # Rows that the champion could not answer for were left out of what is on record.
    if challenger["rows"] != job.result["snapshot"]["holdout"]["rows"]:
        return Check("metrics", None, f"on record are those of {challenger['rows']} of the holdout rows")
    other = [
        f"{n} {_number(then.get(n))} then, {_number(v)} now" for n, v in found.items() if not _equal(then.get(n), v)
    ]
    return Check("metrics", not other, "; ".join(other) or ", ".join(f"{n} {_number(v)}" for n, v in found.items()))


def _answers(then: pl.DataFrame, now: pl.DataFrame, scores: tuple[str, ...]) -> Check:
    both = then.join(now, on="prediction_id", how="inner", suffix="_now")
    if both.is_empty():
        return Check("predictions", False, "no prediction of the record is among these rows")
    if then["prediction"].dtype.is_numeric():
        apart = (both["prediction"] - both["prediction_now"]).abs().fill_null(0.0) > TOLERANCE
        differs = apart | (both["prediction"].is_null() != both["prediction_now"].is_null())
    else:
        differs = both["prediction"].ne_missing(both["prediction_now"])
    farthest = max((_farthest(both, c) for c in scores if f"{c}_now" in both.columns), default=0.0)
    detail = f"{int((~differs).sum())} of {len(then)} answers"
    detail += f"; scores differ by {farthest:.3g} at most" if scores else ""
    same = len(both) == len(then) and not differs.any() and farthest <= TOLERANCE
    return Check("predictions", bool(same), detail)


def _farthest(both: pl.DataFrame, column: str) -> float:
    """Largest difference; infinite where only one of them has a score."""
    one, other = both[column], both[f"{column}_now"]
    if (one.is_null() != other.is_null()).any():
        return math.inf
    return float((one - other).abs().max() or 0.0)  # type: ignore[arg-type]


def _equal(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= TOLERANCE


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.6g}"
