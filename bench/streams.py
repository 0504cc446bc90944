"""Real recorded streams through a real Kafka broker and a running daemon: the tables of docs/real-streams.md.

`python -m bench.streams --data FOLDER [--only NAME ..]` starts a broker, runs `driftd demo --stream` on each table,
keeps the summaries in bench/results/streams.json and rewrites the tables in the doc from them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.doc import rewrite
from tests.broker import Broker

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "streams.json"
DOC = ROOT / "docs" / "real-streams.md"


@dataclass(frozen=True, slots=True)
class Recorded:
    name: str
    file: str
    arguments: tuple[str, ...]


STREAMS = (
    Recorded(
        "electricity", "electricity_nsw.csv.gz",
        ("--target", "class", "--drop", "date,nswprice", "--window-rows", "672"),
    ),
    Recorded(
        "bike sharing", "bike_sharing_hour.csv.gz",
        ("--target", "cnt", "--drop", "instant,casual,registered,dteday", "--window-rows", "336"),
    ),
    Recorded(
        "occupancy, with Light", "occupancy_uci.csv.gz",
        ("--target", "Occupancy", "--drop", "date,part", "--window-rows", "360"),
    ),
)  # fmt: skip


def run(stream: Recorded, data: Path, bootstrap: str) -> dict[str, Any]:
    """One demo; its `--json` summary."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [
            sys.executable, "-m", "monitor.cli", "demo", "--stream", str(data / stream.file), *stream.arguments,
            "--kafka", bootstrap, "--folder", f"{folder}/demo", "--json", str(out),
        ]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=True)
        summary = dict(json.loads(out.read_text()))
    kept = ("state", "reason", "version", "at")
    return {**summary, "retrains": [{k: r[k] for k in kept} for r in summary["retrains"]]}


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| stream | windows | metric | served, all windows | never retrained, same rows | after the first promotion "
        "| never retrained, same rows | jobs | promoted | rejected | rolled back |\n"
        f"|{'---|' * 11}\n"
    ]
    for name, result in results.items():
        p, states = result["performance"], [r["state"] for r in result["retrains"]]
        promoted = states.count("promoted") + states.count("watched")
        lines.append(
            f"| {name} | {len(result['windows'])} | {result['metric']} | {_show(p['overall'])} | "
            f"{_show(p['overall_never_retrained'])} | {_show(p['after'])} | {_show(p['after_never_retrained'])} | "
            f"{len(states)} | {promoted} | {states.count('rejected')} | {states.count('rolled_back')} |\n"
        )
    for name, result in results.items():
        lines.append(
            f"\n### {name}\n\n| windows | versions | {result['metric']} as served | never retrained |\n"
            "|---|---|---|---|\n"
        )
        windows = result["windows"]
        size = max(1, len(windows) // 10)
        for first in range(0, len(windows), size):
            part = windows[first : first + size]
            versions = ", ".join(dict.fromkeys(w["version"] for w in part))
            lines.append(
                f"| {first + 1}-{first + len(part)} | {versions} | {_show(_mean(part, 'performance'))} | "
                f"{_show(_mean(part, 'never_retrained'))} |\n"
            )
    return "".join(lines)


def _mean(windows: list[dict[str, Any]], key: str) -> float | None:
    values = [w[key] for w in windows if w[key] is not None]
    return sum(values) / len(values) if values else None


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the recorded tables")
    parser.add_argument("--only", nargs="*", default=None, help="names of streams")
    options = parser.parse_args()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder, Broker(Path(folder)) as broker:
        for stream in STREAMS:
            if options.only is None or stream.name in options.only:
                results[stream.name] = run(stream, options.data, broker.bootstrap)
                ordered = {s.name: results[s.name] for s in STREAMS if s.name in results}
                RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")
                rewrite(DOC, table(ordered).rstrip())


if __name__ == "__main__":
    main()
