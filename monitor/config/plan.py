"""Configuration -> what the evaluating half works with, in the types of the core.

Invariant: pure; the only place where a default depends on another setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import assert_never

from monitor.config.loading import LoadedConfig
from monitor.config.sections import (
    DEFAULT_METRICS,
    DEFAULT_RULES,
    JUDGED,
    Config,
    ModelConfig,
    ReferenceConfig,
    RuleConfig,
)
from monitor.measure.drift.methods import DriftMethod, default_method, drift_method
from monitor.measure.settings import Season, Settings
from monitor.measure.worker import ReferenceSource
from monitor.rules.rules import Combination, ForDuration, ForEvidence, ForWindows, Rule, Sustained
from monitor.rules.significance import ALLOWANCE, surprise, sustained_level
from monitor.rules.triggers import TriggerPolicy
from monitor.rules.windows import WindowPolicy
from retrain.config.settings import RetrainConfig
from retrain.terms.fields import Secret
from retrain.terms.schema import FeatureKind, ModelSchema

HOLDOUT_WINDOWS = 3


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """Everything configured about one model."""

    schema: ModelSchema
    windows: WindowPolicy
    min_rows: int
    warmup_windows: int
    settings: Settings
    season: Season | None
    rules: tuple[Rule, ...]
    combinations: tuple[Combination, ...]
    triggers: TriggerPolicy
    new_labels: int | None
    schedule: str | None
    reference: ReferenceSource
    registered_model: str
    retrain: RetrainConfig

    @property
    def model(self) -> str:
        return self.schema.model

    @property
    def metrics(self) -> tuple[str, ...]:
        """Performance metrics; the first is the one that rules judge."""
        return self.settings.metrics

    @property
    def methods(self) -> Mapping[str, DriftMethod]:
        return self.settings.methods


def plans(loaded: LoadedConfig) -> dict[str, ModelPlan]:
    """A plan per model of the configuration."""
    return {m: _plan(loaded, s, loaded.schemas[m]) for m, s in loaded.config.models.items()}


def _plan(loaded: LoadedConfig, section: ModelConfig, schema: ModelSchema) -> ModelPlan:
    config, path = loaded.config, section.reference.path
    metrics = section.metrics or DEFAULT_METRICS[section.task]
    rules = section.rules
    if rules is None:
        rules = tuple(RuleConfig.model_validate(r) for r in DEFAULT_RULES[section.task])
    retrain = section.retrain
    if retrain.gates.metric is None:
        gates = retrain.gates.model_copy(update={"metric": metrics[0]})
        retrain = retrain.model_copy(update={"gates": gates})
    windows = section.windows
    if retrain.holdout_span is None:
        retrain = retrain.model_copy(update={"holdout_span": windows.size * HOLDOUT_WINDOWS})
    name = section.registered_model or schema.model
    return ModelPlan(
        schema=schema,
        windows=WindowPolicy(
            size=windows.size,
            lateness=windows.lateness,
            idle_after=windows.idle_after,
            min_coverage=windows.min_coverage,
            max_delay=windows.max_delay,
            max_versions=windows.max_versions,
        ),
        min_rows=windows.min_rows,
        warmup_windows=section.reference.warmup_windows,
        settings=Settings(
            schema=schema,
            methods=_methods(section, schema),
            metrics=metrics,
            segment_min_rows=retrain.gates.segment_min_rows,
            max_rows=windows.max_rows,
            calibrate=any(r.calibrated or r.significant for r in rules),
        ),
        season=_season(section.reference),
        rules=tuple(_rule(r, metrics[0], windows.size) for r in rules),
        combinations=tuple(
            Combination(c.name, frozenset(c.rules), c.at_least or c.members, c.new_labels, c.schedule)
            for c in section.combinations
        ),
        triggers=TriggerPolicy(
            enabled=retrain.enabled,
            cooldown=retrain.cooldown,
            max_per_day=retrain.max_per_day,
            pace=retrain.pace,
            follow_up=retrain.follow_up,
            stop_after_rejected=retrain.stop_after_rejected,
            window=windows.size,
        ),
        new_labels=section.new_labels,
        schedule=section.schedule,
        reference=ReferenceSource(
            folder=str((config.state / "references" / schema.model).absolute()),
            path=str((loaded.base / path).absolute()) if path else None,
            tracking_uri=config.tracking_uri,
            registered_model=name,
            max_rows=section.reference.max_rows,
        ),
        registered_model=name,
        retrain=retrain,
    )


def _methods(section: ModelConfig, schema: ModelSchema) -> dict[str, DriftMethod]:
    """Per feature: its own setting, else its kind's, else the shipped default."""
    chosen = {}
    for feature in schema.features:
        kind = "number" if feature.kind is FeatureKind.NUMBER else "category"
        setting = section.drift.get(feature.name) or section.drift.get(kind)
        if setting is not None:
            chosen[feature.name] = drift_method(setting.method, setting.threshold)
        else:
            chosen[feature.name] = default_method(feature.kind)
    for special in ("prediction", "label"):
        if (setting := section.drift.get(special)) is not None:
            chosen[special] = drift_method(setting.method, setting.threshold)
    return chosen


def _season(reference: ReferenceConfig) -> Season | None:
    if reference.season is None:
        return None
    return Season(timedelta(days=1 if reference.season == "daily" else 7), reference.season_periods)


def _rule(rule: RuleConfig, judged_metric: str, window: timedelta) -> Rule:
    metric = rule.metric or (judged_metric if rule.measure in JUDGED else None)
    sustained = ForEvidence(rule.false_alarm_every) if isinstance(rule.for_, ForEvidence) else rule.for_
    return Rule(
        name=rule.name,
        measure=rule.measure,
        above=None if rule.calibrated else rule.above,
        below=rule.below,
        clear=rule.clear,
        feature=rule.feature,
        metric=metric,
        segment=rule.segment,
        sustained=sustained,
        keep_firing_for=rule.keep_firing_for,
        severity=rule.severity,
        action=rule.action,
        calibrated=rule.calibrated,
        significant=rule.significant,
        level=_level(sustained, rule.false_alarm_every, window),
    )


def _level(sustained: Sustained, every: int, window: timedelta) -> float:
    """What one window may show by chance, so that the rule fires by chance once in `every` windows."""
    match sustained:
        case ForEvidence():
            return surprise(ALLOWANCE)  # what adds to the evidence; its sum decides
        case ForWindows(breaches, windows):
            return sustained_level(every, breaches, windows)
        case ForDuration(duration):
            windows = 1 + math.ceil(duration / window)
            return sustained_level(every, windows, windows)
        case unreachable:
            assert_never(unreachable)


def job_storage_options(config: Config) -> dict[str, str]:
    """Storage options as a job may store them: secrets by the name of an environment variable."""
    return {k: f"env:{_variable(k, v)}" if isinstance(v, Secret) else v for k, v in config.lake.options.items()}


def job_environment(config: Config) -> dict[str, str]:
    """The variables that `job_storage_options` names, for the job's process."""
    return {_variable(k, v): v.reveal() for k, v in config.lake.options.items() if isinstance(v, Secret)}


def _variable(option: str, secret: Secret) -> str:
    return secret.env or f"DRIFTD_LAKE_{option.upper()}"
