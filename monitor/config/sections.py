"""The sections of config.toml: keys, types, defaults, and what must fit together inside one section.

Invariant: frozen; docs/configuration.md is made from these classes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, WrapValidator, model_validator

from monitor.config.explain import MistakesFound, hint
from monitor.config.outside_events import DEFAULT_EVENTS, FIELDS, OutsideEvent, fill
from monitor.measure.drift.methods import METHODS, methods_for
from monitor.measure.performance.scores import SCORES
from monitor.rules.measurement import Measure
from monitor.rules.rules import Action, ForEvidence, ForWindows, Severity, parse_for
from retrain.config.connection import KafkaConnection
from retrain.config.engine_config import EngineConfig
from retrain.config.settings import RetrainConfig
from retrain.terms.cron import cron_trigger
from retrain.terms.fields import Duration, Secret, Section, Share, Size, parse_duration, parse_size
from retrain.terms.schema import FeatureKind, Task

_ZERO = timedelta(0)
AUTO = "auto"


class HttpConfig(Section):
    host: str = Field("127.0.0.1", description="address the one HTTP port binds to")
    port: int = Field(9464, ge=0, le=65535, description="0 picks a free port")
    token: Secret | None = Field(None, description="bearer token for calls that change state; absent: refused")


class LakeConfig(Section):
    uri: str | None = Field(
        None, description="folder or s3://, gs://, abfs:// URI; default: `lake` in the state folder"
    )
    options: dict[str, str | Secret] = Field(
        default_factory=dict, description="storage options of deltalake (credentials, region ..)"
    )
    retention: Duration = Field(parse_duration("90d"), description="events older than this (event time) are deleted")
    maintain_every: Duration = Field(
        parse_duration("1h"), gt=_ZERO, description="how often tables are compacted, expired and vacuumed"
    )
    keep_versions_for: Duration = Field(
        parse_duration("7d"), description="table versions younger than this stay reproducible"
    )


class KafkaConfig(KafkaConnection):
    group: str = Field("driftd", description="consumer group; replicas share it")
    predictions: tuple[str, ...] = Field(("predictions",), strict=False, description="topics with predictions")
    labels: tuple[str, ...] = Field(("labels",), strict=False, description="topics with labels")
    session_timeout: Duration = Field(parse_duration("45s"), description="the group expels a silent replica then")
    max_poll_interval: Duration = Field(parse_duration("5m"), description="the group expels a stuck replica then")


class FilesConfig(Section):
    path: str | None = Field(
        None, description="folder with predictions/ and labels/; default: `events` in the state folder"
    )


class SourceConfig(Section):
    kind: Literal["files", "kafka"] = Field("files", description="where events come from")
    files: FilesConfig = FilesConfig()
    kafka: KafkaConfig | None = None
    batch_rows: int = Field(50_000, ge=1, description="rows appended to the lake at once, at most")
    batch_wait: Duration = Field(
        parse_duration("2s"), description="a smaller batch is appended after this long; bounds the delay"
    )
    max_age: Duration = Field(
        parse_duration("400d"), description="events with an older ts are dead letters (absurd timestamps)"
    )
    max_future: Duration = Field(parse_duration("1h"), description="events this far in the future are dead letters")
    max_bytes: Size = Field(parse_size("16MiB"), description="a larger message is a dead letter")

    @model_validator(mode="after")
    def _kafka_present(self) -> SourceConfig:
        if self.kind == "kafka" and self.kafka is None:
            raise ValueError('kind = "kafka" needs a [source.kafka] table with bootstrap = ["host:port"]')
        return self


class WindowConfig(Section):
    size: Duration = Field(parse_duration("1h"), gt=_ZERO, description="length of the tumbling event-time windows")
    lateness: Duration = Field(parse_duration("5m"), description="how long a window waits for events that come late")
    idle_after: Duration = Field(
        parse_duration("5m"), description="a partition silent this long no longer holds windows back"
    )
    min_rows: int = Field(100, ge=1, description="windows with fewer rows are UNDECIDED")
    max_rows: int = Field(200_000, ge=100, description="a larger window is measured on a seeded sample")
    max_versions: int = Field(
        50, ge=1, le=1000, description="versions measured at once, those with the most rows; others are only counted"
    )
    min_coverage: Share = Field(0.9, description="share of labelled rows that makes performance final")
    max_delay: Duration = Field(
        parse_duration("30d"),
        description="performance is final then whatever the coverage; longest label delay",
    )


class ReferenceConfig(Section):
    path: str | None = Field(None, description="Parquet or CSV with the model's training or validation rows")
    warmup_windows: int = Field(
        3, ge=1, description="without a path or an MLflow artifact: the first windows of a version"
    )
    max_rows: int = Field(50_000, ge=100, description="a larger reference is sampled (seeded)")
    season: Literal["daily", "weekly"] | None = Field(
        None, description="inputs are compared with the same hours of earlier days, or weekdays of earlier weeks"
    )
    season_periods: int = Field(4, ge=1, le=60, description="how many days or weeks back `season` looks")


class MethodConfig(Section):
    model_config = ConfigDict(allow_inf_nan=False)

    method: str
    threshold: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _known(self) -> MethodConfig:
        if self.method not in METHODS:
            raise ValueError(f"unknown drift method {self.method!r}{hint(self.method, METHODS)}")
        return self


def _for(value: object) -> object:
    return parse_for(value) if isinstance(value, str) else value


def _number_or_auto(value: object, validate: Callable[[object], float]) -> object:
    return value if value == AUTO else validate(value)


class RuleConfig(Section):
    """One rule. `above`/`below` may be absent for drift measures: the method's own threshold then decides."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    measure: Annotated[Measure, Field(strict=False)]
    feature: str | None = None
    metric: str | None = None
    segment: str | None = Field(None, description='"country=de"; "*" for every segment; absent: all rows')
    above: Annotated[float, WrapValidator(_number_or_auto), PlainSerializer(lambda value: value)] | None = Field(
        None, description='a number, or "auto": what chance gives in a window of this size decides'
    )
    below: float | None = None
    significant: bool = Field(False, description="chance must not be able to explain the breach: see docs/decisions")
    false_alarm_every: int = Field(
        1000, ge=10, description='windows in which "auto" and `significant` may be wrong once, per rule'
    )
    clear: float | None = Field(None, description="the value must get back beyond this to resolve (hysteresis)")
    for_: Annotated[Any, BeforeValidator(_for)] = Field(ForWindows(2, 3), alias="for")
    keep_firing_for: Duration = Field(parse_duration("0s"), description="event time without a breach to resolve")
    severity: Annotated[Severity, Field(strict=False)] = Severity.WARNING
    action: Annotated[Action, Field(strict=False)] = Action.ALERT

    @property
    def calibrated(self) -> bool:
        """Chance decides, not a number."""
        return self.above is not None and not isinstance(self.above, float | int)

    @model_validator(mode="after")
    def _consistent(self) -> RuleConfig:
        drift = self.measure in (Measure.FEATURE_DRIFT, Measure.PREDICTION_DRIFT, Measure.LABEL_DRIFT)
        if self.measure is Measure.FAILED:
            raise ValueError("no rule can watch windows that cannot be measured: the alert DriftdWorkFailing does")
        if self.above is not None and self.below is not None:
            raise ValueError("give above or below, not both: write two rules")
        _calibratable(self)
        if self.above is None and self.below is None and not drift:
            raise ValueError(f"{self.measure} needs above = .. or below = ..")
        if self.clear is not None:
            if self.above is None and self.below is None:
                raise ValueError("clear needs above or below")
            if self.calibrated:
                raise ValueError('clear needs a number: a rule with above = "auto" resolves by itself')
            if self.above is not None and self.clear > self.above:
                raise ValueError(f"clear must not be greater than above ({self.above})")
            if self.below is not None and self.clear < self.below:
                raise ValueError(f"clear must not be less than below ({self.below})")
        return self


class CombinationConfig(Section):
    """What retrains together, whatever each does alone: rules, new labels, a schedule."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    rules: tuple[str, ...] = Field((), strict=False, description="names of rules; they fire on one version at once")
    new_labels: int | None = Field(None, ge=1, description="so many labels since the last request")
    schedule: str | None = Field(
        None, description="cron expression (UTC); each time holds for an hour, until there is a request"
    )
    at_least: int | None = Field(None, ge=1, description="so many of these must hold at once; default: all of them")

    @property
    def members(self) -> int:
        return len(self.rules) + (self.new_labels is not None) + (self.schedule is not None)

    @model_validator(mode="after")
    def _possible(self) -> CombinationConfig:
        if self.members < 2:
            raise ValueError("two things or more retrain together: name rules, new_labels, schedule")
        if self.at_least is not None and self.at_least > self.members:
            raise ValueError(f"at_least must not be more than there are rules and other members ({self.members})")
        return self


CALIBRATED = frozenset(
    {
        Measure.FEATURE_DRIFT,
        Measure.PREDICTION_DRIFT,
        Measure.LABEL_DRIFT,
        Measure.PERFORMANCE_DROP,
        Measure.PERFORMANCE_DROP_RATIO,
        Measure.ESTIMATED_DROP,
        Measure.MISSING_SHARE,
        Measure.UNSEEN_SHARE,
        Measure.OUT_OF_RANGE_SHARE,
    }
)
"""Measures of which it is known what chance gives."""
_WITH_ERRORS = frozenset({Measure.PERFORMANCE_DROP, Measure.PERFORMANCE_DROP_RATIO, Measure.ESTIMATED_DROP})
_WITH_INTERVALS = CALIBRATED | {Measure.PERFORMANCE, Measure.ESTIMATED_PERFORMANCE}


def _calibratable(rule: RuleConfig) -> None:
    """What "auto" and `significant` need. Raises ValueError naming the measures that have it."""

    def named(measures: Iterable[Measure]) -> str:
        return ", ".join(sorted(m.value for m in measures))

    if rule.calibrated and rule.measure not in CALIBRATED:
        raise ValueError(f'above = "auto" is for {named(CALIBRATED)}; {rule.measure} needs a number')
    if rule.significant and rule.measure not in _WITH_INTERVALS:
        raise ValueError(f"significant = true is for {named(_WITH_INTERVALS)}")
    if isinstance(rule.for_, ForEvidence):
        if not rule.calibrated or rule.measure not in _WITH_ERRORS:
            raise ValueError(f'for = "auto" needs above = "auto" and one of {named(_WITH_ERRORS)}')
        if rule.segment == "*":
            raise ValueError('for = "auto" sums up the evidence on one segment: name it')


_RULES: tuple[dict[str, Any], ...] = (
    {
        "name": "performance_drop",
        "measure": "performance_drop",
        "above": AUTO,
        "for": AUTO,
        "false_alarm_every": 25_000,
        "severity": "critical",
        "action": "retrain",
    },
    {
        "name": "features_drift",
        "measure": "feature_drift",
        "above": AUTO,
        "for": "3 of 4 windows",
        "severity": "warning",
        "action": "alert",
    },
)
DEFAULT_RULES: Mapping[Task, tuple[dict[str, Any], ...]] = dict.fromkeys(Task, _RULES)
"""Rules of a model that configures none: a drop of performance that chance does not explain retrains, drift alerts."""


DEFAULT_METRICS: Mapping[Task, tuple[str, ...]] = {
    Task.BINARY: ("balanced_accuracy", "roc_auc", "accuracy", "f1", "log_loss"),
    Task.MULTICLASS: ("balanced_accuracy", "accuracy", "f1_macro"),
    Task.REGRESSION: ("mae", "rmse", "r2", "bias"),
}
"""The first one is what rules and gates judge unless they name another."""
BY_SEGMENT = frozenset({Measure.PERFORMANCE, Measure.PERFORMANCE_DROP, Measure.PERFORMANCE_DROP_RATIO})
JUDGED = BY_SEGMENT | {Measure.ESTIMATED_PERFORMANCE, Measure.ESTIMATED_DROP, Measure.ESTIMATION_ERROR}
"""Measures by metric; those of `BY_SEGMENT` by segment too."""
_BY_FEATURE = frozenset(
    {
        Measure.FEATURE_DRIFT,
        Measure.DRIFT_IMPACT,
        Measure.MISSING_SHARE,
        Measure.UNSEEN_SHARE,
        Measure.OUT_OF_RANGE_SHARE,
        Measure.INVALID_SHARE,
    }
)
RESERVED_NAMES = frozenset({"dead_letters"})  # a table at the top of the lake


class ModelConfig(Section):
    task: Annotated[Task, Field(strict=False)]
    features: dict[str, Annotated[FeatureKind, Field(strict=False)]] | None = Field(
        None, description="name = number|category|bool; absent: inferred from reference.path"
    )
    classes: tuple[str, ...] = Field((), strict=False, description="class names (binary: two)")
    positive: str | None = Field(None, description='binary: the class that `score` speaks of; default "1"')
    segments: tuple[str, ...] = Field((), strict=False, description="segment names measured separately")
    registered_model: str | None = Field(None, description="name in the MLflow registry; default: the model's")
    metrics: tuple[str, ...] = Field((), strict=False, description="performance metrics; the first is judged")
    windows: WindowConfig = WindowConfig()
    reference: ReferenceConfig = ReferenceConfig()
    drift: dict[str, MethodConfig] = Field(
        default_factory=dict, description="per feature, or `number`/`category`/`prediction` for all of a kind"
    )
    rules: tuple[RuleConfig, ...] | None = Field(
        None, strict=False, description="absent: the task's defaults; [] for none"
    )
    combinations: tuple[CombinationConfig, ...] = Field(
        (), strict=False, description="rules, new labels, schedules that retrain when they hold together"
    )
    schedule: str | None = Field(None, description='cron expression (UTC) of an unconditional retrain: "0 3 * * mon"')
    new_labels: int | None = Field(None, ge=1, description="retrain after this many new labels")
    retrain: RetrainConfig = RetrainConfig()

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        found = [
            *_about_classes(self),
            *_about_metrics(self),
            *_about_rules(self),
            *_about_combinations(self),
            *_about_gates(self),
            *_about_schedule(self),
        ]
        if self.features is None and not self.reference.path:
            found.append(("features", "declare them ([models.<name>.features]) or give reference.path"))
        if self.features is not None:
            found += about_features(self, self.features)
        if found:
            raise MistakesFound(found)
        return self


Mistakes = Iterator[tuple[str, str]]


def _about_classes(section: ModelConfig) -> Mistakes:
    classes, task = section.classes, section.task
    if task is Task.BINARY and classes and len(classes) != 2:
        yield "classes", f"a binary model has two classes (got {len(classes)})"
    if task is Task.MULTICLASS and not classes and not section.reference.path:
        yield "classes", "a multiclass model needs its class names, or reference.path"
    if task is Task.BINARY and classes and section.positive and section.positive not in classes:
        yield "positive", f"{section.positive!r} is not one of classes {list(classes)}"
    yield from _once("classes", classes)
    yield from _once("segments", section.segments)


def _once(path: str, names: Iterable[str]) -> Mistakes:
    """The lake tells column names apart only by more than upper and lower case."""
    seen: dict[str, str] = {}
    for name in names:
        first = seen.setdefault(name.lower(), name)
        if first == name and list(names).count(name) > 1:
            yield path, f"{name!r} is there twice"
            return
        if first != name:
            yield path, f"{first!r} and {name!r} differ only in upper and lower case"


def _about_metrics(section: ModelConfig) -> Mistakes:
    known = [m for m, s in SCORES.items() if section.task in s.tasks]
    measured = section.metrics or DEFAULT_METRICS[section.task]
    named = [(f"metrics[{i}]", m) for i, m in enumerate(section.metrics)]
    named += [("retrain.gates.metric", m) for m in (section.retrain.gates.metric,) if m]
    for path, metric in named:
        if metric not in known:
            yield path, f"{metric!r} is not a {section.task} metric{hint(metric, known)}"
    for i, rule in enumerate(section.rules or ()):
        if rule.metric and rule.metric not in measured:
            yield (
                f"rules[{i}].metric",
                f"{rule.metric!r} is not among the model's metrics{hint(rule.metric, measured)}",
            )


def _about_rules(section: ModelConfig) -> Mistakes:
    rules = section.rules or ()
    names = [r.name for r in rules]
    for i, rule in enumerate(rules):
        at = f"rules[{i}]"
        if rule.name in names[:i]:
            yield f"{at}.name", f"{rule.name!r} is used twice"
        if rule.feature and rule.measure not in _BY_FEATURE:
            yield f"{at}.feature", f"{rule.measure} is not measured by feature"
        for key, measures in (("metric", JUDGED), ("segment", BY_SEGMENT)):
            if getattr(rule, key) and rule.measure not in measures:
                yield f"{at}.{key}", f"{rule.measure} is not measured by {key}"
        if rule.segment and rule.measure in BY_SEGMENT:
            name, given, _ = rule.segment.partition("=")
            if rule.segment == "*" and not section.segments:
                yield f"{at}.segment", "the model has no segments"
            elif rule.segment != "*" and (not given or name not in section.segments):
                known = hint(name, section.segments)
                yield f"{at}.segment", f'must be "*" or "<segment>=<value>" (got {rule.segment!r}){known}'


def _about_gates(section: ModelConfig) -> Mistakes:
    gates, at = section.retrain.gates, "retrain.gates"
    limits = [n for n in ("max_parity_difference", "max_odds_difference") if getattr(gates, n) is not None]
    for name in limits:
        if section.task is not Task.BINARY:
            yield f"{at}.{name}", "is for binary models"
        if gates.fairness_segment is None:
            yield f"{at}.{name}", "needs fairness_segment, one of the model's segments"
    if (segment := gates.fairness_segment) is not None:
        if segment not in section.segments:
            known = hint(segment, section.segments)
            yield f"{at}.fairness_segment", f"{segment!r} is not a segment of this model{known}"
        if not limits:
            yield f"{at}.fairness_segment", "needs max_parity_difference, max_odds_difference or both"
    if gates.calibration_tolerance is not None and section.task is Task.REGRESSION:
        yield f"{at}.calibration_tolerance", "is for classification: it needs probabilities"
    for path, functions in ((at, gates.functions), ("retrain.validation", section.retrain.validation.functions)):
        for i, name in enumerate(functions):
            if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
                yield f"{path}.functions[{i}]", f'must be "module:function" (got {name!r})'


def _about_combinations(section: ModelConfig) -> Mistakes:
    rules = DEFAULT_RULES[section.task] if section.rules is None else [{"name": r.name} for r in section.rules]
    known = [r["name"] for r in rules]
    names = [*known, *(c.name for c in section.combinations)]
    for i, combination in enumerate(section.combinations):
        at = f"combinations[{i}]"
        if names.count(combination.name) > 1:
            yield f"{at}.name", f"{combination.name!r} is used twice, by rules or combinations"
        yield from _once(f"{at}.rules", combination.rules)
        for rule in combination.rules:
            if rule not in known:
                yield f"{at}.rules", f"{rule!r} is not a rule of this model{hint(rule, known)}"


def _about_schedule(section: ModelConfig) -> Mistakes:
    schedules = {"schedule": section.schedule}
    schedules |= {f"combinations[{i}].schedule": c.schedule for i, c in enumerate(section.combinations)}
    for at, schedule in schedules.items():
        try:
            if schedule is not None:
                cron_trigger(schedule, UTC)
        except ValueError as exc:
            yield at, f'must be a cron expression such as "0 3 * * 1" (got {schedule!r}): {exc}'


def about_features(section: ModelConfig, features: Mapping[str, FeatureKind]) -> Mistakes:
    """What can only be checked once the features are known."""
    yield from _once("features", features)
    for i, rule in enumerate(section.rules or ()):
        if rule.feature and rule.feature not in features:
            yield f"rules[{i}].feature", f"{rule.feature!r} is not a feature{hint(rule.feature, features)}"
    for name, (low, high) in section.retrain.validation.ranges.items():
        at = f"retrain.validation.ranges.{name}"
        if features.get(name) is not FeatureKind.NUMBER:
            numbers = [n for n, kind in features.items() if kind is FeatureKind.NUMBER]
            yield at, f"{name!r} is no number of this model{hint(name, numbers)}"
        elif low >= high:
            yield at, f"must be [lowest, highest] (got [{low:g}, {high:g}])"
    general = {"number": FeatureKind.NUMBER, "category": FeatureKind.CATEGORY}
    for name, setting in section.drift.items():
        if name in ("prediction", "label"):
            continue
        kind = features.get(name) or general.get(name)
        if kind is None:
            known = [*features, *general, "prediction", "label"]
            yield f"drift.{name}", f"is neither a feature nor a kind{hint(name, known)}"
        elif setting.method not in methods_for(kind):
            fitting = ", ".join(methods_for(kind))
            yield f"drift.{name}.method", f"{setting.method!r} does not take a {kind}; these do: {fitting}"


class MlflowConfig(Section):
    tracking_uri: str | None = Field(None, description="MLflow server or store; default: SQLite in the state folder")


class GrafanaConfig(Section):
    """Where annotations go: what happened to a model, on the dashboards."""

    url: str = Field(
        pattern=r"^https?://[^/?#@\s]+(/[^?#\s]*)?$",
        description="Grafana's address, with its path if it has one; absent: nothing is sent",
    )
    token: Secret = Field(description="token of a Grafana service account that may write annotations")
    dashboard: str | None = Field(
        None, min_length=1, max_length=40, description="uid of the one dashboard to annotate; default: every one"
    )


class WebhookConfig(Section):
    """Who is told what happens, by HTTP: see docs/webhooks.md."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,60}$")
    url: str | Secret = Field(description="where each event is posted; a secret where the address is one")
    secret: Secret | None = Field(None, description="signs each body (HMAC-SHA-256) in the header X-Driftd-Signature")
    events: tuple[Annotated[OutsideEvent, Field(strict=False)], ...] = Field(
        DEFAULT_EVENTS, strict=False, description="what it is told of"
    )
    template: str | None = Field(None, description="JSON with $text, $model, .. instead of driftd's own document")

    @model_validator(mode="after")
    def _usable(self) -> WebhookConfig:
        if self.template is not None:
            try:
                fill(self.template, dict.fromkeys(FIELDS, "x"))
            except ValueError as exc:
                raise ValueError(f"template: {exc}") from exc
        return self


class EventsConfig(Section):
    """A topic that is told what happens; the connection is that of `source.kafka`: see docs/webhooks.md."""

    topic: str = Field(pattern=r"^[a-zA-Z0-9._-]{1,249}$", description="topic that events are written to")
    events: tuple[Annotated[OutsideEvent, Field(strict=False)], ...] = Field(
        tuple(OutsideEvent), strict=False, description="what it is told of; default: everything"
    )


class OpenLineageConfig(Section):
    """A lineage server that hears which rows became which version: see docs/webhooks.md."""

    url: str = Field(
        pattern=r"^https?://[^@\s]+$", description="where events are posted: http://marquez:5000/api/v1/lineage"
    )
    namespace: str = Field("driftd", min_length=1, description="of the jobs in the server")
    api_key: Secret | None = Field(None, description="sent as a bearer token")

    @model_validator(mode="after")
    def _installed(self) -> OpenLineageConfig:
        if importlib.util.find_spec("openlineage") is None:
            raise ValueError("needs the package openlineage-python: pip install driftd[openlineage]")
        return self


class DaemonConfig(Section):
    state: str = Field(".driftd", description="this process's own folder: locks, reports, embedded stores")
    tick: Duration = Field(
        parse_duration("5s"), gt=_ZERO, description="how often new rows are joined, measured and judged"
    )
    control_url: str | None = Field(
        None, description="SQLAlchemy URL of the control database; default: SQLite in the state folder"
    )
    measure_workers: int = Field(1, ge=1, le=32, description="processes that run Evidently")
    scratch: str | None = Field(
        None, description="folder in which trainings happen, apart; default: the system's for temporary files"
    )
    report_retention: Duration = Field(parse_duration("30d"), description="HTML reports are kept this long")
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto: JSON unless a terminal")


class Config(Section):
    daemon: DaemonConfig = DaemonConfig()
    http: HttpConfig = HttpConfig()
    lake: LakeConfig = LakeConfig()
    source: SourceConfig = SourceConfig()
    mlflow: MlflowConfig = MlflowConfig()
    grafana: GrafanaConfig | None = None
    webhooks: tuple[WebhookConfig, ...] = Field((), strict=False, description="who is told what happens")
    events: EventsConfig | None = None
    openlineage: OpenLineageConfig | None = None
    engine: EngineConfig = EngineConfig.model_validate({})
    models: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")], ModelConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _outlets_usable(self) -> Config:
        mistakes = list(_once("webhooks", [w.name for w in self.webhooks]))
        if self.events is not None and self.source.kafka is None:
            mistakes.append(("events", 'needs the table [source.kafka], also with source.kind = "files"'))
        if mistakes:
            raise MistakesFound(mistakes)
        return self

    @property
    def state(self) -> Path:
        return Path(self.daemon.state)

    @property
    def lake_uri(self) -> str:
        return self.lake.uri or str(self.state.absolute() / "lake")

    @property
    def control_url(self) -> str:
        return self.daemon.control_url or f"sqlite:///{self.state.absolute() / 'control.db'}"

    @property
    def tracking_uri(self) -> str:
        return self.mlflow.tracking_uri or f"sqlite:///{self.state.absolute() / 'mlflow.db'}"

    @property
    def events_path(self) -> Path:
        return Path(self.source.files.path) if self.source.files.path else self.state / "events"

    def storage_options(self) -> dict[str, str]:
        return {k: v.reveal() if isinstance(v, Secret) else v for k, v in self.lake.options.items()}

    def to_json(self) -> dict[str, Any]:
        """Everything in it; secrets are references, so none is told."""
        return self.model_dump(mode="json", by_alias=True)

    def digest(self) -> str:
        """A stable fingerprint of `to_json`."""
        text = json.dumps(self.to_json(), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
