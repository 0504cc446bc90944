"""`driftd backtest`: run it with a progress bar, print the tables, write the document and the page."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from monitor.backtest.closed_loop import CannotTrain
from monitor.backtest.page import render
from monitor.backtest.run import Found, Options, backtest
from monitor.backtest.show import show
from monitor.errors import ConfigError

PLAIN_WIDTH = 160
"""Columns of a table that goes into a file or a pipe: nothing is cut there."""


def carry_out(options: Options, json_path: Path | None, html_path: Path | None) -> None:
    """Raises ConfigError for what cannot be used."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))  # the story is the tables
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory(prefix="driftd-backtest-") as folder, Progress(*columns, console=errors) as bars:
        tasks = {}

        def progress(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done)

        found = _run(options, Path(folder), progress)
    console = Console()
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    show(found.document, console)
    if json_path is not None:
        json_path.write_text(json.dumps(found.document, indent=1) + "\n", encoding="utf-8")
    if html_path is not None:
        html_path.write_text(render(found.document), encoding="utf-8")
    for path in (json_path, html_path):
        if path is not None:
            console.print(f"written: {path}")


def _run(options: Options, folder: Path, progress: object) -> Found:
    try:
        return backtest(options, folder, progress)  # type: ignore[arg-type]
    except CannotTrain as exc:
        raise ConfigError([str(exc)]) from exc
