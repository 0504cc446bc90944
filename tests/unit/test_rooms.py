"""What the layers of import-linter cannot say: which modules of a room others may import."""

from __future__ import annotations

import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
GRAPH = grimp.build_graph("monitor", "retrain", "serving", cache_dir=None)


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_modules_with_an_underscore_stay_in_their_room() -> None:
    seen = 0
    for module in GRAPH.modules:
        hidden = any(part.startswith("_") and not part.startswith("__") for part in module.split("."))
        for importer in GRAPH.find_modules_that_directly_import(module) if hidden else ():
            seen += 1
            assert room(importer) == room(module), f"{importer} imports {module}"
    assert seen


def test_every_room_says_what_it_is_and_stands_in_the_layers() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    for package in ("monitor", "retrain"):
        layers = next(c for c in contracts if c.get("containers") == [package])["layers"]
        listed = {name.strip() for line in layers for name in line.split("|")}
        there = {
            path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
        }
        assert there - {"__init__"} == listed
        for name in listed:
            init = ROOT / package / name / "__init__.py"
            assert not init.parent.is_dir() or init.read_text().startswith('"""'), f"{package}/{name} says nothing"
