"""The first half of a job: rows, a trained challenger, and how it compares with the champion.

Invariant: repeating a step that was cut off ends the same: what is on disk or in MLflow is found again.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import assert_never

import polars as pl
import structlog

from retrain.base.retry import Stopped
from retrain.data.labelled_rows import newest_predictions
from retrain.data.snapshot import Snapshot, TooLittle, load_snapshot, take_snapshot
from retrain.data.validation import LIVE_ROWS, failures, report, validate
from retrain.engines.chosen import engine_of
from retrain.engines.handover import Stage
from retrain.job import publish
from retrain.job.context import CONTROL, LAKE, MLFLOW, JobContext, Next
from retrain.job.elsewhere import train_elsewhere
from retrain.judge import contest
from retrain.judge.evaluate import Side, score, timed
from retrain.judge.gates import Promote, SmokeTest, decide
from retrain.judge.servability import smoke_test
from retrain.models.model_files import UnusableModel, unpacked_bytes
from retrain.terms.aliases import CHAMPION
from retrain.terms.errors import JobFailed, RowsGone
from retrain.terms.states import JobState
from retrain.train.trainer import RESULT, SEARCH, FailureKind, Trained, TrainingFailed, run_trainer, why_unusable

_GONE = "the snapshot's files are gone, and cannot be made again"
log = structlog.get_logger()


def snapshot(job: JobContext) -> Next:
    """Take the rows, and see whether they are fit to learn from."""
    taken = job.retry(LAKE, lambda: take_snapshot(job.spec, job.storage_options))
    if isinstance(taken, TooLittle):
        return Next(JobState.REJECTED, taken.reason)
    model, fingerprint = job.job.model, taken.fingerprint
    before = job.retry(CONTROL, lambda: job.store.trained_before(model, fingerprint, job.job.id))
    if before is not None:
        return Next(JobState.REJECTED, f"already trained as job {before}: same rows, code and config")
    live = job.retry(
        LAKE, lambda: newest_predictions(job.spec.predictions_uri, job.spec.schema, LIVE_ROWS, job.storage_options)
    )
    checks = validate(taken.train(), taken.holdout(), live, job.spec.schema, job.spec.config.validation)
    job.save(snapshot=dict(taken.manifest), validation=[c.to_json() for c in checks])
    (taken.folder / "validation.md").write_text(report(checks, _facts(taken)))
    if wrong := failures(checks):
        reason = "the rows are not fit to learn from: " + "; ".join(wrong)
        job.retry(MLFLOW, lambda: publish.log_bad_snapshot(job.registry, job.spec, taken, job.job.created_at, reason))
        return Next(JobState.REJECTED, reason)
    job.retry(CONTROL, lambda: job.store.update(job.job.id, job.owner, fingerprint=fingerprint))
    train, holdout = taken.manifest["train"], taken.manifest["holdout"]
    where = f"outcomes version {taken.manifest['delta_version']}"
    return Next(JobState.TRAINING, f"{train['rows']} training and {holdout['rows']} holdout rows of {where}")


def _facts(taken: Snapshot) -> dict[str, str]:
    """What a reader of the validation's report must know of the rows."""
    manifest = taken.manifest
    return {
        "rows": f"{manifest['train']['rows']} training, {manifest['holdout']['rows']} holdout",
        "from": f"version {manifest.get('delta_version')} of {manifest['outcomes']}",
        "sha256": str(manifest["rows_digest"]),
    }


def train(job: JobContext) -> Next:
    """Make the challenger."""
    if (failed := _make_model(job, _taken(job))) is not None:
        return failed
    took = job.result.get("training_seconds")
    return Next(JobState.EVALUATING, f"trained in {took} s" if took is not None else "trained, then resumed")


def evaluate(job: JobContext) -> Next | None:
    """Judge the challenger and save the decision; answers the failure, if there is no challenger."""
    spec, registry, rows = job.spec, job.registry, _taken(job)
    if (failed := _make_model(job, rows)) is not None:  # trained on a machine that is gone
        return failed
    holdout = rows.holdout()
    try:
        model = job.open_model(rows.folder / "model")
        ours = score(model, holdout, spec.schema, source="challenger", inputs=model.inputs, size=model.size)
    except UnusableModel as exc:
        raise JobFailed(f"the challenger {exc}") from exc
    champion = job.retry(MLFLOW, lambda: registry.resolve_alias(spec.registered_model, CHAMPION))
    theirs = contest.champion_side(spec, rows, holdout, champion, lambda v: job.fetch_model(v, "champion"))
    if isinstance(theirs, Side):
        theirs, ours = timed([theirs, ours], holdout, spec.schema)
    held = contest.hold_contest(spec, theirs, ours, holdout, rows.train())
    final = _refit(job, rows, holdout) if held.passed and spec.config.refit else None
    if held.passed and final is None:
        held = held.without_refit()
    elif final is not None:
        held = held.of_size(unpacked_bytes(final), spec.config.gates)
    run_id = job.retry(MLFLOW, lambda: publish.open_run(registry, spec, rows))
    job.checkpoint("run_opened")
    at = job.job.created_at
    job.retry(MLFLOW, lambda: publish.log_inputs(registry, run_id, spec, rows, at))
    job.retry(MLFLOW, lambda: publish.log_report(registry, run_id, spec))
    job.retry(
        MLFLOW,
        lambda: publish.log_challenger(
            registry, run_id, final or rows.folder / "model", rows.folder, holdout, ours, spec.schema
        ),
    )
    job.checkpoint("model_logged")
    version: str | None = None
    smoke: SmokeTest | None = None
    if held.passed:
        registered = job.retry(MLFLOW, lambda: publish.register(registry, run_id, spec))
        job.checkpoint("version_registered")
        version = registered
        smoke = smoke_test(
            registered,
            holdout,
            spec.schema,
            lambda: job.open_model(final or rows.folder / "model"),
            lambda: job.fetch_model(registered, "smoke"),
        )
    decision = decide(held.gates, smoke)
    job.retry(
        MLFLOW,
        lambda: publish.log_evaluation(
            registry, run_id, rows.folder, at, held.champion, held.challenger, held.comparison, decision.gates
        ),
    )
    job.save(
        decision="promote" if isinstance(decision, Promote) else "reject",
        reasons=[] if isinstance(decision, Promote) else list(decision.reasons),
        gates=[g.to_json() for g in decision.gates],
        gain=held.gain,
        champion=None if held.champion is None else held.champion.to_json(),
        challenger=held.challenger.to_json(),
        compared_with=champion,
        version=version,
        run_id=run_id,
        refit=final is not None,
    )
    job.checkpoint("decided")
    return None


def _make_model(job: JobContext, rows: Snapshot) -> Next | None:
    """Trains unless the model is there; answers the failure, if it failed."""
    if _has_model(rows.folder):
        _note_search(job, rows.folder)
        return None
    trained = _run(job, rows, rows.train_path, Stage.CHALLENGE, rows.folder)
    job.checkpoint("trained")
    match trained:
        case TrainingFailed(FailureKind.STOPPED, _):
            raise Stopped(trained.message)
        case TrainingFailed(kind, message):
            job.retry(MLFLOW, lambda: publish.log_failure(job.registry, job.spec, rows, job.job.created_at, message))
            job.save(failure=kind.value)
            return Next(JobState.FAILED, message, message)
        case Trained(_, seconds):
            job.save(training_seconds=round(seconds, 3))
            _note_search(job, rows.folder)
            return None
        case unreachable:
            assert_never(unreachable)


def _note_search(job: JobContext, folder: Path) -> None:
    """Keep what a search has found: the refit and a rebuild of this job use it."""
    if "search" not in job.result and (folder / SEARCH).exists():
        job.save(search=json.loads((folder / SEARCH).read_text()))


def _run(job: JobContext, rows: Snapshot, path: Path, stage: Stage, folder: Path) -> Trained | TrainingFailed:
    """Train on the rows at `path`, where the configuration wants it; the model comes into `folder`. What a search has
    found for the challenger is not searched for again."""
    recipe = replace(job.spec.recipe, found=(job.result.get("search") or {}).get("parameters"))
    if (engine := engine_of(job.spec)) is None:
        trained = run_trainer(recipe, path, folder, job.scorers.server, job.stopping, job.spec.scratch)
        if isinstance(trained, Trained) and recipe.command is not None:
            problem = why_unusable(job.scorers, trained.model_dir, path, job.spec.schema)
            if problem is not None:
                return TrainingFailed(FailureKind.NONSENSE, f"the command left a model that {problem}")
        return trained
    run_id = job.retry(MLFLOW, lambda: publish.open_run(job.registry, job.spec, rows))
    return train_elsewhere(job, engine, recipe, path, stage, folder, run_id)


def _refit(job: JobContext, rows: Snapshot, holdout: pl.DataFrame) -> Path | None:
    """The challenger's recipe on all rows, the holdout included: what is promoted must know what is newest. Answers
    the model's folder; None when this training fails: then the model that was judged is the one."""
    folder = rows.folder / "refit"
    if not _has_model(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "train.parquet"
        pl.concat([rows.train(), holdout]).write_parquet(path)
        trained = _run(job, rows, path, Stage.REFIT, folder)
        job.checkpoint("refitted")
        if isinstance(trained, TrainingFailed):
            if trained.kind is FailureKind.STOPPED:
                raise Stopped(trained.message)
            log.warning("refit_failed", job_id=job.job.id, model=job.job.model, detail=trained.message)
            return None
    return folder / "model"


def _taken(job: JobContext) -> Snapshot:
    """The snapshot's files; when somebody removed them, the same rows again from the same table version."""
    found = load_snapshot(job.spec)
    if found is None:
        version = job.job.result["snapshot"]["delta_version"]
        try:
            again = job.retry(LAKE, lambda: take_snapshot(job.spec, job.storage_options, version))
        except RowsGone as exc:
            raise JobFailed(f"{_GONE} (lake.keep_versions_for): {exc}"[:500]) from exc
        if isinstance(again, TooLittle):
            raise JobFailed(f"{_GONE}: version {version} of {job.spec.outcomes_uri}: {again.reason}")
        if again.fingerprint != job.job.fingerprint:
            raise JobFailed(f"{_GONE}: rows, code or configuration are others by now")
        return again
    return found


def _has_model(folder: Path) -> bool:
    """Whether a training in this folder has come to its good end."""
    result = folder / RESULT
    done = result.exists() and json.loads(result.read_text()).get("status") == "ok"
    return done and (folder / "model").is_dir()
