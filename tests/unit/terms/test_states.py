from __future__ import annotations

import pytest

from retrain.terms.states import IN_FLIGHT, TRANSITIONS, IllegalTransition, JobState, check_transition


def test_every_state_has_a_row() -> None:
    assert set(TRANSITIONS) == set(JobState)


def test_every_state_can_be_reached_from_requested() -> None:
    seen, new = set(), {JobState.REQUESTED}
    while new:
        seen |= new
        new = {following for state in new for following in TRANSITIONS[state]} - seen
    assert seen == set(JobState)


def test_nothing_in_flight_is_reached_from_an_ended_state() -> None:
    for state in set(JobState) - IN_FLIGHT:
        assert not TRANSITIONS[state] & IN_FLIGHT


def test_every_state_in_flight_can_fail() -> None:
    assert all(JobState.FAILED in TRANSITIONS[state] for state in IN_FLIGHT)


@pytest.mark.parametrize("state", [JobState.REJECTED, JobState.FAILED, JobState.ROLLED_BACK])
def test_an_ended_job_goes_nowhere(state: JobState) -> None:
    with pytest.raises(IllegalTransition, match=f"cannot go from {state}"):
        check_transition(state, JobState.PROMOTED)
