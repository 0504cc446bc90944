"""What a job does in each state.

Invariant: a step changes nothing but its own folder, MLflow and the job's result; the state itself is advanced by
`retrain.job`. Repeating a step that was cut off ends the same.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, assert_never

import polars as pl
import structlog

from retrain import contest, publish
from retrain.evaluate import score
from retrain.gates import Promote, SmokeTest, decide
from retrain.holds import maintenance_of, why_held
from retrain.model_files import UnusableModel, load_model, trusted_for
from retrain.records import CHALLENGER, CHAMPION, PREVIOUS
from retrain.registry import Conflict, Promoted, Registry
from retrain.retry import Retry, Stopped
from retrain.snapshot import Snapshot, TooLittle, load_snapshot, take_snapshot
from retrain.states import JobState
from retrain.store import AliasMove, Job, Store, approval_due
from retrain.trainer import FailureKind, Trained, TrainingFailed, run_trainer
from retrain.watch import compare_watched, watched_rows

log = structlog.get_logger()
MLFLOW, LAKE, CONTROL = "mlflow", "lake", "control database"


@dataclass(frozen=True, slots=True)
class Next:
    state: JobState
    detail: str
    error: str | None = None


class Steps:
    """One state of one job; `run` answers the next state, or None when there is nothing to do for now."""

    def __init__(
        self,
        store: Store,
        job: Job,
        owner: str,
        retry: Retry,
        clock: Callable[[], datetime],
        environ: Mapping[str, str],
        stopping: threading.Event,
        checkpoint: Callable[[str], None],
    ) -> None:
        self._store = store
        self._job = job
        self._spec = job.spec
        self._owner = owner
        self._retry = retry
        self._clock = clock
        self._environ = environ
        self._stopping = stopping
        self._checkpoint = checkpoint
        self._registry = Registry(job.spec.tracking_uri)
        self._result: dict[str, Any] = dict(job.result)

    def run(self) -> Next | None:
        match self._job.state:
            case JobState.REQUESTED:
                return Next(JobState.SNAPSHOT, "started")
            case JobState.SNAPSHOT:
                return self._snapshot()
            case JobState.TRAINING:
                return self._train()
            case JobState.EVALUATING:
                if "decision" not in self._result and (failed := self._evaluate()) is not None:
                    return failed
                return self._conclude()
            case JobState.AWAITING_APPROVAL:
                return self._await_approval()
            case JobState.PROMOTED:
                return self._watch()
            case JobState.SHADOW:
                raise NotImplementedError("no job enters the shadow state yet")
            case JobState.REJECTED | JobState.FAILED | JobState.WATCHED | JobState.ROLLED_BACK:
                return None
            case unreachable:
                assert_never(unreachable)

    def _snapshot(self) -> Next:
        options = self._spec.open_storage_options(self._environ)
        taken = self._retry(LAKE, lambda: take_snapshot(self._spec, options))
        if isinstance(taken, TooLittle):
            return Next(JobState.REJECTED, taken.reason)
        model, fingerprint = self._job.model, taken.fingerprint
        before = self._retry(CONTROL, lambda: self._store.trained_before(model, fingerprint, self._job.id))
        if before is not None:
            return Next(JobState.REJECTED, f"already trained as job {before}: same rows, code and config")
        self._save(snapshot=dict(taken.manifest))
        self._retry(CONTROL, lambda: self._store.update(self._job.id, self._owner, fingerprint=fingerprint))
        train, holdout = taken.manifest["train"], taken.manifest["holdout"]
        where = f"outcomes version {taken.manifest['delta_version']}"
        return Next(JobState.TRAINING, f"{train['rows']} training and {holdout['rows']} holdout rows of {where}")

    def _train(self) -> Next:
        if (failed := self._make_model(self._taken())) is not None:
            return failed
        took = self._result.get("training_seconds")
        return Next(JobState.EVALUATING, f"trained in {took} s" if took is not None else "trained, then resumed")

    def _make_model(self, snapshot: Snapshot) -> Next | None:
        """Trains unless the model is there; answers the failure, if it failed."""
        if _has_model(snapshot.folder):
            return None
        trained = run_trainer(self._spec, snapshot.train_path, self._environ, self._stopping)
        self._checkpoint("trained")
        match trained:
            case TrainingFailed(FailureKind.STOPPED, _):
                raise Stopped(trained.message)
            case TrainingFailed(kind, message):
                self._retry(MLFLOW, lambda: self._log_failure(snapshot, message))
                self._save(failure=kind.value)
                return Next(JobState.FAILED, message, message)
            case Trained(_, seconds):
                self._save(training_seconds=round(seconds, 3))
                return None
            case unreachable:
                assert_never(unreachable)

    def _evaluate(self) -> Next | None:
        """Judges the challenger and saves the decision; answers the failure, if there is no challenger."""
        spec, registry, snapshot = self._spec, self._registry, self._taken()
        if (failed := self._make_model(snapshot)) is not None:  # trained on a machine that is gone
            return failed
        holdout, trusted = snapshot.holdout(), trusted_for(self._spec.config)
        model = load_model(snapshot.folder / "model", trusted)
        size = _stored_bytes(snapshot.folder / "model")
        ours = score(model, holdout, spec.schema, source="challenger", inputs=model.inputs, size=size)
        champion = self._retry(MLFLOW, lambda: registry.resolve_alias(spec.registered_model, CHAMPION))
        theirs = self._retry(
            MLFLOW,
            lambda: contest.champion_side(
                spec,
                snapshot,
                holdout,
                champion,
                lambda v: registry.fetch_model(spec.registered_model, v, snapshot.folder / "champion", trusted),
            ),
        )
        held = contest.hold_contest(spec, theirs, ours, holdout)
        passed = all(g.passed for g in held.gates)
        final = self._refit(snapshot, holdout) if passed and spec.config.refit else None
        if passed and final is None:
            held = held.without_refit()
        elif final is not None:
            held = held.of_size(_stored_bytes(final), spec.config.gates)
        passed = all(g.passed for g in held.gates)
        run_id = self._retry(MLFLOW, lambda: publish.open_run(registry, spec, snapshot))
        self._checkpoint("run_opened")
        at = self._job.created_at
        self._retry(MLFLOW, lambda: publish.log_inputs(registry, run_id, spec, snapshot, at))
        self._retry(MLFLOW, lambda: publish.log_report(registry, run_id, spec))
        self._retry(
            MLFLOW,
            lambda: publish.log_challenger(
                registry, run_id, final or snapshot.folder / "model", snapshot.folder, holdout, ours, spec.schema
            ),
        )
        self._checkpoint("model_logged")
        version: str | None = None
        smoke: SmokeTest | None = None
        if passed:
            registered = self._retry(MLFLOW, lambda: publish.register(registry, run_id, spec))
            self._checkpoint("version_registered")
            version = registered
            expected = (
                ours if final is None else score(load_model(final, trusted), holdout, spec.schema, source="refit")
            )
            smoke = self._retry(MLFLOW, lambda: publish.smoke_test(registry, spec, registered, holdout, expected))
        decision = decide(held.gates, smoke)
        self._retry(
            MLFLOW,
            lambda: publish.log_evaluation(
                registry, run_id, snapshot.folder, at, held.champion, held.challenger, held.comparison, decision.gates
            ),
        )
        self._save(
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
        self._checkpoint("decided")
        return None

    def _refit(self, snapshot: Snapshot, holdout: pl.DataFrame) -> Path | None:
        """The challenger's recipe on all rows, the holdout included: what is promoted must know what is newest. Answers
        the model's folder; None when this training fails: then the model that was judged is the one."""
        spec = replace(self._spec, work_dir=str(snapshot.folder / "refit"))
        if not _has_model(spec.job_dir):
            spec.job_dir.mkdir(parents=True, exist_ok=True)
            path = spec.job_dir / "train.parquet"
            pl.concat([snapshot.train(), holdout]).write_parquet(path)
            trained = run_trainer(spec, path, self._environ, self._stopping)
            self._checkpoint("refitted")
            if isinstance(trained, TrainingFailed):
                if trained.kind is FailureKind.STOPPED:
                    raise Stopped(trained.message)
                log.warning("refit_failed", job_id=self._job.id, model=self._job.model, detail=trained.message)
                return None
        return spec.job_dir / "model"

    def _conclude(self) -> Next | None:
        if self._result["decision"] == "reject":
            return self._reject("; ".join(self._result["reasons"]))
        config, gain = self._spec.config, self._result["gain"]
        close = gain is None or gain < config.close_call
        if config.approval == "manual" or (config.approval == "close_calls" and close):
            detail = f"version {self._result['version']} passed every gate"
            if gain is not None:
                detail += f"; it is better by {gain:.2g} standard errors, {config.close_call:g} would be clear"
            return Next(JobState.AWAITING_APPROVAL, detail)
        return self._promote("job")

    def _await_approval(self) -> Next | None:
        if self._job.approved_by is not None:
            return self._promote(self._job.approved_by)
        if approval_due(self._job, self._clock()):
            return self._reject(f"nobody approved it within {self._spec.config.approval_timeout}")
        return None

    def _promote(self, actor: str) -> Next | None:
        name, version, compared = self._spec.registered_model, self._result["version"], self._result["compared_with"]
        if not self._result.get("promoting"):
            if text := self._retry(CONTROL, self._why_held):
                self._wait_to_promote(text)
                return None
            self._save(promoting=True)

        def move() -> Promoted | Conflict | str:
            """Completed if it has begun, whatever holds the model; a hold may also come while MLflow is away."""
            if (text := self._why_held()) and self._registry.resolve_alias(name, CHAMPION) != version:
                return text
            return self._registry.promote(name, version, compared)

        moved = self._retry(MLFLOW, move)
        if isinstance(moved, str):
            self._wait_to_promote(moved)
            return None
        self._checkpoint("alias_moved")
        match moved:
            case Conflict(expected, found):
                log.warning("promotion_refused", job_id=self._job.id, model=self._job.model, champion=found)
                return self._reject(
                    f"the champion was moved meanwhile: compared with version {expected or 'none'}, "
                    f"now it is {found or 'none'}"
                )
            case Promoted(_, previous):
                self._record(CHAMPION, version, previous, actor, self._spec.request.reason)
                if previous is not None:
                    self._record(PREVIOUS, previous, None, actor, f"version {version} was promoted")
                self._retry(MLFLOW, lambda: self._finish_run("promoted"))
                log.info("model_promoted", model=self._job.model, version=version, previous=previous)
                return Next(JobState.PROMOTED, f"version {version} replaces {previous or 'nothing'} as champion")
            case unreachable:
                assert_never(unreachable)

    def _wait_to_promote(self, held: str) -> None:
        self._save(promoting=False)
        waiting = f"promotion waits: {held}"
        self._retry(CONTROL, lambda: self._store.update(self._job.id, self._owner, waiting=waiting))

    def _why_held(self) -> str:
        windows = maintenance_of(self._spec.config, self._environ)
        return why_held(self._store.engine, self._job.model, windows, self._clock())

    def _reject(self, reason: str) -> Next:
        self._retry(MLFLOW, lambda: self._finish_run("rejected", reason))
        return Next(JobState.REJECTED, reason)

    def _watch(self) -> Next | None:
        spec, version, previous = self._spec, self._result["version"], self._result["compared_with"]
        if spec.config.watch_rows == 0 or previous is None:
            return Next(JobState.WATCHED, "not watched: " + ("no previous champion" if previous is None else "off"))
        serving = self._retry(MLFLOW, lambda: self._registry.resolve_alias(spec.registered_model, CHAMPION))
        if (text := self._result.get("rollback")) is not None and serving in (version, previous):
            return self._roll_back(text)
        if serving != version:
            return Next(JobState.WATCHED, f"watching ended: the champion is version {serving or 'none'} by now")
        since = (self._job.ended_at or self._job.updated_at).date()
        options = spec.open_storage_options(self._environ)
        rows = self._retry(LAKE, lambda: watched_rows(spec, version, since, options))
        if len(rows) < spec.config.watch_rows:
            text = f"watching: {len(rows)} of {spec.config.watch_rows} labelled rows"
            self._store.update(self._job.id, self._owner, waiting=text)
            return None
        sides = []
        trusted = trusted_for(spec.config)
        for name, of in (("previous", previous), ("champion", version)):
            folder = spec.job_dir / name
            try:
                model = self._retry(
                    MLFLOW,
                    lambda of=of, folder=folder: self._registry.fetch_model(  # type: ignore[misc]
                        spec.registered_model, of, folder, trusted
                    ),
                )
            except UnusableModel as exc:
                return Next(JobState.WATCHED, f"version {of} cannot be compared: {exc}")
            sides.append(score(model, rows, spec.schema, source=name).predictions)
        verdict = compare_watched(spec, rows, sides[0], sides[1])
        if verdict.worse:
            self._save(rollback=verdict.detail)
            return self._roll_back(verdict.detail)
        return Next(JobState.WATCHED, verdict.detail)

    def _roll_back(self, reason: str) -> Next:
        version, previous = self._result["version"], self._result["compared_with"]
        name = self._spec.registered_model
        self._retry(MLFLOW, lambda: self._registry.set_alias(name, CHAMPION, previous))
        self._retry(MLFLOW, lambda: self._registry.set_alias(name, PREVIOUS, None))
        self._checkpoint("alias_moved_back")
        self._record(CHAMPION, previous, version, "watch", reason)
        log.warning("model_rolled_back", model=self._job.model, version=previous, from_version=version, reason=reason)
        return Next(JobState.ROLLED_BACK, reason)

    # -- inside

    def _taken(self) -> Snapshot:
        """The snapshot's files; when somebody removed them, the same rows again from the same table version."""
        found = load_snapshot(self._spec)
        if found is None:
            options = self._spec.open_storage_options(self._environ)
            version = self._job.result["snapshot"]["delta_version"]
            again = self._retry(LAKE, lambda: take_snapshot(self._spec, options, version))
            if isinstance(again, TooLittle) or again.fingerprint != self._job.fingerprint:
                raise RuntimeError("the snapshot's files are gone and cannot be made again from the lake")
            return again
        return found

    def _save(self, **values: Any) -> None:
        self._result |= values
        result = json.loads(json.dumps(self._result, default=str))
        self._retry(CONTROL, lambda: self._store.update(self._job.id, self._owner, result=result))

    def _record(self, alias: str, version: str, previous: str | None, actor: str, reason: str) -> None:
        at = self._clock()
        move = AliasMove(self._job.model, alias, version, previous, self._job.id, actor, at, reason)
        self._retry(CONTROL, lambda: self._store.record_alias(move))

    def _finish_run(self, decision: str, reason: str = "") -> None:
        name, version, run_id = self._spec.registered_model, self._result["version"], self._result["run_id"]
        tags = {"driftd.decision": decision, "driftd.decision_reason": reason}
        self._registry.log(run_id, at_ms=0, tags=tags)
        self._registry.end_run(run_id)
        if version is not None:
            self._registry.tag_version(name, version, tags)
            if decision == "rejected" and self._registry.resolve_alias(name, CHALLENGER) == version:
                self._registry.set_alias(name, CHALLENGER, None)

    def _log_failure(self, snapshot: Snapshot, message: str) -> None:
        run_id = publish.open_run(self._registry, self._spec, snapshot)
        publish.log_inputs(self._registry, run_id, self._spec, snapshot, self._job.created_at)
        tags = {"driftd.decision": "failed", "driftd.decision_reason": message}
        self._registry.log(run_id, at_ms=0, tags=tags)
        self._registry.end_run(run_id, "FAILED")


def _stored_bytes(model: Path) -> int:
    return sum(file.stat().st_size for file in model.rglob("*") if file.is_file())


def _has_model(folder: Path) -> bool:
    """Whether a training in this folder has come to its good end."""
    result = folder / "train_result.json"
    done = result.exists() and json.loads(result.read_text()).get("status") == "ok"
    return done and (folder / "model").is_dir()
