"""The worlds: every two circumstances meet in one of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tests.worlds.truth import Change, Truth


class Version(StrEnum):
    REPORTED = "reported"
    OMITTED = "omitted"
    OWN = "the team's own"


class Champion(StrEnum):
    LINEAR = "linear"
    BOOSTED = "boosted"
    PICKLED = "by MLflow 2's defaults"
    NONE = "none"


class Labels(StrEnum):
    AT_ONCE = "at once"
    LATE = "late"
    BY_CLASS = "late by class"


ROWS = {0.5: 300, 0.05: 1000, 0.01: 2000}
"""An hour, by the share of positives."""


@dataclass(frozen=True, slots=True)
class World:
    version: Version
    champion: Champion
    labels: Labels
    canary: bool
    backlog: bool
    positives: float
    booleans: bool
    change: Change
    hours_before: int = 18
    hours_after: int = 16
    """Of a slow change: from its end."""
    seed: int = 0
    in_suite: bool = False
    """Played by `make test` too."""
    not_yet: str = ""
    """Why it cannot come out as it must, so far."""

    @property
    def name(self) -> str:
        return ", ".join(self.circumstances.values())

    @property
    def circumstances(self) -> dict[str, str]:
        return {
            "version": self.version,
            "champion": self.champion,
            "labels": self.labels,
            "trial": "canary" if self.canary else "no trial",
            "arrival": "after a backlog" if self.backlog else "live",
            "positives": f"{self.positives:.0%}",
            "classes": "booleans" if self.booleans else "strings",
            "change": self.change,
        }

    @property
    def hours(self) -> range:
        """All that are played; the change is at 0."""
        slow = self.truth.slow_hours if self.change is Change.SLOWLY else 0
        return range(-self.hours_before, slow + self.hours_after + self.delay(True))

    @property
    def rows(self) -> int:
        return ROWS[self.positives]

    @property
    def truth(self) -> Truth:
        return Truth(self.change, self.positives, 20)

    @property
    def ask_within(self) -> int:
        """Windows, from the labels of the first one after the change; of a slow one, from its middle."""
        return 3 + (self.truth.slow_hours // 2 if self.change is Change.SLOWLY else 0)

    @property
    def classes(self) -> tuple[str, str]:
        return ("0", "1") if self.booleans else ("no", "yes")

    def spelt(self, positive: bool) -> str | bool:
        """As it stands in an event."""
        return positive if self.booleans else self.classes[positive]

    def delay(self, positive: bool) -> int:
        """Hours from a prediction to its label."""
        return {Labels.AT_ONCE: 0, Labels.LATE: 3, Labels.BY_CLASS: 6 if positive else 0}[self.labels]


V, C, L, X = Version, Champion, Labels, Change
SHORT: dict[str, Any] = {"hours_before": 8, "hours_after": 8, "in_suite": True}
STEPS = "a canary steps as slowly where the champion is worse than a guess"
COUNTS = "a canary counts rows by the registry's version, which the events do not say"
WORLDS = (
    World(V.REPORTED, C.LINEAR, L.AT_ONCE, False, False, 0.5, False, X.TURNS, hours_before=36),
    World(V.REPORTED, C.BOOSTED, L.LATE, False, False, 0.5, True, X.TURNS, **SHORT),
    World(V.REPORTED, C.PICKLED, L.AT_ONCE, False, False, 0.05, False, X.TURNS),
    World(V.REPORTED, C.NONE, L.AT_ONCE, False, False, 0.5, True, X.TURNS, **SHORT),
    World(V.REPORTED, C.LINEAR, L.LATE, False, False, 0.05, False, X.NOTHING, **SHORT),
    World(V.REPORTED, C.BOOSTED, L.AT_ONCE, True, False, 0.5, False, X.SLOWLY, not_yet=STEPS),
    World(V.REPORTED, C.LINEAR, L.AT_ONCE, False, False, 0.5, True, X.OUTAGE),
    World(V.REPORTED, C.BOOSTED, L.AT_ONCE, False, True, 0.5, False, X.TURNS, **SHORT),
    World(V.REPORTED, C.LINEAR, L.AT_ONCE, False, False, 0.01, False, X.TURNS),
    World(V.OMITTED, C.LINEAR, L.AT_ONCE, False, False, 0.5, False, X.TURNS, **SHORT),
    World(V.OWN, C.BOOSTED, L.AT_ONCE, False, False, 0.5, False, X.TURNS),
    World(V.REPORTED, C.LINEAR, L.BY_CLASS, False, False, 0.5, False, X.TURNS),
    World(V.OWN, C.PICKLED, L.BY_CLASS, True, True, 0.01, True, X.NOTHING),
    World(V.OMITTED, C.NONE, L.LATE, True, True, 0.05, True, X.SLOWLY, not_yet=COUNTS),
    World(V.OWN, C.NONE, L.LATE, True, True, 0.01, False, X.OUTAGE),
    World(V.OMITTED, C.BOOSTED, L.BY_CLASS, False, False, 0.05, False, X.OUTAGE),
    World(V.OWN, C.LINEAR, L.BY_CLASS, True, True, 0.05, False, X.SLOWLY, not_yet=COUNTS),
    World(V.OMITTED, C.PICKLED, L.LATE, False, False, 0.01, False, X.SLOWLY),
    World(V.OMITTED, C.BOOSTED, L.AT_ONCE, False, False, 0.5, False, X.NOTHING),
    World(V.REPORTED, C.BOOSTED, L.AT_ONCE, True, False, 0.01, False, X.TURNS),
    World(V.REPORTED, C.NONE, L.BY_CLASS, False, False, 0.5, False, X.NOTHING),
    World(V.REPORTED, C.PICKLED, L.AT_ONCE, False, False, 0.5, False, X.OUTAGE),
    World(V.REPORTED, C.LINEAR, L.AT_ONCE, True, False, 0.5, False, X.TURNS, not_yet=STEPS),
    World(V.REPORTED, C.BOOSTED, L.AT_ONCE, False, False, 0.5, False, X.NOTHING),
    World(V.REPORTED, C.LINEAR, L.LATE, False, True, 0.5, False, X.TURNS),
    World(V.REPORTED, C.PICKLED, L.LATE, False, False, 0.5, False, X.TURNS, **SHORT),
    World(V.REPORTED, C.LINEAR, L.AT_ONCE, False, False, 0.5, False, X.SLOWLY),
    World(V.REPORTED, C.BOOSTED, L.AT_ONCE, False, False, 0.05, True, X.NOTHING),
    World(V.OMITTED, C.NONE, L.AT_ONCE, False, False, 0.5, False, X.TURNS),
    World(V.REPORTED, C.NONE, L.LATE, False, False, 0.05, False, X.SLOWLY),
)
