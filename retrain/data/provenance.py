"""Which code made a model: digest of the trainer's source, the git commit it was run from, the installed packages.

Invariant: never fails; what cannot be found out is None or an empty digest.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from retrain.config.settings import RetrainConfig

PACKAGES = ("driftd", "mlflow", "numpy", "pandas", "polars", "scikit-learn", "scipy", "skops")
"""Those that decide what a model becomes, named one by one."""


def git_commit(folder: Path | None = None) -> str | None:
    """Commit of the working tree at `folder` (default: where the process runs), `-dirty` when files differ."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match=", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def code_digest(config: RetrainConfig, code: str = "") -> str:
    """Digest of the trainer's source file, or of every file the command names, and of the git commit. `code`: a folder
    where the trainer's module is looked for last."""
    seen = hashlib.sha256((git_commit() or "").encode())
    if config.command is None:
        paths = [source_of(config.trainer, code)]
    else:
        paths = [Path(word) for word in config.command]
        seen.update(repr(config.command).encode())
    for path in paths:
        if path is not None and path.is_file():
            seen.update(hashlib.sha256(path.read_bytes()).digest())
    return seen.hexdigest()


def environment() -> dict[str, Any]:
    """Python's version, the main packages' versions, and the sha256 of every installed one as `name==version` lines."""
    found = {d.name.lower().replace("_", "-"): d.version for d in importlib.metadata.distributions()}
    lines = "\n".join(f"{name}=={version}" for name, version in sorted(found.items()))
    return {
        "python": platform.python_version(),
        "packages": {name: found.get(name) for name in PACKAGES},
        "digest": hashlib.sha256(lines.encode()).hexdigest(),
    }


def source_of(trainer: str, code: str = "") -> Path | None:
    """File of `module:function`, found without running it or the packages that it lies in."""
    found, name, where = None, "", [*sys.path, *([code] if code else [])]
    for part in trainer.partition(":")[0].split("."):
        name = f"{name}.{part}" if name else part
        if (found := _spec_of(name, where)) is None:
            return None
        where = list(found.submodule_search_locations or ())
    return Path(found.origin) if found is not None and found.origin else None


def _spec_of(name: str, where: list[str]) -> ModuleSpec | None:
    """As importlib.util.find_spec, which would import the package that it is in."""
    for finder in sys.meta_path:
        if (found := finder.find_spec(name, where)) is not None:
            return found
    return None
