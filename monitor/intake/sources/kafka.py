"""Kafka as a source: a member of one consumer group that commits by hand.

Invariant: no record is skipped. The position only moves over records that `poll` has returned; partitions are
named by topic id and every commit carries that id, so neither the offsets nor the commits of a deleted topic
are ever taken for those of its successor. When in doubt the consumer is dropped and the next `poll` begins
again from the committed positions: the lake drops what it has seen.
"""

from __future__ import annotations

import importlib.util
import logging
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import structlog
from kafka import ConsumerRebalanceListener, KafkaConsumer
from kafka import errors as kafka_errors
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.net.compat import KafkaNetClient
from kafka.structs import OffsetAndMetadata

from monitor.base.errors import TransientError
from monitor.base.kinds import Stream
from monitor.intake.sources import Records, SourceRefused

log = structlog.get_logger(__name__)

FETCH_BYTES = 32 * 1024 * 1024  # per broker and fetch: bounds the memory of a poll
PARTITION_FETCH_BYTES = 4 * 1024 * 1024  # a longer message still arrives, alone (KIP-74)
WATCH_EVERY = 0.5  # seconds between looks at connections and topics
ABSENT_AFTER = 1.5  # seconds without metadata before a topic counts as missing: recreation and start take less
AWAY_AFTER = 2.0  # seconds without a connection before the broker counts as away
MISSING_EVERY = 30.0  # seconds between complaints about one missing topic while others deliver

_REFUSALS = (
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.IllegalSaslStateError,
    kafka_errors.AuthorizationError,
    kafka_errors.KafkaConfigurationError,
    kafka_errors.InvalidSessionTimeoutError,
    kafka_errors.InvalidGroupIdError,
    kafka_errors.InconsistentGroupProtocolError,
    kafka_errors.UnsupportedVersionError,
    kafka_errors.UnsupportedCodecError,  # a compression whose Python package is not installed
)
_LOST_MEMBERSHIP = (
    kafka_errors.CommitFailedError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.RebalanceInProgressError,
    kafka_errors.UnknownMemberIdError,
    kafka_errors.FencedInstanceIdError,
)


def _ignore(*_: object) -> None:
    """The observer nobody gave."""


@dataclass(frozen=True, slots=True)
class KafkaObserver:
    """What the metrics want to hear. `on_rebalance` is called from the client's own thread: be quick."""

    on_rebalance: Callable[[Literal["assigned", "revoked", "lost"], int], None] = _ignore
    on_offsets_lost: Callable[[str, int], None] = _ignore  # partition name, records gone before they were read
    on_missing_topics: Callable[[frozenset[str]], None] = _ignore  # called when the set changes


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """How to reach the cluster. Times are seconds, sizes are bytes.

    `check_crcs` None checks them when the C implementation (package crc32c) is installed: the client's own
    in Python reads 2 MB/s.
    """

    bootstrap_servers: str
    group: str
    topics: Mapping[str, Stream]
    client_id: str = "driftd"
    group_instance_id: str | None = None
    auto_offset_reset: Literal["earliest", "latest"] = "earliest"
    isolation_level: Literal["read_committed", "read_uncommitted"] = "read_committed"
    session_timeout: float = 45.0
    max_poll_interval: float = 300.0
    connect_timeout: float = 4.0  # with the other two it bounds how long a stop can take
    commit_timeout: float = 4.0
    close_timeout: float = 2.0
    metadata_max_age: float = 60.0
    max_message_bytes: int = 16 * 1024 * 1024
    check_crcs: bool | None = None
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: str | None = None
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    ssl_cafile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_password: str | None = field(default=None, repr=False)
    ssl_crlfile: str | None = None
    ssl_ciphers: str | None = None
    ssl_check_hostname: bool = True


class KafkaSource:
    """See `monitor.intake.sources.Source`. Partition names: `kafka:<cluster>/<topic>@<topic id>/<n>`."""

    def __init__(self, settings: KafkaSettings, observer: KafkaObserver | None = None) -> None:
        self._settings = settings
        self._observer = observer or KafkaObserver()
        self._consumer: Any = None
        self._client: Any = None
        self._owned: dict[Any, str] = {}  # TopicPartition -> name, for those whose start is checked
        self._topic_ids: dict[str, str] = {}  # topic -> the id under which its partitions are owned
        self._paused = False
        self._missing: frozenset[str] = frozenset()
        self._absent_since: dict[str, float] = {}
        self._complained_at: float | None = None
        self._connected_at = 0.0
        self._asked_at = 0.0

    # --- Source

    def poll(self, timeout: float, max_records: int) -> Sequence[Records]:
        deadline = time.monotonic() + timeout
        with self._translated():
            while True:
                if self._consumer is None:
                    self._connect()
                left = max(0.0, deadline - time.monotonic())
                batches = self._poll_once(min(left, WATCH_EVERY), max_records)
                self._watch(idle=not batches)
                if batches or time.monotonic() >= deadline:
                    return batches

    def commit(self, positions: Mapping[str, int]) -> None:
        if self._consumer is None:
            return
        assigned = self._consumer.assignment()
        offsets = {
            tp: OffsetAndMetadata(positions[name], self._topic_ids[tp.topic], -1)
            for tp, name in self._owned.items()
            if name in positions and tp in assigned and name == self._name(tp)
        }
        if not offsets:
            return
        with self._translated():
            try:
                self._consumer.commit(offsets, timeout_ms=self._settings.commit_timeout * 1000)
            except _LOST_MEMBERSHIP as error:
                log.info("commit_ignored", group=self._settings.group, reason=type(error).__name__)

    def pause(self) -> None:
        self._paused = True
        if self._consumer is not None:
            self._consumer.pause(*self._consumer.assignment())

    def resume(self) -> None:
        self._paused = False
        if self._consumer is not None:
            self._consumer.resume(*self._consumer.assignment())

    def lag(self) -> Mapping[str, int]:
        """As `Source.lag`; takes a second at most, and is empty while the broker does not answer."""
        if self._consumer is None or not self._owned:
            return {}
        assigned = self._consumer.assignment()
        owned = {tp: name for tp, name in self._owned.items() if tp in assigned}
        try:
            ends = self._consumer.end_offsets(list(owned), timeout_ms=1000)
            positions = {tp: self._consumer.position(tp, timeout_ms=0) for tp in owned}
        except (kafka_errors.KafkaError, KeyError):  # KeyError: its answer to a partition that is gone
            return {}
        return {name: max(0, ends[tp] - (positions[tp] or 0)) for tp, name in owned.items()}

    def close(self) -> None:
        self._drop(self._settings.close_timeout)

    # --- the consumer

    def _connect(self) -> None:
        clients: list[Any] = []

        def client(**configs: Any) -> Any:
            made = KafkaNetClient(**configs)
            # 3.0.12 does not hand allow_auto_create_topics on to its metadata requests.
            made.cluster.config["allow_auto_create_topics"] = False
            reasons.listen(made._manager)
            clients.append(made)
            return made

        logging.getLogger("kafka.cluster").addFilter(_is_not_about_absent_topics)
        # Three tries more with a wrong password may lock the account: end the bootstrap at the first refusal.
        reasons = _Reasons(lambda: clients[0]._manager.close())
        logger = logging.getLogger("kafka.net.manager")
        level, propagate = logger.level, logger.propagate
        logger.addHandler(reasons)
        logger.setLevel(logging.WARNING)  # whatever the program shows of this library
        logger.propagate = False
        try:
            consumer = KafkaConsumer(kafka_client=client, **_options(self._settings))
        except BaseException as error:
            for made in clients:  # a constructor that fails leaves its thread running
                made.close()
            if isinstance(error, kafka_errors.KafkaTimeoutError):
                raise self._unreachable(reasons.last) from error
            raise
        finally:
            reasons.over = True
            logger.removeHandler(reasons)
            logger.setLevel(level)
            logger.propagate = propagate
        self._consumer, self._client = consumer, clients[0]
        self._connected_at = time.monotonic()
        self._absent_since = {}
        consumer.subscribe(topics=sorted(self._settings.topics), listener=_Listener(self))

    def _drop(self, timeout: float) -> None:
        """Leave the group and forget the consumer; what was not committed is delivered again."""
        consumer, self._consumer, self._client = self._consumer, None, None
        self._owned, self._topic_ids = {}, {}
        if consumer is None:
            return
        try:
            consumer.close(autocommit=False, timeout_ms=timeout * 1000)
        except (kafka_errors.KafkaError, OSError, RuntimeError) as error:
            log.warning("source_close_failed", group=self._settings.group, reason=str(error))

    def _poll_once(self, timeout: float, max_records: int) -> list[Records]:
        _keep_join(self._consumer._coordinator)
        try:
            fetched = self._consumer.poll(timeout_ms=timeout * 1000, max_records=max_records)
        except kafka_errors.NoOffsetForPartitionError as error:
            self._begin(error.args[0])
            return []
        except kafka_errors.OffsetOutOfRangeError as error:
            self._step_over_gaps(error.args[0])
            return []
        except kafka_errors.LogTruncationError as error:
            self._step_back(error.divergent_offsets)
            return []
        try:
            if self._recreated():
                self._restart("topic recreated")
                return []
            self._settle(fetched)
        except BaseException:
            self._drop(0)  # the position has moved over what is not returned
            raise
        topics, owned = self._settings.topics, self._owned
        return [
            Records(
                stream=topics[tp.topic],
                partition=owned[tp],
                offsets=[record.offset for record in records],
                values=[record.value for record in records],
                next_offset=records[-1].offset + 1,
            )
            for tp, records in fetched.items()
        ]

    # --- whose offsets are these

    def _settle(self, fetched: dict[Any, Any]) -> None:
        """Name what was newly assigned; take out of `fetched` what a deleted topic's position led to."""
        assigned = self._consumer.assignment()
        if assigned == self._owned.keys():
            return
        self._owned = {tp: name for tp, name in self._owned.items() if tp in assigned}
        self._topic_ids = {tp.topic: self._topic_ids[tp.topic] for tp in self._owned}
        for tp in assigned - self._owned.keys():
            topic_id = self._topic_id(tp.topic)
            committed = self._consumer.committed(tp, metadata=True, timeout_ms=self._wait_ms)
            if committed is not None and topic_id and committed.metadata not in ("", None, topic_id):
                first = self._first_offset(tp)
                log.warning("position_of_deleted_topic_dropped", topic=tp.topic, partition=tp.partition)
                self._consumer.seek(tp, first)
                fetched.pop(tp, None)
            self._topic_ids[tp.topic] = topic_id
            self._owned[tp] = self._name(tp)
        for tp in fetched.keys() - self._owned.keys():  # revoked between the fetch and here
            del fetched[tp]

    def _recreated(self) -> bool:
        """Whether a topic we read has another id by now: what was just fetched may be of either."""
        ids = self._client.cluster.topic_id
        return any(known and str(ids(topic) or known) != known for topic, known in self._topic_ids.items())

    def _topic_id(self, topic: str) -> str:
        """Its id, or "" when the broker is too old to have ids (before 2.8)."""
        cluster = self._client.cluster
        deadline = time.monotonic() + self._settings.connect_timeout
        while cluster.partitions_for_topic(topic) is None:  # assigned by a leader with newer metadata
            if time.monotonic() > deadline:
                raise TransientError(f"topic {topic!r} is assigned to us but not in the broker's metadata")
            self._refresh_metadata()
        return str(cluster.topic_id(topic) or "")

    def _refresh_metadata(self) -> None:
        update = self._client.cluster.request_update()
        deadline = time.monotonic() + 1.0
        while not update.is_done and time.monotonic() < deadline:
            time.sleep(0.01)

    def _name(self, tp: Any) -> str:
        cluster = self._client.cluster
        topic_id = cluster.topic_id(tp.topic)
        topic = f"{tp.topic}@{topic_id}" if topic_id else tp.topic
        return f"kafka:{cluster.cluster_id or '-'}/{topic}/{tp.partition}"

    # --- positions that do not exist

    @property
    def _wait_ms(self) -> float:
        return self._settings.connect_timeout * 1000

    def _first_offset(self, tp: Any) -> int:
        return int(self._consumer.beginning_offsets([tp], timeout_ms=self._wait_ms)[tp])

    def _begin(self, partitions: set[Any]) -> None:
        """Partitions without a committed position."""
        for tp in partitions & self._consumer.assignment():
            if self._settings.auto_offset_reset == "earliest":
                self._consumer.seek_to_beginning(tp)
            else:
                self._consumer.seek_to_end(tp)

    def _step_over_gaps(self, offsets: Mapping[Any, int]) -> None:
        """Go on with the first record there is (whatever auto_offset_reset says: that loses least)."""
        self._refresh_metadata()
        if self._recreated():
            self._restart("topic recreated")
            return
        for tp, offset in offsets.items():
            first = self._first_offset(tp)
            name = self._owned.get(tp) or self._name(tp)
            if offset < first:
                log.error("records_lost", partition=name, records=first - offset, reason="retention passed us")
                self._observer.on_offsets_lost(name, first - offset)
            else:
                log.error("log_shorter_than_position", partition=name, position=offset)
            self._consumer.seek(tp, first)

    def _step_back(self, divergent: Mapping[Any, Any]) -> None:
        """An unclean leader election took away records that we had read."""
        for tp, end in divergent.items():
            log.error("log_truncated", topic=tp.topic, partition=tp.partition)
            self._consumer.seek(tp, end.offset if end is not None else self._first_offset(tp))

    def _restart(self, reason: str) -> None:
        log.warning("source_restarted", group=self._settings.group, reason=reason)
        self._drop(self._settings.close_timeout)

    # --- trouble

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except _REFUSALS as error:
            self._drop(0)
            servers = self._settings.bootstrap_servers
            raise SourceRefused(f"Kafka at {servers} refuses this client: {_text(error)}") from error
        except (kafka_errors.KafkaError, OSError) as error:
            if not getattr(error, "retriable", False):
                self._drop(0)
            raise TransientError(f"Kafka at {self._settings.bootstrap_servers}: {_text(error)}") from error

    def _unreachable(self, reason: BaseException | None) -> TransientError:
        text = f"no Kafka broker answers at {self._settings.bootstrap_servers}"
        if reason is not None:
            text += f": {_text(reason)}"
        refused = isinstance(reason, _REFUSALS) or "SSL" in text
        return SourceRefused(text) if refused else TransientError(text)

    def _watch(self, *, idle: bool) -> None:
        """Raise TransientError when nothing came because nothing can come."""
        if self._consumer is None:
            return
        now = time.monotonic()
        cluster = self._client.cluster
        nodes = [broker.node_id for broker in cluster.brokers()]
        nodes.append(cluster.get_coordinator(self._settings.group))
        if not idle or any(self._client.connected(node) for node in nodes):
            self._connected_at = now
        elif now - self._connected_at > AWAY_AFTER:
            if now - self._connected_at > self._settings.session_timeout:
                self._drop(0)  # the next poll asks for addresses anew
            raise self._unreachable(None)

        absent = [topic for topic in self._settings.topics if cluster.partitions_for_topic(topic) is None]
        self._absent_since = {topic: self._absent_since.get(topic, now) for topic in absent}
        if absent and now - self._asked_at >= WATCH_EVERY:
            self._asked_at = now  # 3.0.12 forgets a request made while an older one is under way
            cluster.request_update()
        missing = frozenset(t for t, since in self._absent_since.items() if now - since >= ABSENT_AFTER)
        if missing != self._missing:
            self._missing, self._complained_at = missing, None
            self._observer.on_missing_topics(missing)
        useless = len(missing) == len(self._settings.topics)
        rested = self._complained_at is None or now - self._complained_at >= MISSING_EVERY
        if missing and idle and (useless or rested):
            self._complained_at = now
            names = ", ".join(repr(topic) for topic in sorted(missing))
            raise TransientError(
                f"topic {names} does not exist on {self._settings.bootstrap_servers}: "
                "create it or change source.kafka.predictions or source.kafka.labels"
            )


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka ships no types
    """Runs in the client's thread while `poll` waits; what arrives in a pause is paused before its fetch."""

    def __init__(self, source: KafkaSource) -> None:
        self._source = source

    def on_partitions_assigned(self, assigned: set[Any]) -> None:
        if self._source._paused:
            self._source._consumer.pause(*assigned)
        self._told("assigned", assigned)

    def on_partitions_revoked(self, revoked: set[Any]) -> None:
        self._told("revoked", revoked)

    def on_partitions_lost(self, lost: set[Any]) -> None:
        self._told("lost", lost)

    def _told(self, kind: Literal["assigned", "revoked", "lost"], partitions: set[Any]) -> None:
        group = self._source._settings.group
        log.info("partitions_" + kind, group=group, partitions=sorted(f"{t}/{n}" for t, n in partitions))
        self._source._observer.on_rebalance(kind, len(partitions))


class _Reasons(logging.Handler):
    """The last error the client logged while it connects: it raises a bare time-out for all of them."""

    def __init__(self, on_refusal: Callable[[], object]) -> None:
        super().__init__()
        self.last: BaseException | None = None
        self.over = False
        """The client has connected, or given up."""
        self._on_refusal = on_refusal

    def emit(self, record: logging.LogRecord) -> None:
        for value in record.args if isinstance(record.args, tuple) else ():
            if isinstance(value, Exception) and not isinstance(value, kafka_errors.KafkaTimeoutError):
                self._take(value)

    def listen(self, manager: Any) -> None:
        """A busy broker (4.3) may end the connection instead of answering to wrong credentials; the client (3.0.12)
        then logs that it was disconnected, as for a broker that is away."""
        connect = manager.get_connection
        heard: weakref.WeakSet[Any] = weakref.WeakSet()

        def listening(*args: Any, **options: Any) -> Any:
            connection = connect(*args, **options)
            if connection not in heard:
                heard.add(connection)
                connection._sasl_authenticate = self._checking(connection._sasl_authenticate)
            return connection

        manager.get_connection = listening

    def _checking(self, authenticate: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def checking(*args: Any) -> None:
            try:
                await authenticate(*args)
            except (kafka_errors.KafkaConnectionError, kafka_errors.Cancelled) as error:
                if self.over:
                    raise  # a broker that restarts
                refusal = kafka_errors.SaslAuthenticationFailedError("it ended the connection at our credentials")
                self._take(refusal)
                raise refusal from error

        return checking

    def _take(self, reason: Exception) -> None:
        if isinstance(self.last, _REFUSALS):
            return  # whatever it led to
        self.last = reason
        if isinstance(reason, _REFUSALS):
            self._on_refusal()


class _Joined:
    """A join that is done, in the shape the coordinator waits for."""

    is_done = False

    def __init__(self, assignment: Any) -> None:
        self._assignment = assignment

    def add_callback(self, call: Callable[[Any], object]) -> None:
        call(self._assignment)

    def add_errback(self, call: Callable[[Any], object]) -> None:
        """It did not fail."""


def _keep_join(coordinator: Any) -> None:
    """Work around two faults of kafka-python 3.0.12 that concern a rebalance that outlives one poll.

    A join that succeeded between two polls is thrown away and begun anew, which makes the other replicas
    rejoin too, without end if each is busy between its polls. And a rejoin caused by new metadata is forgotten:
    no heartbeats and no records from then on. Here the next poll finds the join it waited for.
    """
    if not coordinator.rejoining:
        return
    coordinator.request_rejoin()
    task = coordinator._join_task
    joined = task is not None and task.is_done and task.succeeded()
    if joined and not coordinator._generation.is_lost():
        coordinator._join_task = _Joined(task.value)


def _is_not_about_absent_topics(record: logging.LogRecord) -> bool:
    """The client logs an absent topic ten times a second; `poll` says it."""
    return "not found in cluster metadata" not in str(record.msg)


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _options(s: KafkaSettings) -> dict[str, Any]:
    """The settings as kafka-python names them."""
    fetch = max(FETCH_BYTES, s.max_message_bytes)
    native_crc = importlib.util.find_spec("crc32c") is not None
    options: dict[str, Any] = {
        "bootstrap_servers": s.bootstrap_servers,
        "bootstrap_timeout_ms": int(s.connect_timeout * 1000),
        "client_id": s.client_id,
        "group_id": s.group,
        "group_instance_id": s.group_instance_id,
        "partition_assignment_strategy": [CooperativeStickyAssignor],
        "enable_auto_commit": False,
        "allow_auto_create_topics": False,
        "auto_offset_reset": "none",  # done here, so that lost records are counted
        "isolation_level": s.isolation_level,
        "check_crcs": native_crc if s.check_crcs is None else s.check_crcs,
        "metrics_enabled": False,
        "session_timeout_ms": int(s.session_timeout * 1000),
        "heartbeat_interval_ms": int(min(3.0, s.session_timeout / 3) * 1000),
        "max_poll_interval_ms": int(s.max_poll_interval * 1000),
        "metadata_max_age_ms": int(s.metadata_max_age * 1000),
        "reconnect_backoff_max_ms": 2000,
        "fetch_max_bytes": fetch,
        "max_partition_fetch_bytes": min(PARTITION_FETCH_BYTES, s.max_message_bytes),
        "receive_message_max_bytes": fetch + s.max_message_bytes + 1024 * 1024,
        "security_protocol": s.security_protocol,
    }
    if s.security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = s.sasl_mechanism
        options["sasl_plain_username"] = s.sasl_username
        options["sasl_plain_password"] = s.sasl_password
    if s.security_protocol.endswith("SSL"):
        names = ("cafile", "certfile", "keyfile", "password", "crlfile", "ciphers", "check_hostname")
        options |= {f"ssl_{name}": getattr(s, f"ssl_{name}") for name in names}
    return options
