"""What the committed dashboards ask Prometheus, as Grafana would send it; no pytest in here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "dashboards" / "grafana"
FILES = sorted((FOLDER / "dashboards").glob("*.json"))


@dataclass(frozen=True, slots=True)
class Query:
    """One expression. `place` is unique: `<dashboard>/<panel or annotation>/<reference>`."""

    place: str
    expr: str
    legend: str = ""


def load(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def panels(board: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every panel, those of closed rows too, without the rows."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", [])
        else:
            yield panel


def panel_queries(board: Mapping[str, Any]) -> Iterator[Query]:
    for panel in panels(board):
        for target in panel.get("targets", []):
            yield Query(
                f"{board['uid']}/{panel['title']}/{target['refId']}", target["expr"], target.get("legendFormat", "")
            )


def annotation_queries(board: Mapping[str, Any]) -> Iterator[Query]:
    for annotation in board["annotations"]["list"]:
        if "expr" in annotation:
            yield Query(f"{board['uid']}/annotation {annotation['name']}/A", annotation["expr"])


def variable_queries(board: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(place, selector, label) of each `label_values(selector, label)`."""
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            text = variable["query"]["query"]
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", text)
            assert found, f"{board['uid']}: ${variable['name']}: {text}"
            yield f"{board['uid']}/${variable['name']}", found[1], found[2]


def substituted(expr: str, values: Mapping[str, str]) -> str:
    """`$name` and `${name}` replaced. Raises KeyError for a variable without a value. `$1` stays."""
    return re.sub(r"\$(?:\{(\w+)\}|([a-z_]\w*))", lambda m: values[m[1] or m[2]], expr)
