"""What a trained challenger leaves in MLflow: its run, its model, its reference, and, if it earned one, a version.

Invariant: every step can be repeated after a crash without a second run or version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from retrain.base.markdown import to_html
from retrain.config.spec import JobSpec
from retrain.data.provenance import git_commit
from retrain.data.snapshot import Snapshot
from retrain.judge.evaluate import Evaluation, Side
from retrain.judge.gates import GateResult
from retrain.models.quality import Comparison
from retrain.models.registry import MODEL_PATH, Registry
from retrain.terms.aliases import CHALLENGER
from retrain.terms.names import path_name
from retrain.terms.schema import ModelSchema
from retrain.train.trainer import SEARCH

REFERENCE_ROWS = 50_000


def reference_rows(holdout: pl.DataFrame, side: Side, schema: ModelSchema) -> pl.DataFrame:
    """The reference of the new version: the holdout with what the new model says about it, in lake columns; at most
    REFERENCE_ROWS, evenly spaced over time."""
    columns: dict[str, Any] = {"prediction": list(side.predictions.values)}
    scores = side.predictions.scores
    if scores is not None:
        table = scores.reshape(len(holdout), -1)
        columns |= {name: table[:, i] for i, name in enumerate(schema.score_columns)}
    kept = ["prediction_id", "ts", "label", *schema.segment_columns, *schema.feature_columns]
    rows = holdout.select(c for c in kept if c in holdout.columns).with_columns(
        pl.Series(name, values, strict=False) for name, values in columns.items()
    )
    if len(rows) > REFERENCE_ROWS:
        rows = rows[np.linspace(0, len(rows) - 1, REFERENCE_ROWS).astype(int)]
    return rows


def open_run(registry: Registry, spec: JobSpec, snapshot: Snapshot) -> str:
    """The job's run, with everything that says where the model comes from."""
    manifest = snapshot.manifest
    tags = {
        "driftd.model": spec.request.model,
        "driftd.trigger": spec.request.trigger.value,
        "driftd.reason": spec.request.reason,
        "driftd.data_version": str(manifest.get("delta_version", "")),
        "driftd.rows_digest": manifest["rows_digest"],
        "driftd.code_digest": manifest["code_digest"],
        "driftd.config_digest": manifest["config_digest"],
        "driftd.git_commit": git_commit() or "",
        "driftd.git_ref": str(spec.request.evidence.get("git_ref") or ""),
    }
    return registry.open_run(spec.registered_model, spec.request.id, tags)


def log_inputs(registry: Registry, run_id: str, spec: JobSpec, snapshot: Snapshot, at: datetime) -> None:
    config = spec.config
    params = {
        "trainer": " ".join(config.command) if config.command else config.trainer,
        "seed": config.seed,
        "train_rows": snapshot.manifest["train"]["rows"],
        "holdout_rows": snapshot.manifest["holdout"]["rows"],
        **{f"parameter.{k}": v for k, v in config.parameters.items()},
    }
    registry.log(run_id, at_ms=_ms(at), params=params)
    registry.log_files(run_id, snapshot.folder / "manifest.json")
    for name in ("validation.md", "trainer.log", SEARCH):
        if (path := snapshot.folder / name).exists():
            registry.log_files(run_id, path)


def log_bad_snapshot(registry: Registry, spec: JobSpec, snapshot: Snapshot, at: datetime, reason: str) -> None:
    """The run of a job that stopped at its rows: what was found in them."""
    run_id = open_run(registry, spec, snapshot)
    log_inputs(registry, run_id, spec, snapshot, at)
    registry.log(run_id, at_ms=0, tags={"driftd.decision": "rejected", "driftd.decision_reason": reason})
    registry.end_run(run_id)


def log_failure(registry: Registry, spec: JobSpec, snapshot: Snapshot, at: datetime, message: str) -> None:
    """The run of a job whose training failed."""
    run_id = open_run(registry, spec, snapshot)
    log_inputs(registry, run_id, spec, snapshot, at)
    registry.log(run_id, at_ms=0, tags={"driftd.decision": "failed", "driftd.decision_reason": message})
    registry.end_run(run_id, "FAILED")


def log_report(registry: Registry, run_id: str, spec: JobSpec) -> None:
    """The newest window report of the version that caused the job, if this machine has one."""
    version = path_name(str(spec.request.evidence.get("version") or ""))
    if not spec.request.evidence.get("version") or not spec.reports or not Path(spec.reports).is_dir():
        return
    found = sorted(f for f in Path(spec.reports).iterdir() if f.name.startswith(f"{version}-") and f.suffix == ".html")
    if found:
        registry.log_files(run_id, found[-1], "evidently")


def log_challenger(
    registry: Registry,
    run_id: str,
    model: Path,
    folder: Path,
    holdout: pl.DataFrame,
    side: Side,
    schema: ModelSchema,
) -> None:
    """The model's directory and the reference that belongs to it: what was said of the holdout by a model that had not
    seen it, also when the model itself was then trained on it too."""
    registry.log_files(run_id, model, MODEL_PATH)
    (folder / "reference").mkdir(exist_ok=True)
    reference_rows(holdout, side, schema).write_parquet(folder / "reference" / "reference.parquet")
    registry.log_files(run_id, folder / "reference", "reference")


def log_evaluation(
    registry: Registry,
    run_id: str,
    folder: Path,
    at: datetime,
    champion: Evaluation | None,
    challenger: Evaluation,
    comparison: Comparison | None,
    gates: tuple[GateResult, ...],
) -> None:
    metrics = {f"challenger.{k}": v for k, v in challenger.metrics.items()}
    metrics |= {f"champion.{k}": v for k, v in champion.metrics.items()} if champion is not None else {}
    if comparison is not None:
        metrics |= {
            "difference": comparison.difference,
            "difference.low": comparison.low,
            "difference.high": comparison.high,
        }
    failed = {g.name: "asks" if g.asks else "failed" for g in gates if not g.passed}
    tags = {f"driftd.gate.{g.name}": failed.get(g.name, "passed") for g in gates}
    registry.log(run_id, at_ms=_ms(at), metrics=metrics, tags=tags)
    document = {
        "champion": None if champion is None else champion.to_json(),
        "challenger": challenger.to_json(),
        "gates": [g.to_json() for g in gates],
    }
    (folder / "evaluation.json").write_text(json.dumps(document, indent=2))
    registry.log_files(run_id, folder / "evaluation.json")


def log_trial(registry: Registry, run_id: str, folder: Path, name: str, trial: Mapping[str, Any]) -> None:
    """How a shadow or a canary went: `NAME.json`, and the tag `driftd.NAME`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(trial, indent=2))
    registry.log_files(run_id, path)
    registry.log(run_id, at_ms=0, tags={f"driftd.{name}": "passed" if trial["passed"] else "failed"})


def log_card(registry: Registry, run_id: str, folder: Path, text: str) -> None:
    """The model card, as Markdown and as a page."""
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in ((folder / "model_card.md", text), (folder / "model_card.html", to_html(text, "Model card"))):
        path.write_text(content, encoding="utf-8")
        registry.log_files(run_id, path)


def register(registry: Registry, run_id: str, spec: JobSpec) -> str:
    """The version of the run's model, under the alias `challenger`."""
    tags = {"driftd.job_id": spec.request.id, "driftd.trigger": spec.request.trigger.value}
    version = registry.register(spec.registered_model, run_id, tags)
    registry.set_alias(spec.registered_model, CHALLENGER, version)
    return version


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)
