"""A service team for tests: events that follow from their number alone, and a thread that keeps sending them.

Event `n` is the same whoever asks, so what must be in the lake follows from how many were sent.
"""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from monitor.base.kinds import Stream
from tests.daemons import MODEL

POISON_EVERY = 97
STRETCH = 1500


class Sink(Protocol):
    """Where events go. Returns when they are safe there."""

    def send(self, events: list[tuple[Stream, int, bytes]]) -> None: ...

    def close(self) -> None: ...


class KafkaSink:
    """Partition by event number. Idempotent, so that a broker's restart sends nothing twice."""

    def __init__(self, bootstrap: str, topics: dict[Stream, str], partitions: int = 1):
        from kafka import KafkaProducer

        self._topics = topics
        self._partitions = partitions
        self._producer = KafkaProducer(
            bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, linger_ms=5,
            delivery_timeout_ms=120_000, max_request_size=16 * 2**20,
        )  # fmt: skip

    def send(self, events: list[tuple[Stream, int, bytes]]) -> None:
        sent = [
            self._producer.send(self._topics[stream], value, partition=n % self._partitions)
            for stream, n, value in events
        ]
        for each in sent:
            each.get(timeout=120)

    def close(self) -> None:
        self._producer.close()


class FileSink:
    """Appends NDJSON, beginning a new file every `per_file` events."""

    def __init__(self, folder: Path, per_file: int = 2000):
        self._folder = folder
        self._per_file = per_file

    def send(self, events: list[tuple[Stream, int, bytes]]) -> None:
        lines: dict[Path, list[bytes]] = {}
        for stream, n, value in events:
            path = self._folder / stream.value / f"{n // self._per_file:04}.ndjson"
            lines.setdefault(path, []).append(value + b"\n")
        for path, mine in lines.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as out:
                out.writelines(mine)

    def close(self) -> None:
        """Nothing is held open."""


def six_hours_ago() -> datetime:
    """To the full minute."""
    return datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(hours=6)


@dataclass
class Traffic:
    """Sends `rate` predictions a second of wall time, `step` apart in event time; labels follow `lag` events later.

    Every `POISON_EVERY`-th prediction is no event. Every tenth prediction is never labelled. In every other
    stretch of five windows half of the ages are missing; in every third such stretch the amounts are shifted.
    """

    sink: Sink
    rate: float = 300.0
    step: timedelta = timedelta(milliseconds=200)
    lag: int = 150
    start: datetime = field(default_factory=six_hours_ago)
    sent: int = 0
    failure: BaseException | None = None

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # -- single events

    def ts(self, n: int) -> datetime:
        return self.start + n * self.step

    def poison(self, n: int) -> bool:
        return n % POISON_EVERY == POISON_EVERY - 1

    def labelled(self, n: int) -> bool:
        return not self.poison(n) and n % 10 != 3

    def prediction(self, n: int) -> bytes:
        if self.poison(n):
            return b"no event %d" % n
        dice = random.Random(n)
        stretch = n // STRETCH
        amount = dice.gauss(8.0 if stretch % 3 == 2 else 0.0, 1.0)
        blank = stretch % 2 == 1 and n % 2 == 0
        event: dict[str, Any] = {
            "prediction_id": f"p{n}", "model": MODEL, "model_version": "1", "ts": self.ts(n).isoformat(),
            "features": {
                "amount": amount,
                "age": None if blank else dice.randint(18, 80),
                "country": dice.choice(["de", "fr"]),
            },
            "prediction": str(int(amount > 0)), "score": dice.random(), "latency_ms": dice.uniform(1, 9),
        }  # fmt: skip
        return json.dumps(event).encode()

    def label(self, n: int) -> bytes:
        event = {
            "prediction_id": f"p{n}", "model": MODEL, "ts": (self.ts(n) + timedelta(seconds=30)).isoformat(),
            "label": str(n % 2),
        }  # fmt: skip
        return json.dumps(event).encode()

    # -- sending

    def send(self, count: int) -> None:
        """The next `count` predictions and the labels that are due by then."""
        events: list[tuple[Stream, int, bytes]] = []
        for n in range(self.sent, self.sent + count):
            events.append((Stream.PREDICTIONS, n, self.prediction(n)))
            if n >= self.lag and self.labelled(n - self.lag):
                events.append((Stream.LABELS, n - self.lag, self.label(n - self.lag)))
        self.sink.send(events)
        self.sent += count

    def begin(self) -> Traffic:
        """Keep sending until `end`."""
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self._thread.start()
        return self

    def end(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.sink.close()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        began, before = time.monotonic(), self.sent
        try:
            while not self._stop.wait(0.02):
                due = int((time.monotonic() - began) * self.rate) - (self.sent - before)
                if due > 0:
                    self.send(min(due, 2000))
        except BaseException as error:  # noqa: BLE001 - told in `end`
            self.failure = error

    # -- what must be there

    def predictions(self) -> set[str]:
        return {f"p{n}" for n in range(self.sent) if not self.poison(n)}

    def labels(self) -> set[str]:
        return {f"p{n}" for n in range(max(0, self.sent - self.lag)) if self.labelled(n)}

    def poisons(self) -> list[bytes]:
        return [self.prediction(n) for n in range(self.sent) if self.poison(n)]
