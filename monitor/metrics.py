"""Every Prometheus name driftd exports, in one class.

Invariant: names are literal, label values come from configuration or enums only, and series that are known from the
configuration exist from the start. An undefined value has no sample; NaN is never written.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from monitor.base.faults import UnitKind
from monitor.base.kinds import ActivityKind, RejectReason, Stream
from monitor.rules.measurement import Measure, Measurement, WindowKey
from monitor.rules.phases import Phase
from monitor.rules.rules import Rule
from monitor.rules.triggers import Suppressed, SuppressReason
from retrain.terms.request import RetrainRequest, TriggerKind
from retrain.terms.states import JobState

SERIES_BUDGET = 2000
"""Measurement series exported per model at most; the rest is counted in `driftd_series_dropped_total`."""

_NAMES: Mapping[Measure, tuple[str, str]] = {
    Measure.FEATURE_DRIFT: ("driftd_feature_drift_score", "Drift score of a feature, by its method"),
    Measure.DRIFT_SHARE: ("driftd_drift_share_ratio", "Drifted features over features"),
    Measure.PREDICTION_DRIFT: ("driftd_prediction_drift_score", "Drift score of the predictions"),
    Measure.LABEL_DRIFT: ("driftd_label_drift_score", "Drift score of the labels"),
    Measure.PERFORMANCE: ("driftd_performance_score", "Model quality by metric, on labelled rows"),
    Measure.PERFORMANCE_DROP: (
        "driftd_performance_drop_score",
        "How much worse than the reference (positive)",
    ),
    Measure.PERFORMANCE_DROP_RATIO: ("driftd_performance_drop_ratio", "The same over the reference's value"),
    Measure.DRIFT_IMPACT: ("driftd_drift_impact_score", "Drift of a feature weighted with its importance to the model"),
    Measure.ESTIMATED_PERFORMANCE: (
        "driftd_estimated_performance_score",
        "Estimate, made without labels: model quality by metric if inputs still mean the same",
    ),
    Measure.ESTIMATED_DROP: (
        "driftd_estimated_drop_score",
        "Estimate, made without labels: how much worse than the reference (positive)",
    ),
    Measure.ESTIMATION_ERROR: (
        "driftd_estimation_error_score",
        "How much worse than its estimate the performance turned out (positive)",
    ),
    Measure.MISSING_SHARE: ("driftd_missing_ratio", "Rows without a usable value"),
    Measure.UNSEEN_SHARE: ("driftd_unseen_ratio", "Values that the reference does not know"),
    Measure.OUT_OF_RANGE_SHARE: ("driftd_out_of_range_ratio", "Values outside the reference's range"),
    Measure.INVALID_SHARE: ("driftd_invalid_ratio", "Rows whose value was broken"),
    Measure.VOLUME: ("driftd_window_rows", "Predictions in the window"),
    Measure.LATENCY_P50: ("driftd_prediction_latency_p50_seconds", "Median prediction latency"),
    Measure.LATENCY_P95: ("driftd_prediction_latency_p95_seconds", "95th percentile of prediction latency"),
    Measure.LATENCY_P99: ("driftd_prediction_latency_p99_seconds", "99th percentile of prediction latency"),
    Measure.LABEL_COVERAGE: ("driftd_label_coverage_ratio", "Labelled predictions over predictions"),
    Measure.LABEL_DELAY: ("driftd_label_delay_seconds", "Median delay between a prediction and its label"),
}
_LABELS: Mapping[Measure, tuple[str, ...]] = {
    Measure.FEATURE_DRIFT: ("feature",),
    Measure.MISSING_SHARE: ("feature",),
    Measure.UNSEEN_SHARE: ("feature",),
    Measure.OUT_OF_RANGE_SHARE: ("feature",),
    Measure.INVALID_SHARE: ("feature",),
    Measure.PERFORMANCE: ("metric", "segment"),
    Measure.PERFORMANCE_DROP: ("metric", "segment"),
    Measure.PERFORMANCE_DROP_RATIO: ("metric", "segment"),
    Measure.DRIFT_IMPACT: ("feature",),
    Measure.ESTIMATED_PERFORMANCE: ("metric", "segment"),
    Measure.ESTIMATED_DROP: ("metric", "segment"),
    Measure.ESTIMATION_ERROR: ("metric", "segment"),
}


class MeasurementCollector(Collector):
    """The newest measured window of each model version, as gauges; one family per measure."""

    def __init__(self) -> None:
        self._values: dict[str, dict[tuple[str, tuple[str, str, str, str]], tuple[Measurement, float]]] = {}
        self._windows: dict[tuple[str, str], float] = {}

    def update(self, key: WindowKey, measurements: Iterable[Measurement]) -> int:
        """Take over a window's measurements, unless those of a newer window are there (labels come out of order).

        Returns how many were dropped for the series budget.
        """
        end = key.end.timestamp()
        values = dict(self._values.get(key.model, {}))
        dropped = 0
        for m in measurements:
            slot = (key.version, m.key)
            if slot not in values and len(values) >= SERIES_BUDGET:
                dropped += 1
                continue
            if slot not in values or values[slot][1] <= end:
                values[slot] = (m, end)
        self._values[key.model] = values
        self._windows[key.model, key.version] = max(end, self._windows.get((key.model, key.version), end))
        return dropped

    def retire(self, model: str, keep: set[str]) -> None:
        """Forget the versions of a model that are not in `keep`."""
        self._values[model] = {s: v for s, v in self._values.get(model, {}).items() if s[0] in keep}
        self._windows = {k: v for k, v in self._windows.items() if k[0] != model or k[1] in keep}

    def collect(self) -> Iterable[Metric]:
        drifted = GaugeMetricFamily(
            "driftd_feature_drifted",
            "1 if the feature drifted by its method's threshold",
            labels=("model", "version", "feature"),
        )
        undefined = GaugeMetricFamily(
            "driftd_measurements_undefined",
            "Measurements of the newest window without a value",
            labels=("model", "version"),
        )
        for measure, (name, text) in _NAMES.items():
            family = GaugeMetricFamily(name, text, labels=("model", "version", *_LABELS.get(measure, ())))
            for model, values in list(self._values.items()):
                for (version, _), (m, _end) in values.items():
                    if m.measure is measure and m.value is not None:
                        extra = [getattr(m, label) for label in _LABELS.get(measure, ())]
                        family.add_metric([model, version, *extra], m.value)
            yield family
        for model, values in list(self._values.items()):
            missing: dict[str, int] = {}
            for (version, _), (m, _end) in values.items():
                missing[version] = missing.get(version, 0) + (m.value is None)
                if m.measure is Measure.FEATURE_DRIFT and m.drifted is not None:
                    drifted.add_metric([model, version, m.feature], float(m.drifted))
            for version, count in missing.items():
                undefined.add_metric([model, version], count)
        yield drifted
        yield undefined
        for measure, name, what in _INTERVALS:
            yield from self._intervals(measure, name, what)
        window = GaugeMetricFamily(
            "driftd_window_end_timestamp_seconds",
            "End of the newest measured window (event time)",
            labels=("model", "version"),
        )
        for (model, version), end in list(self._windows.items()):
            window.add_metric([model, version], end)
        yield window

    def _intervals(self, measure: Measure, name: str, what: str) -> Iterable[Metric]:
        labels = ("model", "version", "metric", "segment")
        lower = GaugeMetricFamily(f"{name}_lower_score", f"Lower end of the 95 % interval of {what}", labels=labels)
        upper = GaugeMetricFamily(f"{name}_upper_score", f"Upper end of the 95 % interval of {what}", labels=labels)
        for model, values in list(self._values.items()):
            for (version, _), (m, _end) in values.items():
                if m.measure is measure and m.interval is not None:
                    at = [model, version, m.metric, m.segment]
                    lower.add_metric(at, m.interval[0])
                    upper.add_metric(at, m.interval[1])
        yield lower
        yield upper


_INTERVALS = (
    (Measure.PERFORMANCE, "driftd_performance", "the performance"),
    (Measure.ESTIMATED_PERFORMANCE, "driftd_estimated_performance", "the estimated performance"),
)


_FAULT_STATES = {False: "waiting", True: "given_up"}
COMPONENTS = ("source", "lake", "control", "evaluation")
"""What must work for driftd to be ready."""


class Readiness:
    """Whether each component works, and what is wrong with it: the gauge, and the words of `/readyz`."""

    def __init__(self, gauge: Gauge):
        self._gauge = gauge
        self._problems = dict.fromkeys(COMPONENTS, "starting")
        for component in COMPONENTS:
            gauge.labels(component)

    def good(self, component: str) -> None:
        self._problems[component] = ""
        self._gauge.labels(component).set(1)

    def bad(self, component: str, problem: str) -> None:
        self._problems[component] = problem
        self._gauge.labels(component).set(0)

    def problems(self) -> dict[str, str]:
        """{component: what is wrong, or ""}."""
        return dict(self._problems)


class Metrics:
    """One instance per daemon, on its own registry."""

    def __init__(self, registry: CollectorRegistry | None = None):
        r = self.registry = registry or CollectorRegistry()
        self._rules: set[tuple[str, str]] = set()
        self._gates: dict[str, set[str]] = {}
        self._champions: dict[str, tuple[str, str] | None] = {}
        self.measurements = MeasurementCollector()
        r.register(self.measurements)
        ProcessCollector(registry=r)
        self.build_info = Gauge("driftd_build_info", "Versions", ("version", "python"), registry=r)
        self.config_info = Gauge("driftd_config_info", "Digest of the config in force", ("digest",), registry=r)
        self.config_reloads = Counter("driftd_config_reloads", "Reloads by outcome", ("outcome",), registry=r)
        self.config_ok = Gauge("driftd_config_last_reload_successful", "0 after a reload that was refused", registry=r)
        self.config_ok.set(1)  # nothing was refused yet
        self.ready = Readiness(Gauge("driftd_ready", "1 if the component works", ("component",), registry=r))
        self.leader = Gauge("driftd_leader", "1 on the replica that evaluates", registry=r)

        self.events = Counter("driftd_events", "Events appended to the lake", ("model", "stream"), registry=r)
        self.dead_letters = Counter(
            "driftd_dead_letters", "Records that are no events", ("stream", "reason"), registry=r
        )
        self.unknown_fields = Counter(
            "driftd_unknown_fields_sampled", "Unknown fields in one record of 64", ("model",), registry=r
        )
        self.batches = Counter("driftd_ingest_batches", "Batches by outcome", ("outcome",), registry=r)
        self.append_seconds = Histogram(
            "driftd_ingest_batch_seconds",
            "Time to decode and append a batch",
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=r,
        )
        self.ingested_at = Gauge("driftd_ingest_last_append_timestamp_seconds", "Last append to the lake", registry=r)
        self.lag = Gauge("driftd_source_lag", "Records (Kafka) or bytes (files) to read", ("partition",), registry=r)
        self.paused = Gauge("driftd_source_paused", "1 while the lake is behind and the source waits", registry=r)
        self.rebalances = Counter("driftd_source_rebalances", "Rebalances by kind", ("kind",), registry=r)
        self.source_errors = Counter("driftd_source_errors", "Source failures by kind", ("kind",), registry=r)
        self.offsets_lost = Counter(
            "driftd_source_records_lost", "Records the broker deleted before they were read", registry=r
        )
        self.missing_topics = Gauge("driftd_source_missing_topics", "Topics that do not exist", registry=r)

        self.tick_seconds = Histogram(
            "driftd_tick_seconds",
            "Time of one evaluation tick",
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
            registry=r,
        )
        self.ticks = Counter("driftd_ticks", "Evaluation ticks by outcome", ("outcome",), registry=r)
        self.ticked_at = Gauge("driftd_tick_last_success_timestamp_seconds", "Last good tick", registry=r)
        self.outcomes = Counter("driftd_outcomes", "Labels joined with their prediction", ("model",), registry=r)
        self.pending_labels = Gauge(
            "driftd_labels_pending", "Labels waiting for their prediction", ("model",), registry=r
        )
        self.orphan_labels = Counter(
            "driftd_labels_orphaned",
            "Labels given up: no prediction within max_delay",
            ("model",),
            registry=r,
        )
        self.late_rows = Counter(
            "driftd_late_rows", "Predictions that came after their window closed", ("model",), registry=r
        )
        self.windows = Counter("driftd_windows_measured", "Windows measured", ("model", "kind"), registry=r)
        self.measure_seconds = Histogram(
            "driftd_window_measure_seconds",
            "Time to measure one window",
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=r,
        )
        self.watermark = Gauge(
            "driftd_watermark_timestamp_seconds", "Event time complete up to here", ("model",), registry=r
        )
        self.series_dropped = Counter(
            "driftd_series_dropped", "Measurement series above the budget", ("model",), registry=r
        )

        self.model_info = Gauge(
            "driftd_model_info", "A configured model and the metric it is judged by", ("model", "task", "metric"),
            registry=r,
        )  # fmt: skip
        self.window_size = Gauge("driftd_window_size_seconds", "Length of the windows", ("model",), registry=r)
        self.retraining_held = Gauge(
            "driftd_retraining_held", "1 while the model is paused or in maintenance: no retrain, no promotion",
            ("model",), registry=r,
        )  # fmt: skip
        self.activity_at = Gauge(
            "driftd_last_activity_timestamp_seconds", "When this last happened to the model", ("model", "kind"),
            registry=r,
        )  # fmt: skip
        self.champion_info = Gauge(
            "driftd_champion_info", "The version driftd made champion, and its MLflow run", ("model", "version", "run"),
            registry=r,
        )  # fmt: skip
        self.gate_passed = Gauge(
            "driftd_gate_passed", "1 if the last challenger passed the gate", ("model", "gate"), registry=r
        )
        self.challenger_traffic = Gauge(
            "driftd_challenger_traffic_ratio",
            "Share of the requests that a canary should answer",
            ("model",),
            registry=r,
        )
        self.trial_rows = Gauge(
            "driftd_trial_rows", "Labelled rows that a shadow or a step of a canary has", ("model",), registry=r
        )
        self.trial_rows_needed = Gauge("driftd_trial_rows_needed", "Rows it is judged on", ("model",), registry=r)
        self.job_seconds = Gauge(
            "driftd_last_job_duration_seconds", "From request to end of the last ended job", ("model",), registry=r
        )

        self.rule_info = Gauge(
            "driftd_rule_info", "What a rule looks at and does", ("model", "rule", "measure", "severity", "action"),
            registry=r,
        )  # fmt: skip
        self.rule_phase = Gauge(
            "driftd_rule_phase", "1 for the phase the rule is in", ("model", "rule", "phase"), registry=r
        )
        self.rule_value = Gauge("driftd_rule_value", "Value the rule judged last", ("model", "rule"), registry=r)
        self.rule_threshold = Gauge(
            "driftd_rule_threshold", "Threshold of the rule", ("model", "rule", "measure"), registry=r
        )
        self.rules_fired = Counter(
            "driftd_rules_fired", "Transitions into firing", ("model", "rule", "severity"), registry=r
        )
        self.requests = Counter(
            "driftd_retrain_requests", "Retrain requests by trigger", ("model", "trigger"), registry=r
        )
        self.suppressed = Counter(
            "driftd_retrain_suppressed", "Retrains wanted and not requested", ("model", "reason"), registry=r
        )
        self.jobs = Gauge("driftd_jobs", "Retrain jobs by state", ("model", "state"), registry=r)
        self.job_process_exits = Counter("driftd_job_process_exits", "Ends of job processes", ("outcome",), registry=r)
        self.annotations = Counter("driftd_annotations", "Annotations sent to Grafana", ("outcome",), registry=r)
        self.deliveries = Counter(
            "driftd_event_deliveries", "Events told to webhooks, topics, servers", ("outlet", "outcome"), registry=r
        )
        self.unit_failures = Counter(
            "driftd_unit_failures", "Failures of a window, a reference, a model, a job of the daemon's", ("kind",),
            registry=r,
        )  # fmt: skip
        self.faults = Gauge(
            "driftd_faults", "What has failed and not succeeded since: tried again, or given up", ("model", "state"),
            registry=r,
        )  # fmt: skip
        self.other_versions = Gauge(
            "driftd_other_versions", "Versions with rows of late that are beyond windows.max_versions: not measured",
            ("model",), registry=r,
        )  # fmt: skip
        self.other_version_rows = Counter("driftd_other_version_rows", "Their predictions", ("model",), registry=r)
        self._faulty: set[tuple[str, str]] = set()
        self.maintenance = Counter("driftd_lake_maintenance", "Compaction and retention runs", ("outcome",), registry=r)

    def set_faults(self, counts: Mapping[tuple[str, bool], int]) -> None:
        """(model, or empty for the daemon's own; whether it was given up) -> how many."""
        found = {(model, _FAULT_STATES[given_up]): count for (model, given_up), count in counts.items()}
        for at in self._faulty - found.keys():
            self.faults.labels(*at).set(0)
        for at, count in found.items():
            self.faults.labels(*at).set(count)
        self._faulty |= found.keys()

    def count_decision(self, decision: RetrainRequest | Suppressed) -> None:
        """Count what was put on record for a cause."""
        if isinstance(decision, Suppressed):
            self.suppressed.labels(decision.cause.model, decision.reason.value).inc()
        else:
            self.requests.labels(decision.model, decision.trigger.value).inc()

    def declare(self, version: str, models: Mapping[str, Iterable[Rule]], outlets: Iterable[str] = ()) -> None:
        """Create every series that is known from the configuration."""
        self.build_info.labels(version, platform.python_version()).set(1)
        for outcome in ("ok", "failed"):
            for counter in (
                self.batches,
                self.ticks,
                self.config_reloads,
                self.maintenance,
                self.job_process_exits,
            ):
                counter.labels(outcome)
        for outcome in ("sent", "failed"):
            self.annotations.labels(outcome)
            for outlet in outlets:
                self.deliveries.labels(outlet, outcome)
        for kind in ("refused", "unavailable", "unreadable_file", "replaced_file"):
            self.source_errors.labels(kind)
        for kind in ("assigned", "revoked", "lost"):
            self.rebalances.labels(kind)
        for unit_kind in UnitKind:
            self.unit_failures.labels(unit_kind.value)
        for stream in Stream:
            for reason in RejectReason:
                self.dead_letters.labels(stream.value, reason.value)
        self.rule_info.clear()
        self._forget_rules({(model, rule.name) for model, rules in models.items() for rule in rules})
        for model, rules in models.items():
            for stream in Stream:
                self.events.labels(model, stream.value)
            for per_model in (
                self.unknown_fields, self.outcomes, self.pending_labels, self.orphan_labels, self.late_rows,
                self.series_dropped, self.other_versions, self.other_version_rows,
            ):  # fmt: skip
                per_model.labels(model)
            for state in _FAULT_STATES.values():
                self.faults.labels(model, state)
            for kind in ("drift", "performance"):
                self.windows.labels(model, kind)
            for against in SuppressReason:
                self.suppressed.labels(model, against.value)
            for trigger in TriggerKind:
                self.requests.labels(model, trigger.value)
            for job_state in JobState:
                self.jobs.labels(model, job_state.value)
            for kind in ActivityKind:
                self.activity_at.labels(model, kind.value)
            for trial in (self.challenger_traffic, self.trial_rows, self.trial_rows_needed):
                trial.labels(model)
            for rule in rules:
                self.rules_fired.labels(model, rule.name, rule.severity.value)
                self.rule_info.labels(model, rule.name, rule.measure.value, rule.severity.value, rule.action.value).set(
                    1
                )
                threshold = rule.above if rule.above is not None else rule.below
                if threshold is not None:
                    self.rule_threshold.labels(model, rule.name, rule.measure.value).set(threshold)
                if not self._has_phase(model, rule.name):  # a reload leaves a firing rule firing
                    self.set_phase(model, rule.name, Phase.INACTIVE)

    def _forget_rules(self, declared: set[tuple[str, str]]) -> None:
        """A rule that a reload took away must not go on firing, nor an old threshold be drawn."""
        self.rule_threshold.clear()
        for model, rule in self._rules - declared:
            for gauge in (self.rule_phase, self.rule_value):
                gauge.remove_by_labels({"model": model, "rule": rule})
        self._rules = declared

    def _has_phase(self, model: str, rule: str) -> bool:
        labels = {"model": model, "rule": rule, "phase": Phase.INACTIVE.value}
        return self.registry.get_sample_value("driftd_rule_phase", labels) is not None

    def set_phase(self, model: str, rule: str, phase: Phase) -> None:
        for p in Phase:
            self.rule_phase.labels(model, rule, p.value).set(float(p is phase))

    def set_gates(self, model: str, passed: Mapping[str, float]) -> None:
        """The gates of the last judged challenger, in place of those of the one before."""
        for gate in self._gates.get(model, set()) - passed.keys():
            self.gate_passed.remove(model, gate)
        self._gates[model] = set(passed)
        for gate, value in passed.items():
            self.gate_passed.labels(model, gate).set(value)

    def set_champion(self, model: str, version: str | None, run: str) -> None:
        """One series per model; the new one is there before the old one goes."""
        old, new = self._champions.get(model), (version, run) if version is not None else None
        if new is not None:
            self.champion_info.labels(model, *new).set(1)
        if old is not None and old != new:
            self.champion_info.remove(model, *old)
        self._champions[model] = new

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
