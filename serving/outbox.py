"""Prediction events on their way out: written to a file before the answer is given, shipped to Kafka behind it.

Invariant: an answered request's events are in the outbox, and a segment of the outbox is deleted only once the broker
has acknowledged every line of it; so a broker that is away or a `kill -9` loses nothing, and may send something
twice, which driftd counts once. What does not fit into the outbox any more is counted as lost; answering goes on.
"""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import structlog

from retrain.config.connection import KafkaConnection

log = structlog.get_logger()

SEGMENT_BYTES = 8 << 20
ACK_WITHIN = 30.0
"""Seconds for the broker to acknowledge one segment."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0


class Full(Exception):
    """The outbox holds as much as it may."""


class Files:
    """NDJSON files that grow, as driftd's file source reads them, a new one after SEGMENT_BYTES: their own outbox."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder / "predictions"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._name, self._number = f"{name}-{time.time_ns()}", 0
        self._lock = threading.Lock()

    def append(self, events: Sequence[bytes]) -> None:
        with self._lock:
            path = self._folder / f"{self._name}-{self._number:06}.ndjson"
            with path.open("ab") as out:
                out.writelines(event + b"\n" for event in events)
                self._number += out.tell() >= SEGMENT_BYTES

    @property
    def size(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing is held open."""


class Outbox:
    """A folder of NDJSON segments, one process's at a time. `append` and `take` may be called from different
    threads."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._most = folder, most_bytes
        self._held = (folder / "lock").open("w")
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._held.close()
            raise
        self._lock = threading.Lock()
        self._open: IO[bytes] | None = None
        left = [path for path in sorted(folder.glob("*.ndjson")) if path.stat().st_size]
        self._number = int(left[-1].stem) + 1 if left else 0
        self.size = sum(path.stat().st_size for path in left)

    def append(self, events: Sequence[bytes]) -> None:
        """Raises Full."""
        lines = b"".join(event + b"\n" for event in events)
        with self._lock:
            if self.size + len(lines) > self._most:
                raise Full
            if self._open is None:
                self._open = (self._folder / f"{self._number:012}.ndjson").open("ab", buffering=0)
                self._number += 1
            self._open.write(lines)
            self.size += len(lines)
            if self._open.tell() >= SEGMENT_BYTES:
                self._close()

    def take(self) -> tuple[Path, list[bytes]] | None:
        """The oldest segment, to which nothing is added any more, and its lines; None when there is nothing. A last
        line without an end was cut off by a crash, before its request was answered."""
        with self._lock:
            self._close()
            closed = sorted(self._folder.glob("*.ndjson"))
        for path in closed:
            text = path.read_bytes()
            lines = text[: text.rfind(b"\n") + 1].splitlines()
            if lines:
                return path, lines
            path.unlink()
        return None

    def shipped(self, path: Path) -> None:
        size = path.stat().st_size
        path.unlink()
        with self._lock:
            self.size -= size

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def close(self) -> None:
        with self._lock:
            self._close()
        self._held.close()


class Shipper:
    """Sends the outbox to a topic. `run` in a thread of its own; `stop` lets it send what is there, for a while."""

    def __init__(
        self,
        outbox: Outbox,
        connection: KafkaConnection,
        topic: str,
        on_shipped: Callable[[int], None],
        on_failure: Callable[[], None],
    ) -> None:
        self._outbox = outbox
        self._connection = connection
        self._topic = topic
        self._on_shipped = on_shipped
        self._on_failure = on_failure
        self._stopping = threading.Event()
        self._producer: Any = None

    def run(self) -> None:
        wait = _FIRST_WAIT
        while True:
            try:
                while self._ship():
                    wait = _FIRST_WAIT
            except Exception as exc:  # noqa: BLE001 - whatever the client raises, the events stay and are sent again
                self._on_failure()
                self._drop_producer()
                log.warning("events_waiting", detail=f"{type(exc).__name__}: {exc}"[:300], bytes=self._outbox.size)
                if self._stopping.is_set():
                    return
                self._stopping.wait(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
                continue
            if self._stopping.is_set():
                self._drop_producer()
                return
            self._stopping.wait(0.1)

    def stop(self) -> None:
        self._stopping.set()

    def _ship(self) -> bool:
        """One segment; False when there is none."""
        taken = self._outbox.take()
        if taken is None:
            return False
        path, lines = taken
        producer = self._connected()
        sent = [producer.send(self._topic, line) for line in lines]
        deadline = time.monotonic() + ACK_WITHIN
        for future in sent:
            future.get(timeout=max(0.1, deadline - time.monotonic()))
        self._outbox.shipped(path)
        self._on_shipped(len(lines))
        return True

    def _connected(self) -> Any:
        if self._producer is None:
            from kafka import KafkaProducer

            self._producer = KafkaProducer(
                **self._connection.client_options(),
                acks="all",
                linger_ms=5,
                compression_type="gzip",
                max_block_ms=5000,
                bootstrap_timeout_ms=5000,
                delivery_timeout_ms=int(ACK_WITHIN * 1000),
                request_timeout_ms=10_000,
            )
        return self._producer

    def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            try:
                producer.close(timeout=1)
            except Exception as exc:  # noqa: BLE001 - it is thrown away
                log.debug("producer_not_closed", detail=str(exc))
