"""Which version should answer which share of the requests: what layers that split traffic follow.

Invariant: published, never enforced. The control database says first, the registry's tag `driftd.traffic` follows; only
a job in state `canary` gives a challenger a share, and whatever ends it takes the share back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from retrain.control.audit import AuditKind, Entry
from retrain.control.records import Job
from retrain.control.store import Store
from retrain.terms.states import JobState


@dataclass(frozen=True, slots=True)
class Traffic:
    """`share` of the requests, from 0 to 1, is the challenger's, all others are the champion's."""

    champion: str | None
    challenger: str | None = None
    share: float = 0.0
    job: str | None = None

    def to_json(self) -> dict[str, Any]:
        versions = {} if self.champion is None else {self.champion: round(1 - self.share, 9)}
        if self.challenger is not None:
            versions[self.challenger] = self.share
        return {"champion": self.champion, "challenger": self.challenger, "shares": versions, "job": self.job}

    def to_tag(self) -> str | None:
        """The text of the registry's tag; None: no tag."""
        if self.challenger is None or self.share <= 0:
            return None
        return json.dumps({"champion": self.champion, "challenger": self.challenger, "share": self.share})


def traffic(store: Store, model: str) -> Traffic:
    """What is wanted of the model's traffic now."""
    job = store.in_flight(model)
    if job is not None and job.state is JobState.CANARY and (share := share_of(job.result)) > 0:
        return Traffic(job.result["compared_with"], job.result["version"], share, job.id)
    moves = store.champion_moves(model)
    return Traffic(moves[0].version if moves else None)


def share_of(result: Mapping[str, Any]) -> float:
    """The challenger's share by a job's result."""
    return float((result.get("canary") or {}).get("share", 0.0))


def changed(job: Job, share: float, actor: str, now: datetime) -> Entry:
    """The audit log's entry about a new share."""
    version, champion = job.result["version"], job.result["compared_with"]
    return Entry(
        at=now,
        kind=AuditKind.TRAFFIC_CHANGED,
        model=job.model,
        actor=actor,
        subject=job.id,
        detail=f"version {version} should answer {share:.3g} of the requests, version {champion} the rest",
        body={"version": version, "previous_version": champion, "share": share, "job": job.id},
    )
