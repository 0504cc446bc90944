"""Which code made a model: digest of the trainer's source, the git commit it was run from, the installed packages.

Invariant: never fails; what cannot be found out is None or an empty digest.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import subprocess
from pathlib import Path
from typing import Any

from retrain.config import RetrainConfig

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


def code_digest(config: RetrainConfig) -> str:
    """Digest of the trainer's source file, or of every file the command names, and of the git commit."""
    seen = hashlib.sha256((git_commit() or "").encode())
    if config.command is None:
        paths = [source_of(config.trainer)]
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


def source_of(trainer: str) -> Path | None:
    """File of `module:function`, found without running the module itself."""
    try:
        found = importlib.util.find_spec(trainer.partition(":")[0])
    except (ImportError, ValueError):
        return None
    return Path(found.origin) if found is not None and found.origin else None
