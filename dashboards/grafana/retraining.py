"""The Retraining dashboard: what was asked for, what came of it, and what was refused and why."""

from __future__ import annotations

from typing import Any

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.grafana import page, parts
from dashboards.grafana.parts import GREEN, ORANGE, PURPLE, RED, YELLOW, cell_link, fixed, steps, value
from dashboards.grafana.queries import increase, now, rate, rows, series, target

M = 'model=~"$model"'
UNDER_WAY = ("requested", "snapshot", "training", "evaluating", "shadow", "awaiting_approval", "canary")
TO_MODEL = f"/d/{page.MODEL}?var-model=${{__data.fields.Model}}&{page.KEEP}"
FAILS = ("Retrains fail", "retrains-fail")


def build() -> Dashboard:
    about = "Retrains: requested, refused, trained, judged by the gates, promoted or not, watched and rolled back."
    variables = [page.label_values("model", "Model", 'driftd_model_info{job=~"$job"}', "model", many=True)]
    builder = page.page(
        page.RETRAINING,
        "driftd / Retraining",
        about,
        variables,
        [page.sent(), *page.scraped(M)],
        [page.runbook(*FAILS)],
    ).time("now-7d", "now")
    return page.fill(
        builder,
        [("Now", [*_numbers(), *_now()]), ("Decisions", _decisions()), ("Jobs", _jobs()), ("Champions", _champions())],
    )


def _of_state(*states: str) -> str:
    """Jobs in any of these states. Every replica counts the same database, so the most is the number."""
    return f"sum({_jobs_in(*states)})"


def _jobs_in(*states: str) -> str:
    of_states = f'state=~"{"|".join(states)}"'
    return f"max by (model, state) ({series('driftd_jobs', M, of_states)})"


def _numbers() -> list[Any]:
    refused = f"sum(increase({series('driftd_retrain_suppressed_total', M)}[$__range]))"
    return [
        parts.number("Under way", "Jobs between their request and their end.", now(_of_state(*UNDER_WAY)),
                     colours=steps(PURPLE)),
        parts.number("Awaiting approval", "Jobs that wait for `driftd approve` or `driftd reject`.",
                     now(_of_state("awaiting_approval")), colours=steps(GREEN, (1, YELLOW))),
        parts.number("Promoted", "Jobs whose challenger became champion and was not rolled back, since the beginning.",
                     now(_of_state("promoted", "watched"))),
        parts.number("Rejected", "Jobs whose challenger did not pass the gates, since the beginning.",
                     now(_of_state("rejected"))),
        parts.number("Failed", "Jobs that ended with an error, since the beginning.", now(_of_state("failed")),
                     colours=steps(GREEN, (1, RED))).links([page.runbook(*FAILS)]),
        parts.number("Refused to retrain", "Retrains wanted and not requested, in this range.", now(refused))
        .decimals(0).links([page.runbook("Performance down", "performance-down")]),
    ]  # fmt: skip


def _now() -> list[Any]:
    happened = parts.listing(
        "What happened last",
        "The last time of each kind of event, newest first. The reasons are on the status page.",
        rows(f"1000 * max by (model, kind) ({series(page.ACTIVITY, M)} > 0)"),
        sort="When",
        w=12,
        no_value="nothing yet",
    )
    names = {"model": "Model", "kind": "What", "Value": "When"}
    happened.transformations([parts.organize(("model", "kind", "Value"), (), names)])
    happened.override_by_name("When", [value("unit", "dateTimeFromNow")])
    happened.override_by_name("Model", [cell_link("Model dashboard", TO_MODEL, new=False)])
    happened.override_by_name("What", [cell_link("Status page", "${driftd_url}/")])
    gates = parts.listing(
        "Gates of the last challenger",
        "What the last challenger of each model was held against, failed ones first. The figures are in the MLflow run "
        "and in `driftd status`.",
        rows(f"min by (model, gate) ({series('driftd_gate_passed', M)})"),
        sort="Result",
        descending=False,
        w=12,
        no_value="no challenger has been judged yet",
    )
    gates.transformations(
        [parts.organize(("model", "gate", "Value"), (), {"model": "Model", "gate": "Gate", "Value": "Result"})]
    )
    gates.override_by_name("Result", [value("mappings", parts.words(parts.PASSED)), parts.colour_cell()])
    return [happened, gates]


def _decisions() -> list[Any]:
    requests = parts.bars(
        "Requests by trigger",
        "Retrains requested: by a rule, the schedule, new labels, a person or a webhook.",
        target(increase("driftd_retrain_requests_total", "trigger", M, over="$__rate_interval"), "{{trigger}}"),
        no_value="no retrain was requested in this range",
    )
    refused = parts.bars(
        "Refusals by reason",
        "Retrains wanted and not requested. `cooldown`, `budget`, `pace` and `awaiting_new_data` pass by themselves; "
        "`too_many_rejected` passes after many windows; `disabled` waits for a person.",
        target(increase("driftd_retrain_suppressed_total", "reason", M, over="$__rate_interval"), "{{reason}}"),
        no_value="nothing was refused in this range",
    )
    refused.links([page.runbook("What each reason means", "performance-down")])
    for reason, colour in (("too_many_rejected", RED), ("disabled", ORANGE), ("job_in_flight", PURPLE)):
        refused.override_by_name(reason, [fixed(colour)])
    reasons = parts.listing(
        "Why a model was not retrained",
        "Refusals in this range, the most frequent first.",
        rows(increase("driftd_retrain_suppressed_total", "model, reason", M)),
        sort="Times",
        w=8,
        no_value="nothing was refused in this range",
    )
    names = {"model": "Model", "reason": "Reason", "Value": "Times"}
    reasons.transformations([parts.organize(("model", "reason", "Value"), (), names)])
    reasons.override_by_name("Times", [value("decimals", 0)])
    reasons.override_by_name("Model", [cell_link("Model dashboard", TO_MODEL, new=False)])
    return [requests.span(8), refused.span(8), reasons]


def _jobs() -> list[Any]:
    under_way = parts.lines(
        "Jobs under way by state",
        "What the jobs that have not ended are doing.",
        target(f"sum by (state) ({_jobs_in(*UNDER_WAY)}) > 0", "{{state}}"),
        low=0,
        w=8,
        no_value="no job ran in this range",
    )
    under_way.decimals(0).fill_opacity(30)
    ended = parts.lines(
        "Jobs ended",
        "Jobs by how they ended, since the beginning.",
        target(
            f"sum by (state) ({_jobs_in('promoted', 'watched', 'rejected', 'failed', 'rolled_back')})",
            "{{state}}",
        ),
        low=0,
        w=8,
    )
    ended.decimals(0).links([page.runbook(*FAILS)])
    for panel in (under_way, ended):
        for state, colour in parts.JOB_COLOURS.items():
            panel.override_by_name(state, [fixed(colour)])
    exits = rate("driftd_job_process_exits_total", "outcome")
    progress = f"max by (model) ({series('driftd_trial_rows', M)}) / (max by (model) " \
        f"({series('driftd_trial_rows_needed', M)}) > 0)"  # fmt: skip
    return [
        under_way,
        ended,
        parts.lines(
            "Duration of the last job",
            "From request to end, by model; includes the time a job waited for MLflow or for approval.",
            target(f"max by (model) ({series('driftd_last_job_duration_seconds', M)})", "{{model}}"),
            unit="s",
            low=0,
            w=8,
            no_value="no job has ended yet",
        ),
        parts.lines(
            "Canary's share of the traffic",
            "Share of the requests that a challenger should answer, as published to layers that split traffic.",
            target(f"max by (model) ({series('driftd_challenger_traffic_ratio', M)})", "{{model}}"),
            unit="percentunit",
            low=0,
            w=12,
            h=6,
        ),
        parts.lines(
            "Trials: rows against what they are judged on",
            "Labelled rows of a shadow or of a canary's step, by what it needs. One that stays flat gets no rows: no "
            "traffic, or no labels.",
            target(progress, "{{model}}"),
            unit="percentunit",
            low=0,
            w=12,
            h=6,
            no_value="no challenger was on trial in this range",
        ),
        parts.lines(
            "Job processes ended",
            "Processes of jobs by outcome, of all models. A job whose process fails is tried again from its last step.",
            target(exits, "{{outcome}}"),
            unit="cps",
            low=0,
            w=24,
            h=5,
        ).override_by_name("failed", [fixed(RED)]).override_by_name("ok", [fixed(GREEN)]),
    ]  # fmt: skip


def _champions() -> list[Any]:
    champion = series("driftd_champion_info", M)
    table = parts.listing(
        "Champions now",
        "The version of each model that driftd promoted last, and the MLflow run it came from.",
        rows(f"max by (model, version, run) ({champion})"),
        sort="Model",
        descending=False,
        w=12,
        no_value="driftd has promoted nothing yet",
    )
    names = {"model": "Model", "version": "Version", "run": "MLflow run"}
    table.transformations([parts.organize(("model", "version", "run"), ["Value"], names)])
    version_url = "${mlflow_url}/#/models/${__data.fields.Model}/versions/${__value.raw}"
    table.override_by_name("Model", [cell_link("Model dashboard", TO_MODEL, new=False)])
    table.override_by_name("Version", [cell_link("Version in MLflow", version_url)])
    table.override_by_name("MLflow run", [cell_link("Run in MLflow", "${mlflow_url}/#/runs/${__value.raw}")])
    return [
        parts.timeline(
            "Champions over time",
            "Which version driftd had made champion, and when.",
            target(f"max by (model, version) ({champion})", "{{model}} · version {{version}}"),
            named={1: ("serves", GREEN)},
            no_value="driftd has promoted nothing in this range",
        ).links([page.runbook("A bad promotion", "a-bad-promotion")]),
        table,
    ]
