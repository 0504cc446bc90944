"""Files as a source: `<path>/predictions/**` and `<path>/labels/**`, growing NDJSON and whole Parquet.

Invariant: a partition name means one sequence of bytes (or rows) for ever. A file that was truncated or
replaced gets the next generation in its name, and that generation is on disk before the first record of it is
delivered; rows of removed files are kept for that reason. Positions move only by `commit`.

- `*.ndjson`, `*.jsonl`: complete lines; the offset is the byte where the line starts. Blank lines are skipped.
- `*.parquet`: rows as NDJSON; the offset is the row number. Without its footer a file is tried again later. They are
  read in a process apart (`monitor.intake.sources.parquet_rows`): a small file can hold more than fits in memory.
- Names that begin with `.` or `_`, and `*.tmp`, are not read, nor are folders named so, nor symbolic links: whoever may
  write events may not have driftd read any file of the machine.
- A line longer than `max_message_bytes` is delivered as its first 64 KiB plus a note, which is no JSON: the
  decoder makes it a dead letter, and memory stays bounded.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sqlite3
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import structlog

from monitor.base.errors import TransientError
from monitor.base.faults import Failed
from monitor.base.kinds import Stream
from monitor.base.workers import Workers
from monitor.intake.sources import Records
from monitor.intake.sources.parquet_rows import (
    KEPT_OF_OVERSIZED,
    MEMORY,
    RowsTask,
    cut,
    identity_of,
    open_below,
    read_rows,
)

log = structlog.get_logger(__name__)

SUFFIXES = (".ndjson", ".jsonl", ".parquet")
HEAD_BYTES = 1024  # of a file, to know it again
FOOTER_BYTES = 8 * 1024
OVERSIZED_CHUNKS = 256  # MiB of one line read in a poll
EXPANSION = 10  # bytes of JSON for a byte of Parquet, roughly
ROWS_AT_FIRST = 256  # of a Parquet file, of which nobody knows yet how large they are
READ_SECONDS = 30.0  # that the next rows of a Parquet file may take
FILES_PER_POLL = 256
TAKE_SECONDS = 0.5  # of looking into files before a poll returns to its caller
SHARE = 4  # one file takes at most 1/SHARE of a poll: the others get their turn
SCAN_DUTY = 20  # a scan that took t seconds is followed by SCAN_DUTY * t seconds without one

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    stream TEXT NOT NULL, path TEXT NOT NULL, generation INTEGER NOT NULL,
    identity BLOB NOT NULL, identity_bytes INTEGER NOT NULL, position INTEGER NOT NULL,
    PRIMARY KEY (stream, path)
) WITHOUT ROWID
"""


def _ignore(*_: object) -> None:
    """The observer nobody gave."""


@dataclass(frozen=True, slots=True)
class FileObserver:
    """What the metrics want to hear, once per file and state; paths are relative to the source's folder."""

    on_unreadable: Callable[[str, str], None] = _ignore  # path, reason
    on_replaced: Callable[[str], None] = _ignore


@dataclass(frozen=True, slots=True)
class FileSettings:
    """Times are seconds, sizes are bytes. `positions` is an SQLite file that belongs to this source alone."""

    path: Path
    positions: Path
    rescan_interval: float = 1.0
    unreadable_after: float = 60.0  # an incomplete Parquet file is reported after this long without change
    max_message_bytes: int = 16 * 1024 * 1024
    max_poll_bytes: int = 32 * 1024 * 1024


@dataclass(slots=True)
class _File:
    stream: Stream
    path: str  # relative to the stream's folder, with /
    parquet: bool
    generation: int
    identity: bytes
    identity_bytes: int  # how much of the file `identity` covers
    position: int  # next to deliver
    size: int = -1
    mtime_ns: int = -1
    inode: int = -1
    rows: int | None = None  # of a Parquet file, once its footer was read
    at_once: int = ROWS_AT_FIRST  # rows of a Parquet file that are asked for
    scanned: int = 0  # bytes after `position` known to hold no newline
    checked: bool = False  # identity compared since size, mtime or inode changed
    failed_since: float | None = None
    retry_at: float = 0.0
    reported: bool = False

    @property
    def name(self) -> str:
        suffix = "" if self.generation == 1 else f"#{self.generation}"
        return f"file:{self.stream.value}/{self.path}{suffix}"

    @property
    def parts(self) -> tuple[str, ...]:
        """Below the source's folder."""
        return (self.stream.value, *self.path.split("/"))

    @property
    def left(self) -> int:
        """Bytes or rows not yet delivered; for a Parquet file that was not opened yet, its bytes."""
        if not self.parquet:
            return max(0, self.size - self.position)
        return self.size if self.rows is None else self.rows - self.position


class FileSource:
    """See `monitor.intake.sources.Source`. Partition names: `file:<stream>/<relative path>[#<generation>]`."""

    def __init__(self, settings: FileSettings, observer: FileObserver | None = None) -> None:
        self._settings = settings
        self._observer = observer or FileObserver()
        self._database: sqlite3.Connection | None = None
        self._files: dict[tuple[Stream, str], _File] = {}
        self._waiting: deque[_File] = deque()  # files with something to deliver, oldest first
        self._queued: set[tuple[Stream, str]] = set()
        self._delivered: dict[str, _File] = {}  # by partition name, until the commit of all of it
        self._paused = False
        self._scan_at = 0.0
        self._told: set[str] = set()  # paths that are reported already: folders, links
        self._apart: Workers | None = None

    # --- Source

    def poll(self, timeout: float, max_records: int) -> Sequence[Records]:
        deadline = time.monotonic() + timeout
        while True:
            with self._stored() as database:
                if time.monotonic() >= self._scan_at:
                    self._scan(database)
                batches = [] if self._paused else self._take(database, max_records)
            left = deadline - time.monotonic()
            if batches or left <= 0:
                return batches
            if self._paused or not self._waiting:
                time.sleep(min(left, max(0.01, self._scan_at - time.monotonic())))

    def commit(self, positions: Mapping[str, int]) -> None:
        rows = [
            (position, file.identity, file.identity_bytes, file.stream.value, file.path, file.generation)
            for name, position in positions.items()
            if (file := self._delivered.get(name)) is not None and file.name == name
        ]
        if not rows:
            return
        with self._stored() as database, database:
            database.executemany(
                "UPDATE files SET position = ?, identity = ?, identity_bytes = ?"
                " WHERE stream = ? AND path = ? AND generation = ?",
                rows,
            )
        for name, position in positions.items():
            if name in self._delivered and position == self._delivered[name].position:
                del self._delivered[name]

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    def lag(self) -> Mapping[str, int]:
        """As `Source.lag`, without the files that are read to their end (there may be very many)."""
        return {file.name: file.left for file in self._files.values() if file.left}

    def close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()
        if self._apart is not None:
            self._apart.close()
        self._files, self._waiting, self._queued = {}, deque(), set()
        self._delivered, self._scan_at = {}, 0.0

    # --- finding files

    def _scan(self, database: sqlite3.Connection) -> None:
        """Notice new, grown, replaced and removed files."""
        started = time.monotonic()
        seen: set[tuple[Stream, str]] = set()
        fresh: list[_File] = []
        for stream in Stream:
            for path, status in self._walk(self._settings.path / stream.value, f"{stream.value}/"):
                path = path.removeprefix(f"{stream.value}/")
                key = (stream, path)
                seen.add(key)
                file = self._files.get(key)
                if file is None:
                    file = self._files[key] = self._recall(database, stream, path)
                    fresh.append(file)
                changed = identity_of(status)
                if changed != (file.size, file.mtime_ns, file.inode):
                    file.size, file.mtime_ns, file.inode = changed
                    file.checked, file.failed_since, file.retry_at, file.rows = False, None, 0.0, None
                    self._queue(file)
                elif file.failed_since is not None:
                    self._queue(file)
        for gone in self._files.keys() - seen:
            del self._files[gone]
        if fresh:
            self._waiting = deque(sorted(self._waiting, key=lambda file: (file.mtime_ns, file.path)))
        took = time.monotonic() - started
        self._scan_at = time.monotonic() + max(self._settings.rescan_interval, SCAN_DUTY * took)

    def _walk(self, folder: Path, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
        """Paths relative to the source's folder. What cannot be read is reported and left out."""
        try:
            if folder.is_symlink():
                raise OSError("a symbolic link: not followed")
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            return
        except OSError as error:
            self._tell(prefix, error.strerror or str(error))
            return
        self._told.discard(prefix)
        for entry in entries:
            name = entry.name
            if name.startswith((".", "_")) or name.endswith(".tmp"):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    yield from self._walk(folder / name, f"{prefix}{name}/")
                elif name.endswith(SUFFIXES) or (entry.is_symlink() and entry.is_dir()):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        yield prefix + name, status
                    elif entry.is_symlink():
                        self._tell(prefix + name, "a symbolic link: not followed")
            except OSError:
                continue  # removed meanwhile, or a dangling link

    def _recall(self, database: sqlite3.Connection, stream: Stream, path: str) -> _File:
        row = database.execute(
            "SELECT generation, identity, identity_bytes, position FROM files WHERE stream = ? AND path = ?",
            (stream.value, path),
        ).fetchone()
        generation, identity, identity_bytes, position = row or (0, b"", 0, 0)
        return _File(stream, path, path.endswith(".parquet"), generation, identity, identity_bytes, position)

    def _queue(self, file: _File) -> None:
        key = (file.stream, file.path)
        if key not in self._queued:
            self._queued.add(key)
            self._waiting.append(file)

    # --- reading files

    def _take(self, database: sqlite3.Connection, max_records: int) -> list[Records]:
        """Some of each of the files that wait, oldest first; one with more left goes to the queue's end."""
        batches: list[Records] = []
        records_left, bytes_left = max_records, self._settings.max_poll_bytes
        until = time.monotonic() + TAKE_SECONDS
        with database:
            for _ in range(len(self._waiting)):
                full = records_left <= 0 or bytes_left <= 0 or len(batches) >= FILES_PER_POLL
                if full or time.monotonic() > until:
                    break
                file = self._waiting.popleft()
                key = (file.stream, file.path)
                self._queued.discard(key)
                if self._files.get(key) is not file or file.retry_at > time.monotonic():
                    continue
                records = min(records_left, max(1, max_records // SHARE))
                size = max(1, min(bytes_left, self._settings.max_poll_bytes // SHARE))
                batch = self._read(database, file, records, size)
                if batch is None:
                    continue
                file.position = batch.next_offset
                if file.left:
                    self._queue(file)
                self._delivered[batch.partition] = file
                batches.append(batch)
                records_left -= len(batch.offsets)
                bytes_left -= sum(len(value or b"") for value in batch.values)
        return [batch for batch in batches if batch.offsets]

    def _read(self, database: sqlite3.Connection, file: _File, records: int, size: int) -> Records | None:
        """The next records of one file; None when there is nothing to deliver now."""
        try:
            with open_below(self._settings.path, file.parts) as handle:
                self._recognise(database, file, handle)
                if file.parquet:
                    batch = self._read_rows(file, records, size)
                else:
                    batch = _read_lines(file, handle, records, size, self._settings.max_message_bytes)
        except FileNotFoundError:
            return None  # the next scan notices
        except OSError as error:
            self._failed(file, error.strerror or str(error), at_once=True)
            return None
        except _UnreadableError as error:
            self._failed(file, str(error), at_once=error.final)
            return None
        file.failed_since, file.reported = None, False
        return batch

    def _read_rows(self, file: _File, records: int, size: int) -> Records | None:
        """The next rows of a Parquet file; fewer where as many were too much for the process that reads."""
        if file.rows is not None and file.position >= file.rows:
            return None
        if self._apart is None:
            self._apart = Workers(1, READ_SECONDS, MEMORY)
        rows = max(1, file.rows or ROWS_AT_FIRST)
        expected = EXPANSION * file.size // rows + 1  # bytes of a row as JSON
        while True:
            count = max(1, min(records, size // expected, file.at_once))
            task = RowsTask(
                self._settings.path, file.parts, (file.size, file.mtime_ns, file.inode),
                file.position, count, size, self._settings.max_message_bytes,
            )  # fmt: skip
            (found,) = self._apart.each(read_rows, [task])
            if not isinstance(found, Failed):
                break
            if not found.lost or count == 1:
                raise _UnreadableError(f"cannot be read as Parquet events: {found.error}", final=True)
            file.at_once = max(1, count // 8)
        if found.changed:
            return None  # the next scan notices
        file.at_once, file.rows = count * 2, found.total
        offsets = range(file.position, file.position + len(found.values))
        return Records(file.stream, file.name, offsets, found.values, offsets.stop) if offsets else None

    def _recognise(self, database: sqlite3.Connection, file: _File, handle: BinaryIO) -> None:
        """Compare the open file with what its position belongs to; another content is another generation."""
        changed = identity_of(os.fstat(handle.fileno()))
        if changed != (file.size, file.mtime_ns, file.inode):
            file.size, file.mtime_ns, file.inode = changed
            file.checked, file.rows = False, None
        if file.checked:
            return
        covered, identity = _identity(file, handle, file.identity_bytes)
        same = identity == file.identity and (file.parquet or file.size >= file.position)
        if file.generation == 0 or not same:
            if file.generation:
                log.warning("file_replaced", path=f"{file.stream.value}/{file.path}", position=file.position)
                self._observer.on_replaced(f"{file.stream.value}/{file.path}")
            file.generation += 1
            file.position = file.scanned = 0
            file.identity_bytes, file.identity = _identity(file, handle, HEAD_BYTES)
            database.execute(
                "REPLACE INTO files VALUES (?, ?, ?, ?, ?, 0)",
                (file.stream.value, file.path, file.generation, file.identity, file.identity_bytes),
            )
        elif covered < HEAD_BYTES:  # it was short when first seen
            file.identity_bytes, file.identity = _identity(file, handle, HEAD_BYTES)
        file.checked = True

    def _failed(self, file: _File, reason: str, *, at_once: bool) -> None:
        now = time.monotonic()
        file.failed_since = file.failed_since or now
        file.retry_at = now + min(60.0, max(self._settings.rescan_interval, now - file.failed_since))
        if not file.reported and (at_once or now - file.failed_since >= self._settings.unreadable_after):
            file.reported = True
            self._report(f"{file.stream.value}/{file.path}", reason)

    def _tell(self, path: str, reason: str) -> None:
        """Once, until it is well again."""
        if path not in self._told:
            self._told.add(path)
            self._report(path, reason)

    def _report(self, path: str, reason: str) -> None:
        log.warning("file_unreadable", path=path, reason=reason)
        self._observer.on_unreadable(path, reason)

    # --- positions

    @contextmanager
    def _stored(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._database is None:
                self._settings.positions.parent.mkdir(parents=True, exist_ok=True)
                # Only the polling thread uses it, which need not be the one that closes it.
                database = sqlite3.connect(self._settings.positions, check_same_thread=False)
                try:
                    database.execute("PRAGMA journal_mode = WAL")
                    database.execute(_SCHEMA)
                except BaseException:
                    database.close()
                    raise
                self._database = database
            yield self._database
        except (sqlite3.Error, OSError) as error:
            self.close()  # positions in memory may have moved over what is not returned: begin again from the stored
            raise TransientError(f"{self._settings.positions}: {error}") from error


class _UnreadableError(Exception):
    """A file that cannot be read as what its name says; `final` when waiting does not help."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def _identity(file: _File, handle: BinaryIO, covered: int) -> tuple[int, bytes]:
    """How many bytes it covers, and a digest: of the first bytes of lines, of both ends of Parquet."""
    digest = hashlib.blake2b(digest_size=16)
    handle.seek(0)
    if not file.parquet:
        head = handle.read(min(covered, HEAD_BYTES))
        digest.update(head)
        return len(head), digest.digest()
    digest.update(f"{file.size}:".encode() + handle.read(HEAD_BYTES))
    handle.seek(max(0, file.size - FOOTER_BYTES))
    footer = handle.read(FOOTER_BYTES)
    if file.size < 12 or not footer.endswith(b"PAR1"):
        raise _UnreadableError("no Parquet footer: still being written?")
    digest.update(footer)
    return HEAD_BYTES, digest.digest()


def _read_lines(file: _File, handle: BinaryIO, records: int, size: int, longest: int) -> Records | None:
    """Complete lines, of `size` bytes together unless the first alone is longer; None while there is none."""
    start, size = file.position, min(size, longest)
    if file.scanned:
        return _read_oversized(file, handle)
    handle.seek(start)
    data = handle.read(size)
    end = data.rfind(b"\n") + 1
    if not end and len(data) == size:
        data += handle.read(longest + 1 - size)
        end = data.find(b"\n") + 1
        if not end and len(data) > longest:
            return _read_oversized(file, handle)
    if not end:
        return None  # the writer is in the middle of a line
    lines = data[:end].split(b"\n", records)
    lines.pop()  # what follows the last newline taken
    starts = list(itertools.accumulate((len(line) + 1 for line in lines), initial=start))
    next_offset = starts.pop()
    if min(map(len, lines)) < 2 and not all(line.strip() for line in lines):
        kept = [(at, line) for at, line in zip(starts, lines, strict=True) if line.strip()]
        starts, lines = [at for at, _ in kept], [line for _, line in kept]
    return Records(file.stream, file.name, starts, lines, next_offset)


def _read_oversized(file: _File, handle: BinaryIO) -> Records | None:
    """Find the end of a line that is too long, without keeping it; None when it has none yet."""
    handle.seek(file.position)
    kept = handle.read(KEPT_OF_OVERSIZED)
    handle.seek(file.position + file.scanned)
    for _ in range(OVERSIZED_CHUNKS):
        chunk = handle.read(1024 * 1024)
        if not chunk:
            return None
        newline = chunk.find(b"\n")
        if newline >= 0:
            length = file.scanned + newline
            file.scanned = 0
            return Records(file.stream, file.name, [file.position], [cut(kept, length)], file.position + length + 1)
        file.scanned += len(chunk)
    return Records(file.stream, file.name, [], [], file.position)  # go on in the next poll
