"""What a job does in each state: the table from states to the modules that know how.

Invariant: repeating a step that was cut off ends the same.
"""

from __future__ import annotations

from typing import assert_never

from retrain.job import promotion, training, trials
from retrain.job.context import JobContext, Next
from retrain.terms.states import JobState


def run(job: JobContext) -> Next | None:
    """One state of one job: the next state, or None when there is nothing to do for now."""
    match job.job.state:
        case JobState.REQUESTED:
            return Next(JobState.SNAPSHOT, "started")
        case JobState.SNAPSHOT:
            return training.snapshot(job)
        case JobState.TRAINING:
            return training.train(job)
        case JobState.EVALUATING:
            if "decision" not in job.result and (failed := training.evaluate(job)) is not None:
                return failed
            if job.result["decision"] == "reject":
                return job.reject("; ".join(job.result["reasons"]))
            return promotion.onward(job)
        case JobState.SHADOW:
            return trials.shadow(job)
        case JobState.AWAITING_APPROVAL:
            return promotion.await_approval(job)
        case JobState.CANARY:
            return trials.canary(job)
        case JobState.PROMOTED:
            return promotion.watch(job)
        case JobState.REJECTED | JobState.FAILED | JobState.WATCHED | JobState.ROLLED_BACK:
            return None
        case unreachable:
            assert_never(unreachable)


def leave(job: JobContext) -> None:
    """What must be taken back before the job goes from its state to any other. Can be repeated."""
    if job.job.state is JobState.CANARY:
        trials.leave_canary(job)
