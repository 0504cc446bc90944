"""The model card of one version (Mitchell et al. 2019): what it is, what it learned from, how good it is and for
whom, why it came, who agreed, what it replaced, and how to get back.

Invariant: pure; made from the record of its job alone, so the same record gives the same card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from retrain.base.markdown import plain, table
from retrain.config.settings import CardConfig
from retrain.control.records import AliasMove, Job, Step, verdict
from retrain.models.quality import METRICS


def card(job: Job, steps: Sequence[Step], moves: Sequence[AliasMove]) -> str:
    """Markdown. `moves`: those of the alias `champion`, newest first."""
    version = job.result.get("version")
    name = f"{job.model}, version {version}" if version else f"{job.model}, challenger of job {job.id}"
    return "\n".join(
        [
            f"# {plain(name)}",
            "",
            *_intent(job.spec.config.card),
            *_standing(job, moves),
            *_cause(job),
            *_data(job),
            *_training(job),
            *_quality(job),
            *_gates(job),
            *_steps(steps),
            *_lineage(job, moves),
        ]
    )


def _intent(config: CardConfig) -> list[str]:
    told = (("Owner", config.owner), ("Purpose", config.purpose), ("Limits", config.limits))
    lines = [f"- **{name}**: {plain(text)}" for name, text in told if text]
    return [*lines, ""] if lines else []


def _standing(job: Job, moves: Sequence[AliasMove]) -> list[str]:
    version = job.result.get("version")
    periods = []
    for n, move in enumerate(moves):
        if version is not None and move.version == version:
            until = f"until {_at(moves[n - 1].at)}" if n else "and still is"
            periods.append(f"champion since {_at(move.at)} {until}")
    return ["; ".join(reversed(periods)) or f"Never champion: the job is {job.state.value}.", ""]


def _cause(job: Job) -> list[str]:
    request = job.spec.request
    asked = [("trigger", request.trigger.value), ("asked at", _at(request.requested_at))]
    evidence = [(k, v) for k, v in request.evidence.items() if v not in (None, "", {})]
    return ["## Why it was trained", "", plain(request.reason), "", *table(("", ""), [*asked, *evidence])]


def _data(job: Job) -> list[str]:
    snapshot, schema = job.result.get("snapshot"), job.spec.schema
    lines = ["## Data", ""]
    if snapshot is None:
        return [*lines, "None was taken.", ""]
    train, holdout = snapshot["train"], snapshot["holdout"]
    features = ", ".join(f"{f.name} ({f.kind.value})" for f in schema.features)
    lines += table(
        ("", ""),
        [
            ("rows from", f"version {snapshot['delta_version']} of {snapshot['outcomes']}, {snapshot['predicate']}"),
            ("training", f"{train['rows']} rows, {train['first']} to {train['last']}"),
            ("holdout", f"{holdout['rows']} rows, {holdout['first']} to {holdout['last']}"),
            ("sha256 of the rows", snapshot["rows_digest"]),
            ("task", schema.task.value + (f": {', '.join(schema.classes)}" if schema.classes else "")),
            ("features", features),
            ("segments", ", ".join(schema.segments) or "none"),
        ],
    )
    checks = job.result.get("validation", [])
    odd = [(f"{c['level']}: {c['name']}", c["subject"], c["detail"]) for c in checks if c["level"] != "ok"]
    return lines + table(("validation", "of", ""), odd)


def _training(job: Job) -> list[str]:
    config, snapshot = job.spec.config, job.result.get("snapshot") or {}
    packages = (snapshot.get("environment") or {}).get("packages", {})
    took = job.result.get("training_seconds")
    return [
        "## Training",
        "",
        *table(
            ("", ""),
            [
                ("trainer", " ".join(config.command) if config.command else config.trainer),
                ("parameters", ", ".join(f"{k} = {v}" for k, v in config.parameters.items()) or "its defaults"),
                *_search(job.result.get("search")),
                ("seed", config.seed),
                ("took", None if took is None else f"{took} s"),
                ("trained again with the holdout", "yes" if job.result.get("refit") else "no"),
                ("commit", snapshot.get("git_commit") or "unknown"),
                ("sha256 of the code", snapshot.get("code_digest")),
                ("sha256 of the settings", snapshot.get("config_digest")),
                ("packages", ", ".join(f"{n} {v}" for n, v in packages.items() if v)),
                ("MLflow run", job.result.get("run_id")),
            ],
        ),
    ]


def _search(search: dict[str, Any] | None) -> list[tuple[str, str]]:
    if search is None:
        return []
    found = ", ".join(f"{name} = {value}" for name, value in search["parameters"].items())
    return [("found by a search", f"{found or 'nothing'}: {search['ended']}, {search.get('candidates', 0)} tried")]


def _quality(job: Job) -> list[str]:
    ours, theirs = job.result.get("challenger"), job.result.get("champion")
    lines = ["## Quality on the holdout", ""]
    if ours is None:
        return [*lines, "It was not judged.", ""]
    other = theirs["source"] if theirs else "nothing to compare with"
    metrics = [
        (name, _number(ours["metrics"].get(name)), _number(theirs["metrics"].get(name)) if theirs else "")
        for name in METRICS[job.spec.schema.task]
    ]
    lines += [f"{ours['rows']} rows that it was not trained on; compared with {plain(other)}.", ""]
    lines += table(("metric", "this one", "compared with"), metrics)
    before = theirs["segments"] if theirs else {}
    segments = [
        (name, found["rows"], _number(found["value"]), _number(before[name]["value"]) if name in before else "")
        for name, found in ours["segments"].items()
    ]
    return lines + table(("segment", "rows", "this one", "compared with"), segments)


def _gates(job: Job) -> list[str]:
    lines = ["## Gates", "", *_gate_table(job.result.get("gates", []))]
    for name in ("shadow", "canary"):
        if (trial := job.result.get(name)) is None:
            continue
        lines += [f"### {name.capitalize()}", "", plain(trial.get("detail") or "not decided yet"), ""]
        for judged in trial.get("steps") or [trial]:
            if judged.get("share"):
                lines += [f"Share {judged['share']:g}, {judged['rows']} rows:", ""]
            lines += _gate_table(judged.get("gates", []))
    return lines


def _gate_table(gates: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for gate in gates:
        low, high = gate["interval"] or (None, None)
        interval = "" if low is None else f"{low:.4g} to {high:.4g}"
        rows.append(
            (verdict(gate), gate["name"], _number(gate["value"]), interval, _number(gate["limit"]), gate["detail"])
        )
    return table(("", "gate", "value", "interval", "limit", ""), rows)


def _steps(steps: Sequence[Step]) -> list[str]:
    told = [(_at(s.at), s.to_state.value, s.actor, s.detail) for s in steps]
    return ["## What happened", "", *table(("at", "state", "by", ""), told)]


def _lineage(job: Job, moves: Sequence[AliasMove]) -> list[str]:
    version, before = job.result.get("version"), job.result.get("compared_with")
    after = next(
        (moves[n - 1] for n, m in enumerate(moves) if n and version is not None and m.version == version), None
    )
    rows = [("before it", f"version {before}" if before else "no champion"), ("job", job.id)]
    if after is not None:
        rows.append(("after it", f"version {after.version}, by {after.actor}: {after.reason}"))
    rows.append(("again", f"driftd reproduce {job.id}"))
    if version is not None:
        rows.append(("back to it", f"driftd rollback {job.model} --to {version}"))
    return ["## Lineage", "", *table(("", ""), rows)]


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"


def _at(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
