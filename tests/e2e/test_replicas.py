"""Two daemons in one group on one lake: one frozen past its session and its lease and woken, then killed.

On PostgreSQL: a process that is frozen while it writes to SQLite blocks everybody for as long.
"""

from __future__ import annotations

import signal
from pathlib import Path
from uuid import uuid4

import pytest

from monitor.base.kinds import Stream
from tests.conftest import KafkaCluster
from tests.daemons import Daemon, Daemons, kafka, until
from tests.e2e.test_crash import check_exactly_once, drain
from tests.fakes import KafkaSink, Traffic
from tests.postgres import PostgresServer


def leads(daemon: Daemon) -> bool:
    return daemon.metric("driftd_leader") == 1


def owned(daemon: Daemon) -> set[str]:
    """Partitions it holds, by its log."""
    held: set[str] = set()
    for line in daemon.lines():
        match line["event"]:
            case "partitions_assigned":
                held |= set(line["partitions"])
            case "partitions_revoked" | "partitions_lost":
                held -= set(line["partitions"])
    return held


@pytest.mark.timeout(900)
def test_a_frozen_and_a_killed_replica_lose_and_double_nothing(
    kafka_broker: KafkaCluster, postgres: PostgresServer, tmp_path: Path
) -> None:
    topics = {Stream.PREDICTIONS: kafka_broker.create_topic(4), Stream.LABELS: kafka_broker.create_topic(2)}
    everything = {f"{topics[Stream.PREDICTIONS]}/{n}" for n in range(4)}
    everything |= {f"{topics[Stream.LABELS]}/{n}" for n in range(2)}
    source = kafka(kafka_broker.bootstrap, *topics.values(), group=f"g-{uuid4().hex[:8]}", session_timeout="3s")
    shared = {"lake": {"uri": str(tmp_path / "lake")}, "daemon": {"control_url": postgres.create_database()}}
    traffic = Traffic(KafkaSink(kafka_broker.bootstrap, topics, partitions=2), rate=200)
    with Daemons(tmp_path) as daemons:
        pair = [daemons.make(source, name, **shared).start() for name in ("a", "b")]
        traffic.begin()
        try:
            until("both to read", lambda: all(owned(d) for d in pair) and owned(pair[0]) | owned(pair[1]) == everything)
            until("one leader", lambda: sorted(leads(d) for d in pair) == [False, True])
            frozen, other = sorted(pair, key=leads, reverse=True)
            until("windows", lambda: frozen.metric("driftd_windows_measured_total") > 2, within=120)

            frozen.signal(signal.SIGSTOP)
            until("the other to read all", lambda: owned(other) == everything)
            until("the other to lead", lambda: leads(other))
            until("the other to measure", lambda: other.metric("driftd_windows_measured_total") > 2, within=120)
            frozen.signal(signal.SIGCONT)

            until("it to have lost and got partitions", lambda: frozen.logged("partitions_lost") and owned(frozen))
            until("one leader again", lambda: not leads(frozen) and leads(other))
            sent = traffic.sent
            until("traffic", lambda: traffic.sent > sent + 300)
            frozen.kill()
            until("the other to read all again", lambda: owned(other) == everything)
        finally:
            traffic.end()
        drain(other, traffic, within=120)
        check_exactly_once(other, traffic)
        assert other.stop()[0] == 0
