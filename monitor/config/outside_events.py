"""What the outside can be told of, and the templates of what it is told.

Invariant: pure; light enough for the configuration to import.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from string import Template
from typing import Any

FIELDS = (
    "event",
    "number",
    "at",
    "model",
    "actor",
    "subject",
    "detail",
    "version",
    "previous_version",
    "share",
    "text",
)
"""What a delivery holds and a template may name."""


class OutsideEvent(StrEnum):
    """What an outlet can be told of."""

    CHAMPION_MOVED = "champion_moved"
    TRAFFIC_CHANGED = "traffic_changed"
    REQUESTED = "requested"
    TRAINING = "training"
    SHADOW = "shadow"
    AWAITING_APPROVAL = "awaiting_approval"
    CANARY = "canary"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    RULE_FIRED = "rule_fired"
    RULE_RESOLVED = "rule_resolved"
    RETRAIN_REQUESTED = "retrain_requested"
    RETRAIN_SUPPRESSED = "retrain_suppressed"
    PAUSED = "paused"
    RESUMED = "resumed"
    CONFIGURED = "configured"


DEFAULT_EVENTS = (
    *(OutsideEvent.CHAMPION_MOVED, OutsideEvent.TRAFFIC_CHANGED, OutsideEvent.AWAITING_APPROVAL),
    *(OutsideEvent.FAILED, OutsideEvent.ROLLED_BACK, OutsideEvent.PAUSED, OutsideEvent.RESUMED),
)


def fill(template: str, fields: Mapping[str, Any]) -> str:
    """The template with every value escaped for the inside of a JSON string. Raises ValueError for one that names a
    field there is not, or does not become JSON."""
    escaped = {name: json.dumps("" if v is None else str(v), ensure_ascii=False)[1:-1] for name, v in fields.items()}
    try:
        text = Template(template).substitute(escaped)
        json.loads(text)
    except KeyError as exc:
        raise ValueError(f"there is no ${exc.args[0]}; there are {', '.join('$' + n for n in fields)}") from exc
    except ValueError as exc:
        raise ValueError(f"it does not become JSON: {exc}") from exc
    return text
