"""The Model dashboard: everything about one model, from what it is worth to what its features look like."""

from __future__ import annotations

from typing import Any

from grafana_foundation_sdk.models.common import BigValueTextMode
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.grafana import page, parts
from dashboards.grafana.model_inputs import REPORTS, M, V, drift, quality, traffic
from dashboards.grafana.parts import BLUE, GREEN, GREY, RED, cell_link, fixed, steps, value
from dashboards.grafana.queries import (
    judged,
    led,
    newest,
    now,
    of_newest,
    phase_of_rules,
    rows,
    series,
    severity_of_worst_rule,
    target,
    threshold,
)

WHOLE = 'segment=""'
DASHED = [value("custom.lineStyle", {"fill": "dash", "dash": [6, 4]}), fixed(GREY)]
"""How a number is drawn that no label has confirmed."""
TO_RETRAINING = f"/d/{page.RETRAINING}?var-model=${{model}}&{page.KEEP}"


def build() -> Dashboard:
    about = (
        "One model: is it still good, did its inputs change, which rule says so, and what was done about it. Red "
        "dashed lines are the thresholds of the rules in force."
    )
    of_model = 'driftd_performance_score{job=~"$job", model="$model"}'
    variables = [
        page.label_values("model", "Model", 'driftd_model_info{job=~"$job"}', "model"),
        page.label_values(
            "version", "Version", 'driftd_window_rows{job=~"$job", model="$model"}', "version", many=True,
            text="Versions whose windows are measured",
        ),
        page.label_values(
            "segment", "Segment", of_model, "segment", many=True, every=".+",
            text="Parts of the rows that are measured by themselves; all rows together are always shown",
        ),
    ]  # fmt: skip
    links = [
        parts.link("Evidently reports", REPORTS),
        parts.link("Registered model", "${mlflow_url}/#/models/${model}"),
        parts.link("Retraining", TO_RETRAINING, new=False),
    ]
    annotations = [page.sent("model:$model"), *page.scraped(M)]
    builder = page.page(page.MODEL, "driftd / Model", about, variables, annotations, links)
    return page.fill(
        builder,
        [
            ("$model now", _numbers()),
            ("Performance", _performance()),
            ("Rules", _rules()),
            ("Drift", drift()),
            ("Data quality", quality()),
            ("Traffic", traffic()),
            ("Versions and history", _versions()),
        ],
    )


def _numbers() -> list[Any]:
    perf = judged(series("driftd_performance_score", M, V, WHOLE))
    drop = judged(series("driftd_performance_drop_score", M, V, WHOLE))
    return [
        parts.number(
            "State", "The most severe rule of the model.", now(f"({severity_of_worst_rule()}) and on (model) "
            f"max by (model) ({series('driftd_model_info', M)})"), named=parts.SEVERITY, no_value="no such model",
        ).links([page.runbook("Performance down", "performance-down"),
                 page.runbook("Many features drift", "many-features-drift")]),
        parts.number(
            "Performance", "The judged metric on the newest labelled window of the newest version.",
            now(of_newest(perf, "model, metric", M, V), "{{metric}}"), no_value="no labels yet",
        ).decimals(3).text_mode(BigValueTextMode.VALUE_AND_NAME),
        parts.number(
            "Worse than the reference by", "In the metric's own units; below zero it is better.",
            now(of_newest(drop, "model", M, V)), no_value="no labels yet",
        ).decimals(3),
        parts.number(
            "Drifted features", "Share of the features that drifted in the newest window.",
            now(of_newest(series("driftd_drift_share_ratio", M, V), "model", M, V)),
            unit="percentunit", no_value="no reference yet",
        ),
        parts.number(
            "Labelled", "Share of the newest labelled window's predictions whose truth is known.",
            now(of_newest(series("driftd_label_coverage_ratio", M, V), "model", M, V)),
            unit="percentunit", no_value="no labels yet",
        ),
        parts.number(
            "Newest window", "End of the newest measured window, in event time.",
            now(f"1000 * max({newest('model, version', M, V)})"), unit="dateTimeFromNow", no_value="none measured",
        ).links([page.runbook("Windows late", "windows-late"), parts.link("Reports", REPORTS)]),
    ]  # fmt: skip


def _performance() -> list[Any]:
    by_segment = judged(series("driftd_performance_score", M, V, 'segment=~"$segment"', 'segment!=""'))
    every = series("driftd_performance_score", M, V, WHOLE)
    return [
        _realized_and_estimated(),
        parts.lines(
            "Drop below the reference",
            "How much worse each metric is than on the reference, in its own units; above zero is worse, whichever way "
            "the metric runs. Estimated: the judged metric's in the newest window, whose labels may not have come.",
            target(led(series("driftd_performance_drop_score", M, V, WHOLE), "metric, version"),
                   "{{metric}} · version {{version}}"),
            target(led(judged(series("driftd_estimated_drop_score", M, V, WHOLE)), "metric, version"),
                   "{{metric}} · version {{version}} · estimated"),
            threshold("performance_drop"),
            threshold("estimated_drop"),
            unit="none",
            no_value="no labelled window in this range",
        ).override_by_regexp("/ estimated$/", DASHED).decimals(3),
        parts.lines(
            "Estimation error",
            "By how much worse than its estimate the judged metric turned out, once labels came. About zero: what "
            "performance lost, the inputs explain. Far above zero, window after window: the same inputs have come to "
            "mean something else, which only labels can tell.",
            target(led(judged(series("driftd_estimation_error_score", M, V, WHOLE)), "metric, version"),
                   "{{metric}} · version {{version}}"),
            threshold("estimation_error"),
            unit="none",
            no_value="no labels yet, or the reference allows no estimate",
            w=8,
        ).decimals(3),
        parts.lines(
            "Performance by segment",
            "The judged metric on the segments chosen above. Segments with too few rows are not measured.",
            target(led(by_segment, "segment, version"), "{{segment}} · version {{version}}"),
            unit="none",
            no_value="no segment is configured, or none has enough rows",
            w=8,
        ).decimals(3),
        parts.lines(
            "Drop as a share of the reference",
            "The drop over the reference's value: what rules on `performance_drop_ratio` look at.",
            target(led(series("driftd_performance_drop_ratio", M, V, WHOLE), "metric, version"),
                   "{{metric}} · version {{version}}"),
            threshold("performance_drop_ratio"),
            unit="percentunit",
            no_value="no labelled window in this range",
            w=8,
        ),
        parts.lines(
            "Every metric",
            "All configured metrics on all labelled rows. They have different scales; look at one by clicking it.",
            target(led(every, "metric, version"), "{{metric}} · version {{version}}"),
            unit="none",
            no_value="no labelled window in this range",
            w=8,
        ).decimals(3),
        parts.lines(
            "Labelled predictions",
            "Share of a window's predictions whose truth is known. Performance is final, and rules act on it, from "
            "`windows.min_coverage` on.",
            target(led(series("driftd_label_coverage_ratio", M, V), "version"), "version {{version}}"),
            threshold("label_coverage"),
            unit="percentunit",
            low=0,
            high=1,
            w=8,
        ),
        parts.lines(
            "Label delay",
            "Median time between a prediction and its label.",
            target(led(series("driftd_label_delay_seconds", M, V), "version"), "version {{version}}"),
            threshold("label_delay"),
            unit="s",
            low=0,
            w=8,
        ),
    ]  # fmt: skip


def _realized_and_estimated() -> Any:
    lower, upper = "95 % interval, lower end", "95 % interval, upper end"

    def end(name: str) -> str:
        return of_newest(judged(series(name, M, V, WHOLE)), "model, metric", M, V)

    score = judged(series("driftd_performance_score", M, V, WHOLE))
    estimate = judged(series("driftd_estimated_performance_score", M, V, WHOLE))
    panel = parts.lines(
        "Performance, realized and estimated",
        "The metric that rules and gates judge, on all labelled rows of a window; dashed, its estimate without labels "
        "for the newest window, which holds if inputs still mean the same. Bands are 95 % intervals, those of the "
        "newest version: two windows whose intervals overlap need not differ.",
        target(led(score, "metric, version"), "{{metric}} · version {{version}}"),
        target(end("driftd_performance_upper_score"), upper),
        target(end("driftd_performance_lower_score"), lower),
        target(led(estimate, "metric, version"), "{{metric}} · version {{version}} · estimated"),
        target(end("driftd_estimated_performance_upper_score"), f"estimate's {upper}"),
        target(end("driftd_estimated_performance_lower_score"), f"estimate's {lower}"),
        threshold("performance"),
        threshold("estimated_performance"),
        unit="none",
        no_value="no window with labels or an estimate in this range",
    )
    for prefix, colour in (("", BLUE), ("estimate's ", GREY)):
        thin = [value("custom.lineWidth", 0), value("custom.showPoints", "never"), fixed(colour)]
        fill = [value("custom.fillBelowTo", f"{prefix}{lower}"), value("custom.fillOpacity", 15)]
        hidden = value("custom.hideFrom", {"legend": True, "tooltip": False, "viz": False})
        panel.override_by_name(f"{prefix}{upper}", [*thin, *fill])
        panel.override_by_name(f"{prefix}{lower}", [*thin, hidden])
    return panel.override_by_regexp("/ estimated$/", DASHED).decimals(3)


def _rules() -> list[Any]:
    names = {"rule": "Rule", "measure": "Measure", "severity": "Severity", "action": "Action", "Value #A": "Phase",
             "Value #B": "Value", "Value #C": "Threshold"}  # fmt: skip
    info = f"max by (rule, measure, severity, action) ({series('driftd_rule_info', M)})"
    phase = f"max by (rule) ({phase_of_rules(M)}) * on (rule) group_right () {info}"
    listing = parts.listing(
        "What the rules look at",
        "Each rule, the value it judged last and its threshold. Without a threshold the drift method's own decides.",
        rows(phase),
        rows(led(series("driftd_rule_value", M), "rule")),
        rows(f"max by (rule) ({series('driftd_rule_threshold', M)})"),
        sort="Phase",
        w=12,
        no_value="-",
    )
    listing.transformations([parts.merge(), parts.organize(
        ("rule", "Value #A", "Value #B", "Value #C", "measure", "severity", "action"), (), names)])  # fmt: skip
    listing.override_by_name("Phase", [value("mappings", parts.words(parts.PHASE)), parts.colour_cell()])
    listing.override_by_regexp("/Value|Threshold/", [value("decimals", 3)])
    return [
        parts.timeline(
            "Phases of the rules",
            "Pending: breached, and not yet for long enough. Firing: alerts, and retrains where the rule says so.",
            target(phase_of_rules(M), "{{rule}}"),
            named=parts.PHASE,
            no_value="no rule is configured",
        ).links([page.runbook("Performance down", "performance-down")]),
        listing,
        parts.lines(
            "Value over threshold",
            "The value each rule judged last, over its threshold: above 1 a rule on `above` is breached, below 1 one "
            "on `below`. Rules without a threshold of their own are not drawn.",
            target(
                f"{led(series('driftd_rule_value', M), 'rule')} / "
                f"(max by (rule) ({series('driftd_rule_threshold', M)}) != 0)", "{{rule}}",
            ),
            unit="none", w=24, h=6, no_value="no rule has judged a value yet",
        ).thresholds(steps(GREY, (1, RED))).thresholds_style(parts.dashed()),
    ]  # fmt: skip


def _versions() -> list[Any]:
    champion = f"max by (version, run) ({series('driftd_champion_info', M)})"
    now_champion = parts.listing(
        "Champion",
        "The version that driftd promoted last. Empty while driftd has promoted nothing: then the version in MLflow's "
        "alias `champion` is one that somebody else chose.",
        rows(champion),
        sort="Version",
        w=6,
        no_value="driftd has promoted nothing yet",
    )
    now_champion.transformations(
        [parts.organize(("version", "run"), ["Value"], {"version": "Version", "run": "MLflow run"})]
    )
    version_url = "${mlflow_url}/#/models/${model}/versions/${__value.raw}"
    now_champion.override_by_name("Version", [cell_link("Version in MLflow", version_url), value("custom.width", 80)])
    now_champion.override_by_name("MLflow run", [cell_link("Run in MLflow", "${mlflow_url}/#/runs/${__value.raw}")])
    happened = parts.listing(
        "What happened last",
        "The last time of each kind of event. The reasons are on the status page.",
        rows(f"1000 * max by (kind) ({series(page.ACTIVITY, M)} > 0)"),
        sort="When",
        w=6,
        no_value="nothing yet",
    )
    happened.transformations([parts.organize(("kind", "Value"), (), {"kind": "What", "Value": "When"})])
    happened.override_by_name("When", [value("unit", "dateTimeFromNow")])
    happened.override_by_name("What", [cell_link("Status page", REPORTS)])
    return [
        parts.timeline(
            "Champions",
            "Which version driftd had made champion, and when.",
            target(f"max by (version) ({series('driftd_champion_info', M)})", "version {{version}}"),
            named={1: ("serves", GREEN)},
            w=12,
            no_value="driftd has promoted nothing in this range",
        ).links([page.runbook("A bad promotion", "a-bad-promotion")]),
        now_champion,
        happened,
    ]
