"""PromQL from small pieces: which series, of which replica, put together by which labels.

Invariant: every selector names the deployment (`$job`), and every gauge that only the evaluating replica keeps current
is taken from the replica that leads now, so that what a former leader still exports is never drawn.
"""

from __future__ import annotations

from grafana_foundation_sdk.builders import prometheus
from grafana_foundation_sdk.models.dashboard import DataSourceRef
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
DEPLOYMENT = 'job=~"$job"'
LEADER = f"driftd_leader{{{DEPLOYMENT}}} == 1"


def series(name: str, *matchers: str) -> str:
    """A selector of this deployment's series: `series("driftd_jobs", 'model="$model"')`."""
    return f"{name}{{{', '.join((DEPLOYMENT, *matchers))}}}"


def led(selector: str, by: str) -> str:
    """A gauge as the leader has it, one series per value of the labels `by`."""
    return f"max by ({by}) ({selector} and on (job, instance) ({LEADER}))"


def newest(by: str, *matchers: str) -> str:
    """The window ends of the newest measured version of each model, by `by` (which holds model and version)."""
    return f"topk by (model) (1, {led(series('driftd_window_end_timestamp_seconds', *matchers), by)})"


def of_newest(selector: str, by: str, *matchers: str) -> str:
    """A measurement of the newest measured version of each model, by the labels `by`."""
    inner = led(selector, f"{by}, version")
    return f"max by ({by}) ({inner} and on (model, version) {newest('model, version', *matchers)})"


def judged(selector: str) -> str:
    """Only the metric that the model is judged by."""
    return f"{selector} and on (job, instance, model, metric) {series('driftd_model_info')}"


def threshold(measure: str, *matchers: str) -> Target:
    """The thresholds of the rules on a measure, as lines of their own: from the configuration in force."""
    found = series("driftd_rule_threshold", 'model="$model"', f'measure="{measure}"', *matchers)
    return target(f"max by (rule) ({found})", "{{rule}} threshold")


def severity_of_worst_rule() -> str:
    """By model: 0 all rules quiet, 1 one is pending, 2 one fires, 3 a critical one fires; 0 without any rule."""
    phase, info = series("driftd_rule_phase", 'phase="firing"'), series("driftd_rule_info", 'severity="critical"')
    critical = f"3 * ({phase} * on (job, instance, model, rule) group_left () {info} == 1)"
    pending = series("driftd_rule_phase", 'phase="pending"')
    worst = led(f"({critical} or 2 * {phase} or {pending})", "model")
    return f"{worst} or 0 * max by (model) ({series('driftd_model_info')})"


def phase_of_rules(*matchers: str) -> str:
    """By model and rule: 0 inactive, 1 pending, 2 firing."""
    firing = series("driftd_rule_phase", 'phase="firing"', *matchers)
    pending = series("driftd_rule_phase", 'phase="pending"', *matchers)
    return led(f"(2 * {firing} or {pending})", "model, rule")


def rate(name: str, by: str, *matchers: str) -> str:
    return f"sum by ({by}) (rate({series(name, *matchers)}[$__rate_interval]))"


def increase(name: str, by: str, *matchers: str, over: str = "$__range") -> str:
    """How many in the range shown. Zeros are left out: what did not happen is no bar and no row."""
    return f"round(sum by ({by}) (increase({series(name, *matchers)}[{over}]))) > 0"


def quantile(q: float, name: str, *matchers: str) -> str:
    buckets = f"sum by (le) (rate({series(name + '_bucket', *matchers)}[$__rate_interval]))"
    return f"histogram_quantile({q}, {buckets})"


# -- targets

Target = prometheus.Dataquery


def target(expr: str, legend: str = "") -> Target:
    """Over the time range; `legend` as `{{label}}`."""
    return prometheus.Dataquery().datasource(DATASOURCE).expr(expr).range().legend_format(legend or "__auto")


def now(expr: str, legend: str = "") -> Target:
    """The value at the end of the time range."""
    return target(expr, legend).instant()


def rows(expr: str) -> Target:
    """The value at the end of the time range, as a table: a column per label, then the value."""
    return now(expr).format(PromQueryFormat.TABLE)
