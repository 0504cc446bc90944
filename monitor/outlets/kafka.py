"""A Kafka topic that is told what happened: services that load models follow the champion by it.

Invariant: an event counts as told once every in-sync replica has it. The key is the model, so one model's events stay
in their order, and a compacted topic keeps the newest of each.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from monitor.config.outside_events import OutsideEvent
from monitor.outlets.document import document
from monitor.outlets.sender import NotTaken, Taken
from retrain.control.audit import Recorded

TIMEOUT = 10.0


class KafkaTopic:
    """Connects with the first event, and again after a failure. `options` as kafka-python's clients take them;
    `patience` in seconds is how long the broker may take over one event."""

    def __init__(
        self, topic: str, events: Collection[OutsideEvent], options: Mapping[str, Any], patience: float = TIMEOUT
    ):
        self.name = f"kafka:{topic}"
        self.events = frozenset(events)
        self._topic = topic
        self._options = options
        self._patience = patience
        self._producer: Any = None

    def deliver(self, entry: Recorded, event: OutsideEvent) -> Taken:
        """See `monitor.outlets.sender.Outlet`."""
        from kafka import errors

        value = json.dumps(document(entry, event), ensure_ascii=False).encode()
        try:
            sent = self._connected().send(self._topic, value, key=entry.model.encode() or None)
            sent.get(timeout=self._patience)
        except errors.MessageSizeTooLargeError:
            return Taken.REFUSED
        except (errors.KafkaError, OSError) as exc:
            self._drop()
            raise NotTaken(f"{type(exc).__name__}: {exc}"[:300]) from exc
        return Taken.YES

    def _connected(self) -> Any:
        if self._producer is None:
            from kafka import KafkaProducer

            patience = int(self._patience * 1000)
            self._producer = KafkaProducer(
                **self._options,
                acks="all",
                max_block_ms=patience,
                bootstrap_timeout_ms=patience,
                delivery_timeout_ms=patience,
                request_timeout_ms=patience // 2,
            )
        return self._producer

    def _drop(self) -> None:
        from kafka import errors

        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                producer.close(timeout=1)
            except errors.KafkaError:
                return  # it is thrown away
