"""The lower half of the Model dashboard: drift, data quality and traffic of one model."""

from __future__ import annotations

from typing import Any

from dashboards.grafana import parts
from dashboards.grafana.parts import value
from dashboards.grafana.queries import led, of_newest, rate, rows, series, target, threshold

M, V = 'model="$model"', 'version=~"$version"'
REPORTS = "${driftd_url}/models/${model}"


def drift() -> list[Any]:
    share = led(series("driftd_drift_share_ratio", M, V), "version")
    scores = led(series("driftd_feature_drift_score", M, V), "feature")
    impacts = led(series("driftd_drift_impact_score", M, V), "feature")
    return [
        parts.history(
            "Which features drifted, when",
            "A feature drifted when its method says so against its own threshold: the one thing that compares across "
            "methods. Any of the chosen versions counts.",
            target(led(series("driftd_feature_drifted", M, V), "feature"), "{{feature}}"),
            named=parts.YES_NO,
            h=10,
            no_value="no reference yet, or no window",
        ).links([parts.link("Evidently reports", REPORTS)]),
        _features(),
        parts.lines(
            "Drifted features over time",
            "Share of the features that drifted.",
            target(share, "version {{version}}"),
            threshold("drift_share"),
            unit="percentunit",
            low=0,
            high=1,
        ),
        parts.lines(
            "Ten drifts that matter most",
            "Strength of a feature's drift (1 at its threshold, 10 at most) times the feature's share in what moves "
            "the model's answers: this one compares across features.",
            target(f"topk(10, {impacts})", "{{feature}}"),
            threshold("drift_impact"),
            unit="none",
            low=0,
            no_value="no reference yet, or it does not tell what the features are worth",
        ).decimals(3),
        parts.lines(
            "Ten highest drift scores",
            "By each feature's method: a distance drifts above its threshold, a p-value below. Compare a feature with "
            "itself over time, not with others.",
            target(f"topk(10, {scores})", "{{feature}}"),
            threshold("feature_drift"),
            unit="none",
            low=0,
        ).decimals(3),
        parts.lines(
            "Drift of predictions and labels",
            "Predictions drift at once; labels as they become known.",
            target(led(series("driftd_prediction_drift_score", M, V), "version"), "predictions · version {{version}}"),
            target(led(series("driftd_label_drift_score", M, V), "version"), "labels · version {{version}}"),
            threshold("prediction_drift"),
            threshold("label_drift"),
            unit="none",
            low=0,
        ).decimals(3),
    ]


def _features() -> Any:
    names = {
        "feature": "Feature", "Value #A": "Drifted", "Value #B": "Score", "Value #C": "Missing",
        "Value #D": "Unseen", "Value #E": "Out of range", "Value #F": "Broken", "Value #G": "Impact",
    }  # fmt: skip
    shown = (
        "driftd_feature_drifted", "driftd_feature_drift_score", "driftd_missing_ratio", "driftd_unseen_ratio",
        "driftd_out_of_range_ratio", "driftd_invalid_ratio", "driftd_drift_impact_score",
    )  # fmt: skip
    panel = parts.listing(
        "Features of the newest window, drifted first",
        "Unseen: categories the reference does not know. Out of range: numbers beyond the reference's least and "
        "greatest. Broken: values of the wrong type. Impact: the drift weighted with what the feature is worth to the "
        "model.",
        *(rows(of_newest(series(name, M, V), "model, feature", M, V)) for name in shown),
        sort="Drifted",
        w=12,
        h=10,
        no_value="-",
    )
    order = ("feature", *(f"Value #{letter}" for letter in "ABGCDEF"))
    panel.transformations([parts.merge(), parts.organize(order, ["model"], names)])
    panel.override_by_name("Drifted", [value("mappings", parts.words(parts.YES_NO)), parts.colour_text()])
    panel.override_by_name("Feature", [parts.cell_link("Evidently reports", REPORTS)])
    panel.override_by_regexp("/Score|Impact/", [value("decimals", 3)])
    shares = [value("unit", "percentunit"), value("decimals", 1), value("min", 0), value("max", 1)]
    panel.override_by_regexp("/Missing|Unseen|Out of range|Broken/", shares)
    return panel


def quality() -> list[Any]:
    kinds = (
        ("Missing values", "driftd_missing_ratio", "missing_share",
         "Rows without a usable value of the feature. Above zero at once usually means a change upstream."),
        ("Unseen categories", "driftd_unseen_ratio", "unseen_share",
         "Rows whose category the reference does not know."),
        ("Out of range", "driftd_out_of_range_ratio", "out_of_range_share",
         "Rows whose number lies outside what the reference holds."),
        ("Broken values", "driftd_invalid_ratio", "invalid_share",
         "Rows whose value had the wrong type and was taken as missing."),
    )  # fmt: skip
    return [
        parts.lines(
            title,
            f"{text} The ten worst features.",
            target(f"topk(10, {led(series(metric, M, V), 'feature')})", "{{feature}}"),
            threshold(measure),
            unit="percentunit",
            low=0,
            w=6,
        )
        for title, metric, measure, text in kinds
    ]


def traffic() -> list[Any]:
    latency = [
        target(led(series(f"driftd_prediction_latency_{q}_seconds", M, V), "version"), f"{q} · version {{{{version}}}}")
        for q in ("p50", "p95", "p99")
    ]
    limits = [threshold(f"latency_{q}") for q in ("p50", "p95", "p99")]
    return [
        parts.lines(
            "Predictions by window",
            "Rows of each measured window. Fewer than `windows.min_rows` leave rules undecided.",
            target(led(series("driftd_window_rows", M, V), "version"), "version {{version}}"),
            threshold("volume"),
            low=0,
            w=8,
        ),
        parts.lines(
            "Latency of predictions",
            "As the service reported it with each prediction.",
            *latency,
            *limits,
            unit="s",
            low=0,
            w=8,
            no_value="the service reports no latency",
        ),
        parts.lines(
            "Events",
            "Events stored per second, and those that came too late for their window.",
            target(rate("driftd_events_total", "stream", M), "{{stream}}"),
            target(rate("driftd_late_rows_total", "model", M), "late predictions"),
            target(rate("driftd_labels_orphaned_total", "model", M), "labels without a prediction"),
            unit="cps",
            low=0,
            w=8,
        ),
    ]
