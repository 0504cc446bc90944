"""A topic is told what happened, in order, each at least once, also when the broker was away."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition
from sqlalchemy import Engine

from monitor.base.errors import ConfigError
from monitor.config.loading import from_dict
from monitor.config.outside_events import OutsideEvent
from monitor.metrics import Metrics
from monitor.outlets.kafka import KafkaTopic
from monitor.outlets.sender import NotTaken, Sender
from retrain.config.connection import KafkaConnection
from retrain.control import audit
from retrain.control.audit import AuditKind, Entry
from tests.builders import MINUTE, NOW
from tests.conftest import KafkaCluster

MODELS = {"fraud": {"task": "regression", "features": {"a": "number"}}}


@pytest.fixture
def engine(tmp_path: Any) -> Iterator[Engine]:
    from retrain.control.database import create_tables, open_engine

    engine = open_engine(f"sqlite:///{tmp_path}/control.db")
    create_tables(engine)
    yield engine
    engine.dispose()


def moved(engine: Engine, version: str, model: str = "fraud") -> None:
    gates = [{"name": "quality", "passed": True}]
    body = {"version": version, "previous_version": "1", "job": "j", "gates": gates}
    audit.note(engine, Entry(NOW, AuditKind.ALIAS_MOVED, model, "job", "champion", "why", body))


def records(cluster: KafkaCluster, topic: str, count: int) -> list[tuple[bytes, dict[str, Any]]]:
    consumer = KafkaConsumer(bootstrap_servers=cluster.bootstrap, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(topic, 0)])
    found: list[tuple[bytes, dict[str, Any]]] = []
    while len(found) < count:
        for batch in consumer.poll(timeout_ms=5000).values():
            found += [(r.key, json.loads(r.value)) for r in batch]
    consumer.close()
    return found


def test_events_come_in_order_with_the_model_as_key(kafka_broker: KafkaCluster, engine: Engine) -> None:
    topic = kafka_broker.create_topic()
    connection = KafkaConnection(bootstrap=(kafka_broker.bootstrap,))
    outlet = KafkaTopic(topic, [OutsideEvent.CHAMPION_MOVED], connection.client_options())
    metrics = Metrics()
    sender = Sender(outlet, engine, metrics, threading.Event(), lambda: True)
    sender.begin()
    for version in ("2", "3"):
        moved(engine, version)
    moved(engine, "9", model="price")
    audit.note(engine, Entry(NOW, AuditKind.PAUSED, "", "ada", "retraining", "freeze"))
    sender.send(NOW)
    found = records(kafka_broker, topic, 3)
    assert [(key, r["event"], r["version"]) for key, r in found] == [
        (b"fraud", "champion_moved", "2"), (b"fraud", "champion_moved", "3"), (b"price", "champion_moved", "9"),
    ]  # fmt: skip
    assert found[0][1]["gates"] == [{"name": "quality", "passed": True}]
    labels = {"outlet": f"kafka:{topic}", "outcome": "sent"}
    assert metrics.registry.get_sample_value("driftd_event_deliveries_total", labels) == 3
    outlet._drop()


def test_a_broker_that_is_away_keeps_the_queue(kafka_broker: KafkaCluster, engine: Engine) -> None:
    topic = kafka_broker.create_topic()
    options = KafkaConnection(bootstrap=("127.0.0.1:1",)).client_options()
    outlet = KafkaTopic(topic, [OutsideEvent.CHAMPION_MOVED], options, patience=0.5)
    sender = Sender(outlet, engine, Metrics(), threading.Event(), lambda: True)
    sender.begin()
    moved(engine, "2")
    entry = next(audit.entries(engine))
    with pytest.raises(NotTaken):
        outlet.deliver(entry, OutsideEvent.CHAMPION_MOVED)
    sender.send(NOW)
    back = KafkaTopic(
        topic, [OutsideEvent.CHAMPION_MOVED], KafkaConnection(bootstrap=(kafka_broker.bootstrap,)).client_options()
    )
    again = Sender(back, engine, Metrics(), threading.Event(), lambda: True)
    again.send(NOW + MINUTE)
    assert [r["version"] for _, r in records(kafka_broker, topic, 1)] == ["2"]
    back._drop()


def test_the_table_needs_a_connection() -> None:
    kafka = {"kafka": {"bootstrap": ["b:9092"]}}
    good = from_dict({"events": {"topic": "driftd.events"}, "source": kafka, "models": MODELS}).config
    assert good.events is not None
    assert set(good.events.events) == set(OutsideEvent)
    with pytest.raises(ConfigError, match=r"events: needs the table \[source.kafka\]"):
        from_dict({"events": {"topic": "driftd.events"}, "models": MODELS})
