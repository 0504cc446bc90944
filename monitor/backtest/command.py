"""`driftd backtest`: run it with a progress bar, print the tables, write the document and the page."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from monitor.backtest.page import render
from monitor.backtest.run import Options, backtest
from monitor.backtest.show import show
from monitor.backtest.trainings import CannotTrain
from monitor.base.errors import ConfigError

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

        try:
            document = backtest(options, Path(folder), progress)
        except CannotTrain as exc:
            raise ConfigError([str(exc)]) from exc
    console = Console()
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    show(document, console)
    if json_path is not None:
        json_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if html_path is not None:
        html_path.write_text(render(document), encoding="utf-8")
    for path in (json_path, html_path):
        if path is not None:
            console.print(f"written: {path}")
