"""What Alertmanager's webhook sends -> causes for a retrain.

Invariant: pure; an alert that keeps firing asks once, however often Alertmanager repeats it. The format is that of
Alertmanager's `webhook_config`, version 4.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field

from monitor.rules.triggers import Cause
from retrain.terms.request import TriggerKind

_MODEL, _NAME = "model", "alertname"


class Alert(BaseModel):
    status: str
    labels: dict[str, str]
    annotations: dict[str, str] = Field(default_factory=dict)
    starts_at: str = Field(alias="startsAt")
    fingerprint: str


class Notification(BaseModel):
    """One call of the webhook; what else is in it is not read."""

    alerts: list[Alert]


@dataclass(frozen=True, slots=True)
class Unusable:
    """An alert that asks for nothing, and why."""

    alert: str
    detail: str


def read_alerts(body: Mapping[str, Any], models: Collection[str]) -> list[Cause | Unusable]:
    """One for each alert. Raises pydantic's ValidationError when `body` is no notification."""
    return [_read(alert, models) for alert in Notification.model_validate(body).alerts]


def _read(alert: Alert, models: Collection[str]) -> Cause | Unusable:
    name, model = alert.labels.get(_NAME, "unnamed"), alert.labels.get(_MODEL, "")
    if alert.status != "firing":
        return Unusable(name, f"it is {alert.status}")
    if model not in models:
        return Unusable(name, f"its label `model` is {model!r}; configured are {', '.join(sorted(models))}")
    said = alert.annotations.get("summary") or alert.annotations.get("description") or ""
    return Cause(
        model=model,
        trigger=TriggerKind.WEBHOOK,
        occasion=f"{alert.fingerprint}/{alert.starts_at}",
        reason=f"alert {name} fires" + (f": {said}" if said else ""),
        evidence={
            "alert": name,
            "labels": {k: v for k, v in sorted(alert.labels.items()) if k not in (_NAME, _MODEL)},
            "starts_at": alert.starts_at,
        },
    )
