"""What `driftd check` looks at besides the configuration: the reference files, read as the daemon reads them.

Invariant: only reads.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from monitor.base.errors import ConfigError
from monitor.config.loading import LoadedConfig
from monitor.config.plan import plans
from monitor.measure.reference import gaps, open_reference


def check_references(loaded: LoadedConfig) -> list[str]:
    """What the files have no values of. Raises ConfigError, which names every file that cannot be used."""
    problems, notes = [], []
    for model, plan in plans(loaded).items():
        if plan.reference.path is None:
            continue
        place = f"models.{model}.reference.path"
        try:
            frame = open_reference(Path(plan.reference.path), plan.schema)
        except (OSError, ValueError, pl.exceptions.PolarsError) as exc:
            problems.append(f"{place}: {plan.reference.path}: {exc}")
            continue
        missing = gaps(frame, plan.schema)
        notes += [f"{place}: {name!r} has no value in it: its drift cannot be measured" for name in missing]
    if problems:
        raise ConfigError(problems)
    return notes
