"""`python -m bench [ROW ..] [--write-docs]`: measure the budgets, print them, keep them in bench/results/latest.json.

Invariant: every figure is measured here and now, side by side with what it is compared with; a row that is not run
keeps the figures of its last run, with the load of the machine at that time.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import platform
import sys
import warnings
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import psutil
import structlog
from rich.console import Console
from rich.table import Table

from bench.doc import rewrite
from retrain.base.files import write_whole

RESULTS = Path(__file__).parent / "results" / "latest.json"
DOCS = Path(__file__).parents[1] / "docs" / "performance.md"
ROWS = ("ingest", "window", "tick", "memory", "page")
UNITS = {"megabytes": " MB", "milliseconds": " ms", "ratio": "x"}
LIBRARIES = ("kafka-python", "polars", "deltalake", "pyarrow", "evidently", "pandas", "numpy")

Results = dict[str, Any]


@click.command()
@click.argument("rows", nargs=-1, type=click.Choice(ROWS))
@click.option("--write-docs", is_flag=True, help=f"Rewrite the table in {DOCS.name} (alone: from the last run).")
def main(rows: tuple[str, ...], write_docs: bool) -> None:
    """Measure the budgets of docs/performance.md (all ROWS, or those named). Exit code 1 when one is missed."""
    logging.getLogger("kafka").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", DeprecationWarning)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    console = Console()
    if rows or not write_docs:
        for name in rows or ROWS:
            _measure(name, console)
    results = _kept()
    console.print(_table(results))
    if write_docs:
        _write_docs(results)
        console.print(f"rewrote the table in docs/{DOCS.name}")
    missed = [r["what"] for name in rows or ROWS for r in _rows(results, name) if not _holds(r, r["at_least"])]
    sys.exit(f"missed: {'; '.join(missed)}" if missed else 0)


def _kept() -> Results:
    """What earlier runs found."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return {name: found[name] for name in ("machine", *ROWS) if name in found}


def _measure(name: str, console: Console) -> None:
    module = importlib.import_module(f"bench.{name}")
    before = os.getloadavg()[0]
    with console.status(name) as status:
        tell = () if name == "window" else (lambda text: status.update(f"{name}: {text}"),)
        rows = module.run(*tell)
    console.print(f"{name}: done")
    measured = {
        "measured_at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "load_before": round(before, 1),
        "load_after": round(os.getloadavg()[0], 1),
        "rows": [{k: _rounded(v) for k, v in row.items()} for row in rows],
    }
    results = {**_kept(), "machine": _machine(), name: measured}
    RESULTS.parent.mkdir(exist_ok=True)
    write_whole(RESULTS, json.dumps(results, indent=1) + "\n")


def _machine() -> dict[str, Any]:
    """Shape, not identity."""
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _rows(results: Results, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = results.get(name, {}).get("rows", [])
    return found


# -- presentation

COLUMNS = ("what", "driftd", "against", "result", "at least", "aim")


def _cells(row: dict[str, Any]) -> list[str]:
    """A row of the table, in words."""
    value, unit = _value(row)
    bound = "≤ " if row.get("less_is_better") else "≥ "
    return [
        row["what"],
        _amount(row, "ours", "megabytes", "last_quarter_megabytes", "milliseconds"),
        _amount(row, "theirs", "", "second_quarter_megabytes"),
        _figure(value, unit) + _spread(row) + ("" if _holds(row, row["at_least"]) else ", missed"),
        bound + _figure(row["at_least"], unit),
        bound + _figure(row["aim"], unit),
    ]


def _value(row: dict[str, Any]) -> tuple[float, str]:
    """What is held against the bounds, and its unit."""
    key = next(k for k in UNITS if k in row)
    return row[key], UNITS[key]


def _amount(row: dict[str, Any], who: str, *keys: str) -> str:
    if f"{who}_per_s" in row:
        return f"{row[f'{who}_per_s']:,.0f}/s"
    if f"{who}_s" in row:
        seconds = row[f"{who}_s"]
        return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
    return next((f"{row[key]:.0f}{' ms' if key == 'milliseconds' else ' MB'}" for key in keys if key in row), "")


def _spread(row: dict[str, Any]) -> str:
    """The rounds' extremes: wide apart, the machine was busy with something else and the result says little."""
    rounds = row.get("ratios", ())
    return f" ({min(rounds):.2f} to {max(rounds):.2f})" if rounds else ""


def _figure(value: Any, unit: str) -> str:
    return f"{value:.0f}{unit}" if unit != "x" or value >= 10 else f"{value:.2f}{unit}"


def _holds(row: dict[str, Any], bound: float) -> bool:
    value, _ = _value(row)
    return bool(value <= bound if row.get("less_is_better") else value >= bound)


def _table(results: Results) -> Table:
    table = Table(*COLUMNS)
    for name in ROWS:
        for row in _rows(results, name):
            colour = "green" if _holds(row, row["aim"]) else "yellow" if _holds(row, row["at_least"]) else "red"
            what, ours, against, result, *bounds = _cells(row)
            table.add_row(what, ours, against, f"[{colour}]{result}[/]", *bounds)
    return table


def _write_docs(results: Results) -> None:
    machine = results["machine"]
    libraries = ", ".join(f"{name} {number}" for name, number in machine["libraries"].items())
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(_cells(row))} |" for name in ROWS for row in _rows(results, name)]
    runs = [
        f"{name} {results[name]['measured_at']}, load {results[name]['load_before']} before and "
        f"{results[name]['load_after']} after"
        for name in ROWS
        if name in results
    ]
    lines += [
        "",
        f"Measured on {machine['cores']} cores and {machine['memory_gib']} GiB ({machine['system']}), the broker on "
        f"the same machine; Python {machine['python']}, {libraries}. Runs: {'; '.join(runs)}.",
    ]
    rewrite(DOCS, "\n".join(lines))


if __name__ == "__main__":
    main()
