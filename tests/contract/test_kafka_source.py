"""What only Kafka does: rebalances, refusals, brokers that go away, topics that come and go."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from uuid import uuid4

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.structs import OffsetAndMetadata

from monitor.base.errors import TransientError
from monitor.base.kinds import Stream
from monitor.intake.sources import Records, SourceRefused
from monitor.intake.sources.kafka import KafkaObserver, KafkaSettings, KafkaSource
from tests.conftest import SASL_USERS, KafkaCluster

DEADLINE = 180.0  # bounds only how long a failure takes; metadata is a minute old at most, and so is what depends on it

Open = Callable[..., KafkaSource]


@pytest.fixture(autouse=True)
def _no_sockets_left_for_others() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def group() -> str:
    return f"g-{uuid4().hex[:12]}"


@pytest.fixture
def opened(group: str) -> Iterator[Open]:
    """Opens sources of one group, and closes them at the end."""
    sources: list[KafkaSource] = []

    def open_source(
        bootstrap: str, *topics: str, observer: KafkaObserver | None = None, **settings: Any
    ) -> KafkaSource:
        streams = dict(zip(topics, Stream, strict=False))
        settings = {"session_timeout": 3.0, **settings}
        sources.append(KafkaSource(KafkaSettings(bootstrap, group, streams, **settings), observer))
        return sources[-1]

    yield open_source
    for source in sources:
        source.close()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def poll_until(condition: Callable[[], bool], *sources: KafkaSource) -> list[Records]:
    """Poll them in turn, and commit, until `condition`; TransientError is waited out as the daemon does."""
    batches: list[Records] = []

    def step() -> bool:
        for source in sources:
            try:
                got = source.poll(0.05, 1000)
                source.commit({batch.partition: batch.next_offset for batch in got})
                batches.extend(got)
            except TransientError:
                continue
        return condition()

    eventually(step)
    return batches


def read(source: KafkaSource, count: int) -> list[Records]:
    batches: list[Records] = []

    def step() -> bool:
        try:
            batches.extend(source.poll(0.1, 1000))
        except TransientError:
            return False
        return len(values_of(batches)) >= count

    eventually(step)
    return batches


def failure_of(source: KafkaSource, kind: type[TransientError] = TransientError) -> str:
    """The message with which polling fails, which takes a moment."""
    messages: list[str] = []

    def step() -> bool:
        try:
            source.poll(0.1, 10)
        except kind as error:
            messages.append(str(error))
        return bool(messages)

    eventually(step)
    return messages[0]


def values_of(batches: list[Records]) -> list[bytes | None]:
    return [value for batch in batches for value in batch.values]


def numbered(start: int, stop: int) -> list[bytes | None]:
    return [b"%d" % n for n in range(start, stop)]


class TestRebalance:
    def test_two_replicas_share_and_lose_nothing(self, kafka_broker: KafkaCluster, opened: Open) -> None:
        topic = kafka_broker.create_topic(partitions=4)
        produced: list[bytes | None] = []
        stop = threading.Event()

        def produce() -> None:
            while not stop.is_set():
                values = numbered(len(produced), len(produced) + 40)
                for partition in range(4):
                    kafka_broker.produce(topic, values[partition::4], partition)
                produced.extend(values)

        shares: dict[str, set[str]] = {"a": set(), "b": set()}
        revoked: list[int] = []
        observer = KafkaObserver(on_rebalance=lambda kind, count: revoked.append(count) if kind != "assigned" else None)
        writer = threading.Thread(target=produce)
        first = opened(kafka_broker.bootstrap, topic, observer=observer)
        batches = poll_until(lambda: len(first.lag()) == 4, first)
        writer.start()
        try:
            second = opened(kafka_broker.bootstrap, topic)
            batches += poll_until(lambda: len(first.lag()) == 2 and len(second.lag()) == 2, first, second)
            assert sum(revoked) == 2  # cooperative: it kept the other two all along
            for name, source in (("a", first), ("b", second)):
                shares[name] = set(source.lag())
            assert not shares["a"] & shares["b"]
            second.close()
            batches += poll_until(lambda: len(first.lag()) == 4, first)
        finally:
            stop.set()
            writer.join()
        batches += poll_until(lambda: sum(first.lag().values()) == 0, first)
        assert set(values_of(batches)) == set(produced)

    def test_what_is_paused_stays_paused_across_a_rebalance(self, kafka_broker: KafkaCluster, opened: Open) -> None:
        topic = kafka_broker.create_topic(partitions=2)
        first = opened(kafka_broker.bootstrap, topic)
        poll_until(lambda: len(first.lag()) == 2, first)
        first.pause()
        for partition in (0, 1):
            kafka_broker.produce(topic, numbered(0, 5), partition)
        second = opened(kafka_broker.bootstrap, topic)
        second.pause()
        assert not poll_until(lambda: len(first.lag()) == len(second.lag()) == 1, first, second)
        second.close()
        assert not poll_until(lambda: len(first.lag()) == 2, first)
        for _ in range(5):
            assert not first.poll(0.05, 100)
        first.resume()
        assert len(values_of(read(first, 10))) == 10

    def test_a_commit_after_losing_the_partitions_is_no_error(self, kafka_broker: KafkaCluster, opened: Open) -> None:
        topic = kafka_broker.create_topic()
        kafka_broker.produce(topic, numbered(0, 5))
        slow = opened(kafka_broker.bootstrap, topic, max_poll_interval=1.0, session_timeout=2.0)
        positions = {batch.partition: batch.next_offset for batch in read(slow, 5)}
        other = opened(kafka_broker.bootstrap, topic, max_poll_interval=1.0, session_timeout=2.0)
        assert values_of(read(other, 5)) == numbered(0, 5)  # the slow one was expelled
        slow.commit(positions)


class TestTopics:
    def test_a_missing_topic_is_named_and_read_once_it_appears(self, kafka_broker: KafkaCluster, opened: Open) -> None:
        topic = f"t-{uuid4().hex[:12]}"
        told: list[frozenset[str]] = []
        source = opened(kafka_broker.bootstrap, topic, observer=KafkaObserver(on_missing_topics=told.append))
        message = failure_of(source)
        assert f"topic '{topic}' does not exist on {kafka_broker.bootstrap}" in message
        assert "create it or change source.kafka.predictions or source.kafka.labels" in message
        kafka_broker.create_topic(name=topic)
        kafka_broker.produce(topic, numbered(0, 3))
        assert values_of(read(source, 3)) == numbered(0, 3)
        assert told == [frozenset({topic}), frozenset()]

    def test_the_other_topics_are_read_while_one_is_missing(self, kafka_broker: KafkaCluster, opened: Open) -> None:
        there = kafka_broker.create_topic()
        source = opened(kafka_broker.bootstrap, there, f"t-{uuid4().hex[:12]}")
        assert "does not exist" in failure_of(source)
        kafka_broker.produce(there, numbered(0, 3))
        assert values_of(read(source, 3)) == numbered(0, 3)

    def test_a_recreated_topic_gets_a_new_name_and_is_read_from_its_beginning(
        self, kafka_broker: KafkaCluster, opened: Open
    ) -> None:
        topic = kafka_broker.create_topic()
        kafka_broker.produce(topic, numbered(0, 5))
        source = opened(kafka_broker.bootstrap, topic)
        before = read(source, 5)
        source.commit({batch.partition: batch.next_offset for batch in before})
        kafka_broker.delete_topic(topic)
        kafka_broker.create_topic(name=topic)
        kafka_broker.produce(topic, numbered(100, 110))
        old = before[0].partition
        renamed: list[Records] = []

        def step() -> bool:
            try:
                renamed.extend(batch for batch in source.poll(0.1, 100) if batch.partition != old)
            except TransientError:
                return False
            return len(values_of(renamed)) >= 10

        eventually(step)
        assert values_of(renamed) == numbered(100, 110)
        assert [offset for batch in renamed for offset in batch.offsets] == list(range(10))
        source.commit({old: 99})

    def test_a_position_committed_for_a_deleted_topic_is_not_used(
        self, kafka_broker: KafkaCluster, opened: Open, group: str
    ) -> None:
        topic = kafka_broker.create_topic()
        kafka_broker.produce(topic, numbered(0, 5))
        partition = TopicPartition(topic, 0)
        with closing(KafkaConsumer(bootstrap_servers=kafka_broker.bootstrap, group_id=group)) as consumer:
            consumer.assign([partition])
            consumer.commit({partition: OffsetAndMetadata(3, str(uuid4()), -1)})
        assert values_of(read(opened(kafka_broker.bootstrap, topic), 5)) == numbered(0, 5)

    def test_records_that_retention_removed_are_counted(self, kafka_broker: KafkaCluster, opened: Open) -> None:
        topic = kafka_broker.create_topic()
        kafka_broker.produce(topic, numbered(0, 10))
        source = opened(kafka_broker.bootstrap, topic)
        batch = read(source, 10)[0]
        source.commit({batch.partition: 3})
        source.close()
        admin = kafka_broker.admin()
        admin.delete_records({TopicPartition(topic, 0): 7})
        admin.close()
        lost: list[tuple[str, int]] = []
        observer = KafkaObserver(on_offsets_lost=lambda name, count: lost.append((name, count)))
        again = opened(kafka_broker.bootstrap, topic, observer=observer)
        assert values_of(read(again, 3)) == numbered(7, 10)
        assert lost == [(batch.partition, 4)]

    def test_latest_begins_at_the_end(self, kafka_broker: KafkaCluster, opened: Open) -> None:
        topic = kafka_broker.create_topic()
        kafka_broker.produce(topic, numbered(0, 5))
        source = opened(kafka_broker.bootstrap, topic, auto_offset_reset="latest")
        assert not poll_until(lambda: source.lag() != {} and sum(source.lag().values()) == 0, source)
        kafka_broker.produce(topic, numbered(5, 6))
        assert values_of(read(source, 1)) == numbered(5, 6)


class TestBroker:
    def test_a_message_of_ten_megabytes_does_not_stall_its_partition(
        self, kafka_broker: KafkaCluster, opened: Open
    ) -> None:
        topic = kafka_broker.create_topic(partitions=2)
        huge = b"x" * (10 * 1024 * 1024)
        for partition, values in enumerate([[b"a", huge, b"b"], [b"c"]]):
            kafka_broker.produce(topic, values, partition)
        batches = read(opened(kafka_broker.bootstrap, topic), 4)
        by_partition: dict[str, list[bytes | None]] = {"0": [], "1": []}
        for batch in batches:
            by_partition[batch.partition[-1]] += batch.values
        assert by_partition == {"0": [b"a", huge, b"b"], "1": [b"c"]}

    def test_wrong_credentials_are_refused_by_name(self, kafka_broker: KafkaCluster, opened: Open) -> None:
        bootstrap = kafka_broker.own_broker().sasl_bootstrap
        topic = kafka_broker.create_topic()
        kafka_broker.produce(topic, numbered(0, 1))
        user, password = next(iter(SASL_USERS.items()))
        sasl = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_username": user}
        source = opened(bootstrap, topic, sasl_password="wrong-password", **sasl)
        with pytest.raises(SourceRefused, match="SaslAuthenticationFailedError") as refusal:
            source.poll(0.1, 10)
        assert "wrong-password" not in f"{refusal.value}{KafkaSettings('b', 'g', {}, sasl_password='wrong-password')}"
        assert values_of(read(opened(bootstrap, topic, sasl_password=password, **sasl), 1)) == numbered(0, 1)

    def test_an_unreachable_broker_is_named_with_the_reason(self, opened: Open) -> None:
        source = opened("127.0.0.1:1", "t", connect_timeout=1.0)
        with pytest.raises(TransientError, match=r"no Kafka broker answers at 127\.0\.0\.1:1: .*REFUSED"):
            source.poll(0.1, 10)

    def test_goes_on_when_the_broker_returns_and_closes_without_it(
        self, own_kafka: Callable[[], KafkaCluster], opened: Open
    ) -> None:
        cluster = own_kafka()
        broker = cluster.own_broker()
        topic = cluster.create_topic(partitions=2)
        for partition in (0, 1):
            cluster.produce(topic, numbered(0, 100), partition)
        source = opened(cluster.bootstrap, topic)
        batches = list(source.poll(5.0, 50))
        source.commit({batch.partition: batch.next_offset for batch in batches})

        seen = {(batch.partition, value) for batch in batches for value in batch.values}
        problems: list[str] = []

        def look() -> None:
            """What had been fetched before the broker went away comes once: it must not be thrown away here."""
            try:
                seen.update((batch.partition, value) for batch in source.poll(0.1, 50) for value in batch.values)
            except TransientError as error:
                problems.append(str(error))

        def failed() -> bool:
            look()
            return bool(problems)

        def all_seen() -> bool:
            look()
            return len(seen) == 400

        broker.kill()
        eventually(failed)
        assert "no Kafka broker answers" in problems[0]
        with pytest.raises(TransientError):
            source.commit({batch.partition: batch.next_offset for batch in batches})
        broker.start()
        for partition in (0, 1):
            cluster.produce(topic, numbered(100, 200), partition)

        eventually(all_seen)
        broker.stop()
        started = time.monotonic()
        source.close()
        assert time.monotonic() - started < 9  # what a stop may take
