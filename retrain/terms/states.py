"""The states of a retrain job and every legal step between them.

Invariant: the table below is complete; a step that is not in it raises `IllegalTransition`.
"""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    REQUESTED = "requested"
    SNAPSHOT = "snapshot"
    TRAINING = "training"
    EVALUATING = "evaluating"
    SHADOW = "shadow"
    AWAITING_APPROVAL = "awaiting_approval"
    CANARY = "canary"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    FAILED = "failed"
    WATCHED = "watched"
    ROLLED_BACK = "rolled_back"


class IllegalTransition(Exception):
    """A bug: somebody asked for a step that the table does not hold."""


_S = JobState
TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    _S.REQUESTED: frozenset({_S.SNAPSHOT, _S.FAILED}),
    _S.SNAPSHOT: frozenset({_S.TRAINING, _S.REJECTED, _S.FAILED}),
    _S.TRAINING: frozenset({_S.EVALUATING, _S.FAILED}),
    _S.EVALUATING: frozenset({_S.SHADOW, _S.AWAITING_APPROVAL, _S.CANARY, _S.PROMOTED, _S.REJECTED, _S.FAILED}),
    _S.SHADOW: frozenset({_S.AWAITING_APPROVAL, _S.CANARY, _S.PROMOTED, _S.REJECTED, _S.FAILED}),
    _S.AWAITING_APPROVAL: frozenset({_S.CANARY, _S.PROMOTED, _S.REJECTED, _S.FAILED}),
    _S.CANARY: frozenset({_S.PROMOTED, _S.REJECTED, _S.FAILED}),
    _S.PROMOTED: frozenset({_S.WATCHED, _S.ROLLED_BACK}),
    _S.REJECTED: frozenset(),
    _S.FAILED: frozenset(),
    _S.WATCHED: frozenset({_S.ROLLED_BACK}),
    _S.ROLLED_BACK: frozenset(),
}

IN_FLIGHT = frozenset(
    {_S.REQUESTED, _S.SNAPSHOT, _S.TRAINING, _S.EVALUATING, _S.SHADOW, _S.AWAITING_APPROVAL, _S.CANARY}
)
"""States in which a model has a job under way, so that no second one may start."""

ON_TRIAL = frozenset({_S.SHADOW, _S.CANARY})
"""States in which a job waits for labelled rows, looking at them now and then."""

REFUSABLE = ON_TRIAL | {_S.AWAITING_APPROVAL}
"""States in which a person may say no."""


def check_transition(current: JobState, following: JobState) -> None:
    if following not in TRANSITIONS[current]:
        raise IllegalTransition(f"a job cannot go from {current} to {following}")
