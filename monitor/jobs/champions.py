"""Champions that others have made: the registry is asked, and what driftd does not know of is put on record.

Invariant: a move of driftd's own is not recorded here: one counts only when two looks in a row have found it, and no
job of the model is about to record it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import structlog

from retrain.control.store import AliasMove, Job, Store
from retrain.terms.aliases import CHAMPION
from retrain.terms.states import IN_FLIGHT, JobState

ACTOR = "registry"
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Question:
    """Who is the champion of each of these registered models?"""

    tracking_uri: str
    names: tuple[str, ...]


def ask(question: Question) -> list[str | None]:
    """In a process that may load MLflow. Raises TransientError."""
    uri, sqlite = question.tracking_uri, "sqlite:///"
    if uri.startswith(sqlite) and not Path(uri.removeprefix(sqlite)).exists():
        return [None] * len(question.names)  # asking would make it
    from retrain.models.registry import Registry

    registry = Registry(uri)
    return [registry.resolve_alias(name, CHAMPION) for name in question.names]


@dataclass(slots=True)
class Champions:
    """`asking` answers a `Question` (see `ask`)."""

    store: Store
    tracking_uri: str
    asking: Callable[[Question], Sequence[str | None]]
    _unknown: dict[str, str] = field(default_factory=dict)

    def look(self, models: Mapping[str, str], now: datetime) -> None:
        """Once for all models, name -> name in the registry. Raises TransientError."""
        found = self.asking(Question(self.tracking_uri, tuple(models.values())))
        for model, version in zip(models, found, strict=True):
            moves = self.store.champion_moves(model)
            recorded = moves[0].version if moves else None
            if version is None or version == recorded or self._about_to_record(model):
                self._unknown.pop(model, None)
            elif self._unknown.get(model) != version:
                self._unknown[model] = version
            else:
                reason = "found in the registry: driftd has not made it champion"
                self.store.record_alias(AliasMove(model, CHAMPION, version, recorded, None, ACTOR, now, reason))
                log.warning("champion_moved_by_others", model=model, version=version, recorded=recorded)

    def _about_to_record(self, model: str) -> bool:
        return any(map(_is_moving, self.store.list_jobs(model, limit=20)))


def _is_moving(job: Job) -> bool:
    promoting = job.state in IN_FLIGHT and job.result.get("promoting")
    return bool(promoting or (job.state is JobState.PROMOTED and job.result.get("rollback")))
