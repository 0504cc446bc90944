"""kill -9 at random moments under load: nothing lost, nothing twice, nothing measured twice."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import polars as pl
import pytest

from monitor.base.kinds import Stream
from tests.conftest import KafkaCluster
from tests.daemons import Daemon, Daemons, NotYet, kafka, until
from tests.fakes import FileSink, KafkaSink, Traffic

SEED = 20
# When the clock of a kill begins to run: how far this start has come.
PHASES: dict[str, Callable[[Daemon], bool]] = {
    "starting": lambda d: True,
    "reading": lambda d: d.started(),
    "joining": lambda d: d.started() and d.metric("driftd_outcomes_total") > 0,
    "measuring": lambda d: d.started() and bool(d.workers()),
    "measured": lambda d: d.started() and d.metric("driftd_windows_measured_total") > 0,
}


def kill_at_random_moments(daemon: Daemon, phases: list[str]) -> Counter[str]:
    """Kill it once in each of `phases`, starting it again every time. Returns how far each start had come."""
    dice = random.Random(SEED)
    reached: Counter[str] = Counter()
    for number, phase in enumerate(phases):
        daemon.launch()
        until(f"start {number} to be {phase}", lambda phase=phase: PHASES[phase](daemon), within=120)
        time.sleep(dice.uniform(0.1, 2.0))  # the moment of the kill is what is random here
        daemon.must_run()
        daemon.kill()
        reached[how_far(daemon)] += 1
    return reached


def how_far(daemon: Daemon) -> str:
    """The last step that this start has logged."""
    events = {line["event"] for line in daemon.lines()}
    if "window_measured" in events:
        return "measured"
    return "started" if "daemon_started" in events else "starting"


def missing(daemon: Daemon, traffic: Traffic) -> dict[str, int]:
    """What the daemon still has to do; empty when it is done."""
    daemon.must_run()
    wanted = {
        "predictions": len(traffic.predictions()) - daemon.count("predictions"),
        "labels": len(traffic.labels()) - daemon.count("labels"),
        "outcomes": len(traffic.labels()) - daemon.count("outcomes"),
        "dead letters": len(traffic.poisons()) - daemon.count("dead_letters", ""),
    }
    left = {name: count for name, count in wanted.items() if count > 0}
    return left or ({"windows to measure": len(todo)} if (todo := unmeasured(daemon)) else {})


def drain(daemon: Daemon, traffic: Traffic, within: float) -> None:
    """Wait until all that was sent is stored, joined and measured."""
    left: dict[str, int] = {}

    def done() -> bool:
        left.clear()
        left.update(missing(daemon, traffic))
        return not left

    try:
        until("the daemon to be done", done, within, every=0.5)
    except NotYet as late:
        raise NotYet(f"{late}: left {left}\n{daemon.tail()}") from late


def unmeasured(daemon: Daemon) -> list[tuple[str, object]]:
    """Windows before the newest four that lack drift or final performance."""
    seen = daemon.rows("measurements", columns=["window_start", "kind", "final"]).unique()
    if not seen.height:
        return [("drift", None)]
    starts = daemon.rows("predictions", columns=["ts"])["ts"].dt.truncate("1m").unique().sort().to_list()
    done = set(seen.filter((pl.col("kind") == "drift") | pl.col("final")).select("kind", "window_start").iter_rows())
    return [(k, s) for s in starts[:-4] for k in ("drift", "performance") if (k, s) not in done]


def check_exactly_once(daemon: Daemon, traffic: Traffic) -> None:
    """Every event is in its table once, every labelled prediction is an outcome once."""
    predictions, labels = daemon.rows("predictions"), daemon.rows("labels")
    assert sorted(predictions["prediction_id"]) == sorted(traffic.predictions())
    assert sorted(labels["prediction_id"]) == sorted(traffic.labels())
    assert sorted(daemon.rows("dead_letters", "")["payload"]) == sorted(traffic.poisons())
    assert sorted(daemon.rows("outcomes")["prediction_id"]) == sorted(traffic.labels())
    check_measured_once(daemon)


def check_measured_once(daemon: Daemon) -> None:
    """Each window's drift and final performance are there once, and rules went from phase to phase once."""
    what = ["model_version", "window_start", "kind", "measure", "feature", "metric", "segment"]
    measured = daemon.rows("measurements").filter((pl.col("kind") == "drift") | pl.col("final"))
    twice = measured.group_by(what).len().filter(pl.col("len") > 1)
    assert not twice.height, twice
    transitions = daemon.transitions()
    for rule in {t["rule"] for t in transitions}:
        mine = [t for t in transitions if t["rule"] == rule]
        assert len({t["at"] for t in mine}) == len(mine), mine
        assert all(a["after"] == b["before"] for a, b in pairwise(mine)), mine


@pytest.mark.timeout(900)
def test_twenty_kills_under_load_from_kafka_lose_and_double_nothing(
    kafka_broker: KafkaCluster, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    topics = {Stream.PREDICTIONS: kafka_broker.create_topic(3), Stream.LABELS: kafka_broker.create_topic(2)}
    source = kafka(kafka_broker.bootstrap, *topics.values(), group=f"g-{uuid4().hex[:8]}", session_timeout="2s")
    traffic = Traffic(KafkaSink(kafka_broker.bootstrap, topics, partitions=2), step=timedelta(milliseconds=40))
    phases = ["starting"] * 4 + ["reading"] * 7 + ["joining"] * 4 + ["measuring"] * 2 + ["measured"] * 3
    random.Random(SEED).shuffle(phases)
    with Daemons(tmp_path) as daemons:
        # Without a reference no start waits for Evidently's import: more kills hit measuring and storing.
        daemon = daemons.make(source, model={"reference": {"warmup_windows": 1000}})
        traffic.begin()
        try:
            reached = kill_at_random_moments(daemon, phases)
            daemon.start()
        finally:
            traffic.end()
        print(f"kills by what the start had reached: {dict(reached)}; events sent: {traffic.sent}")
        record_property("kills", dict(reached))
        assert reached["measured"] >= 3
        assert reached["started"] >= 5
        drain(daemon, traffic, within=120)
        check_exactly_once(daemon, traffic)
        assert daemon.transitions(), "half of the ages are missing now and then"
        assert daemon.stop()[0] == 0


@pytest.mark.timeout(600)
def test_five_kills_under_load_from_files_lose_and_double_nothing(tmp_path: Path) -> None:
    with Daemons(tmp_path) as daemons:
        daemon = daemons.make({"kind": "files"})
        traffic = Traffic(FileSink(daemon.state / "events"))
        traffic.begin()
        try:
            kill_at_random_moments(daemon, ["reading", "starting", "joining", "measured", "reading"])
            daemon.start()
        finally:
            traffic.end()
        drain(daemon, traffic, within=90)
        check_exactly_once(daemon, traffic)
        assert daemon.stop()[0] == 0
