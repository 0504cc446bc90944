"""Names, series that exist from the start, and the series budget."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from monitor.base.kinds import RejectReason
from monitor.metrics import SERIES_BUDGET, Metrics
from monitor.rules.measurement import Measure, Measurement, WindowKey
from monitor.rules.phases import Phase
from monitor.rules.rules import Rule, Severity
from monitor.rules.triggers import SuppressReason
from retrain.terms.states import JobState
from tests.builders import HOUR, NOW

RULE = Rule("drop", Measure.PERFORMANCE_DROP, above=0.05, severity=Severity.CRITICAL)
DRIFT = Rule("drift", Measure.FEATURE_DRIFT)
KEY = WindowKey("fraud", "3", NOW - HOUR, NOW)


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    metrics.declare("1.0", {"fraud": [RULE, DRIFT], "price": []})
    return metrics


def one_of_each() -> Iterator[Measurement]:
    for measure in Measure:
        yield Measurement(measure, 0.5, 100, feature="amount", metric="f1", segment="region=eu", drifted=True)
        yield Measurement(measure, None, 100, feature="other", metric="auc", reason="one class only")


def families(metrics: Metrics) -> list[Metric]:
    return list(text_string_to_metric_families(metrics.exposition().decode()))


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def own(metrics: Metrics) -> list[Metric]:
    return [f for f in families(metrics) if not f.name.endswith("_created") and not f.name.startswith("process_")]


def test_names_follow_the_conventions(metrics: Metrics) -> None:
    metrics.measurements.update(KEY, one_of_each())
    found = own(metrics)
    assert len(found) > 40
    for f in found:
        assert re.fullmatch(r"driftd_[a-z0-9_]+", f.name), f.name
        assert f.documentation.strip(), f.name
        assert not re.search(r"_(ms|millis|milliseconds|minutes|hours|kb|mb|percent|share|pct)$", f.name), f.name
        assert "since" not in f.name, f.name
        assert "timestamp" not in f.name or f.name.endswith("_timestamp_seconds"), f.name
        for sample in f.samples:
            assert sample.name.endswith("_total") == (f.type == "counter"), sample.name
            assert not f.name.startswith("driftd_total"), f.name
            assert not math.isnan(sample.value), sample


def test_no_sample_is_nan_or_missing_its_family(metrics: Metrics) -> None:
    for f in families(metrics):
        assert all(math.isfinite(s.value) for s in f.samples)


def test_a_rule_that_a_reload_takes_away_is_exported_no_more(metrics: Metrics) -> None:
    metrics.set_phase("fraud", "drop", Phase.FIRING)
    metrics.set_phase("fraud", "drift", Phase.FIRING)
    metrics.rule_value.labels("fraud", "drop").set(0.2)
    metrics.declare("1.0", {"fraud": [DRIFT], "price": []})
    assert value(metrics, "driftd_rule_phase", model="fraud", rule="drop", phase="firing") is None
    assert value(metrics, "driftd_rule_value", model="fraud", rule="drop") is None
    assert value(metrics, "driftd_rule_threshold", model="fraud", rule="drop", measure="performance_drop") is None
    assert value(metrics, "driftd_rule_phase", model="fraud", rule="drift", phase="firing") == 1


def test_readiness_says_what_is_wrong(metrics: Metrics) -> None:
    metrics.ready.bad("lake", "disk full")
    metrics.ready.good("source")
    assert metrics.ready.problems() == {
        "source": "",
        "lake": "disk full",
        "control": "starting",
        "evaluation": "starting",
    }
    assert value(metrics, "driftd_ready", component="lake") == 0
    assert value(metrics, "driftd_ready", component="source") == 1


def test_names_are_unique(metrics: Metrics) -> None:
    names = [f.name for f in families(metrics)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        *(("driftd_dead_letters_total", {"stream": "labels", "reason": r.value}) for r in RejectReason),
        *(("driftd_retrain_suppressed_total", {"model": "price", "reason": r.value}) for r in SuppressReason),
        *(("driftd_jobs", {"model": "fraud", "state": s.value}) for s in JobState),
        *(("driftd_ready", {"component": c}) for c in ("source", "lake", "control", "evaluation")),
        *(("driftd_ticks_total", {"outcome": o}) for o in ("ok", "failed")),
        *(("driftd_source_rebalances_total", {"kind": k}) for k in ("assigned", "revoked", "lost")),
        ("driftd_source_errors_total", {"kind": "refused"}),
        ("driftd_events_total", {"model": "fraud", "stream": "predictions"}),
        ("driftd_windows_measured_total", {"model": "fraud", "kind": "drift"}),
        ("driftd_rules_fired_total", {"model": "fraud", "rule": "drop", "severity": "critical"}),
        ("driftd_rule_phase", {"model": "fraud", "rule": "drop", "phase": "firing"}),
        ("driftd_labels_pending", {"model": "fraud"}),
        ("driftd_leader", {}),
    ],
)
def test_series_exist_from_the_start(metrics: Metrics, name: str, labels: dict[str, str]) -> None:
    assert value(metrics, name, **labels) == 0


def test_threshold_is_exported_where_the_rule_has_one(metrics: Metrics) -> None:
    assert value(metrics, "driftd_rule_threshold", model="fraud", rule="drop", measure="performance_drop") == 0.05
    assert value(metrics, "driftd_rule_threshold", model="fraud", rule="drift", measure="feature_drift") is None


def test_phase_is_one_of_three_and_a_reload_leaves_it(metrics: Metrics) -> None:
    def phases() -> dict[str, float | None]:
        return {p.value: value(metrics, "driftd_rule_phase", model="fraud", rule="drop", phase=p.value) for p in Phase}

    assert phases() == {"inactive": 1, "pending": 0, "firing": 0}
    metrics.set_phase("fraud", "drop", Phase.FIRING)
    metrics.declare("1.0", {"fraud": [RULE, DRIFT]})
    assert phases() == {"inactive": 0, "pending": 0, "firing": 1}


def test_every_measure_has_a_gauge_and_an_undefined_one_has_no_sample(metrics: Metrics) -> None:
    assert metrics.measurements.update(KEY, one_of_each()) == 0
    samples = [s for f in metrics.measurements.collect() for s in f.samples]
    measured = [s for s in samples if s.value == 0.5]
    assert len(measured) == len(Measure) - 1  # `failed` is a fault: it has series of its own
    assert not any(s.labels.get("feature") == "other" for s in measured)
    assert value(metrics, "driftd_measurements_undefined", model="fraud", version="3") == len(Measure)
    assert value(metrics, "driftd_feature_drifted", model="fraud", version="3", feature="amount") == 1
    assert value(metrics, "driftd_window_end_timestamp_seconds", model="fraud", version="3") == NOW.timestamp()


def score(number: float, metric: str = "f1") -> Measurement:
    return Measurement(Measure.PERFORMANCE, number, 10, metric=metric)


def test_older_window_whose_labels_come_late_does_not_replace_a_newer_one(metrics: Metrics) -> None:
    newer = WindowKey("fraud", "3", NOW, NOW + HOUR)
    metrics.measurements.update(newer, [score(0.9)])
    metrics.measurements.update(KEY, [score(0.1), score(0.2, "auc")])
    labels = {"model": "fraud", "version": "3", "segment": ""}
    assert value(metrics, "driftd_performance_score", **labels, metric="f1") == 0.9
    assert value(metrics, "driftd_performance_score", **labels, metric="auc") == 0.2
    end = value(metrics, "driftd_window_end_timestamp_seconds", model="fraud", version="3")
    assert end == newer.end.timestamp()
    metrics.measurements.update(newer, [score(0.8)])
    assert value(metrics, "driftd_performance_score", **labels, metric="f1") == 0.8


def test_series_above_the_budget_are_dropped_and_counted(metrics: Metrics) -> None:
    many = [score(0.5, f"m{n}") for n in range(SERIES_BUDGET + 5)]
    assert metrics.measurements.update(KEY, many) == 5
    assert metrics.measurements.update(KEY, many) == 5
    assert metrics.measurements.update(WindowKey("price", "1", NOW, NOW + HOUR), [score(0.5)]) == 0
    metrics.measurements.retire("fraud", set())
    assert metrics.measurements.update(KEY, many[:10]) == 0


def test_retired_versions_vanish(metrics: Metrics) -> None:
    for version in ("1", "2"):
        metrics.measurements.update(WindowKey("fraud", version, NOW, NOW + HOUR), [score(0.5)])
    metrics.measurements.retire("fraud", {"2"})
    text = metrics.exposition().decode()
    assert 'version="2"' in text
    assert 'version="1"' not in text
