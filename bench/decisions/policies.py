"""One stream played through driftd and through what people use instead.

Invariant: all policies see the same rows, windows and first model, and a model of the same rows is the same model.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from bench.decisions.detectors import DETECTORS, ZERO_ONE_ONLY, Columns, ErrorDetector, Preset, Seen, Watcher
from bench.decisions.streams import Quiet, Recorded, opened, opened_quiet
from monitor.backtest.history import History
from monitor.backtest.policies import PolicyResult, result_of, run_driftd, run_plain, spread
from monitor.backtest.replay import Event, Step, final_at
from monitor.backtest.run import Setting
from monitor.backtest.serving import Serving
from monitor.backtest.trainings import FIRST, Trainings, Version, first_version
from monitor.measure.performance.scores import SCORES
from monitor.rules.measurement import WindowKey
from monitor.rules.phases import Phase
from retrain.terms.request import RetrainRequest, TriggerKind
from retrain.terms.schema import Task

ROOT = Path(__file__).parents[2]
DRIFTD, SHARE, ANY, PERIODIC, NEVER, SLIDING, EVERY = (
    "driftd", "Evidently, half of the columns", "Evidently, any column", "periodic", "never",
    "every window, sliding span", "every window",
)  # fmt: skip
UNGATED = "ADWIN, without gates"
POLICIES = (DRIFTD, SHARE, ANY, *DETECTORS, UNGATED, PERIODIC, NEVER, SLIDING, EVERY)
EVIDENTLY_SHARE = 0.5

Results = dict[str, Any]
Tell = Callable[[str, float], None]
"""What is going on, and how much of it is done (0 to 1)."""
Keep = Callable[[Results, str, Results], None]
"""Facts of a stream, name of a policy, what it did."""
Wanted = Callable[[str], bool]
"""Whether a policy is to be run."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What all policies of one stream share."""

    setting: Setting
    history: History
    trainings: Trainings
    first: Version

    @property
    def metric(self) -> str:
        return self.setting.plan.metrics[0]

    def windows(self) -> list[tuple[datetime, datetime]]:
        return list(self.history.windows(self.setting.plan.windows.size))

    def serving(self) -> Serving:
        return Serving(self.setting.plan, self.history, self.trainings, self.first)

    def on_sliding_span(self) -> Stage:
        """Plain boosting on the newest rows alone, as many as the first model was trained on."""
        plan = self.setting.plan
        update = {"max_rows": self.history.training_rows, "parameters": {**plan.retrain.parameters, "spans": 1}}
        sliding = replace(plan, retrain=plan.retrain.model_copy(update=update))
        return replace(self, setting=replace(self.setting, plan=sliding), trainings=Trainings(sliding))

    def position(self, at: datetime) -> float:
        """A time in windows since the stream began."""
        return (at - next(self.history.windows(self.setting.plan.windows.size))[0]) / self.setting.plan.windows.size


def staged(setting: Setting, history: History) -> Stage:
    trainings = Trainings(setting.plan)
    return Stage(setting, history, trainings, first_version(setting.plan, history, trainings))


Job = Callable[[Serving, RetrainRequest, datetime], None]
"""What becomes of a request: `Serving.retrain` (gates decide), `noted` (nothing is trained), `ungated`."""


def ungated(serving: Serving, _request: RetrainRequest, at: datetime) -> None:
    """Train on all that is known and put it in force."""
    serving.replace_now(at)


def noted(serving: Serving, request: RetrainRequest, at: datetime) -> None:
    """Count the request; nothing is trained."""
    serving.jobs.note(request, at)


def run_asking(
    name: str, stage: Stage, watcher: Watcher, job: Job, on_window: Callable[[int], None]
) -> tuple[PolicyResult, list[datetime]]:
    """`watcher` asks at the end of a window and `job` does the rest; with the times at which it asked.

    The watch after a promotion belongs to a job with gates, so it runs too, when driftd would run it.
    """
    serving, windows, plan = stage.serving(), stage.windows(), stage.setting.plan
    waiting: list[pl.DataFrame] = []
    asked: list[datetime] = []
    champion = stage.first.name
    for number, (start, end) in enumerate(windows):
        at = end + plan.windows.lateness
        rows = serving.window(start, end)
        if (now := serving.champion) != champion:  # the watch put the one before it back
            champion = now
            watcher.reset()
        waiting.append(_errors(rows, plan.schema.task))
        came, waiting = _come(waiting, at)
        mine = came.filter(pl.col("model_version") == champion)["error"].to_numpy()
        if watcher.asks(Seen(number, champion, rows, serving.versions[champion].reference, mine)):
            asked.append(at)
            if number < len(windows) - 1:
                request = RetrainRequest(f"{name}-{number}", plan.model, TriggerKind.RULE, "", {}, at)
                job(serving, request, at)
                champion = serving.champion
                watcher.reset()
        if (final := final_at(rows, at, end, plan.windows, stage.history.until)) is not None:
            serving.noted(Event(final, Step.FINAL, WindowKey(plan.model, champion, start, end), rows.height))
        on_window(number)
    return result_of(name, serving), asked


def _errors(rows: pl.DataFrame, task: Task) -> pl.DataFrame:
    """0 or 1, or how far off: one row per labelled row."""
    label = pl.col("label")
    wrong = (pl.col("prediction") - label.cast(pl.Float64)).abs() if task is Task.REGRESSION else (
        pl.col("prediction") != label
    ).cast(pl.Float64)  # fmt: skip
    return rows.filter(label.is_not_null()).select("model_version", "label_ts", error=wrong)


def _come(waiting: Sequence[pl.DataFrame], at: datetime) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
    """Errors whose label has come, in the order it came, and those that wait for theirs."""
    errors = pl.concat(waiting)
    came = pl.col("label_ts") <= at
    return errors.filter(came).sort("label_ts", maintain_order=True), [errors.filter(~came)]


# -- one stream through all policies


def play(stream: Recorded, data: Path, wanted: Wanted, known: Results, tell: Tell, keep: Keep) -> None:
    """`known`: what earlier runs found of this stream; periodic retraining takes the number of trainings from it."""
    with tempfile.TemporaryDirectory() as folder:
        tell("first model", 0)
        stage = staged(*opened(stream, data, Path(folder)))
        about = {**_about(stage), "changes": _changes(stage, stream.changes), "every": stream.every}
        played: Results = dict(known.get("policies", {}))
        for name, policy in _policies(stage, tell, lambda: int(played[DRIFTD]["trainings"])):
            if wanted(name):
                played[name] = _timed(policy)
                keep(about, name, played[name])


def play_quiet(stream: Quiet, wanted: Wanted, tell: Tell, keep: Keep) -> None:
    """The seeds' counts are added up. Only driftd trains: see docs/decisions-quality.md."""
    with tempfile.TemporaryDirectory() as folder:
        tell("first models", 0)
        stages = []
        for seed in range(stream.seeds):
            (mine := Path(folder) / str(seed)).mkdir()
            stages.append(staged(*opened_quiet(stream, seed, mine)))
        about = {**_about(stages[0]), "changes": [], "seeds": stream.seeds}
        about["windows"] = sum(len(stage.windows()) for stage in stages)
        for of_seeds in zip(*(_policies(stage, tell, lambda: 0, act=False) for stage in stages), strict=True):
            if wanted(name := of_seeds[0][0]):
                keep(about, name, _added([_timed(policy) for _, policy in of_seeds]))


def _timed(policy: Callable[[], Results]) -> Results:
    start = time.perf_counter()
    mine = policy()
    measured_at = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return {**mine, "seconds": round(time.perf_counter() - start, 1), "measured_at": measured_at, "code": code_digest()}


def _added(results: Sequence[Results]) -> Results:
    """Counts of all seeds. Where in the stream it alarmed is kept seed after seed."""
    alarms = {rule: [at for mine in results for at in mine["alarms"][rule]] for rule in results[0]["alarms"]}
    counts: Results = {
        key: sum(mine[key] for mine in results) for key in ("trainings", "promoted", "evidently_checked")
    }
    jobs = [job for mine in results for job in mine["jobs"]]
    seconds = round(sum(mine["seconds"] for mine in results), 1)
    last = {key: results[-1][key] for key in ("measured_at", "code")}
    return {**counts, "jobs": jobs, "alarms": alarms, "seconds": seconds, **last}


def _about(stage: Stage) -> Results:
    windows = stage.windows()
    first, last = stage.history.positions(*windows[0])
    return {
        "metric": stage.metric,
        "better": SCORES[stage.metric].better.value,
        "windows": len(windows),
        "window_rows": last - first,
        "training_rows": stage.history.training_rows,
        "features": len(stage.setting.plan.schema.features),
    }


def code_digest() -> str:
    """Tells apart results of different code of driftd: those of one table ought to be of the same."""
    digest = hashlib.sha256()
    for path in sorted(path for part in ("monitor", "retrain") for path in (ROOT / part).rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:10]


def _changes(stage: Stage, rows: Sequence[int]) -> list[float]:
    """In windows since the stream began."""
    return [round(stage.position(stage.history.time_of(r - stage.history.training_rows)), 3) for r in rows]


def _policies(
    stage: Stage, tell: Tell, trainings: Callable[[], int], *, act: bool = True
) -> Iterator[tuple[str, Callable[[], Results]]]:
    """Name by name, how to run it. Without `act` only driftd trains, and what is there to train is left out.
    `trainings`: how many driftd made, once it has been run."""
    windows = len(stage.windows())
    yield DRIFTD, lambda: _driftd(stage, tell)
    if act:
        yield PERIODIC, lambda: _plain(PERIODIC, stage, spread(windows, trainings()).__contains__, tell)
        yield NEVER, partial(_plain, NEVER, stage, lambda _n: False, tell)
        yield SLIDING, partial(_plain, SLIDING, stage.on_sliding_span(), lambda _n: True, tell)
        yield EVERY, partial(_plain, EVERY, stage, lambda _n: True, tell)
        yield UNGATED, partial(_detector, UNGATED, "ADWIN", stage, ungated, tell)
    job = Serving.retrain if act else noted
    for name in DETECTORS:
        if stage.setting.plan.schema.task is not Task.REGRESSION or name not in ZERO_ONE_ONLY:
            yield name, partial(_detector, name, name, stage, job, tell)
    columns = Columns(stage.setting.plan.schema)
    shares: tuple[tuple[str, float | None], ...] = ((SHARE, EVIDENTLY_SHARE), (ANY, None))
    for name, share in shares:
        yield name, partial(_preset, name, stage, columns, share, job, tell)


def _detector(policy: str, name: str, stage: Stage, job: Job, tell: Tell) -> Results:
    return _asking(policy, stage, ErrorDetector(name), job, tell)


def _preset(name: str, stage: Stage, columns: Columns, share: float | None, job: Job, tell: Tell) -> Results:
    before = columns.checked
    mine = _asking(name, stage, Preset(columns, share, FIRST), job, tell)
    return {**mine, "evidently_checked": columns.checked - before}


def _driftd(stage: Stage, tell: Tell) -> Results:
    plan, windows = stage.setting.plan, len(stage.windows())
    closed = itertools.count(1)
    result = run_driftd(
        DRIFTD, plan, stage.history, stage.trainings, stage.first, lambda _rows: tell(DRIFTD, next(closed) / windows)
    )
    assert result.replayed is not None
    alarms = {
        rule.name: [
            at for at, _, t in result.replayed.transitions if t.rule == rule.name and t.after is Phase.FIRING
        ]
        for rule in plan.rules
    }  # fmt: skip
    return _kept(stage, result, alarms)


def _asking(name: str, stage: Stage, watcher: Watcher, job: Job, tell: Tell) -> Results:
    windows = len(stage.windows())
    result, asked = run_asking(name, stage, watcher, job, lambda n: tell(name, (n + 1) / windows))
    return _kept(stage, result, {name: asked})


def _plain(name: str, stage: Stage, wanted: Callable[[int], bool], tell: Tell) -> Results:
    windows = len(stage.windows())

    def watched(number: int) -> bool:
        tell(name, (number + 1) / windows)
        return wanted(number)

    return _kept(stage, run_plain(name, stage.serving(), watched), {})


def _kept(stage: Stage, result: PolicyResult, alarms: dict[str, list[datetime]]) -> Results:
    return {
        "trainings": result.trainings,
        "promoted": result.promoted,
        "performance": _rounded(result.performance),
        "alarms": {rule: [round(stage.position(at), 3) for at in times] for rule, times in alarms.items()},
        "jobs": [[round(stage.position(job.at), 3), job.state] for job in result.jobs],
        "windows": [_rounded(value) for value in result.windows],
        "evidently_checked": 0,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(f"{value:.5g}")
