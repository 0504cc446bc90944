"""A broker with a topic full of events, filled faster than one producer call per event could.

Invariant: what is written are ordinary uncompressed record batches, as a busy producer sends them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from uuid import uuid4

from kafka import KafkaAdminClient
from kafka.errors import for_code
from kafka.net.compat import KafkaNetClient
from kafka.protocol.producer import ProduceRequest
from kafka.record.default_records import DefaultRecordBatchBuilder

from bench.events import predictions
from bench.say import Say
from tests.broker import Broker

PARTITIONS = 4
RECORDS_PER_BATCH = 160  # about 64 KB: a producer with batch.size raised for throughput
IN_FLIGHT = 5  # requests per producer
CHUNK = 40_000


@contextmanager
def broker() -> Iterator[str]:
    """The bootstrap address of a broker: `KAFKA_BOOTSTRAP`, or one of our own for as long as this lasts."""
    if elsewhere := os.environ.get("KAFKA_BOOTSTRAP"):
        yield elsewhere
        return
    with tempfile.TemporaryDirectory(prefix="driftd-bench-") as folder, Broker(Path(folder) / "broker") as own:
        yield own.bootstrap


@contextmanager
def topic_of(bootstrap: str, count: int, say: Say) -> Iterator[str]:
    """A topic with `count` predictions of the last hour (0: an empty one), deleted afterwards."""
    topic = f"bench-{uuid4().hex[:8]}"
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        admin.create_topics({topic: {"num_partitions": PARTITIONS, "replication_factor": 1}}, wait_for_metadata=True)
        if count:
            _fill(bootstrap, topic, count, say)
        yield topic
        admin.delete_topics([topic])
    finally:
        admin.close()


def _fill(bootstrap: str, topic: str, count: int, say: Say) -> None:
    begin = datetime.now(UTC) - timedelta(hours=1)
    chunks = [(first, min(CHUNK, count - first)) for first in range(0, count, CHUNK)]
    done = 0
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        step = timedelta(hours=1) / len(chunks)
        tasks = [
            pool.submit(_produce, bootstrap, topic, n % PARTITIONS, first, size, begin + n * step, step)
            for n, (first, size) in enumerate(chunks)
        ]
        for task in as_completed(tasks):
            done += task.result()
            say(f"producing {done:,} of {count:,} events")


def _produce(
    bootstrap: str, topic: str, partition: int, first: int, count: int, start: datetime, span: timedelta
) -> int:
    events = predictions(first, count, start, span)
    batches = [
        _record_batch(events[at : at + RECORDS_PER_BATCH], int(start.timestamp() * 1000))
        for at in range(0, count, RECORDS_PER_BATCH)
    ]
    client = KafkaNetClient(bootstrap_servers=bootstrap)
    try:
        client.get_broker_version(timeout_ms=10_000)
        node = next(iter(client.cluster.brokers())).node_id
        client.await_ready(node)
        for at in range(0, len(batches), IN_FLIGHT):
            sent = [client.send(node, _request(topic, partition, b)) for b in batches[at : at + IN_FLIGHT]]
            for each in sent:
                client.poll(timeout_ms=30_000, future=each)
                _check(each)
    finally:
        client.close()
    return count


def _record_batch(events: Sequence[bytes], timestamp: int) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=False, producer_id=-1, producer_epoch=-1, base_sequence=-1,
        batch_size=2**24,
    )  # fmt: skip
    for offset, event in enumerate(events):
        builder.append(offset, timestamp, None, event, [])
    return bytes(builder.build())


def _request(topic: str, partition: int, records: bytes) -> Any:
    of = ProduceRequest.TopicProduceData
    data = of(name=topic, partition_data=[of.PartitionProduceData(index=partition, records=records)])
    return ProduceRequest(
        transactional_id=None, acks=1, timeout_ms=30_000, topic_data=[data], min_version=3, max_version=9
    )


def _check(answer: Any) -> None:
    if not answer.succeeded():
        raise answer.exception or TimeoutError("the broker did not answer a produce request")
    if code := answer.value.responses[0].partition_responses[0].error_code:
        raise for_code(code)()
