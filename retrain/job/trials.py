"""A challenger that passed its gates, on trial: beside the champion on the live stream, then with a share of traffic.

Invariant: decides once per trial, or per step of a canary, when enough labelled rows are there; nothing decided is
decided again. A shadow asks nothing of the serving side. While a canary lasts its share is published; whoever ends it
takes it back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from retrain.control import traffic
from retrain.control.store import Job
from retrain.data.frame import features_frame, labels_array
from retrain.data.labelled_rows import newest_labelled, newest_prediction, open_outcomes
from retrain.job import publish
from retrain.job.context import CONTROL, LAKE, MLFLOW, JobContext, Next
from retrain.job.promotion import last_known_row, onward
from retrain.judge import contest
from retrain.judge.evaluate import Side, as_served, quality_metric, score, timed
from retrain.judge.gates import GateResult, Took, latency_gate
from retrain.models.model_files import UnusableModel
from retrain.models.quality import Array, Predictions, compare_unpaired
from retrain.scorer import Scorer
from retrain.terms.aliases import TRAFFIC_TAG
from retrain.terms.schema import ModelSchema
from retrain.terms.states import JobState

MOST_ROWS = 20_000
"""The newest rows of a trial that are looked at."""
LOOK_EVERY = {JobState.SHADOW: timedelta(hours=1), JobState.CANARY: timedelta(minutes=10)}
"""A trial is looked at this often even if no rows came: the champion may have been moved."""
PROGRESS_STEPS = 10
"""How often, at least, a trial that gets its rows says how it goes."""


@dataclass(frozen=True, slots=True)
class Awaited:
    """Whose labelled rows a trial waits for: of `version`, later than `after` (event time)."""

    version: str
    after: datetime


def awaited(state: JobState, result: Mapping[str, Any]) -> Awaited:
    """What the daemon counts to know when the job, on trial or promoted and watched, should look again."""
    trial = result.get(state.value) or {}
    after = datetime.fromisoformat(trial.get("after") or last_known_row(result))
    return Awaited(result["compared_with"] if state is JobState.SHADOW else result["version"], after)


# -- shadow


def shadow(job: JobContext) -> Next | None:
    """Score the champion's rows with the challenger as well; enough of them: is it still better?"""
    config, trial = job.spec.config.shadow, dict(job.result.get("shadow") or {})
    if config is None or trial.get("passed"):  # switched off meanwhile, or only a hold keeps it here
        return onward(job)
    if trial.get("passed") is False:
        return job.reject(trial["detail"])
    if moved := job.champion_moved():
        return job.reject(moved)
    rows = _rows(job, awaited(JobState.SHADOW, job.result))
    try:
        challenger = job.fetch_model(job.result["version"], "on_trial")
        if len(rows) < config.rows:
            counted = f"{len(rows)} of {config.rows} labelled rows"
            if job.clock() >= job.job.updated_at + config.time_limit:
                return job.reject(f"shadow: only {counted} came within {config.time_limit}")
            agreed = _agreement(job, rows, challenger)
            _look_again(job, trial, len(rows), config.rows, config.time_limit)
            job.wait(f"shadow: {counted}" + ("" if agreed is None else f", {agreed:.1%} answered as the champion did"))
            return None
        gates = _shadow_gates(job, rows, challenger)
    except UnusableModel as exc:
        return job.reject(f"shadow: version {job.result['version']} {exc}")
    failed = [f"{g.name}: {g.detail}" for g in gates if not g.passed]
    detail = f"shadow on {len(rows)} labelled rows: " + ("; ".join(failed) or gates[0].detail)
    trial |= {"rows": len(rows), "gates": [g.to_json() for g in gates], "passed": not failed, "detail": detail}
    trial.pop("look", None)
    _decided(job, "shadow", trial)
    return job.reject(detail) if failed else onward(job)


def _shadow_gates(job: JobContext, rows: pl.DataFrame, challenger: Scorer) -> Sequence[GateResult]:
    """The gates again, the champion by what it really answered."""
    spec, result = job.spec, job.result
    ours = score(challenger, rows, spec.schema, source="challenger", inputs=challenger.inputs, size=challenger.size)
    name = f"version {result['compared_with']}"
    theirs: Side | str = as_served(rows, spec.schema, name) or f"{name}: too few rows hold its predictions"
    (ours,) = timed([ours], rows, spec.schema)
    return contest.hold_contest(spec, theirs, ours, rows).gates


def _agreement(job: JobContext, rows: pl.DataFrame, challenger: Scorer) -> float | None:
    """Share of the rows with the champion's answer; None for numbers and without rows."""
    schema = job.spec.schema
    if rows.is_empty() or not schema.classes:
        return None
    said = challenger.predictions(features_frame(rows, schema), schema).values
    return float(np.mean(said == np.array(rows["prediction"].cast(pl.String).to_list(), dtype=object)))


# -- canary


def canary(job: JobContext) -> Next | None:
    """Step the challenger's share up for as long as it is not worse than the champion on live traffic."""
    config, trial = job.spec.config.canary, dict(job.result.get("canary") or {"step": 0, "steps": []})
    if config is None or trial.get("passed"):
        return onward(job)
    if trial.get("passed") is False:
        return job.reject(trial["detail"])
    if moved := job.champion_moved():
        return job.reject(moved)
    step = trial["step"]
    share = config.steps[min(step, len(config.steps) - 1)]
    if trial.get("share") != share:
        trial |= {"share": share, "since": job.clock().isoformat(), "after": _newest_row(job).isoformat()}
        trial.pop("look", None)
        _publish(job, trial)
    _set_tag(job, share)
    rows = _rows(job, awaited(JobState.CANARY, job.result))
    if len(rows) < config.rows:
        counted = f"{len(rows)} of {config.rows} labelled rows of version {job.result['version']}"
        if job.clock() >= datetime.fromisoformat(trial["since"]) + config.time_limit:
            return job.reject(f"canary: only {counted} came within {config.time_limit} at a share of {share:g}")
        _look_again(job, trial, len(rows), config.rows, config.time_limit)
        job.wait(f"canary: share {share:g}, {counted}")
        return None
    gates = _live_gates(job, rows, trial)
    failed = [f"{g.name}: {g.detail}" for g in gates if not g.passed]
    told = {"share": share, "rows": len(rows), "gates": [g.to_json() for g in gates], "passed": not failed}
    detail = f"canary at a share of {share:g}: " + ("; ".join(failed) or gates[0].detail)
    last = step + 1 == len(config.steps)
    if not failed and not last:
        if held := job.retry(CONTROL, job.why_held):
            _look_again(job, trial, len(rows), None, config.time_limit)
            job.wait(f"canary: share {share:g}, the next step waits: {held}")
            return None
        job.save(canary=trial | {"step": step + 1, "steps": [*trial["steps"], told]})
        job.checkpoint("canary_step")
        return canary(job)
    trial |= {"steps": [*trial["steps"], told], "gates": told["gates"], "passed": not failed, "detail": detail}
    trial.pop("look", None)
    _decided(job, "canary", trial)
    return job.reject(detail) if failed else onward(job)


def leave_canary(job: JobContext) -> None:
    """Nothing is asked of the serving side any more but to follow the alias. Can be repeated."""
    if traffic.share_of(job.result) > 0:
        trial = {**job.result["canary"], "share": 0.0}
        _publish(job, trial)
    _set_tag(job, 0.0)


def _publish(job: JobContext, trial: dict[str, Any]) -> None:
    job.save(traffic.changed(job.job, trial["share"], "job", job.clock()), canary=trial)
    job.checkpoint("traffic_noted")


def _set_tag(job: JobContext, share: float) -> None:
    wanted = traffic.Traffic(job.result["compared_with"], job.result["version"], share).to_tag()

    def write() -> None:
        job.must_hold_lease()
        job.registry.set_tag(job.spec.registered_model, TRAFFIC_TAG, wanted)

    job.retry(MLFLOW, write)


def _newest_row(job: JobContext) -> datetime:
    """Event time from which on rows count for the step that begins: later than every prediction there is."""
    spec, last = job.spec, datetime.fromisoformat(last_known_row(job.result))
    newest = job.retry(LAKE, lambda: newest_prediction(spec.predictions_uri, job.storage_options))
    return last if newest is None else max(last, newest)


def _live_gates(job: JobContext, ours: pl.DataFrame, trial: dict[str, Any]) -> list[GateResult]:
    """Not worse than the champion in what both answered in the same time, and not slower than allowed."""
    spec, result, gates = job.spec, job.result, job.spec.config.gates
    begun = ours["ts"].min()
    assert isinstance(begun, datetime)
    theirs = _rows(job, Awaited(result["compared_with"], datetime.fromisoformat(trial["after"])))
    theirs = theirs.filter(pl.col("ts") >= begun)
    names = f"version {result['version']} against version {result['compared_with']}"
    pairs = [_answered(rows, spec.schema) for rows in (theirs, ours)]
    if pairs[0] is None or pairs[1] is None:
        told = f"{names}: {len(theirs)} rows of the champion in the same time, too few with an answer"
        return [GateResult("quality", False, None, 0.0, told)]
    metric = quality_metric(spec.schema, gates.metric)
    found = compare_unpaired(
        metric,
        pairs[0],
        pairs[1],
        spec.schema,
        confidence=gates.confidence,
        resamples=gates.bootstrap,
        seed=spec.config.seed,
    )
    if found.difference is None or found.low is None or found.high is None:
        return [GateResult("quality", False, found.difference, 0.0, f"{names}: {found.note}")]
    detail = (
        f"{names} on live traffic, {len(ours)} and {len(theirs)} rows: {metric} better by {found.difference:+.4g}, "
        f"{found.confidence:.0%} interval [{found.low:+.4g}, {found.high:+.4g}]"
    )
    interval = (found.low, found.high)
    return [
        GateResult("quality", found.high >= 0, found.difference, 0.0, detail, interval),
        _live_latency(job, theirs, ours),
    ]


def _answered(rows: pl.DataFrame, schema: ModelSchema) -> tuple[Array, Predictions] | None:
    """Labels and what was answered; None when too few rows have an answer."""
    if rows.is_empty() or (side := as_served(rows, schema)) is None:
        return None
    labels, kept = labels_array(rows, schema), side.usable
    return (labels, side.predictions) if kept is None else (labels[kept], side.predictions[np.flatnonzero(kept)])


def _live_latency(job: JobContext, theirs: pl.DataFrame, ours: pl.DataFrame) -> GateResult:
    """Of the 95th percentiles that the serving side reported."""
    gates = job.spec.config.gates
    one, two = (rows["latency_ms"].drop_nulls().quantile(0.95) for rows in (theirs, ours))
    if two is None:
        return GateResult("latency", True, None, None, "no latencies were reported")
    champion = None if one is None else one / 1000
    took = Took("95 % of requests are answered within", two / 1000, champion, gates.max_latency.total_seconds())
    return latency_gate([took], gates.max_latency_ratio)


# -- both


def _rows(job: JobContext, wanted: Awaited) -> pl.DataFrame:
    """Labelled rows of a version later than a moment, the newest MOST_ROWS at most, with `latency_ms`."""
    spec = job.spec
    table = job.retry(LAKE, lambda: open_outcomes(spec.outcomes_uri, None, job.storage_options))
    if table is None:
        return pl.DataFrame()
    most = max(MOST_ROWS, *(c.rows for c in (spec.config.shadow, spec.config.canary) if c is not None))
    found = job.retry(
        LAKE,
        lambda: newest_labelled(
            table,
            spec.schema,
            max_rows=most,
            model_version=wanted.version,
            since=wanted.after.date(),
            more_columns=("latency_ms",),
        ),
    )
    return found.rows.filter(pl.col("ts") > wanted.after)


def _look_again(job: JobContext, trial: dict[str, Any], rows: int, needed: int | None, limit: timedelta) -> None:
    """When the next look is worth a process: at that time, or after so many more rows; `needed` None: not for rows."""
    state, now = job.job.state, job.clock()
    begun = datetime.fromisoformat(trial["since"]) if "since" in trial else job.job.updated_at
    at = now + LOOK_EVERY[state]
    if needed is not None:
        at = min(at, begun + limit)
        trial = trial | {"needed": needed}
    more = None if needed is None else rows + min(needed - rows, max(1, needed // PROGRESS_STEPS))
    job.save(**{state.value: trial | {"rows": rows, "look": {"rows": more, "at": at.isoformat()}}})


def _decided(job: JobContext, name: str, trial: dict[str, Any]) -> None:
    job.retry(MLFLOW, lambda: publish.log_trial(job.registry, job.result["run_id"], job.spec.job_dir, name, trial))
    job.save(**{name: trial})
    job.checkpoint(f"{name}_decided")


def due(job: Job, counted: int, now: datetime) -> bool:
    """Whether the job should look again; `counted`: the rows there are of those it waits for."""
    look = (job.result.get(job.state.value) or {}).get("look")
    if look is None or now >= datetime.fromisoformat(look["at"]):
        return True
    return look["rows"] is not None and counted >= look["rows"]
