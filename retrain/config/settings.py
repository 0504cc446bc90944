"""The `retrain` section of a model's configuration.

Invariant: frozen and complete; nothing below the edge reads a default from anywhere else.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import Field, Strict, model_validator

from retrain.config.engine_config import OrchestratorConfig
from retrain.terms.cron import cron_trigger
from retrain.terms.fields import Duration, Section, Share, Size, parse_duration, parse_size


class MaintenanceConfig(Section):
    """A time in which a model is left as it is: driftd asks for no job by itself, and none promotes."""

    cron: str = Field(description='when it begins, as a cron expression: "0 22 * * fri"')
    duration: Duration = Field(gt=timedelta(0), le=timedelta(days=31), description="how long it lasts")
    timezone: str = Field("UTC", description='of `cron`: "Europe/Berlin"')

    @model_validator(mode="after")
    def _readable(self) -> MaintenanceConfig:
        try:
            zone = ZoneInfo(self.timezone)
        except (ValueError, LookupError, OSError) as exc:
            raise ValueError(f'timezone must be a name such as "Europe/Berlin" (got {self.timezone!r})') from exc
        try:
            cron_trigger(self.cron, zone)
        except ValueError as exc:
            raise ValueError(f'cron must be an expression such as "0 22 * * fri" (got {self.cron!r}): {exc}') from exc
        return self


class GatesConfig(Section):
    """What a challenger must show before it may replace the champion."""

    metric: str | None = Field(None, description="quality metric compared; the task's default when absent")
    margin: float = Field(0.0, ge=0, description="the challenger must be better by this much, in the metric's units")
    confidence: float = Field(
        0.8, gt=0.5, lt=1, description="confidence of the paired bootstrap interval of the difference"
    )
    renew: bool = Field(
        True,
        description="a follow-up's challenger passes when it is not worse, as refit trains it on newer rows",
    )
    bootstrap: int = Field(1000, ge=100, le=20_000, description="bootstrap resamples")
    segment_tolerance: float = Field(
        0.05, ge=0, description="no segment may be worse by more than this, in the metric's units"
    )
    segment_min_rows: int = Field(50, ge=1, description="segments with fewer holdout rows are not judged")
    max_latency: Duration = Field(
        parse_duration("250ms"), gt=timedelta(0), description="processor time of a request for one row, at most"
    )
    max_row_latency: Duration = Field(
        parse_duration("10ms"), gt=timedelta(0), description="processor time per row of many asked at once, at most"
    )
    max_latency_ratio: float | None = Field(
        None,
        gt=0,
        description="times the champion's, at most; not asked where that is less than a tenth of what is allowed; "
        "absent: never",
    )
    max_size: Size = Field(
        parse_size("512MiB"),
        description="size of a model, unpacked, at most; one larger than this and than 512 MiB is not opened",
    )
    min_agreement: Share | None = Field(
        None, description="share of rows with the champion's answer, at least; regression: correlation of the answers"
    )
    calibration_tolerance: float | None = Field(
        None, ge=0, description="expected calibration error may be larger than the champion's by so much"
    )
    robustness_tolerance: float | None = Field(
        None,
        ge=0,
        description="with any one input missing, or moved by its standard deviation, the challenger may be worse than "
        "the champion by so much, in the metric's units",
    )
    fairness_segment: str | None = Field(None, description="the segment between whose groups fairness is measured")
    max_parity_difference: Share | None = Field(
        None, description="binary: difference between groups in the share predicted positive, at most"
    )
    max_odds_difference: Share | None = Field(
        None, description="binary: difference between groups in true or false positive rates, at most"
    )
    too_good: Literal["ask", "off"] = Field(
        "ask",
        description="a challenger whose answers are nearly all right, as no model's before were, waits for a person",
    )
    functions: tuple[str, ...] = Field(
        (), strict=False, description="gates of your own, as `module:function`; see docs/gates.md"
    )


class ValidationConfig(Section):
    """What the rows of a snapshot must be like before anything is trained on them: see docs/validation.md."""

    max_missing: Share = Field(0.95, description="share of the rows in which a feature may be missing")
    ranges: dict[str, Annotated[tuple[float, float], Strict(False)]] = Field(
        default_factory=dict, description="feature = [lowest, highest]"
    )
    max_out_of_range: Share = Field(0.01, description="share of a feature's values that may lie outside its range")
    max_duplicates: Share | None = Field(
        None, description="share of the rows that may repeat another, label included; absent: only said"
    )
    min_class_rows: int = Field(10, ge=1, description="training rows of each class, at least")
    leakage: Literal["fail", "warn", "off"] = Field(
        "fail", description="a feature that is a copy of the label fails, is only said, or is not looked for"
    )
    functions: tuple[str, ...] = Field(
        (), strict=False, description="checks of your own, as `module:function`; see docs/validation.md"
    )


class CardConfig(Section):
    """What only people know about a model, for its model cards."""

    owner: str = Field("", description="who answers for it")
    purpose: str = Field("", description="what it is for")
    limits: str = Field("", description="what it must not be used for, where it is known to be weak")


class ShadowConfig(Section):
    """A challenger that passed answers the live stream beside the champion, unseen: see docs/trials.md."""

    rows: int = Field(
        1000, ge=50, description="labelled rows of the champion's that it answers too before it is judged"
    )
    time_limit: Duration = Field(
        parse_duration("7d"), gt=timedelta(0), description="a challenger that has not got them by then is rejected"
    )


class CanaryConfig(Section):
    """A share of the traffic for a challenger, stepped up: see docs/trials.md."""

    steps: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.05, 0.25, 0.5), strict=False, min_length=1, description="shares of the requests, one after the other"
    )
    rows: int = Field(500, ge=50, description="labelled rows of the challenger's on which each step is judged")
    time_limit: Duration = Field(
        parse_duration("2d"), gt=timedelta(0), description="a step that has not got them by then ends in a rejection"
    )

    @model_validator(mode="after")
    def _rising(self) -> CanaryConfig:
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError("steps must rise")
        return self


class RetrainConfig(Section):
    enabled: bool = Field(True, description="false: rules still fire, nothing is trained")
    trainer: str = Field(
        "retrain.trainers.default:train", description="`module:function` called with a frame and a context"
    )
    command: tuple[str, ...] | None = Field(
        None, strict=False, description="a command to run instead of `trainer` (docs/trainers.md)"
    )
    orchestrator: OrchestratorConfig | None = None
    environment: tuple[str, ...] = Field(
        (),
        strict=False,
        description="variables of driftd's environment that the trainer sees, besides harmless ones",
    )
    parameters: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="passed to the trainer as `context.parameters`"
    )
    time_limit: Duration = Field(parse_duration("30m"), description="training is stopped after this long")
    memory_limit: Size = Field(4 * 2**30, description="address-space growth the trainer may use")
    min_rows: int = Field(200, ge=20, description="fewer labelled rows: the job is rejected, nothing is trained")
    max_rows: int = Field(500_000, ge=100, description="newest labelled rows used at most, holdout included")
    span: Duration | None = Field(None, description="labelled rows older than this (event time) are not used")
    holdout_share: float = Field(
        0.25, gt=0, lt=0.9, description="newest share of the rows, at most, on which challengers are judged"
    )
    holdout_span: Duration | None = Field(
        None, description="the holdout reaches back this far at most (event time); default: three windows"
    )
    holdout_min_rows: int = Field(100, ge=10, description="the holdout has at least this many rows")
    refit: bool = Field(
        True, description="a challenger that passed the gates is trained again, holdout included, and that is promoted"
    )
    seed: int = Field(0, description="seed of the trainer and of the bootstrap")
    validation: ValidationConfig = Field(default_factory=lambda: ValidationConfig.model_validate({}))
    card: CardConfig = CardConfig()
    approval: Literal["auto", "manual", "close_calls"] = Field(
        "auto",
        description="manual: a challenger that passed waits for `driftd approve`; close_calls: only one that is not "
        "better by `close_call` does",
    )
    shadow: ShadowConfig | None = Field(None, description="try a challenger beside the champion first; absent: no")
    canary: CanaryConfig | None = Field(None, description="then with a share of the traffic; absent: no")
    close_call: float = Field(
        3.0, gt=0, description="standard errors of the difference by which a challenger is clearly better"
    )
    maintenance: tuple[MaintenanceConfig, ...] = Field(
        (), strict=False, description="times in which the model is left as it is"
    )
    approval_timeout: Duration = Field(parse_duration("7d"), description="then a waiting challenger is rejected")
    cooldown: Duration = Field(parse_duration("1h"), description="pause after a job ends before the next starts")
    max_per_day: int = Field(24, ge=1, description="jobs started per UTC day, at most")
    pace: int = Field(
        6,
        ge=1,
        description="rules and follow-ups start one job in so many windows, on average; up to five are saved up",
    )
    follow_up: bool = Field(
        True, description="after a promotion train again every `pace` windows, as long as there is something to gain"
    )
    stop_after_rejected: int = Field(
        5,
        ge=1,
        description="so many jobs in a row found nothing better: only people start one for `pace` times as many "
        "windows; none of so many has clearly gained: no more follow-ups",
    )
    watch_rows: int = Field(
        1000, ge=0, description="labelled rows after a promotion on which it is re-examined; 0: never"
    )
    gates: GatesConfig = Field(default_factory=lambda: GatesConfig.model_validate({}))
