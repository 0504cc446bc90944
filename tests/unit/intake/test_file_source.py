"""What only files do: growing, being replaced, being unreadable, being many."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import orjson
import polars as pl
import pytest

from monitor.base.errors import TransientError
from monitor.base.kinds import Stream
from monitor.intake.sources import Records
from monitor.intake.sources.files import FileObserver, FileSettings, FileSource
from monitor.intake.sources.parquet_rows import MEMORY, open_below

DEADLINE = 10.0
NOBODY = 65534


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., FileSource]]:
    sources: list[FileSource] = []

    def open_source(observer: FileObserver | None = None, **settings: float) -> FileSource:
        for source in sources:
            source.close()
        made = FileSettings(
            path=tmp_path, positions=tmp_path / "state" / "p.sqlite", **{"rescan_interval": 0.0, **settings}
        )
        sources.append(FileSource(made, observer))
        return sources[-1]

    yield open_source
    for source in sources:
        source.close()


Open = Callable[..., FileSource]


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as out:
        out.write(data)


def drain(source: FileSource, max_records: int = 1000) -> list[Records]:
    """Poll until nothing comes any more."""
    batches: list[Records] = []
    while True:
        source._scan_at = 0.0  # look at the folder now: after a slow look, a busy machine's, it would rest first
        if not (got := source.poll(0.1, max_records)):
            return batches
        batches += got


def peak_memory() -> int:
    """Bytes that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def values_of(batches: list[Records]) -> list[bytes | None]:
    return [value for batch in batches for value in batch.values]


def commit(source: FileSource, batches: list[Records]) -> None:
    source.commit({batch.partition: batch.next_offset for batch in batches})


class TestLines:
    def test_a_line_is_delivered_once_it_has_its_newline(self, tmp_path: Path, opened: Open) -> None:
        path = tmp_path / "predictions" / "a.ndjson"
        write(path, b'{"n":1}\n{"n"')
        source = opened()
        batches = drain(source)
        assert values_of(batches) == [b'{"n":1}']
        assert source.lag() == {"file:predictions/a.ndjson": 4}
        write(path, b":2}\n")
        batches = drain(source)
        assert values_of(batches) == [b'{"n":2}']
        assert list(batches[0].offsets) == [8]
        assert batches[0].next_offset == 16
        assert not source.lag()

    def test_offsets_are_where_the_lines_start_and_blank_lines_are_no_records(
        self, tmp_path: Path, opened: Open
    ) -> None:
        write(tmp_path / "labels" / "deep" / "er" / "b.jsonl", b"aa\n\n\r\nbbb\r\n\n")
        (batch,) = drain(opened())
        assert batch.stream is Stream.LABELS
        assert batch.partition == "file:labels/deep/er/b.jsonl"
        assert list(zip(batch.offsets, batch.values, strict=True)) == [(0, b"aa"), (6, b"bbb\r")]
        assert batch.next_offset == 12

    def test_the_folder_may_appear_later(self, tmp_path: Path, opened: Open) -> None:
        source = opened()
        assert not drain(source)
        write(tmp_path / "predictions" / "a.ndjson", b"1\n")
        assert values_of(drain(source)) == [b"1"]

    @pytest.mark.parametrize(
        "name", [".a.ndjson", "a.ndjson.tmp", "_delta_log/0.ndjson", ".x/a.ndjson", "a.txt", "_SUCCESS"]
    )
    def test_hidden_temporary_and_other_files_are_not_read(self, tmp_path: Path, opened: Open, name: str) -> None:
        write(tmp_path / "predictions" / name, b"1\n")
        assert not drain(opened())

    def test_a_line_too_long_is_cut_and_marked_and_the_next_is_read(self, tmp_path: Path, opened: Open) -> None:
        path = tmp_path / "predictions" / "a.ndjson"
        long = b'{"x":"' + b"y" * 3_000_000 + b'"}'
        write(path, b"{}\n" + long + b"\n[]\n")
        batches = drain(opened(max_message_bytes=100_000))
        first, cut, last = values_of(batches)
        assert (first, last) == (b"{}", b"[]")
        assert cut is not None
        assert cut.startswith(b'{"x":"yyy')
        assert cut.endswith(b"a record of %d bytes, cut]" % len(long))
        assert len(cut) < 70_000
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(cut)
        assert batches[-1].offsets[-1] == 3 + len(long) + 1

    def test_a_line_too_long_that_grows_is_delivered_when_it_ends(self, tmp_path: Path, opened: Open) -> None:
        path = tmp_path / "predictions" / "a.ndjson"
        source = opened(max_message_bytes=1000)
        for _ in range(3):
            write(path, b"z" * 800)
            assert not drain(source)
        write(path, b"\nok\n")
        cut, ok = values_of(drain(source))
        assert cut is not None
        assert b"2400 bytes" in cut
        assert ok == b"ok"

    @pytest.mark.parametrize("length", [999, 1000, 1001])
    def test_the_longest_line_allowed_is_whole(self, tmp_path: Path, opened: Open, length: int) -> None:
        write(tmp_path / "predictions" / "a.ndjson", b"q" * length + b"\n")
        (value,) = values_of(drain(opened(max_message_bytes=1000, max_poll_bytes=400)))
        assert (value == b"q" * length) is (length <= 1000)

    def test_a_poll_is_bounded_in_bytes(self, tmp_path: Path, opened: Open) -> None:
        for name in "abc":
            write(tmp_path / "predictions" / f"{name}.ndjson", (b"x" * 99 + b"\n") * 1000)
        source = opened(max_poll_bytes=10_000)
        assert 0 < sum(len(value or b"") for value in values_of(list(source.poll(0, 10**6)))) <= 10_000
        assert len(values_of(drain(source, 10**6))) > 2800


class TestReplacement:
    def test_a_truncated_file_is_a_new_partition_read_from_its_start(self, tmp_path: Path, opened: Open) -> None:
        path = tmp_path / "predictions" / "a.ndjson"
        replaced: list[str] = []
        source = opened(FileObserver(on_replaced=replaced.append))
        write(path, b"one\ntwo\nthree\n")
        commit(source, drain(source))
        path.write_bytes(b"one\n")
        batches = drain(source)
        assert [batch.partition for batch in batches] == ["file:predictions/a.ndjson#2"]
        assert values_of(batches) == [b"one"]
        assert replaced == ["predictions/a.ndjson"]

    def test_another_content_under_the_name_is_a_new_partition_also_after_a_restart(
        self, tmp_path: Path, opened: Open
    ) -> None:
        path = tmp_path / "predictions" / "a.ndjson"
        source = opened()
        write(path, b"one\n")
        commit(source, drain(source))
        path.unlink()
        write(path, b"two and more\n")
        for _ in range(2):  # not committed: the same again under the same name
            (batch,) = drain(opened())
            assert (batch.partition, list(batch.values)) == ("file:predictions/a.ndjson#2", [b"two and more"])
        path.write_bytes(b"three\n")  # nothing of #2 was committed, yet its name is used up
        (batch,) = drain(opened())
        assert batch.partition == "file:predictions/a.ndjson#3"

    def test_a_copy_with_more_lines_goes_on(self, tmp_path: Path, opened: Open) -> None:
        path = tmp_path / "predictions" / "a.ndjson"
        source = opened()
        write(path, b"one\n")
        commit(source, drain(source))
        copy = tmp_path / "predictions" / ".a.copy"  # as rsync does
        copy.write_bytes(b"one\ntwo\n")
        copy.rename(path)
        (batch,) = drain(source)
        assert (batch.partition, list(batch.values)) == ("file:predictions/a.ndjson", [b"two"])

    def test_a_file_that_was_away_is_not_read_again(self, tmp_path: Path, opened: Open) -> None:
        path = tmp_path / "predictions" / "a.ndjson"
        source = opened()
        write(path, b"one\n")
        commit(source, drain(source))
        path.rename(tmp_path / "away")
        assert not drain(source)
        (tmp_path / "away").rename(path)
        assert not drain(source)

    def test_a_commit_for_the_former_generation_is_ignored(self, tmp_path: Path, opened: Open) -> None:
        path = tmp_path / "predictions" / "a.ndjson"
        source = opened()
        write(path, b"one\ntwo\n")
        late = drain(source)
        path.write_bytes(b"1\n")
        drain(source)
        commit(source, late)
        assert values_of(drain(opened())) == [b"1"]


class TestParquet:
    def test_rows_become_events(self, tmp_path: Path, opened: Open) -> None:
        frame = pl.DataFrame(
            {
                "prediction_id": ["a", "b", "c"],
                "ts": [datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)] * 3,
                "features": [{"x": 1.5, "y": None}, {"x": float("nan"), "y": "q"}, None],
                "raw": [b"1", b"2", b"3"],
            }
        )
        (tmp_path / "predictions").mkdir()
        frame.write_parquet(tmp_path / "predictions" / "a.parquet")
        source = opened()
        batches = drain(source, max_records=4)
        assert [offset for batch in batches for offset in batch.offsets] == [0, 1, 2]
        events = [orjson.loads(value or b"") for value in values_of(batches)]
        assert events[0] == {
            "prediction_id": "a",
            "ts": "2024-01-02T03:04:05.000000Z",
            "features": {"x": 1.5, "y": None},
        }
        assert [event["prediction_id"] for event in events] == ["a", "b", "c"]
        source.commit({batches[0].partition: 2})
        (batch,) = drain(opened())
        assert list(batch.offsets) == [2]

    def test_an_incomplete_file_waits_and_is_reported_after_a_while(self, tmp_path: Path, opened: Open) -> None:
        whole = tmp_path / "whole"
        pl.DataFrame({"n": range(100)}).write_parquet(whole)
        data = whole.read_bytes()
        path = tmp_path / "labels" / "a.parquet"
        write(path, data[:-20])
        told: list[tuple[str, str]] = []
        source = opened(FileObserver(on_unreadable=lambda where, why: told.append((where, why))), unreadable_after=0.3)
        assert not drain(source)
        assert not told
        deadline = time.monotonic() + DEADLINE
        while not told:
            assert time.monotonic() < deadline
            assert not source.poll(0.01, 10)
        assert told == [("labels/a.parquet", "no Parquet footer: still being written?")]
        write(path, data[-20:])
        assert len(values_of(drain(source))) == 100

    def test_a_rewritten_file_is_a_new_partition(self, tmp_path: Path, opened: Open) -> None:
        path = tmp_path / "labels" / "a.parquet"
        path.parent.mkdir()
        pl.DataFrame({"n": [1, 2]}).write_parquet(path)
        source = opened()
        commit(source, drain(source))
        pl.DataFrame({"n": [3, 4]}).write_parquet(path)
        (batch,) = drain(source)
        assert batch.partition == "file:labels/a.parquet#2"
        assert list(batch.values) == [b'{"n":3}', b'{"n":4}']

    def test_garbage_between_the_magic_bytes_stops_nobody(self, tmp_path: Path, opened: Open) -> None:
        write(tmp_path / "labels" / "a.parquet", b"PAR1" + b"?" * 100 + b"PAR1")
        write(tmp_path / "labels" / "b.ndjson", b"1\n")
        told: list[str] = []
        source = opened(FileObserver(on_unreadable=lambda where, _: told.append(where)))
        assert values_of([*drain(source), *drain(source)]) == [b"1"]  # the first may end with the process that reads
        assert told == ["labels/a.parquet"]

    def test_a_small_file_of_large_values_is_read_in_pieces(self, tmp_path: Path, opened: Open) -> None:
        path = tmp_path / "predictions" / "a.parquet"
        path.parent.mkdir()
        rows = 30
        pl.DataFrame({"n": range(rows), "v": ["x" * 15_000_000] * rows}).write_parquet(path)
        assert path.stat().st_size < 10_000
        before, source, found = peak_memory(), opened(max_poll_bytes=8 * 2**20), []
        while len(found) < rows:
            for batch in source.poll(10, 1000):
                found += [(o, len(v or b"")) for o, v in zip(batch.offsets, batch.values, strict=True)]
        assert found == [(n, 15_000_013 + len(str(n))) for n in range(rows)]
        assert peak_memory() - before < 400 * 2**20

    def test_a_row_that_does_not_fit_is_reported_and_one_too_long_is_cut(
        self, tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("monitor.intake.sources.files.MEMORY", MEMORY - 400 * 2**20)
        (tmp_path / "predictions").mkdir()
        for name, length in (("long", 300_000), ("endless", 200_000_000)):
            frame = pl.DataFrame({"v": ["x" * length]})
            frame.write_parquet(tmp_path / "predictions" / f"{name}.parquet")
        told: list[tuple[str, str]] = []
        source = opened(
            FileObserver(on_unreadable=lambda where, why: told.append((where, why))), max_message_bytes=100_000
        )
        (cut,) = values_of([*drain(source), *drain(source)])
        assert cut is not None
        assert cut.endswith(b"a record of 300008 bytes, cut]")
        ((where, why),) = told
        assert where == "predictions/endless.parquet"
        assert "its process was lost: killed, or out of memory" in why


class TestLinks:
    def test_a_link_to_another_file_is_not_followed_but_reported(self, tmp_path: Path, opened: Open) -> None:
        outside = tmp_path / "outside"
        write(outside / "secret.ndjson", b"secret\n")
        write(tmp_path / "predictions" / "a.ndjson", b"1\n")
        (tmp_path / "predictions" / "b.ndjson").symlink_to(outside / "secret.ndjson")
        (tmp_path / "predictions" / "folder").symlink_to(outside)
        (tmp_path / "labels").symlink_to(outside)
        os.mkfifo(tmp_path / "predictions" / "c.ndjson")
        told: list[tuple[str, str]] = []
        source = opened(FileObserver(on_unreadable=lambda where, why: told.append((where, why))))
        assert values_of([*drain(source), *drain(source)]) == [b"1"]
        why = "a symbolic link: not followed"
        assert sorted(told) == [("labels/", why), ("predictions/b.ndjson", why), ("predictions/folder", why)]

    def test_nor_is_one_that_took_a_folders_place_after_the_look(self, tmp_path: Path) -> None:
        write(tmp_path / "root" / "predictions" / "2024" / "a.ndjson", b"1\n")
        write(tmp_path / "outside" / "a.ndjson", b"secret\n")
        parts = ("predictions", "2024", "a.ndjson")
        with open_below(tmp_path / "root", parts) as handle:
            assert handle.read() == b"1\n"
        (tmp_path / "root" / "predictions" / "2024").rename(tmp_path / "moved")
        (tmp_path / "root" / "predictions" / "2024").symlink_to(tmp_path / "outside")
        with pytest.raises(OSError, match="2024"):
            open_below(tmp_path / "root", parts)


class TestManyFiles:
    def test_the_oldest_file_comes_first(self, tmp_path: Path, opened: Open) -> None:
        for age, name in enumerate("cab"):
            path = tmp_path / "predictions" / f"{name}.ndjson"
            write(path, name.encode() + b"\n")
            os.utime(path, (1000 - age, 1000 - age))
        assert values_of(drain(opened())) == [b"b", b"a", b"c"]

    def test_a_large_file_does_not_hold_up_the_others(self, tmp_path: Path, opened: Open) -> None:
        large = tmp_path / "predictions" / "large.ndjson"
        write(large, b"x\n" * 10_000)
        os.utime(large, (1, 1))
        write(tmp_path / "labels" / "small.ndjson", b"y\n")
        assert b"y" in values_of(list(opened().poll(0, 100)))

    def test_finished_files_are_not_opened_again(self, tmp_path: Path, opened: Open) -> None:
        paths = [tmp_path / "predictions" / f"{n}.ndjson" for n in range(600)]
        for path in paths:
            write(path, b"1\n")
        source = opened()
        batches = drain(source)
        assert len(batches) == 600
        commit(source, batches)
        times = [path.stat().st_atime_ns for path in paths]
        for path, seen in zip(paths, times, strict=True):
            os.utime(path, ns=(0, path.stat().st_mtime_ns))
            assert seen
        assert not drain(source)
        assert all(path.stat().st_atime_ns == 0 for path in paths)
        assert not source.lag()
        assert not drain(opened())

    def test_a_file_without_permission_stops_nobody(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root, to become somebody else")
        folder = Path(tempfile.mkdtemp())
        told: list[tuple[str, str]] = []
        try:
            write(folder / "predictions" / "closed.ndjson", b"1\n")
            write(folder / "predictions" / "open.ndjson", b"2\n")
            (folder / "predictions" / "closed.ndjson").chmod(0)
            for path in (folder, folder / "predictions"):
                path.chmod(0o755)
            (folder / "state").mkdir()
            os.chown(folder / "state", NOBODY, NOBODY)
            os.seteuid(NOBODY)
            source = FileSource(
                FileSettings(folder, folder / "state" / "p.sqlite", rescan_interval=0.0),
                FileObserver(on_unreadable=lambda where, why: told.append((where, why))),
            )
            assert values_of(drain(source)) == [b"2"]
            assert not drain(source)
            source.close()
        finally:
            os.seteuid(0)
            shutil.rmtree(folder)
        assert told == [("predictions/closed.ndjson", "Permission denied")]

    def test_positions_that_cannot_be_stored_are_a_transient_error(self, tmp_path: Path) -> None:
        (tmp_path / "taken").write_text("a file where a folder has to be")
        source = FileSource(FileSettings(tmp_path, tmp_path / "taken" / "p.sqlite"))
        with pytest.raises(TransientError, match=r"p\.sqlite"):
            source.poll(0, 1)
