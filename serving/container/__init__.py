"""A folder that a container image of the scoring service can be built from.

Invariant: everything the image needs is in the folder, dependencies with hashes; nothing of it is a secret.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from string import Template
from typing import Any

import tomli_w

HERE = Path(__file__).parent
_NOT = shutil.ignore_patterns("__pycache__", "*.pyc")
_EXAMPLES = {"number": 1.5, "category": "a", "bool": True}


def write_context(
    folder: Path,
    settings: Mapping[str, Any],
    version: str,
    model: Path,
    *,
    code: str | None = None,
    beside: Path = Path(),
    requirements: Path | None = None,
) -> None:
    """Writes the folder. `model` is the version's model directory; `code` the top-level module that its types live in,
    looked for in the folder `beside` last; `requirements` a lock with hashes of what they need besides. Raises
    FileExistsError for a folder that is not empty, ModuleNotFoundError for code that cannot be found."""
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    packages = HERE.parents[1]
    for name in ("serving", "retrain"):
        shutil.copytree(packages / name, folder / name, ignore=_NOT)
    shutil.copy(HERE / "Dockerfile", folder)
    shutil.copy(HERE / "requirements.lock", folder)
    if requirements is not None:
        shutil.copy(requirements, folder / "requirements-more.lock")
    (folder / "code").mkdir()
    if code is not None:
        _copy_module(code, folder / "code", beside)
    shutil.copytree(model, folder / "model")
    (folder / "model" / "version.json").write_text(json.dumps({"version": version}))
    (folder / "service.toml").write_text(tomli_w.dumps({**settings, "baked": "/srv/scoring/model"}))
    (folder / "README.md").write_text(_readme(settings, version))


def _copy_module(name: str, target: Path, beside: Path) -> None:
    found = importlib.util.find_spec(name) or PathFinder.find_spec(name, [str(beside)])
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"the model's code, module {name!r}, is not importable here")
    origin = Path(found.origin)
    if found.submodule_search_locations:
        shutil.copytree(origin.parent, target / name, ignore=_NOT)
    else:
        shutil.copy(origin, target)


def _readme(settings: Mapping[str, Any], version: str) -> str:
    row = {"features": {name: _EXAMPLES[kind] for name, kind in settings["schema"]["features"].items()}}
    return Template((HERE / "README.md").read_text(encoding="utf-8")).safe_substitute(
        model=settings["model"],
        registered=settings["registered_model"],
        version=version,
        image=f"scoring-{settings['model'].lower()}",
        example=json.dumps({"rows": [row]}),
    )
