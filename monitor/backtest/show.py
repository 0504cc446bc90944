"""A backtest's document as tables in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

MOST = 12
"""Decisions and transitions shown per configuration; the page and the JSON have all."""


def show(document: Mapping[str, Any], console: Console) -> None:
    history = document["history"]
    console.print(
        f"{history['source']}: {history['task']}, {history['features']} features, {history['rows']:,} rows, "
        f"{history['labelled']:,} labelled, {history['first'][:16]} to {history['last'][:16]}",
        style="bold", markup=False, soft_wrap=True,
    )  # fmt: skip
    runs = document["runs"]
    console.print(_overview(runs))
    if history["changes"]:
        console.print(_detection(runs))
    for run in runs if len(runs) == 1 else ():
        _tell(run, console)
    if document["closed_loop"]:
        console.print(_policies(document["closed_loop"]))


def _overview(runs: list[Mapping[str, Any]]) -> Table:
    table = Table("configuration", "windows", "rule", "fired", "per 1,000", "retrains", "not retrained because")
    for run in runs:
        retrains = run["retrains"]
        refused = ", ".join(f"{reason} {count}" for reason, count in retrains["suppressed"].items())
        first = (run["name"], str(run["windows"]["measured"]))
        last = (str(retrains["requested"]), refused or "-")
        for at, rule in enumerate(run["rules"]):
            name = f"{rule['rule']} ({rule['action']})"
            middle = (name, str(rule["fired"]), _number(rule["alarms_per_1000_windows"]))
            table.add_row(*(first if at == 0 else ("", "")), *middle, *(last if at == 0 else ("", "")))
        if not run["rules"]:
            table.add_row(*first, "no rules", "", "", *last)
        table.add_section()
    return table


def _detection(runs: list[Mapping[str, Any]]) -> Table:
    table = Table("configuration", "change", "rule", "first alarm", "windows later")
    for run in runs:
        for at, detection in enumerate(run["detection"]):
            for n, (rule, found) in enumerate(detection["detected"].items()):
                table.add_row(
                    run["name"] if at == n == 0 else "",
                    detection["change"][:16].replace("T", " ") if n == 0 else "",
                    rule,
                    found["at"][:16].replace("T", " ") if found else "none",
                    _number(found["windows"]) if found else "-",
                )
        table.add_section()
    return table


def _tell(run: Mapping[str, Any], console: Console) -> None:
    for title, key, text in (
        ("Rules", "transitions", lambda t: f"{t['rule']} [version {t['version']}] {t['after']}: {t['reason']}"),
        ("Retraining", "decisions", lambda d: d["words"]),
    ):
        entries = run[key]
        if key == "transitions":
            entries = [t for t in entries if "firing" in (t["before"], t["after"])]
        console.print(f"[bold]{title}[/bold]" + ("" if entries else ": nothing happened"))
        for entry in entries[:MOST]:
            line = f"  {entry['at'][:16].replace('T', ' ')}  {text(entry)}"
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        if len(entries) > MOST:
            console.print(f"  … and {len(entries) - MOST} more: see --html or --json")


def _policies(loop: Mapping[str, Any]) -> Table:
    better = {"higher": "more is better", "lower": "less is better"}.get(loop["better"], loop["better"])
    table = Table("policy", "trainings", "promoted", f"{loop['metric']} ({better})", "of the way to every window")
    for policy in loop["policies"]:
        way = policy["share_of_the_way"]
        table.add_row(
            policy["name"],
            str(policy["trainings"]),
            str(policy["promoted"]),
            _number(policy["performance"]),
            "-" if way is None else f"{way:.0%}",
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
