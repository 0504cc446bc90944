"""What a job asks of whoever trains for it elsewhere: one protocol, whatever is behind it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from retrain.engines.handover import Stage


@dataclass(frozen=True, slots=True)
class Order:
    """What the other side is told. `key` names this start: the same key again is the same training. `asked`: when
    a process before this one has asked for it (seconds since 1970); None: none has."""

    key: str
    job: str
    model: str
    stage: Stage
    run_id: str
    tracking_uri: str
    asked: float | None


class Phase(StrEnum):
    RUNNING = "running"
    ENDED = "ended"
    FAILED = "failed"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Seen:
    """`LOST`: it ended by trouble of its machine; `FAILED`: by itself."""

    phase: Phase
    detail: str = ""


class Engine(Protocol):
    """Where trainings run. Every call raises TransientError while the other side is away."""

    @property
    def name(self) -> str: ...

    @property
    def poll_every(self) -> float: ...

    def start(self, order: Order) -> str:
        """Start it, or find what was started by this key; the id it is asked about by. Raises Refused."""

    def look(self, order: Order, started: str) -> Seen: ...

    def cancel(self, order: Order, started: str) -> None: ...

    def log_tail(self, order: Order, started: str) -> str:
        """The end of what it printed, empty if it cannot be had."""


class Refused(Exception):
    """The other side does not take this training, now or later; the text says why, without a secret."""
