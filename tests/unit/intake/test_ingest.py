"""Source -> lake -> commit: nothing is committed before it is durable, nothing is lost or stored twice."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.base.errors import TransientError
from monitor.base.kinds import Stream
from monitor.intake.ingest import Ingest, IngestPolicy, Writer
from monitor.intake.sources import Records
from monitor.lake.lake import Lake, Table
from monitor.metrics import Metrics
from tests.builders import BINARY, HOUR, NOW, label, message, prediction, records, stored

P, L = Stream.PREDICTIONS, Stream.LABELS
POLICY = IngestPolicy(
    batch_rows=10, batch_wait=timedelta(0), max_age=timedelta(days=40000), max_future=HOUR, max_bytes=1 << 20
)


class Topic:
    """A source in memory: partitions as lists, at-least-once delivery, faults on demand."""

    def __init__(self, partitions: Mapping[str, tuple[Stream, Sequence[bytes]]], stop: threading.Event):
        self.partitions = partitions
        self.committed = dict.fromkeys(partitions, 0)
        self.stop = stop
        self.closed = self.paused = False
        self.polls_that_fail = self.commits_that_fail = 0
        self.begin()

    def begin(self) -> None:
        self.read = dict(self.committed)

    def poll(self, timeout: float, max_records: int) -> Sequence[Records]:
        if self.polls_that_fail:
            self.polls_that_fail -= 1
            raise TransientError("away")
        for name, (stream, values) in self.partitions.items():
            if not self.paused and (part := list(values[self.read[name] : self.read[name] + max_records])):
                found = records(part, stream, name, self.read[name])
                self.read[name] = found.next_offset
                return [found]
        if not self.paused:
            self.stop.set()
        return []

    def commit(self, positions: Mapping[str, int]) -> None:
        if self.commits_that_fail:
            self.commits_that_fail -= 1
            raise TransientError("away")
        for name, position in positions.items():
            assert position >= self.committed[name], "positions are committed in order"
            self.committed[name] = position

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def lag(self) -> Mapping[str, int]:
        return {name: len(values) - self.read[name] for name, (_, values) in self.partitions.items()}

    def close(self) -> None:
        self.closed = True


def events(count: int, name: str = "p") -> list[bytes]:
    return [message(prediction(prediction_id=f"{name}{n}")) for n in range(count)]


def writer(lake: Lake, metrics: Metrics | None = None) -> Writer:
    return Writer(lake, {"fraud": BINARY}, POLICY, metrics or Metrics())


def ids(lake: Lake, table: Table = Table.PREDICTIONS) -> list[str]:
    return sorted(stored(lake, table)["prediction_id"].to_list()) if lake.version(table, "fraud") >= 0 else []


def letters(lake: Lake) -> list[tuple[str, int, str]]:
    frame = stored(lake, Table.DEAD_LETTERS, "")
    return sorted(frame.select("source_partition", "source_offset", "reason").rows()) if frame.height else []


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def run(topic: Topic, lake: Lake, metrics: Metrics | None = None) -> None:
    metrics = metrics or Metrics()
    Ingest(topic, writer(lake, metrics), POLICY, metrics).run(topic.stop)


def test_everything_read_is_stored_and_then_committed(lake: Lake) -> None:
    partitions = {
        "t:0": (P, [*events(25), b"{", message(prediction(model="nobody"))]),
        "l:0": (L, [message(label(prediction_id=f"p{n}")) for n in range(12)]),
    }
    metrics = Metrics()
    topic = Topic(partitions, threading.Event())
    run(topic, lake, metrics)
    assert len(ids(lake)) == 25
    assert len(ids(lake, Table.LABELS)) == 12
    assert letters(lake) == [("t:0", 25, "not_json"), ("t:0", 26, "unknown_model")]
    assert topic.committed == {"t:0": 27, "l:0": 12}
    assert topic.closed
    sample = metrics.registry.get_sample_value
    assert sample("driftd_events_total", {"model": "fraud", "stream": "predictions"}) == 25
    assert sample("driftd_dead_letters_total", {"stream": "predictions", "reason": "not_json"}) == 1


def test_commit_that_fails_is_tried_again(lake: Lake) -> None:
    topic = Topic({"t:0": (P, events(5))}, threading.Event())
    topic.commits_that_fail = 1
    run(topic, lake)
    topic.stop.clear()
    topic.begin()
    run(topic, lake)
    assert topic.committed == {"t:0": 5}
    assert ids(lake) == [f"p{n}" for n in range(5)]


def test_batch_delivered_again_after_a_crash_is_stored_once(lake: Lake) -> None:
    batch = [records([*events(3), b"{"])]
    assert writer(lake).write(batch, NOW) == {"t:0": 4}
    assert writer(lake.clone()).write(batch, NOW) == {"t:0": 4}
    assert ids(lake) == ["p0", "p1", "p2"]
    assert letters(lake) == [("t:0", 3, "not_json")]


class Killed(Exception):
    pass


class KilledLake(Lake):
    """Dies before its `after`-th append."""

    after = 0

    def append(self, table: Table, frame, model: str = "") -> int:  # type: ignore[no-untyped-def]
        if self.after == 0:
            raise Killed
        self.after -= 1
        return super().append(table, frame, model)


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("later", [timedelta(0), 3 * HOUR])
def test_killed_between_two_appends_loses_nothing(tmp_path: Path, after: int, later: timedelta) -> None:
    """Also a record that was too far in the future then and is an event by the time it is read again."""
    future = message(prediction(prediction_id="future", ts=(NOW + 2 * HOUR).isoformat()))
    batch = [records([*events(2), future, *events(2, "q")]), records([message(label())], L, "l:0")]
    killed = KilledLake(str(tmp_path / "lake"))
    killed.after = after
    with pytest.raises(Killed):
        writer(killed).write(batch, NOW)
    lake = Lake(str(tmp_path / "lake"))
    writer(lake).write(batch, NOW + later)
    assert set(ids(lake)) | {"future" for _ in letters(lake)} == {"p0", "p1", "q0", "q1", "future"}
    assert len(ids(lake)) == len(set(ids(lake)))
    assert ids(lake, Table.LABELS) == ["p1"]


def test_lake_that_is_away_is_tried_until_told_to_stop(tmp_path: Path) -> None:
    (tmp_path / "lake").write_text("in the way")
    metrics = Metrics()
    w = writer(Lake(str(tmp_path / "lake")), metrics)
    w.stopping.set()
    with pytest.raises(TransientError):
        w.write([records(events(1))], NOW)
    sample = metrics.registry.get_sample_value
    assert sample("driftd_ingest_batches_total", {"outcome": "failed"}) == 1
    assert sample("driftd_ready", {"component": "lake"}) == 0


def test_lake_away_at_the_stop_leaves_the_position_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "lake").write_text("in the way")
    topic = Topic({"t:0": (P, events(3))}, threading.Event())
    topic.stop.set()
    ingest = Ingest(topic, writer(Lake(str(tmp_path / "lake"))), POLICY, Metrics())
    ingest._buffer.add([records(events(3))])
    ingest.run(topic.stop)
    assert topic.committed == {"t:0": 0}
    assert topic.closed


def test_bug_in_the_writer_ends_the_loop_without_a_commit(tmp_path: Path) -> None:
    topic = Topic({"t:0": (P, events(3))}, threading.Event())
    with pytest.raises(Killed):
        run(topic, KilledLake(str(tmp_path / "lake")))
    assert topic.committed == {"t:0": 0}
    assert topic.closed


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(0, 30), max_size=3))
def test_stopped_and_started_anywhere_each_record_is_stored_once(
    tmp_path_factory: pytest.TempPathFactory, rewinds: list[int]
) -> None:
    """What a crash before the commit, or a rebalance, does: the source begins again further back."""
    folder = tmp_path_factory.mktemp("lake")
    topic = Topic({"t:0": (P, events(23)), "t:1": (P, events(17, "q"))}, threading.Event())
    for rewind in [*rewinds, 0]:
        topic.committed = {name: max(0, at - rewind) for name, at in topic.committed.items()}
        topic.stop.clear()
        topic.begin()
        run(topic, Lake(str(folder)))
    assert ids(Lake(str(folder))) == sorted([f"p{n}" for n in range(23)] + [f"q{n}" for n in range(17)])
    shutil.rmtree(folder)
