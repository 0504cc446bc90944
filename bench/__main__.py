"""`python -m bench [ROW ..] [--write-docs]`: the budget table, each row side by side with what it is measured against.

Prints the table, keeps it in bench/results/latest.json; --write-docs rewrites the table in docs/performance.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from bench import ingest, memory, tick, window

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "latest.json"
DOC = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- table: made by `python -m bench --write-docs` -->", "<!-- end of table -->"
ROWS = ("ingest", "window", "tick", "memory")
LIBRARIES = ("deltalake", "evidently", "kafka-python", "polars", "pyarrow", "scipy")


def measure(row: str, say: Any) -> list[dict[str, Any]]:
    match row:
        case "ingest":
            return ingest.run(say)
        case "window":
            return window.run()
        case "tick":
            return tick.run(say)
        case _:
            return memory.run(say)


def machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "load_at_start": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def shown(row: dict[str, Any]) -> tuple[str, str, str, str, str]:
    """What, measured, at least, aim, met."""
    less = row.get("less_is_better", False)
    value = row["megabytes"] if "megabytes" in row else row["ratio"]
    unit = " MB" if "megabytes" in row else "x"
    if "ours_per_s" in row:
        measured = f"{value:.2f}x ({row['ours_per_s']:,.0f}/s against {row['theirs_per_s']:,.0f}/s)"
    elif "ours_s" in row:
        measured = f"{value:.2f}x ({row['ours_s'] * 1000:,.0f} ms against {row['theirs_s'] * 1000:,.0f} ms)"
    else:
        measured = f"{value:.0f}{unit}" if unit == " MB" else f"{value:.2f}x"
    met = value <= row["at_least"] if less else value >= row["at_least"]
    return row["what"], measured, f"{row['at_least']:g}{unit}", f"{row['aim']:g}{unit}", "yes" if met else "NO"


HEAD = ("what", "measured", "at least", "aim", "met")


def markdown(results: dict[str, Any]) -> str:
    lines = [f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}\n"]
    lines += [f"| {' | '.join(shown(r))} |\n" for name in ROWS for r in results["rows"].get(name, [])]
    facts = ", ".join(f"{k} {v}" for k, v in results["machine"].items())
    return "".join(lines) + f"\nMeasured on: {facts}; the broker ran on the same machine.\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--write-docs", action="store_true", help="rewrite the table in docs/performance.md")
    options = parser.parse_args()
    if unknown := sorted(set(options.rows) - set(ROWS)):
        parser.error(f"no row {unknown[0]!r}: choose from {', '.join(ROWS)}")
    console = Console()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    results["machine"] = machine()
    for row in options.rows or ROWS:
        with console.status(row) as status:
            results["rows"][row] = measure(row, lambda text, row=row, status=status: status.update(f"{row}: {text}"))
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    table = Table(*HEAD)
    for name in ROWS:
        for found in results["rows"].get(name, []):
            table.add_row(*shown(found))
    console.print(table)
    if options.write_docs:
        before, _, rest = DOC.read_text().partition(BEGIN)
        DOC.write_text(f"{before}{BEGIN}\n\n{markdown(results)}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
