"""Writes the reference pages that are made from code: `python docs/generate.py [--check]`.

docs/configuration.md comes from monitor/config/sections.py and retrain/config/settings.py, docs/metrics.md from
monitor/metrics.py.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

import grimp
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from monitor.config.sections import Config
from monitor.measure.drift.methods import METHODS
from monitor.metrics import Metrics
from monitor.rules.rules import ForWindows
from retrain.terms.fields import Secret, format_duration
from serving.settings import ServiceSettings

HERE = Path(__file__).parent

CONFIGURATION = """# Configuration reference

Made from the code by `docs/generate.py`; a test keeps it current. `driftd check` lists every mistake in a file at
once. Durations are written `"30s"`, `"5m"`, `"1h30m"`, `"7d"`; sizes `"512MiB"`, `"4GiB"`. A secret is never written
into the file: it is `{ env = "NAME" }` or `{ file = "/run/secrets/name" }`. SIGHUP reloads the file: models' windows,
rules, drift methods and retrain settings take effect at once, other sections need a restart; a file with mistakes is
refused as a whole, the old configuration stays in force and `driftd_config_last_reload_successful` is 0.
"""

SERVICE = """
# service.toml

Of the [scoring service](serving.md); `driftd package` writes the file.
"""

RULES_NOTE = """
A rule reads one measure of each window. `for` is `"k of n windows"` (of the last n decided windows, k breached) or a
duration (every decided window of that much event time breached). An UNDECIDED window (too few rows, undefined value,
no reference yet) changes nothing. For drift measures `above`/`below` may be absent: each feature's own method and
threshold decide then. Performance rules act on final windows only and judge the model's first metric unless they name
one. Without a `rules` key two rules apply: a drop of the first metric below the reference that chance does not explain
retrains (`above = "auto"`, `for = "auto"`), and drift of any feature in 3 of 4 windows alerts (`above = "auto"`).
"""


def configuration() -> str:
    parts = [CONFIGURATION, *_sections(Config, "")]
    parts.append("\n## Drift methods\n\nEvidently's registered tests. A p-value drifts below its threshold, a distance "
                 "above it.\n\n| method | for | statistic | default threshold |\n|---|---|---|---|\n")  # fmt: skip
    for spec in METHODS.values():
        kinds = ", ".join(sorted(k.value for k in spec.kinds))
        parts.append(f"| `{spec.name}` | {kinds} | {spec.statistic.value} | {spec.threshold:g} |\n")
    parts += [SERVICE, *_sections(ServiceSettings, "")]
    return "".join(parts)


def _sections(model: type[BaseModel], path: str) -> Iterator[str]:
    rows, nested = [], []
    for name, field in model.model_fields.items():
        key = field.alias or name
        inner, shape = _inner(field.annotation)
        where = f"{path}.{key}" if path else key
        if inner is not None:
            nested.append((inner, where + (".<name>" if shape == "dict" else "[]" if shape == "tuple" else "")))
            if shape != "tuple":
                continue
        rows.append(f"| `{key}` | {_type(field.annotation)} | {_default(field)} | {field.description or ''} |\n")
    if rows:
        title = f"## `[{path}]`" if path else "## Before any table"
        title = title if not path.endswith("[]") else f"## `[[{path[:-2]}]]`"
        yield f"\n{title}\n" + (RULES_NOTE if path.endswith("rules[]") else "")
        yield "\n| key | type | default | meaning |\n|---|---|---|---|\n"
        yield from rows
    for inner, where in nested:
        yield from _sections(inner, where)


def _inner(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (None, "") if annotation is Secret else (annotation, "table")
    shape = {dict: "dict", tuple: "tuple"}.get(get_origin(annotation), "table")
    for argument in get_args(annotation):
        found, deeper = _inner(argument)
        if found is not None:
            return found, shape if shape != "table" else deeper
    return None, ""


def _type(annotation: Any) -> str:
    if annotation is timedelta:
        return "duration"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " \\| ".join(f'"{m.value}"' for m in annotation)
    if isinstance(annotation, type):
        names = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "Secret": "secret"}
        return names.get(annotation.__name__, annotation.__name__)
    arguments = [a for a in get_args(annotation) if a is not type(None) and a is not Ellipsis]
    match get_origin(annotation):
        case o if o is tuple:
            return f"list of {_type(arguments[0])}"
        case o if o is dict:
            return f"table of {_type(arguments[1])}"
        case _ if all(isinstance(a, str) for a in arguments):
            return " \\| ".join(f'"{a}"' for a in arguments)
        case _:
            return " or ".join(_type(a) for a in arguments if not _is_metadata(a))


def _is_metadata(argument: Any) -> bool:
    return not isinstance(argument, type) and get_origin(argument) is None


def _default(field: FieldInfo) -> str:
    if field.is_required() or field.default is PydanticUndefined:
        return "required" if field.is_required() else ""
    value = field.default
    match value:
        case None | () | {}:
            return ""
        case timedelta():
            return f'`"{format_duration(value)}"`'
        case Enum():
            return f'`"{value.value}"`'
        case ForWindows():
            return f'`"{value}"`'
        case tuple():
            return f"`{[v.value if isinstance(v, Enum) else v for v in value]}`"
        case bool():
            return f"`{str(value).lower()}`"
        case _:
            return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def metrics() -> str:
    registry = Metrics().registry
    lines = [
        "# Metrics reference\n\nMade from monitor/metrics.py by `docs/generate.py`; a test keeps it current. "
        "Measurement gauges hold the newest measured window of each model version; a measurement that is undefined "
        "has no sample and is counted in `driftd_measurements_undefined`.\n\n| name | type | labels | meaning |\n"
        "|---|---|---|---|\n"
    ]
    for name, kind, labels, text in sorted(_families(registry)):
        lines.append(f"| `{name}` | {kind} | {', '.join(f'`{x}`' for x in labels)} | {text} |\n")
    return "".join(lines)


def _families(registry: Any) -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    for collector in list(registry._collector_to_names):
        labels = getattr(collector, "_labelnames", None)
        for family in collector.collect():
            names = labels if labels is not None else getattr(family, "_labelnames", ())
            suffix = "_total" if family.type == "counter" else ""
            yield family.name + suffix, family.type, tuple(names), family.documentation


ROOMS_BEGIN, ROOMS_END = "<!-- rooms: begin -->", "<!-- rooms: end -->"


def architecture() -> str:
    """The page as it is, with its rooms as they are."""
    page = (HERE / "architecture.md").read_text()
    graph = grimp.build_graph("monitor", "retrain", "serving", cache_dir=None)
    parts = []
    for package in ("monitor", "retrain"):
        rooms = _rooms(package)
        parts.append(f"\n### {package}/\n\n| room | |\n|---|---|\n")
        parts += [f"| `{name}` | {text} |\n" for name, text in rooms.items()]
        parts.append("\n```mermaid\nflowchart TD\n")
        parts += [f"    {package}_{a}[{a}] --> {package}_{b}[{b}]\n" for a, b in _arrows(graph, package, list(rooms))]
        parts.append("```\n")
    before, after = page.split(ROOMS_BEGIN)[0], page.split(ROOMS_END)[1]
    return f"{before}{ROOMS_BEGIN}\n{''.join(parts)}\n{ROOMS_END}{after}"


def _rooms(package: str) -> dict[str, str]:
    """Room -> what its first line says, top to bottom as import-linter has them."""
    contracts = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c.get("containers") == [package])
    found = {}
    for name in (name.strip() for line in layers for name in line.split("|")):
        folder = HERE.parent / package / name
        file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        text = ast.get_docstring(ast.parse(file.read_text())) or ""
        found[name] = " ".join(text.split("\n\n")[0].split())
    return found


def _arrows(graph: grimp.ImportGraph, package: str, rooms: list[str]) -> Iterator[tuple[str, str]]:
    """Who imports whom, without what goes over another room as well."""
    direct = {(a, b) for a in rooms for b in rooms if a != b and _imports(graph, f"{package}.{a}", f"{package}.{b}")}
    reach = {a: {b for x, b in direct if x == a} for a in rooms}
    for a in reversed(rooms):  # lower rooms first: what they reach is known
        reach[a] |= {c for b in reach[a] for c in reach[b]}
    for a, b in sorted(direct, key=lambda arrow: (rooms.index(arrow[0]), rooms.index(arrow[1]))):
        if not any(b in reach[c] for x, c in direct if x == a and c != b):
            yield a, b


def _imports(graph: grimp.ImportGraph, importer: str, imported: str) -> bool:
    def modules(name: str) -> set[str]:
        return {name, *graph.find_descendants(name)}

    wanted = modules(imported)
    return any(wanted & graph.find_modules_directly_imported_by(module) for module in modules(importer))


PAGES = {"configuration.md": configuration, "metrics.md": metrics, "architecture.md": architecture}


def main() -> int:
    stale = []
    for name, make in PAGES.items():
        text, path = make(), HERE / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(text)
    if stale and "--check" in sys.argv:
        sys.stderr.write(f"stale: {', '.join(stale)}: run `make docs`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
