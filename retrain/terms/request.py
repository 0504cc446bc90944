"""RetrainRequest: the one thing the observing half hands to the acting half.

Invariant: immutable; its id is derived from what caused it, so handing it over twice is handing it over once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


class TriggerKind(StrEnum):
    RULE = "rule"
    FOLLOW_UP = "follow_up"
    SCHEDULE = "schedule"
    LABELS = "labels"
    MANUAL = "manual"
    WEBHOOK = "webhook"


@dataclass(frozen=True, slots=True)
class RetrainRequest:
    """`reason` is one sentence for people; `evidence` holds the numbers behind it (JSON values only)."""

    id: str
    model: str
    trigger: TriggerKind
    reason: str
    evidence: Mapping[str, Any]
    requested_at: datetime

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "model": self.model,
            "trigger": self.trigger.value,
            "reason": self.reason,
            "evidence": dict(self.evidence),
            "requested_at": self.requested_at.isoformat(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RetrainRequest:
        return cls(
            id=data["id"],
            model=data["model"],
            trigger=TriggerKind(data["trigger"]),
            reason=data["reason"],
            evidence=data["evidence"],
            requested_at=datetime.fromisoformat(data["requested_at"]),
        )
