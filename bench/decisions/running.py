"""`python -m bench.decisions`: play the streams, keep what was found in bench/results/decisions.json, print the tables
and rewrite them in the doc.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import platform
import re
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import Empty
from typing import Any

import click
import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.decisions.policies import POLICIES, ROOT, Results, play, play_quiet
from bench.decisions.streams import STREAMS, Recorded
from bench.decisions.tables import QUIET_COLUMNS, RECORDED_COLUMNS, markdown, quiet_table, recorded_table
from bench.doc import rewrite
from retrain.base.files import write_whole

DATA = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "bench" / "results" / "decisions.json"
DOC = ROOT / "docs" / "decisions-quality.md"
LIBRARIES = ("evidently", "river", "scikit-learn", "scipy", "numpy", "pandas")


def _print(console: Console, results: Results) -> None:
    for head, rows in ((RECORDED_COLUMNS, recorded_table(results)), (QUIET_COLUMNS, quiet_table(results))):
        table = Table(*head)
        for cells in rows:
            table.add_row(*cells, end_section=False)
        if rows:
            console.print(table)


def kept_results() -> Results:
    """What earlier runs found."""
    found: Results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"machine": {}, "streams": {}}
    return {**found, "streams": {name: found["streams"][name] for name in STREAMS if name in found["streams"]}}


def _keep(name: str, about: Results, policy: str, mine: Results) -> None:
    """Beside what is kept of the stream's other policies, unless it was another stream then."""
    kept = kept_results()
    kept["machine"] = {"python": platform.python_version(), "libraries": _libraries()}
    before = kept["streams"].get(name, {})
    comparable = all(before.get(key) == value for key, value in about.items())
    stream = {**about, "policies": {**(before["policies"] if comparable else {}), policy: mine}}
    kept["streams"] = {n: {**kept["streams"], name: stream}[n] for n in STREAMS if n in {*kept["streams"], name}}
    RESULTS.parent.mkdir(exist_ok=True)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda m: re.sub(r"\s+", " ", m[0]), json.dumps(kept, indent=1))  # a list, a line
    write_whole(RESULTS, text + "\n")


def _libraries() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def _work(name: str, data: Path, policies: Sequence[str], queue: Any) -> None:
    """One stream in a process of its own; what it has to say goes into `queue`."""
    logging.getLogger().setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    stream = STREAMS[name]

    def wanted(policy: str) -> bool:
        return not policies or policy in policies

    def tell(what: str, done: float) -> None:
        queue.put((name, what, done))

    def keep(about: Results, policy: str, mine: Results) -> None:
        queue.put((name, (about, policy, mine), 1.0))

    if isinstance(stream, Recorded):
        play(stream, data, wanted, kept_results()["streams"].get(name, {}), tell, keep)
    else:
        play_quiet(stream, wanted, tell, keep)


def run(names: Sequence[str], policies: Sequence[str], data: Path, processes: int, console: Console) -> None:
    """Play the streams, so many at once; each policy is kept as soon as it is done. No policies: all."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    columns = (TextColumn("{task.description:60}"), BarColumn(), TimeElapsedColumn())
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(processes, mp_context=context, max_tasks_per_child=1) as pool,
        Progress(*columns, console=console) as progress,
    ):
        queue = manager.Queue()
        futures: dict[str, Future[None]] = {name: pool.submit(_work, name, data, policies, queue) for name in names}
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


def _heard(
    name: str, what: str | tuple[Results, str, Results], done: float, progress: Progress, bars: dict[str, TaskID]
) -> None:
    if name not in bars:
        bars[name] = progress.add_task(name, total=1.0)
    if isinstance(what, str):
        progress.update(bars[name], description=f"{name}: {what}", completed=done)
        return
    about, policy, mine = what
    _keep(name, about, policy, mine)
    progress.console.print(f"{name}: {policy}: {mine['trainings']} trainings, {mine['seconds']:.0f} s")


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=DATA, help="Folder with the recorded tables.")
@click.option("--only", multiple=True, type=click.Choice(list(STREAMS)), help="A stream; may be given again.")
@click.option("--policy", "policies", multiple=True, type=click.Choice(POLICIES), help="A policy; may be given again.")
@click.option("--processes", default=2, show_default=True, help="Streams played at once.")
@click.option("--write-docs", is_flag=True, help=f"Rewrite docs/{DOC.name} from what is kept; run nothing.")
def main(data: Path, only: tuple[str, ...], policies: tuple[str, ...], processes: int, write_docs: bool) -> None:
    """Play recorded and quiet streams through driftd and through what people use instead."""
    console = Console(width=None if sys.stdout.isatty() else 220)
    if not write_docs:
        wanted = [s for name, s in STREAMS.items() if not only or name in only]
        missing = [s for s in wanted if isinstance(s, Recorded) and not (data / s.file).exists()]
        for stream in missing:
            console.print(f"skipped {stream.name}: there is no {stream.file} in {data}")
        if found := [s.name for s in wanted if s not in missing]:
            run(found, policies, data, processes, console)
    kept = kept_results()
    _print(console, kept["streams"])
    if kept["streams"]:
        rewrite(DOC, markdown(kept))
        console.print(f"rewrote the tables in docs/{DOC.name}")
