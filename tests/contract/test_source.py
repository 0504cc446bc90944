"""The `Source` contract, run on every implementation with the real thing behind it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import pytest

from monitor.base.kinds import Stream
from monitor.intake.sources import Records, Source
from monitor.intake.sources.files import FileSettings, FileSource
from monitor.intake.sources.kafka import KafkaSettings, KafkaSource
from tests.conftest import KafkaCluster

DEADLINE = 60.0


class World(Protocol):
    """What the source reads from, two partitions of predictions and one of labels; and how to open one."""

    def write(self, stream: Stream, partition: int, values: list[bytes]) -> None: ...

    def open(self) -> Source:
        """A source, as after a restart of the daemon: the one opened before is closed."""


class KafkaWorld:
    def __init__(self, cluster: KafkaCluster) -> None:
        self._cluster = cluster
        self._topics = {
            Stream.PREDICTIONS: cluster.create_topic(partitions=2),
            Stream.LABELS: cluster.create_topic(partitions=1),
        }
        self._group = f"g-{uuid4().hex[:12]}"
        self._source: Source | None = None

    def write(self, stream: Stream, partition: int, values: list[bytes]) -> None:
        self._cluster.produce(self._topics[stream], list(values), partition)

    def open(self) -> Source:
        if self._source is not None:
            self._source.close()
        topics = {topic: stream for stream, topic in self._topics.items()}
        self._source = KafkaSource(KafkaSettings(self._cluster.bootstrap, self._group, topics))
        return self._source

    def close(self) -> None:
        if self._source is not None:
            self._source.close()


class FileWorld:
    def __init__(self, folder: Path) -> None:
        self._settings = FileSettings(folder / "events", folder / "positions.sqlite", rescan_interval=0.05)
        self._source: Source | None = None

    def write(self, stream: Stream, partition: int, values: list[bytes]) -> None:
        path = self._settings.path / stream.value / f"{partition}.ndjson"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as out:
            out.write(b"".join(value + b"\n" for value in values))

    def open(self) -> Source:
        if self._source is not None:
            self._source.close()
        self._source = FileSource(self._settings)
        return self._source

    def close(self) -> None:
        if self._source is not None:
            self._source.close()


@pytest.fixture(params=["files", "kafka"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    files = request.param == "files"
    made = FileWorld(tmp_path) if files else KafkaWorld(request.getfixturevalue("kafka_broker"))
    yield made
    made.close()


def read(source: Source, count: int, max_records: int = 1000) -> list[Records]:
    """Poll until `count` records have come."""
    batches: list[Records] = []
    deadline = time.monotonic() + DEADLINE
    while sum(len(batch.offsets) for batch in batches) < count:
        assert time.monotonic() < deadline, f"only {batches}"
        batches += source.poll(0.2, max_records)
    return batches


def values_of(batches: Sequence[Records]) -> list[bytes | None]:
    return [value for batch in batches for value in batch.values]


def positions_of(batches: Sequence[Records]) -> dict[str, int]:
    return {batch.partition: batch.next_offset for batch in batches}


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def numbered(start: int, stop: int) -> list[bytes]:
    return [b'{"n": %d}' % n for n in range(start, stop)]


class TestSource:
    def test_delivers_the_bytes_that_were_written(self, world: World) -> None:
        values = [b"{}", b'{"a": "\xc3\xa9\\n"}', b"not json", b"\xff\xfe", b"x" * 100_000]
        world.write(Stream.PREDICTIONS, 0, values)
        batches = read(world.open(), len(values))
        assert values_of(batches) == values
        assert {batch.stream for batch in batches} == {Stream.PREDICTIONS}

    def test_each_stream_keeps_its_name(self, world: World) -> None:
        world.write(Stream.PREDICTIONS, 0, [b"p"])
        world.write(Stream.LABELS, 0, [b"l"])
        batches = read(world.open(), 2)
        assert {batch.stream: list(batch.values) for batch in batches} == {
            Stream.PREDICTIONS: [b"p"],
            Stream.LABELS: [b"l"],
        }

    def test_what_was_not_committed_is_delivered_again_under_the_same_name_and_offsets(self, world: World) -> None:
        world.write(Stream.PREDICTIONS, 0, numbered(0, 10))
        first = read(world.open(), 10)
        again = read(world.open(), 10)
        assert positions_of(again) == positions_of(first)
        assert values_of(again) == values_of(first)
        assert [o for b in again for o in b.offsets] == [o for b in first for o in b.offsets]

    def test_a_commit_survives_a_restart(self, world: World) -> None:
        world.write(Stream.PREDICTIONS, 0, numbered(0, 10))
        source = world.open()
        source.commit(positions_of(read(source, 10)))
        world.write(Stream.PREDICTIONS, 0, numbered(10, 12))
        assert values_of(read(world.open(), 2)) == numbered(10, 12)

    def test_a_commit_in_the_middle_restarts_there(self, world: World) -> None:
        world.write(Stream.PREDICTIONS, 0, numbered(0, 10))
        source = world.open()
        batches = read(source, 10)
        assert len({batch.partition for batch in batches}) == 1
        offsets = [offset for batch in batches for offset in batch.offsets]
        source.commit({batches[0].partition: offsets[4]})
        assert values_of(read(world.open(), 6)) == numbered(4, 10)

    def test_a_commit_of_a_partition_that_is_not_owned_is_ignored(self, world: World) -> None:
        world.write(Stream.PREDICTIONS, 0, numbered(0, 1))
        source = world.open()
        source.commit({"elsewhere/0": 5})
        read(source, 1)
        source.commit({"elsewhere/0": 5})

    def test_partitions_deliver_in_offset_order(self, world: World) -> None:
        for partition in (0, 1):
            world.write(Stream.PREDICTIONS, partition, numbered(0, 500))
        offsets: dict[str, list[int]] = defaultdict(list)
        values: dict[str, list[bytes | None]] = defaultdict(list)
        for batch in read(world.open(), 1000, max_records=70):
            assert len(batch.offsets) == len(batch.values)
            assert batch.next_offset > batch.offsets[-1]
            offsets[batch.partition] += batch.offsets
            values[batch.partition] += batch.values
        assert len(offsets) == 2
        for each in offsets.values():
            assert each == sorted(set(each))
        assert list(values.values()) == [numbered(0, 500)] * 2

    def test_a_poll_never_exceeds_max_records(self, world: World) -> None:
        for partition in (0, 1):
            world.write(Stream.PREDICTIONS, partition, numbered(0, 50))
        source = world.open()
        total = 0
        deadline = time.monotonic() + DEADLINE
        while total < 100:
            assert time.monotonic() < deadline
            got = sum(len(batch.offsets) for batch in source.poll(0.2, 7))
            assert got <= 7
            total += got

    def test_an_empty_poll_returns_in_time(self, world: World) -> None:
        world.write(Stream.PREDICTIONS, 0, [b"{}"])
        source = world.open()
        read(source, 1)
        started = time.monotonic()
        assert not source.poll(0.1, 100)
        assert 0.05 <= time.monotonic() - started < 5

    def test_pause_delivers_nothing_and_resume_goes_on_where_it_was(self, world: World) -> None:
        world.write(Stream.PREDICTIONS, 0, numbered(0, 20))
        source = world.open()
        before = read(source, 5, max_records=5)
        source.pause()
        world.write(Stream.PREDICTIONS, 0, numbered(20, 25))
        for _ in range(5):
            assert not source.poll(0.1, 100)
        source.resume()
        count = len(values_of(before))
        assert values_of(before) + values_of(read(source, 25 - count)) == numbered(0, 25)

    def test_a_pause_before_the_first_poll_holds(self, world: World) -> None:
        world.write(Stream.PREDICTIONS, 0, numbered(0, 3))
        source = world.open()
        source.pause()
        for _ in range(8):
            assert not source.poll(0.1, 100)
        source.resume()
        assert values_of(read(source, 3)) == numbered(0, 3)

    def test_lag_is_what_was_not_delivered(self, world: World) -> None:
        world.write(Stream.PREDICTIONS, 0, numbered(0, 20))
        source = world.open()
        read(source, 5, max_records=5)
        eventually(lambda: sum(source.lag().values()) > 0)
        read(source, 15)
        eventually(lambda: sum(source.lag().values()) == 0)

    def test_closes_twice_and_unopened(self, world: World) -> None:
        source = world.open()
        source.close()
        source.close()
