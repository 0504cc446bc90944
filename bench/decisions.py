"""driftd's defaults against what people use instead, on recorded and on quiet streams: docs/decisions-quality.md.

`python -m bench.decisions [--data FOLDER] [--only NAME ..]` plays each stream once per policy, keeps what it found in
bench/results/decisions.json, prints the tables and rewrites them in the doc; `--write-docs` rewrites them alone.
Invariant: all policies see the same rows, windows and first model, and a model of the same rows is the same model.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import multiprocessing
import os
import platform
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import Empty
from typing import Any

import click
import numpy as np
import polars as pl
import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.detectors import DETECTORS, ZERO_ONE_ONLY, Columns, ErrorDetector, Preset, Seen, Watcher
from monitor.backtest.closed_loop import (
    FIRST,
    PolicyResult,
    Serving,
    Trainings,
    Version,
    first_version,
    result_of,
    run_plain,
)
from monitor.backtest.history import History
from monitor.backtest.replay import Event, Step
from monitor.backtest.run import Options, Setting, of_table, run_driftd
from monitor.measure.scores import SCORES
from monitor.measurement import WindowKey
from monitor.rules import Phase
from retrain.request import RetrainRequest, TriggerKind
from retrain.schema import Task

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "bench" / "results" / "decisions.json"
DOC = ROOT / "docs" / "decisions-quality.md"
BEGIN, END = "<!-- tables: made by bench/decisions.py -->", "<!-- end of tables -->"
LIBRARIES = ("evidently", "river", "scikit-learn", "scipy", "numpy", "pandas")

DRIFTD, SHARE, ANY, PERIODIC, NEVER, EVERY = (
    "driftd", "Evidently, half of the columns", "Evidently, any column", "periodic", "never", "every window",
)  # fmt: skip
UNGATED = "ADWIN, without gates"
POLICIES = (DRIFTD, SHARE, ANY, *DETECTORS, UNGATED, PERIODIC, NEVER, EVERY)
EVIDENTLY_SHARE = 0.5

Results = dict[str, Any]
Tell = Callable[[str, float], None]
"""What is going on, and how much of it is done (0 to 1)."""
Keep = Callable[[Results], None]


# -- streams


@dataclass(frozen=True, slots=True)
class Recorded:
    """A table in stream order. `changes`: rows of the file where the world is known to change; `every`: one row in so
    many is used."""

    name: str
    file: str
    target: str
    drop: tuple[str, ...] = ()
    changes: tuple[int, ...] = ()
    every: int = 1


@dataclass(frozen=True, slots=True)
class Quiet:
    """Independent rows that never change: whatever fires is a false alarm."""

    features: int
    window_rows: int
    windows: int
    seeds: int = 1

    @property
    def name(self) -> str:
        return f"quiet, {self.features} features, windows of {self.window_rows:,}"

    @property
    def training_rows(self) -> int:
        return max(2000, 2 * self.window_rows)


LEAKS = ("time_hour", "dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "tailnum")
RECORDED = (
    Recorded("electricity", "electricity_nsw.csv.gz", "class", ("date", "nswprice")),
    Recorded("bike sharing", "bike_sharing_hour.csv.gz", "cnt", ("instant", "casual", "registered", "dteday")),
    Recorded("occupancy, with Light", "occupancy_uci.csv.gz", "Occupancy", ("date", "part")),
    Recorded("occupancy, without Light", "occupancy_uci.csv.gz", "Occupancy", ("date", "part", "Light")),
    Recorded("keystroke", "keystroke.csv.gz", "class"),
    Recorded("SEA", "sea_vlosing_synthetic.csv.gz", "class", changes=(12_500, 25_000, 37_500)),
    Recorded(
        "car loan", "nannyml_synthetic_car_loan.parquet", "repaid",
        ("id", "timestamp", "y_pred_proba", "y_pred", "partition"), changes=(75_000,),
    ),
    Recorded("flights, every 10th", "nycflights13.parquet", "arr_delayed_15", LEAKS, every=10),
)  # fmt: skip
QUIET = (
    Quiet(10, 200, 1000, seeds=3),
    Quiet(10, 2000, 300),
    Quiet(10, 10_000, 100),
    Quiet(200, 200, 300),
    Quiet(200, 1000, 100),
)
STREAMS: dict[str, Recorded | Quiet] = {s.name: s for s in (*RECORDED, *QUIET)}


def quiet_rows(stream: Quiet, seed: int) -> pl.DataFrame:
    """Normal features, three of which say something about the label, always the same."""
    rng = np.random.default_rng(seed)
    rows = stream.training_rows + stream.window_rows * stream.windows
    values = rng.normal(size=(rows, stream.features))
    log_odds = 1.5 * values[:, 0] + values[:, 1] - 0.75 * values[:, 2]
    label = (rng.random(rows) < 1 / (1 + np.exp(-log_odds))).astype(np.int64)
    return pl.DataFrame({**{f"x{n}": values[:, n] for n in range(stream.features)}, "label": label})


def opened(stream: Recorded, data: Path, folder: Path) -> tuple[Setting, History]:
    """As `driftd backtest --stream` takes the table."""
    path = data / stream.file
    if stream.every > 1:
        thinned = folder / path.name
        pl.read_parquet(path).gather_every(stream.every).write_parquet(thinned)
        path = thinned
    settings, history = of_table(Options(stream=path, target=stream.target, drop=stream.drop), folder)
    return settings[0], history


def opened_quiet(stream: Quiet, seed: int, folder: Path) -> tuple[Setting, History]:
    rows = quiet_rows(stream, seed)
    path = folder / "quiet.parquet"
    rows.write_parquet(path)
    share = (stream.training_rows + 0.5) / rows.height
    settings, history = of_table(
        Options(stream=path, target="label", train_share=share, window_rows=stream.window_rows), folder
    )
    return settings[0], history


# -- policies


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

    def position(self, at: datetime) -> float:
        """A time in windows since the stream began."""
        return (at - next(self.history.windows(self.setting.plan.windows.size))[0]) / self.setting.plan.windows.size


def staged(setting: Setting, history: History) -> Stage:
    trainings = Trainings(setting.plan)
    return Stage(setting, history, trainings, first_version(setting.plan, history, trainings))


Job = Callable[[Serving, RetrainRequest, datetime], None]
"""What becomes of a request: `Serving.retrain` (gates decide), `Serving.note` (nothing is trained), `ungated`."""


def ungated(serving: Serving, _request: RetrainRequest, at: datetime) -> None:
    """Train on all that is known and put it in force."""
    serving.replace_now(at)


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
        if (now := _champion(serving, at)) != champion:  # the watch put the one before it back
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
                champion = _champion(serving, at)
                watcher.reset()
        if (final := _final_at(rows, at, plan.windows.min_coverage)) is not None:
            serving.noted(Event(final, Step.FINAL, WindowKey(plan.model, champion, start, end)))
        on_window(number)
    return result_of(name, serving, stage.metric), asked


def _champion(serving: Serving, at: datetime) -> str:
    return str(serving.job_history(serving.plan.model, None, at).champion)


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


def _final_at(rows: pl.DataFrame, closed: datetime, coverage: float) -> datetime | None:
    """When enough labels of a window have come, as `Replay` has it; None: they never do."""
    came = rows.filter(pl.col("label").is_not_null())["label_ts"].sort()
    needed = max(1, math.ceil(coverage * rows.height - 1e-9))
    return max(closed, came[needed - 1]) if needed <= came.len() else None


def spread(windows: int, trainings: int) -> frozenset[int]:
    """Windows at whose end one trains, to train so often, evenly."""
    every = windows / (trainings + 1)
    return frozenset(round(every * n) - 1 for n in range(1, trainings + 1))


# -- one stream through all policies


def play(stream: Recorded, data: Path, tell: Tell, keep: Keep) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tell("first model", 0)
        stage = staged(*opened(stream, data, Path(folder)))
        found = {**_about(stage), "changes": _changes(stage, stream.changes), "every": stream.every, "policies": {}}
        for name, policy in _policies(stage, tell, found):
            start = time.perf_counter()
            found["policies"][name] = {**policy(), "seconds": round(time.perf_counter() - start, 1)}
            keep(found)


def play_quiet(stream: Quiet, _data: Path, tell: Tell, keep: Keep) -> None:
    """The seeds one after another; their windows are added up. Only driftd trains: see docs/decisions-quality.md."""
    found: Results = {}
    for seed in range(stream.seeds):
        with tempfile.TemporaryDirectory() as folder:
            tell(f"seed {seed}: first model", 0)
            stage = staged(*opened_quiet(stream, seed, Path(folder)))
            found = found or {**_about(stage), "windows": 0, "seeds": 0, "changes": [], "policies": {}}
            found["windows"] += len(stage.windows())
            found["seeds"] += 1
            for name, policy in _policies(stage, tell, found, act=False):
                start, mine = time.perf_counter(), policy()
                mine["seconds"] = round(time.perf_counter() - start, 1)
                found["policies"][name] = _added(found["policies"].get(name), mine)
            keep(found)


def _added(before: Results | None, more: Results) -> Results:
    """Counts of one more seed. Where in the stream it alarmed is kept seed after seed."""
    more = {key: more[key] for key in ("trainings", "promoted", "jobs", "alarms", "seconds")}
    if before is None:
        return more
    alarms = {rule: before["alarms"].get(rule, []) + at for rule, at in more["alarms"].items()}
    seconds = round(before["seconds"] + more["seconds"], 1)
    counts = {key: before[key] + more[key] for key in ("trainings", "promoted", "jobs")}
    return {**counts, "alarms": alarms, "seconds": seconds}


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
        "measured_at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "code": code_digest(),
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
    stage: Stage, tell: Tell, found: Results, *, act: bool = True
) -> Iterator[tuple[str, Callable[[], Results]]]:
    """Name by name, how to run it. Without `act` only driftd trains, and what is there to train is left out."""
    yield DRIFTD, lambda: _driftd(stage, tell)
    columns, job = Columns(stage.setting.plan.schema), Serving.retrain if act else Serving.note
    shares: tuple[tuple[str, float | None], ...] = ((SHARE, EVIDENTLY_SHARE), (ANY, None))
    for name, share in shares:
        yield name, partial(_asking, name, stage, Preset(columns, share, FIRST), job, tell)
    found["evidently_checked"] = found.get("evidently_checked", 0) + columns.checked
    for name in DETECTORS:
        if stage.setting.plan.schema.task is not Task.REGRESSION or name not in ZERO_ONE_ONLY:
            yield name, partial(_asking, name, stage, ErrorDetector(name), job, tell)
    if act:
        yield UNGATED, partial(_asking, UNGATED, stage, ErrorDetector("ADWIN"), ungated, tell)
        if trainings := found["policies"][DRIFTD]["trainings"]:
            at = spread(len(stage.windows()), trainings)
            yield PERIODIC, partial(_plain, PERIODIC, stage, at.__contains__, tell)
        yield NEVER, partial(_plain, NEVER, stage, lambda _n: False, tell)
        yield EVERY, partial(_plain, EVERY, stage, lambda _n: True, tell)


def _driftd(stage: Stage, tell: Tell) -> Results:
    setting = replace(stage.setting, name=DRIFTD)
    result = run_driftd(
        setting, stage.history, stage.trainings, stage.first, lambda name, seen, rows: tell(name, seen / rows)
    )
    assert result.replayed is not None
    alarms = {
        rule.name: [
            at for at, _, t in result.replayed.transitions if t.rule == rule.name and t.after is Phase.FIRING
        ]
        for rule in setting.plan.rules
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

    return _kept(stage, run_plain(name, stage.serving(), stage.metric, watched), {})


def _kept(stage: Stage, result: PolicyResult, alarms: dict[str, list[datetime]]) -> Results:
    return {
        "trainings": result.trainings,
        "promoted": result.promoted,
        "performance": _rounded(result.performance),
        "alarms": {rule: [round(stage.position(at), 3) for at in times] for rule, times in alarms.items()},
        "jobs": [[round(stage.position(job.at), 3), job.state] for job in result.jobs],
        "windows": [_rounded(value) for value in result.windows],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(f"{value:.5g}")


# -- what was found, in words

RECORDED_COLUMNS = (
    "stream", "policy", "windows", "trainings", "promoted", "performance", "of the way", "alarms per 1,000 windows",
    "windows from change to alarm", "false alarms",
)  # fmt: skip
QUIET_COLUMNS = ("stream", "policy", "windows", "alarms per 1,000 windows", "retrains per 1,000 windows")
Cells = tuple[str, ...]


def recorded_table(results: Results) -> list[Cells]:
    """One row per recorded stream and policy; the stream's name stands in its first row."""
    rows: list[Cells] = []
    for name in [s.name for s in RECORDED if s.name in results]:
        found = results[name]
        title = f"{name} ({found['metric']}, {_direction(found)})"
        for n, (policy, mine) in enumerate(_in_order(found)):
            way = _percent(share_of_the_way(found, policy))
            counts = (f"{found['windows']}", f"{mine['trainings']}", f"{mine['promoted']}")
            rows.append(("" if n else title, policy, *counts, _show(mine["performance"]), way, *_alarms(found, mine)))
    return rows


def quiet_table(results: Results) -> list[Cells]:
    rows: list[Cells] = []
    for name in [s.name for s in QUIET if s.name in results]:
        found = results[name]
        for n, (policy, mine) in enumerate(_in_order(found)):
            retrains = f"{1000 * len(mine['jobs']) / found['windows']:.1f}"
            rows.append(("" if n else name, policy, f"{found['windows']}", _alarms(found, mine)[0], retrains))
    return rows


def _alarms(found: Results, mine: Results) -> tuple[str, str, str]:
    """Alarms per 1,000 windows, windows from each change to the first one, and those before the first change."""
    changes = found["changes"]
    per_thousand = _by_rule(mine, lambda at: f"{1000 * len(at) / found['windows']:.1f}")
    if not changes:
        return per_thousand, "-", "-"
    delays = _by_rule(mine, lambda at: ", ".join(_delays(at, changes)))
    return per_thousand, delays, _by_rule(mine, lambda at: str(sum(a < changes[0] for a in at)))


def share_of_the_way(found: Results, policy: str) -> float | None:
    """From never (0) to every window (1)."""
    mine, never, every = (found["policies"].get(p, {}).get("performance") for p in (policy, NEVER, EVERY))
    if mine is None or never is None or every is None or every == never:
        return None
    return float((mine - never) / (every - never))


def curve(found: Results) -> list[Cells]:
    """Performance in tenths of the stream: windows, then a mean per policy."""
    policies = [(name, mine["windows"]) for name, mine in _in_order(found)]
    edges = np.linspace(0, found["windows"], 11).round().astype(int)
    rows = []
    for first, last in itertools.pairwise(edges):
        if last > first:
            means = (_mean(windows[first:last]) for _, windows in policies)
            rows.append((f"{first + 1}-{last}", *(_show(mean) for mean in means)))
    return rows


def _in_order(found: Results) -> list[tuple[str, Results]]:
    return [(name, found["policies"][name]) for name in POLICIES if name in found["policies"]]


def _by_rule(mine: Results, say: Callable[[list[float]], str]) -> str:
    """One figure, or one per rule with its name."""
    said = {rule: say(at) for rule, at in mine["alarms"].items()}
    if len(said) <= 1:
        return next(iter(said.values()), "-")
    return "; ".join(f"{rule} {text}" for rule, text in said.items())


def _delays(alarms: Sequence[float], changes: Sequence[float]) -> list[str]:
    """Windows from each change to the first alarm before the next change; "none" where there is no such alarm."""
    until = [*changes[1:], math.inf]
    first = [min((a for a in alarms if c <= a < u), default=None) for c, u in zip(changes, until, strict=True)]
    return ["none" if a is None else f"{a - c:.1f}" for a, c in zip(first, changes, strict=True)]


def _direction(found: Results) -> str:
    return "more is better" if found["better"] == "higher" else "less is better"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def markdown(kept: Results) -> str:
    results = kept["streams"]
    parts = [_markdown(RECORDED_COLUMNS, recorded_table(results)), "### Quiet streams"]
    parts.append(_markdown(QUIET_COLUMNS, quiet_table(results)))
    for name in [s.name for s in RECORDED if s.name in results]:
        found = results[name]
        head = ("windows", *(policy for policy, _ in _in_order(found)))
        parts += [f"### {name}: {found['metric']}, {_direction(found)}", _markdown(head, curve(found))]
    machine, checked = kept["machine"], sum(found.get("evidently_checked", 0) for found in results.values())
    libraries = ", ".join(f"{name} {number}" for name, number in machine["libraries"].items())
    parts.append(
        f"Python {machine['python']}, {libraries}. Runs: "
        + "; ".join(f"{name} {found['measured_at']}" for name, found in results.items())
        + (". " + _same_code(results))
        + f" Windows of which Evidently's own report was held against its tests called alone: {checked}, all equal."
    )
    return "\n\n".join(parts)


def _same_code(results: Results) -> str:
    codes: dict[str, list[str]] = {}
    for name, found in results.items():
        codes.setdefault(found["code"], []).append(name)
    if len(codes) <= 1:
        return f"Code of driftd: {', '.join(codes)}."
    parts = "; ".join(f"{code} ({', '.join(names)})" for code, names in codes.items())
    return f"**Not all of the same code of driftd**: {parts}."


def _markdown(head: Sequence[str], rows: Sequence[Cells]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(cells)} |" for cells in rows)]
    return "\n".join(lines)


def write_doc(kept: Results, doc: Path = DOC) -> None:
    text = doc.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    doc.write_text(f"{before}{BEGIN}\n\n{markdown(kept)}\n\n{END}{after}", encoding="utf-8")


def _print(console: Console, results: Results) -> None:
    for head, rows in ((RECORDED_COLUMNS, recorded_table(results)), (QUIET_COLUMNS, quiet_table(results))):
        table = Table(*head)
        for cells in rows:
            table.add_row(*cells, end_section=False)
        if rows:
            console.print(table)


# -- running


def kept_results() -> Results:
    """What earlier runs found."""
    found: Results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"machine": {}, "streams": {}}
    return {**found, "streams": {name: found["streams"][name] for name in STREAMS if name in found["streams"]}}


def _keep(name: str, found: Results) -> None:
    kept = kept_results()
    kept["machine"] = {"python": platform.python_version(), "libraries": _libraries()}
    kept["streams"] = {n: {**kept["streams"], name: found}[n] for n in STREAMS if n in {*kept["streams"], name}}
    RESULTS.parent.mkdir(exist_ok=True)
    partial_file = RESULTS.with_suffix(".tmp")
    text = re.sub(r"\[[^\[\]{}]*\]", lambda m: re.sub(r"\s+", " ", m[0]), json.dumps(kept, indent=1))  # a list, a line
    partial_file.write_text(text + "\n")
    partial_file.replace(RESULTS)


def _libraries() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def _work(name: str, data: Path, queue: Any) -> None:
    """One stream in a process of its own; what it has to say goes into `queue`."""
    logging.getLogger().setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    stream = STREAMS[name]

    def tell(what: str, done: float) -> None:
        queue.put((name, what, done))

    def keep(found: Results) -> None:
        queue.put((name, found, 1.0))

    if isinstance(stream, Recorded):
        play(stream, data, tell, keep)
    else:
        play_quiet(stream, data, tell, keep)


def run(names: Sequence[str], data: Path, processes: int, console: Console) -> None:
    """Play the streams, so many at once; each policy is kept as soon as it is done."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    columns = (TextColumn("{task.description:60}"), BarColumn(), TimeElapsedColumn())
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(processes, mp_context=context, max_tasks_per_child=1) as pool,
        Progress(*columns, console=console) as progress,
    ):
        queue = manager.Queue()
        futures: dict[str, Future[None]] = {name: pool.submit(_work, name, data, queue) for name in names}
        bars: dict[str, TaskID] = {}
        while True:
            over = all(future.done() for future in futures.values())
            try:
                name, what, done = queue.get(timeout=0.5)
                _heard(name, what, done, progress, bars)
            except Empty:
                if over:
                    break
        for name, future in futures.items():
            if (exc := future.exception()) is not None:
                raise RuntimeError(f"{name}: {exc}") from exc


def _heard(name: str, what: str | Results, done: float, progress: Progress, bars: dict[str, TaskID]) -> None:
    if name not in bars:
        bars[name] = progress.add_task(name, total=1.0)
    if isinstance(what, str):
        progress.update(bars[name], description=f"{name}: {what}", completed=done)
        return
    _keep(name, what)
    last, mine = list(what["policies"].items())[-1]
    progress.console.print(f"{name}: {last}: {mine['trainings']} trainings, {mine['seconds']:.0f} s")


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=DATA, help="Folder with the recorded tables.")
@click.option("--only", multiple=True, type=click.Choice(list(STREAMS)), help="A stream; may be given again.")
@click.option("--processes", default=2, show_default=True, help="Streams played at once.")
@click.option("--write-docs", is_flag=True, help=f"Rewrite docs/{DOC.name} from what is kept; run nothing.")
def main(data: Path, only: tuple[str, ...], processes: int, write_docs: bool) -> None:
    """Play recorded and quiet streams through driftd and through what people use instead."""
    console = Console(width=None if sys.stdout.isatty() else 220)
    if not write_docs:
        wanted = [s for name, s in STREAMS.items() if not only or name in only]
        missing = [s for s in wanted if isinstance(s, Recorded) and not (data / s.file).exists()]
        for stream in missing:
            console.print(f"skipped {stream.name}: there is no {stream.file} in {data}")
        if found := [s.name for s in wanted if s not in missing]:
            run(found, data, processes, console)
    kept = kept_results()
    _print(console, kept["streams"])
    if kept["streams"]:
        write_doc(kept)
        console.print(f"rewrote the tables in docs/{DOC.name}")


if __name__ == "__main__":
    main()
