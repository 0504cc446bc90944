"""Rows of a Parquet file as JSON objects: what a reading process does, apart from the daemon.

Invariant: whatever the file holds, or claims, it costs its own process at most: the memory that process may have, and
the time that its pool gives it. Nothing but bounded bytes comes back.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

RFC_3339 = "%Y-%m-%dT%H:%M:%S%.6fZ"
MEMORY = 1280 * 2**20
"""Bytes of address space of the process: some 800 MiB of it are the library's."""
KEPT_OF_OVERSIZED = 64 * 1024


@dataclass(frozen=True, slots=True)
class RowsTask:
    """Rows from `position` on: `count` at most, and about `size` bytes of JSON, or one row. `longest`: of a row.
    `identity`: what the file was when it was recognised; see `identity_of`."""

    root: Path
    parts: tuple[str, ...]
    identity: tuple[int, int, int]
    position: int
    count: int
    size: int
    longest: int


@dataclass(frozen=True, slots=True)
class Rows:
    """`total` rows are in the file. `changed`: it is another file by now, and nothing was read."""

    total: int
    values: tuple[bytes, ...]
    changed: bool = False


def read_rows(task: RowsTask) -> Rows:
    """Times become RFC 3339 (UTC when they name no zone). Raises OSError, ValueError when it is no Parquet file."""
    import polars as pl  # imported here: most installations have no Parquet events
    import polars.selectors as cs

    with open_below(task.root, task.parts) as handle:
        if identity_of(os.fstat(handle.fileno())) != task.identity:
            return Rows(0, (), changed=True)
        try:
            total = int(pl.scan_parquet(handle).select(pl.len()).collect().item())
            handle.seek(0)
            lazy = pl.scan_parquet(handle).drop(cs.binary()).slice(task.position, task.count)
            frame = lazy.collect()
            if not frame.height:
                return Rows(total, ())
            frame = frame[: max(1, task.size * frame.height // max(1, frame.estimated_size()))]
            zoned = cs.datetime(time_zone="*")
            frame = frame.with_columns(
                zoned.dt.convert_time_zone("UTC").dt.strftime(RFC_3339),
                (cs.datetime() - zoned).dt.strftime(RFC_3339),
            )
            values = frame.write_ndjson().encode().split(b"\n")[: frame.height]
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise ValueError(next(iter(str(error).splitlines()), type(error).__name__)) from error
    return Rows(total, tuple(v if len(v) <= task.longest else cut(v, len(v)) for v in values))


def cut(head: bytes, length: int) -> bytes:
    """The beginning of a record that is too long, which is no JSON any more: its decoder makes it a dead letter."""
    return head[:KEPT_OF_OVERSIZED] + b"... [driftd: a record of %d bytes, cut]" % length


def identity_of(status: os.stat_result) -> tuple[int, int, int]:
    """Changes when a file does."""
    return status.st_size, status.st_mtime_ns, status.st_ino


def open_below(root: Path, parts: tuple[str, ...]) -> BinaryIO:
    """A regular file below `root`, to read, without following a symbolic link on the way. Raises OSError."""
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in parts[:-1]:
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = below
        # Not to wait for a writer, where somebody has put a pipe.
        file = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"{parts[-1]} is no regular file")
    return os.fdopen(file, "rb")
