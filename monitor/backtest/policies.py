"""Ways of deciding when to train, played over the same rows with the same models, and how good they were.

Invariant: what is compared differs in its decisions alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from monitor.backtest.history import History
from monitor.backtest.jobs import SimulatedJob
from monitor.backtest.replay import Replay, Replayed
from monitor.backtest.serving import Serving
from monitor.backtest.trainings import Trainings, Version
from monitor.config.plan import ModelPlan
from retrain.terms.request import RetrainRequest


@dataclass(slots=True)
class PolicyResult:
    """One way of deciding when to train, on the same rows as the others. `trainings` counts challengers too."""

    name: str
    trainings: int
    promoted: int
    performance: float | None
    windows: list[float | None] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    jobs: Sequence[SimulatedJob] = ()
    replayed: Replayed | None = None

    def to_json(self) -> Mapping[str, Any]:
        return {
            "name": self.name,
            "trainings": self.trainings,
            "promoted": self.promoted,
            "performance": self.performance,
            "windows": self.windows,
            "versions": self.versions,
            "jobs": [
                {"at": j.at.isoformat(), "state": j.state, "detail": j.detail, "version": j.version} for j in self.jobs
            ],
        }


def result_of(name: str, serving: Serving, replayed: Replayed | None = None) -> PolicyResult:
    windows = list(serving.history.windows(serving.plan.windows.size))
    overall, each = serving.performance(windows, serving.plan.metrics[0])
    return PolicyResult(
        name=name,
        trainings=sum(job.trained for job in serving.jobs),
        promoted=sum(job.state == "promoted" for job in serving.jobs),
        performance=overall,
        windows=each,
        versions=[serving.served_by(*w) for w in windows],
        jobs=tuple(serving.jobs),
        replayed=replayed,
    )


def run_driftd(
    name: str,
    plan: ModelPlan,
    history: History,
    trainings: Trainings,
    first: Version,
    on_window: Callable[[int], None],
    *,
    act: bool = True,
) -> PolicyResult:
    """driftd over the stream; without `act` its requests are noted and nothing is trained. Those made after the last
    window come to nothing: their models would answer nothing."""
    serving = Serving(plan, history, trainings, first)
    *_, (_, end) = history.windows(plan.windows.size)

    def on_request(request: RetrainRequest, at: datetime) -> None:
        if at < end:
            (serving.retrain if act else serving.jobs.note)(request, at)

    replay = Replay(plan, history, serving, serving.job_history, on_request)
    return result_of(name, serving, replay.run(on_window))


def run_plain(name: str, serving: Serving, wanted: Callable[[int], bool]) -> PolicyResult:
    """Plain retraining at the end of each window of which `wanted` (its number, from 0) is true."""
    windows = list(serving.history.windows(serving.plan.windows.size))
    for n, (_, end) in enumerate(windows[:-1]):
        if wanted(n):
            serving.replace_now(end + serving.plan.windows.lateness)
    return result_of(name, serving)


def spread(windows: int, trainings: int) -> frozenset[int]:
    """Windows at whose end one trains, to train so often, evenly."""
    every = windows / (trainings + 1)
    return frozenset(round(every * n) - 1 for n in range(1, trainings + 1))


def share_of_the_way(value: float | None, never: float | None, every: float | None) -> float | None:
    """Of the way from never retraining (0) to retraining at every window (1)."""
    if value is None or never is None or every is None or every == never:
        return None
    return (value - never) / (every - never)
