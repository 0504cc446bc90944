"""References that an earlier release has kept, under the names and by the rules of this one.

Invariant: can be repeated; nothing is deleted: what is no reference any more is renamed, so that nobody reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from retrain.terms.names import path_name

_WARMED = ("warmup", "labelled")


def take_over_references(folder: Path, min_rows: int) -> Iterator[str]:
    """Of one model's folder. Releases before 0.2 named folders by the version with `_` for `/`, so that two versions
    could share one, or lie outside; and they froze windows of any size. Says what was set aside."""
    if not folder.is_dir():
        return
    places = [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]
    for place in places:
        for stage in _WARMED:
            path = place / f"{stage}.parquet"
            if path.is_file():
                yield from _of_warm_up(path, folder, min_rows)
        if place != folder and path_name(place.name) != place.name:
            _merge(place, folder / path_name(place.name))


def _of_warm_up(path: Path, folder: Path, min_rows: int) -> Iterator[str]:
    """Where the rows' own version says; aside when they are too few."""
    try:
        rows = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as exc:
        path.rename(path.with_suffix(".unreadable"))
        yield f"{path}: cannot be read ({exc}): another one is made"[:300]
        return
    if rows.height < min_rows:
        path.rename(path.with_suffix(".too_few"))
        yield f"{path}: {rows.height} rows, windows.min_rows is {min_rows}: another one is made"
        return
    versions = rows["model_version"].unique().to_list() if "model_version" in rows.columns else []
    if len(versions) == 1 and (target := folder / path_name(str(versions[0]))) != path.parent:
        target.mkdir(parents=True, exist_ok=True)
        if not (target / path.name).exists():
            path.rename(target / path.name)


def _merge(old: Path, new: Path) -> None:
    new.mkdir(parents=True, exist_ok=True)
    for path in old.iterdir():
        if not (new / path.name).exists():
            path.rename(new / path.name)
