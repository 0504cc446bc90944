"""Kafka -> durable lake against a bare kafka-python poll loop over the same topic, in turn, each in its own process.

Invariant: both read every record of the topic with the same client options; ours also decodes, appends and commits.
Counted is the time from the first records that arrive to the last one counted, or committed.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from bench.kafka import broker, topic_of
from bench.say import Say, quietly

EVENTS, ROUNDS = 500_000, 3
ROOT = Path(__file__).parents[1]
TIMEOUT = 300.0


def run(say: Say = quietly) -> list[dict[str, Any]]:
    """Events per second of both; the ratio is the median over the rounds."""
    with broker() as bootstrap, topic_of(bootstrap, EVENTS, say) as topic:
        rounds = []
        for number in range(1, ROUNDS + 1):
            order = ("ours", "bare") if number % 2 else ("bare", "ours")
            taken = {}
            for who in order:
                say(f"round {number} of {ROUNDS}: {who}")
                taken[who] = _apart(who, bootstrap, topic)
            rounds.append(taken)
    ours = median(r["ours"]["seconds"] for r in rounds)
    bare = median(r["bare"]["seconds"] for r in rounds)
    return [
        {
            "what": "events/s Kafka -> durable lake, 10 features, against a bare kafka-python poll loop",
            "ours_s": ours,
            "theirs_s": bare,
            "ours_per_s": EVENTS / ours,
            "theirs_per_s": EVENTS / bare,
            "ours_cpu_s": median(r["ours"]["cpu_seconds"] for r in rounds),
            "theirs_cpu_s": median(r["bare"]["cpu_seconds"] for r in rounds),
            "ratio": median(r["bare"]["seconds"] / r["ours"]["seconds"] for r in rounds),
            "ratios": [round(r["bare"]["seconds"] / r["ours"]["seconds"], 3) for r in rounds],
            "at_least": 0.5,
            "aim": 0.9,
        }
    ]


def _apart(who: str, bootstrap: str, topic: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.ingest", who, bootstrap, topic, str(EVENTS)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        timeout=TIMEOUT,
        check=True,
    )
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _settings(bootstrap: str, topic: str) -> Any:
    from monitor.base.kinds import Stream
    from monitor.intake.sources.kafka import KafkaSettings

    return KafkaSettings(bootstrap, f"bench-{uuid4().hex[:8]}", {topic: Stream.PREDICTIONS})


def bare(bootstrap: str, topic: str, count: int) -> dict[str, float]:
    """The least that a Python consumer can do: poll, and count."""
    from kafka import KafkaConsumer, TopicPartition

    from bench.kafka import PARTITIONS
    from monitor.config.sections import SourceConfig
    from monitor.intake.sources.kafka import _options

    options = _options(_settings(bootstrap, topic)) | {"auto_offset_reset": "earliest", "group_id": None}
    consumer = KafkaConsumer(**options)
    consumer.assign([TopicPartition(topic, n) for n in range(PARTITIONS)])  # not even a group to be a member of
    at_once = SourceConfig().batch_rows
    seen, clock = 0, _Clock()
    while seen < count:
        polled = consumer.poll(timeout_ms=200, max_records=at_once)
        if polled:
            clock.begin()
        seen += sum(map(len, polled.values()))
    measured = clock.end()
    consumer.close()
    return measured


def ours(bootstrap: str, topic: str, count: int) -> dict[str, float]:
    """The daemon's own ingest, as `monitor.running.build` wires it, until all of it is committed."""
    from monitor.base.runtime import tune_process

    tune_process()
    from bench.events import MODEL, SCHEMA
    from monitor.config.sections import SourceConfig
    from monitor.intake.ingest import Ingest, IngestPolicy, Writer
    from monitor.intake.sources import Records
    from monitor.intake.sources.kafka import KafkaSource
    from monitor.lake.lake import Lake
    from monitor.metrics import Metrics
    from retrain.base.logs import configure_logs

    clock, stop = _Clock(), threading.Event()
    measured: dict[str, float] = {}

    committed: dict[str, int] = {}

    class Watched(KafkaSource):
        """Tells when the first records came and when the last ones were committed."""

        polled = 0

        def poll(self, timeout: float, max_records: int) -> Sequence[Records]:
            found = super().poll(timeout, max_records)
            if found:
                clock.begin()
            self.polled += sum(len(group.values) for group in found)
            return found

        def commit(self, positions: Mapping[str, int]) -> None:
            super().commit(positions)
            committed.update(positions)
            if sum(committed.values()) >= count:
                measured.update(clock.end())
                stop.set()

    source = Watched(_settings(bootstrap, topic))

    class Drained(Ingest):
        """Does not wait for the rest of the last batch, which never comes."""

        def _due(self) -> bool:
            return super()._due() or (bool(self._buffer.records) and source.polled >= count)

    configure_logs("json")
    defaults = SourceConfig()
    policy = IngestPolicy(
        defaults.batch_rows, defaults.batch_wait, defaults.max_age, defaults.max_future, defaults.max_bytes
    )
    with tempfile.TemporaryDirectory(prefix="driftd-bench-") as folder:
        metrics = Metrics()
        lake = Lake(folder)
        writer = Writer(lake.clone(), {MODEL: SCHEMA}, policy, metrics)
        Drained(source, writer, policy, metrics).run(stop)
        stored = _stored(lake)
    assert stored == count, f"{stored} rows in the lake for {count} events"
    return measured


def _stored(lake: Any) -> int:
    import polars as pl

    from bench.events import MODEL
    from monitor.lake.lake import Table

    rows = lake.scan(Table.PREDICTIONS, MODEL)
    return int(rows.select(pl.len()).collect().item())


class _Clock:
    """Wall and processor time from the first `begin` to `end`."""

    def __init__(self) -> None:
        self._began: tuple[float, float] | None = None

    def begin(self) -> None:
        if self._began is None:
            self._began = time.perf_counter(), _cpu()

    def end(self) -> dict[str, float]:
        assert self._began is not None, "nothing came"
        return {"seconds": time.perf_counter() - self._began[0], "cpu_seconds": _cpu() - self._began[1]}


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    who, bootstrap, topic, count = sys.argv[1:]
    print(json.dumps({"ours": ours, "bare": bare}[who](bootstrap, topic, int(count))))
