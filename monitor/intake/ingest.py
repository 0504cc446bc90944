"""The polling loop: source -> decode -> lake -> commit, as a pipeline of three threads.

Invariant: a position is committed only after everything before it is durable in the lake, as rows or as dead letters.
The polling thread never decodes or writes, so it always polls in time; while the lake is behind, the source is
paused.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog

from monitor.base.errors import TransientError
from monitor.base.kinds import Stream
from monitor.intake.events import Decoded, Limits, decode
from monitor.intake.rejects import Rejected, dead_letter_frame
from monitor.intake.sources import Records, Source, SourceRefused
from monitor.lake.lake import Lake, Table
from monitor.metrics import Metrics
from retrain.terms.schema import ModelSchema

log = structlog.get_logger()

_TABLES = {Stream.PREDICTIONS: Table.PREDICTIONS, Stream.LABELS: Table.LABELS}
_IN_FLIGHT = 2
_BATCH_BYTES = 8 * 2**20
"""A batch this large is due whatever its rows: three are in memory at once, as bytes, as text and as columns."""
_POLL_ROWS = 5_000
"""A poll asks for no more, so that a batch does not overshoot its bytes by much."""
_BACKOFF = (0.5, 30.0)


@dataclass(frozen=True, slots=True)
class IngestPolicy:
    batch_rows: int
    batch_wait: timedelta
    max_age: timedelta
    max_future: timedelta
    max_bytes: int


@dataclass(slots=True)
class _Buffer:
    records: list[Records] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    since: float = 0.0

    def add(self, polled: Sequence[Records]) -> None:
        if not self.records:
            self.since = time.monotonic()
        for group in polled:
            self.records.append(group)
            self.rows += len(group.values)
            self.bytes += sum(map(len, filter(None, group.values)))


@dataclass(frozen=True, slots=True)
class Batch:
    """Decoded records, and what to commit once they are durable."""

    decoded: Mapping[Stream, Decoded]
    positions: dict[str, int]
    read_at: datetime


class Writer:
    """Makes one batch durable. Retries for as long as it takes, unless told to stop.

    Batches are written in order: after one that was not, none is.
    """

    def __init__(self, lake: Lake, schemas: Mapping[str, ModelSchema], policy: IngestPolicy, metrics: Metrics):
        self._lake = lake
        self._schemas = schemas
        self._policy = policy
        self._metrics = metrics
        self.stopping = threading.Event()
        self._gap = False

    def write(self, records: Sequence[Records], now: datetime | None = None) -> dict[str, int]:
        """`decode` and `append` in one."""
        return self.append(self.decode(records, now))

    def decode(self, records: Sequence[Records], now: datetime | None = None) -> Batch:
        """Touches nothing but its arguments: may run ahead of `append`, in another thread."""
        now = now or datetime.now(UTC)
        limits = Limits(now, self._policy.max_age, self._policy.max_future, self._policy.max_bytes)
        return Batch(
            {s: decode(s, [r for r in records if r.stream is s], self._schemas, limits) for s in Stream},
            {group.partition: group.next_offset for group in records},
            now,
        )

    def append(self, batch: Batch) -> dict[str, int]:
        """Append a batch. Returns the positions to commit. Raises TransientError only when stopping."""
        if self._gap:  # the lake would take these, and then never again those before them
            raise TransientError("an earlier batch has not been written")
        self._gap = True
        started = time.monotonic()
        delay = _BACKOFF[0]
        while True:
            try:
                self._append(batch)
            except TransientError as exc:
                self._metrics.batches.labels("failed").inc()
                self._metrics.ready.bad("lake", str(exc))
                log.warning("lake_unavailable", detail=str(exc), retry_in=round(delay, 1))
                if self.stopping.wait(delay * random.uniform(0.8, 1.2)):  # noqa: S311 - jitter, not a secret
                    raise
                delay = min(delay * 2, _BACKOFF[1])
                continue
            self._gap = False
            self._metrics.batches.labels("ok").inc()
            self._metrics.ready.good("lake")
            self._metrics.append_seconds.observe(time.monotonic() - started)
            self._metrics.ingested_at.set_to_current_time()
            return batch.positions

    def _append(self, batch: Batch) -> None:
        # First, and not last: read again after a crash, a record may be an event by then ("too far in the future"),
        # but the lake would not take it any more, behind later ones of its partition.
        self._append_rejected([r for d in batch.decoded.values() for r in d.rejected], batch.read_at)
        for stream, found in batch.decoded.items():
            for model, frame in found.frames.items():
                appended = self._lake.append(_TABLES[stream], frame, model)
                self._metrics.events.labels(model, stream.value).inc(appended)
                self._metrics.unknown_fields.labels(model).inc(found.unknown_fields.get(model, 0))

    def _append_rejected(self, rejected: Sequence[Rejected], now: datetime) -> None:
        if not rejected or not self._lake.append(Table.DEAD_LETTERS, dead_letter_frame(rejected, now)):
            return
        for r in rejected:
            self._metrics.dead_letters.labels(r.stream.value, r.reason.value).inc()
        log.warning("events_rejected", count=len(rejected), first_reason=rejected[0].reason.value)


class _Pipeline:
    """One thread decodes while another appends, each in the order of submission."""

    def __init__(self, writer: Writer):
        self._writer = writer
        self._decoding = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        self._appending = ThreadPoolExecutor(1, thread_name_prefix="writer")

    def submit(self, records: Sequence[Records]) -> Future[dict[str, int]]:
        batch = self._decoding.submit(self._writer.decode, records)
        return self._appending.submit(lambda: self._writer.append(batch.result()))

    def __enter__(self) -> _Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoding.shutdown()
        self._appending.shutdown()


class Ingest:
    """Owns the source. `run` until `stop` is set; then flush, commit, leave."""

    def __init__(self, source: Source, writer: Writer, policy: IngestPolicy, metrics: Metrics):
        self._source = source
        self._writer = writer
        self._policy = policy
        self._metrics = metrics
        self._buffer = _Buffer()
        self._in_flight: list[Future[dict[str, int]]] = []
        self._paused = False
        self._delay = _BACKOFF[0]
        self._lag_at = 0.0
        self.polled_at = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        with _Pipeline(self._writer) as pipeline:
            try:
                while not stop.is_set():
                    self._step(pipeline, stop)
                self._finish(pipeline)
            finally:
                self._writer.stopping.set()
                self._source.close()

    def _step(self, pipeline: _Pipeline, stop: threading.Event) -> None:
        try:
            self._settle()
            self._balance()
            room = max(1, self._policy.batch_rows - self._buffer.rows)
            polled = self._source.poll(0.2, min(room, _POLL_ROWS))
        except TransientError as exc:
            if self._due():  # what has been read need not wait until the source is back
                self._submit(pipeline)
            self._unavailable(exc, stop)
            return
        self.polled_at = time.monotonic()
        self._delay = _BACKOFF[0]
        self._metrics.ready.good("source")
        self._buffer.add(polled)
        if self._due():
            self._submit(pipeline)
        self._report_lag()

    def _due(self) -> bool:
        buffer, policy = self._buffer, self._policy
        if not buffer.records:
            return False
        full = buffer.rows >= policy.batch_rows or buffer.bytes >= _BATCH_BYTES
        return full or time.monotonic() - buffer.since >= policy.batch_wait.total_seconds()

    def _submit(self, pipeline: _Pipeline) -> None:
        if len(self._in_flight) < _IN_FLIGHT:
            batch, self._buffer = self._buffer, _Buffer()
            self._in_flight.append(pipeline.submit(batch.records))

    def _settle(self) -> None:
        """Commit what has become durable, in order."""
        while self._in_flight and self._in_flight[0].done():
            self._source.commit(self._in_flight[0].result())
            self._in_flight.pop(0)

    def _balance(self) -> None:
        behind = len(self._in_flight) >= _IN_FLIGHT and self._due()
        if behind != self._paused:
            (self._source.pause if behind else self._source.resume)()
            self._paused = behind
            self._metrics.paused.set(float(behind))

    def _unavailable(self, exc: TransientError, stop: threading.Event) -> None:
        kind = "refused" if isinstance(exc, SourceRefused) else "unavailable"
        self._metrics.source_errors.labels(kind).inc()
        self._metrics.ready.bad("source", str(exc))
        log.warning(f"source_{kind}", detail=str(exc), retry_in=round(self._delay, 1))
        self.polled_at = time.monotonic()
        stop.wait(self._delay * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, not a secret
        self._delay = min(self._delay * 2, _BACKOFF[1])

    def _report_lag(self) -> None:
        if time.monotonic() - self._lag_at < 5:
            return
        self._lag_at = time.monotonic()
        self._metrics.lag.clear()
        for partition, lag in self._source.lag().items():
            self._metrics.lag.labels(partition).set(lag)

    def _finish(self, pipeline: _Pipeline) -> None:
        """Within the time a stop may take: write what was read, commit it. What fails is read again later."""
        self._writer.stopping.set()
        if self._buffer.records:
            self._in_flight.append(pipeline.submit(self._buffer.records))
        deadline = time.monotonic() + 6
        for future in self._in_flight:
            try:
                self._source.commit(future.result(timeout=max(0.0, deadline - time.monotonic())))
            except (TransientError, TimeoutError) as exc:
                log.warning("batch_left_for_restart", detail=str(exc))
                return
