"""The Fleet dashboard: all models at a glance, the worst first."""

from __future__ import annotations

from typing import Any

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.grafana import page, parts
from dashboards.grafana.parts import BLUE, GREEN, ORANGE, RED, YELLOW, cell_link, steps, value
from dashboards.grafana.queries import (
    increase,
    judged,
    led,
    newest,
    now,
    of_newest,
    rows,
    series,
    severity_of_worst_rule,
    target,
)

IN_FLIGHT = 'state=~"requested|snapshot|training|evaluating|shadow|awaiting_approval|canary"'
TO_MODEL = f"/d/{page.MODEL}?var-model=${{__data.fields.Model}}&{page.KEEP}"
TO_RETRAINING = f"/d/{page.RETRAINING}?{page.KEEP}"
TO_DAEMON = f"/d/{page.DAEMON}?{page.KEEP}"


def build() -> Dashboard:
    about = (
        "All models of one driftd, the worst first. Each figure speaks of the newest measured version of a model; "
        "click a model for the whole picture."
    )
    builder = page.page(page.FLEET, "driftd / Fleet", about, [], [page.sent(), *page.scraped()])
    return page.fill(builder, [("Now", [*_numbers(), _models()]), ("Over time", _over_time())])


def _numbers() -> list[Any]:
    worst, jobs = severity_of_worst_rule(), series("driftd_jobs", IN_FLIGHT)
    waiting = series("driftd_jobs", 'state="awaiting_approval"')
    return [
        parts.number("Models", "Models that driftd is configured to watch.", now(
            f"count(max by (model) ({series('driftd_model_info')}))"), no_value="none",
        ),
        parts.number("Models in trouble", "Models with a rule that fires.", now(
            f"count(({worst}) >= 2) or 0 * count({worst})"), colours=steps(GREEN, (1, ORANGE)),
        ),
        parts.number("Critical", "Models with a critical rule that fires.", now(
            f"count(({worst}) == 3) or 0 * count({worst})"), colours=steps(GREEN, (1, RED)),
        ),
        parts.number("Retrains under way", "Jobs between their request and their end.", now(
            f"sum(max by (model, state) ({jobs}))"),
        ).links([parts.link("Retraining", TO_RETRAINING, new=False)]),
        parts.number("Awaiting approval", "Jobs that wait for `driftd approve` or `driftd reject`.", now(
            f"sum(max by (model) ({waiting}))"), colours=steps(GREEN, (1, YELLOW)),
        ).links([parts.link("Retraining", TO_RETRAINING, new=False)]),
        parts.number("driftd", "Whether every component of every replica is ready.", now(
            f"min({series('driftd_ready')})"), named=parts.WORKS, no_value="not scraped",
        ).links([parts.link("driftd", TO_DAEMON, new=False), page.runbook("Not ready", "not-ready")]),
    ]  # fmt: skip


def _models() -> Any:
    whole = 'segment=""'
    phase = series("driftd_rule_phase", 'phase="firing"')
    firing = led(f"({phase} == 1)", "model, rule")
    champion = f"max by (model, version) ({series('driftd_champion_info')})"
    columns = {
        "Value #A": "State",
        "Value #B": "Champion is known",
        "champion": "Champion",
        "Value #C": "Performance",
        "metric": "Metric",
        "Value #D": "Worse by",
        "Value #E": "Drifted features",
        "Value #F": "Labelled",
        "serving": "Measured version",
        "Value #G": "Newest window",
        "Value #H": "Windows behind",
        "Value #I": "Firing rules",
        "model": "Model",
    }
    order = (
        "model", "Value #A", "Value #I", "Value #C", "metric", "Value #D", "Value #E", "Value #F", "Value #G",
        "Value #H", "serving", "champion",
    )  # fmt: skip
    ends = newest("model, version")
    size = f"max by (model) ({series('driftd_window_size_seconds')})"
    panel = parts.listing(
        "Models, worst first",
        "State: the most severe rule that fires. Worse by: drop of the judged metric below the reference, in its own "
        "units. Windows behind: age of the newest measured window in lengths of a window; labels that come late do not "
        "count, events that stay away do. Champion: what driftd promoted last; empty while it has promoted nothing.",
        rows(severity_of_worst_rule()),
        rows(f'max by (model, champion) (label_replace({champion}, "champion", "$1", "version", "(.*)"))'),
        rows(of_newest(judged(series("driftd_performance_score", whole)), "model, metric")),
        rows(of_newest(judged(series("driftd_performance_drop_score", whole)), "model")),
        rows(of_newest(series("driftd_drift_share_ratio"), "model")),
        rows(of_newest(series("driftd_label_coverage_ratio"), "model")),
        rows(f'1000 * max by (model, serving) (label_replace({ends}, "serving", "$1", "version", "(.*)"))'),
        rows(f"(time() - max by (model) ({ends})) / {size}"),
        rows(f"count by (model) ({firing}) or 0 * max by (model) ({series('driftd_model_info')})"),
        sort="State",
        h=10,
        no_value="-",
    )
    panel.transformations([parts.merge(), parts.organize(order, ["Value #B"], columns)])
    share = [value("unit", "percentunit"), value("decimals", 0), value("min", 0), value("max", 1)]
    panel.override_by_name("Model", [cell_link("Model dashboard", TO_MODEL, new=False), value("custom.width", 180)])
    panel.override_by_name("State", [value("mappings", parts.words(parts.SEVERITY)), parts.colour_cell()])
    panel.override_by_name("Performance", [value("decimals", 3)])
    panel.override_by_name("Worse by", [value("decimals", 3)])
    panel.override_by_name("Drifted features", [*share, value("custom.cellOptions", {"type": "gauge", "mode": "basic"}),
                                                parts.fixed(BLUE)])  # fmt: skip
    panel.override_by_name("Labelled", share)
    panel.override_by_name("Newest window", [value("unit", "dateTimeFromNow")])
    behind = steps(GREEN, (3, YELLOW), (6, RED)).build()
    panel.override_by_name("Windows behind", [value("decimals", 1), value("thresholds", behind), parts.colour_text()])
    panel.override_by_name("Firing rules", [value("decimals", 0)])
    mlflow = "${mlflow_url}/#/models/${__data.fields.Model}/versions/${__value.raw}"
    panel.override_by_name("Champion", [cell_link("Version in MLflow", mlflow)])
    return panel


def _over_time() -> list[Any]:
    return [
        parts.timeline(
            "State by model",
            "The most severe rule of each model that is pending or fires.",
            target(severity_of_worst_rule(), "{{model}}"),
            named=parts.SEVERITY,
            no_value="no model",
        ),
        parts.lines(
            "Drop below the reference",
            "How much worse the judged metric is than on the reference, as a share of the reference's value, so that "
            "models with different metrics can be compared. Below zero: better than the reference.",
            target(
                of_newest(judged(series("driftd_performance_drop_ratio", 'segment=""')), "model"), "{{model}}"
            ),
            unit="percentunit",
            no_value="no labelled window in this range",
        ),
        parts.lines(
            "Drifted features",
            "Share of the features that drifted in the newest window.",
            target(of_newest(series("driftd_drift_share_ratio"), "model"), "{{model}}"),
            unit="percentunit",
            low=0,
            high=1,
        ),
        parts.bars(
            "Retrains requested",
            "Requests for a retrain, by what asked: a rule, the schedule, new labels, a person.",
            target(increase("driftd_retrain_requests_total", "model, trigger", over="$__rate_interval"),
                   "{{model}} · {{trigger}}"),
            no_value="no retrain was requested in this range",
        ),
    ]  # fmt: skip
