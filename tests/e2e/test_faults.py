"""What goes wrong in production, done to a real daemon: it keeps what can go on going, says so, and loses nothing."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl
import pytest
import tomli_w

from monitor.base.kinds import Stream
from monitor.config.loading import load
from monitor.intake.ingest import IngestPolicy, Writer
from monitor.intake.sources import Records
from monitor.lake.lake import Lake
from monitor.metrics import Metrics
from tests.conftest import SASL_USERS, KafkaCluster, require
from tests.daemons import MODEL, Daemon, Daemons, configuration, kafka, rows, until
from tests.e2e.test_crash import check_exactly_once, check_measured_once, drain
from tests.fakes import FileSink, KafkaSink, Traffic

# kafka-python 3.0.12 leaves the sockets of failed connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(autouse=True)
def _no_sockets_left_for_others() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    with Daemons(tmp_path) as made:
        yield made


def unique(name: str) -> str:
    return f"{name}-{uuid4().hex[:8]}"


# -- events


def event(name: str, **changes: Any) -> bytes:
    """A good prediction with some keys replaced, or left out when None is given."""
    good = {
        "prediction_id": name, "model": MODEL, "model_version": "1", "ts": datetime.now(UTC).isoformat(),
        "features": {"amount": 1.0, "age": 30, "country": "de"}, "prediction": "1", "score": 0.9,
    }  # fmt: skip
    return json.dumps({k: v for k, v in (good | changes).items() if v is not None}).encode()


def test_each_kind_of_poison_gets_its_dead_letter_or_null_while_good_events_flow(
    kafka_broker: KafkaCluster, daemons: Daemons
) -> None:
    now = datetime.now(UTC)
    poison: list[tuple[str, bytes | None]] = [
        ("empty", None),
        ("not_json", b"not json"),
        ("not_json", b"\xff\xfe\x00"),
        ("not_json", event("cut")[:-9]),
        ("not_an_object", b"[1, 2]"),
        ("too_large", event("huge", note="x" * (10 * 2**20))),
        ("no_id", event("", prediction_id=None)),
        ("no_id", event("", prediction_id=["a"])),
        ("no_model", event("m", model=None)),
        ("unknown_model", event("u", model="stranger")),
        ("no_timestamp", event("t", ts="yesterday")),
        ("no_timestamp", event("t", ts=None)),
        ("too_old", event("o", ts=(now - timedelta(days=9000)).isoformat())),
        ("in_future", event("f", ts=(now + timedelta(days=2)).isoformat())),
        ("no_prediction", event("p", prediction=None)),
        ("no_prediction", event("p", prediction={"a": 1})),
    ]
    features = {"amount": 1.0, "age": 30, "country": "de"}
    broken = {
        "nan": event("nan", features=features | {"amount": float("nan")}),
        "infinite": event("infinite", features=features | {"amount": float("-inf")}),
        "word": event("word", features=features | {"amount": "much"}),
        "nested": event("nested", features=features | {"amount": {"value": 1}}),
        "truth": event("truth", features=features | {"amount": True}),
    }
    topics = kafka_broker.create_topic(), kafka_broker.create_topic()
    source = kafka(kafka_broker.bootstrap, *topics, group=unique("g"))
    daemon = daemons.make(source | {"max_bytes": "1MiB"}).start()

    values: list[bytes | None] = []
    for n, (_, bad) in enumerate(poison):
        values += [event(f"good{n}"), bad]
    kafka_broker.produce(topics[0], [*values, *broken.values(), event("last")])
    kafka_broker.produce(topics[1], [b"{}", b"no label"])

    goods = len(poison) + len(broken) + 1
    until("the good events", lambda: daemon.count("predictions") >= goods)
    until("the dead letters", lambda: daemon.count("dead_letters", "") >= len(poison) + 2)
    stored, letters = daemon.rows("predictions"), daemon.rows("dead_letters", "")
    assert sorted(stored["prediction_id"]) == sorted([*(f"good{n}" for n in range(len(poison))), *broken, "last"])
    on_predictions = letters.filter(pl.col("stream") == "predictions")
    assert Counter(on_predictions["reason"]) == Counter(reason for reason, _ in poison)
    assert sorted(on_predictions["payload"]) == sorted(value or b"" for _, value in poison)
    nulled = stored.filter(pl.col("prediction_id").is_in(list(broken)))
    assert nulled["feature_amount"].null_count() == len(broken)
    assert nulled["invalid_features"].to_list() == [["amount"]] * len(broken)
    assert nulled["feature_age"].to_list() == [30] * len(broken)
    for reason, count in Counter(reason for reason, _ in poison).items():
        assert daemon.metric("driftd_dead_letters_total", stream="predictions", reason=reason) == count
    assert daemon.ready()[0]


# -- the source


def test_a_missing_topic_is_named_with_the_fix_and_read_once_it_exists(
    kafka_broker: KafkaCluster, daemons: Daemons
) -> None:
    predictions, labels = unique("not-yet"), kafka_broker.create_topic()
    daemon = daemons.make(kafka(kafka_broker.bootstrap, predictions, labels, group=unique("g"))).start()
    kafka_broker.produce(labels, [Traffic(FileSink(daemon.folder)).label(1)])

    until("the complaint", lambda: daemon.logged("source_unavailable"))
    detail = daemon.logged("source_unavailable")[0]["detail"]
    assert predictions in detail
    assert "create it or change source.kafka.predictions" in detail
    assert daemon.metric("driftd_source_missing_topics") == 1
    until("the label of the other topic", lambda: daemon.count("labels") == 1)

    kafka_broker.create_topic(name=predictions)
    kafka_broker.produce(predictions, [event("p1")])
    until("the event", lambda: daemon.count("predictions") == 1)
    until("the gauge to fall", lambda: daemon.metric("driftd_source_missing_topics") == 0)
    until("readiness", lambda: daemon.ready()[0])


def test_wrong_credentials_are_named_and_tried_again_slowly(kafka_broker: KafkaCluster, daemons: Daemons) -> None:
    broker = kafka_broker.own_broker()
    sasl = {
        "security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN",
        "username": {"env": "KAFKA_USER"}, "password": {"env": "KAFKA_PASSWORD"},
    }  # fmt: skip
    topics = kafka_broker.create_topic(), kafka_broker.create_topic()
    source = kafka(broker.sasl_bootstrap, *topics, group=unique("g"), **sasl)
    user = next(iter(SASL_USERS))
    daemon = daemons.make(source, environment={"KAFKA_USER": user, "KAFKA_PASSWORD": "wrong-password"}).start()

    until("three refusals", lambda: len(daemon.logged("source_refused")) >= 3)
    refusals = daemon.logged("source_refused")
    assert "SaslAuthenticationFailed" in refusals[0]["detail"]
    tried = [line["retry_in"] for line in daemon.lines() if line["event"] in ("source_refused", "source_unavailable")]
    assert tried[:3] == [0.5, 1.0, 2.0]
    assert not daemon.logged("source_unavailable"), (
        "a busy broker ends the connection without an answer: refused all the same"
    )
    assert daemon.metric("driftd_source_errors_total", kind="refused") >= 3
    ready, components = daemon.ready()
    assert not ready
    assert components["source"] != "ok"
    assert daemon.request("/healthz")[0] == 200
    assert "wrong-password" not in daemon.log.read_text()

    daemon.kill()
    daemon.environment = {"KAFKA_USER": user, "KAFKA_PASSWORD": SASL_USERS[user]}
    kafka_broker.produce(topics[0], [event("p1")])
    daemon.start()
    until("the event", lambda: daemon.count("predictions") == 1)


def test_a_broker_that_stops_under_load_costs_nothing(own_kafka: Any, daemons: Daemons) -> None:
    cluster = own_kafka()
    topics = {Stream.PREDICTIONS: cluster.create_topic(2), Stream.LABELS: cluster.create_topic(2)}
    # The session ends before the broker is back: the daemon begins again from what it has committed.
    source = kafka(cluster.bootstrap, *topics.values(), group=unique("g"), session_timeout="2s")
    daemon = daemons.make(source | {"batch_wait": "1s"}).start()
    traffic = Traffic(KafkaSink(cluster.bootstrap, topics, partitions=2)).begin()
    try:
        until("a member of the group", lambda: daemon.logged("partitions_assigned"))
        sent = traffic.sent
        until("events to be read", lambda: traffic.sent > sent + 600)
        cluster.own_broker().stop()
        until("the daemon to notice", lambda: not daemon.ready()[0])
        until("two failures", lambda: len(daemon.logged("source_unavailable")) >= 2)
        cluster.own_broker().start()
        sent = traffic.sent
        until("traffic to go on", lambda: traffic.failure or traffic.sent > sent + 300)
    finally:
        traffic.end()
    drain(daemon, traffic, within=120)
    check_exactly_once(daemon, traffic)
    assert daemon.ready()[0]


def test_records_read_twice_into_one_batch_are_stored_once(tmp_path: Path) -> None:
    """What a source delivers that began again while its first records still waited in the buffer."""
    (tmp_path / "config.toml").write_text(tomli_w.dumps(configuration(tmp_path / "state", {})))
    loaded = load(tmp_path / "config.toml")
    policy = IngestPolicy(1000, timedelta(seconds=1), timedelta(days=400), timedelta(hours=1), 2**20)
    writer = Writer(Lake(str(tmp_path / "lake")), loaded.schemas, policy, Metrics())
    values = [event("a"), b"poison", event("b"), event("c")]
    first = Records(Stream.PREDICTIONS, "p", [0, 1, 2], values[:3], 3)
    again = Records(Stream.PREDICTIONS, "p", [0, 1, 2, 3], values, 4)
    assert writer.write([first, again]) == {"p": 4}
    assert rows(str(tmp_path / "lake"), "predictions")["source_offset"].to_list() == [0, 2, 3]
    assert rows(str(tmp_path / "lake"), "dead_letters", "")["source_offset"].to_list() == [1]


# -- the disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    mounted = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True, check=False)
    require("a small file system", [] if mounted and mounted.returncode == 0 else ["the right to mount a tmpfs"])
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """A file that leaves about `leave` bytes free."""
    ballast = folder / "ballast"
    free = shutil.disk_usage(folder).free
    with suppress(OSError), ballast.open("wb", buffering=0) as out:  # a daemon may take the rest meanwhile
        out.write(b"\0" * max(0, free - leave))
    return ballast


def test_a_full_disk_is_waited_out(small_disk: Path, daemons: Daemons) -> None:
    daemon = daemons.make({"kind": "files"}, lake={"uri": str(small_disk / "lake")}).start()
    traffic = Traffic(FileSink(daemon.state / "events"), rate=200).begin()
    try:
        until("events", lambda: daemon.count("predictions") > 300)
        ballast = fill(small_disk)
        until("the daemon to notice", lambda: daemon.ready()[1]["lake"] != "ok")
        until("two attempts more", lambda: daemon.metric("driftd_ingest_batches_total", outcome="failed") >= 3)
        assert daemon.logged("lake_unavailable")
        assert daemon.request("/healthz")[0] == 200
        until("the source to be paused", lambda: daemon.metric("driftd_source_paused") == 1)
        ballast.unlink()
    finally:
        traffic.end()
    drain(daemon, traffic, within=120)
    check_exactly_once(daemon, traffic)
    assert daemon.ready()[0]


def test_stopped_while_a_batch_waits_for_space_it_writes_no_later_one(small_disk: Path, daemons: Daemons) -> None:
    """Space is freed and the daemon restarted, as an operator does. The batch that waits gives up at once; were the
    one behind it written now, the lake would never take the first again."""
    daemon = daemons.make({"kind": "files"}, lake={"uri": str(small_disk / "lake")}).start()
    traffic = Traffic(FileSink(daemon.state / "events", per_file=10**9), lag=10**9)
    traffic.send(100)
    until("the tables", lambda: daemon.count("predictions") == 99 and daemon.count("dead_letters", "") == 1)
    ballast = fill(small_disk)
    traffic.send(2000)
    until("a batch that does not fit", lambda: daemon.logged("lake_unavailable"))
    traffic.send(30)
    until("the next one to wait behind it", lambda: daemon.metric("driftd_source_lag") == 0, within=20)
    seen = len(daemon.logged("lake_unavailable"))
    until(
        "a long pause to begin",
        lambda: len(new := daemon.logged("lake_unavailable")) > seen and new[-1]["retry_in"] > 3,
    )
    ballast.unlink()
    assert daemon.stop()[0] == 0
    assert daemon.logged("batch_left_for_restart")
    daemon.start()
    until("all events", lambda: daemon.count("predictions") >= len(traffic.predictions()), within=20)
    assert sorted(daemon.rows("predictions")["prediction_id"]) == sorted(traffic.predictions())


def test_with_everything_on_one_full_disk_nothing_is_lost_either(small_disk: Path, daemons: Daemons) -> None:
    """Positions, control database and lake together: the embedded default."""
    state = small_disk / "state"
    events = daemons.folder / "events"
    source = {"kind": "files", "files": {"path": str(events)}}
    daemon = daemons.make(source, daemon={"state": str(state)}).start()
    traffic = Traffic(FileSink(events, per_file=300), rate=200).begin()
    try:
        until("events", lambda: daemon.count("predictions") > 300)
        ballast = fill(small_disk)
        until("the daemon to notice", lambda: not daemon.ready()[0])
        sent = traffic.sent
        until("more files", lambda: traffic.sent > sent + 700)
        ballast.unlink()
    finally:
        traffic.end()
    drain(daemon, traffic, within=120)
    check_exactly_once(daemon, traffic)


# -- the process


def test_a_second_daemon_on_the_same_state_folder_is_refused(daemons: Daemons) -> None:
    first = daemons.make({"kind": "files"}).start()
    second = daemons.make({"kind": "files"}, name="second", daemon={"state": str(first.state)})
    done = second.command("run")
    assert done.returncode == 1
    assert f"in use by another driftd (process {first.pid})" in done.stderr
    first.must_run()


def test_an_empty_lake_in_place_of_the_one_that_was_judged_is_refused(daemons: Daemons) -> None:
    daemon = daemons.make({"kind": "files"}).start()
    traffic = Traffic(FileSink(daemon.state / "events"))
    traffic.send(400)
    drain(daemon, traffic, within=120)
    until("a judged window", lambda: daemon.metric("driftd_windows_measured_total", kind="drift"))
    daemon.stop()
    (daemon.state / "lake").rename(daemon.folder / "unmounted")
    done = daemon.command("run")
    assert done.returncode == 2
    assert "is the right lake mounted?" in done.stderr
    (daemon.folder / "unmounted").rename(daemon.state / "lake")
    daemon.start()
    daemon.must_run()


def test_a_port_in_use_ends_the_start_with_a_clear_message(daemons: Daemons) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = daemons.make({"kind": "files"}, http={"port": port}).command("run")
    assert done.returncode == 2
    assert json.loads(done.stderr)["event"] == "driftd_ends"
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use: choose another http.port" in done.stderr


TEN_MISTAKES = """
[daemon]
tick = "often"
measure_workers = 0
[http]
port = 70000
[source]
kind = "pigeon"
batch_rowz = 10
[models.fraud]
task = "guess"
features = { amount = "number" }
[models.fraud.windows]
min_coverage = 2.0
size = "1 hour"
[[models.fraud.rules]]
name = "Bad Name"
measure = "performance_dropp"
above = 0.1
"""


def test_run_lists_ten_mistakes_at_once(daemons: Daemons) -> None:
    daemon = daemons.make({"kind": "files"})
    daemon.config_path.write_text(TEN_MISTAKES)
    done = daemon.command("run")
    assert done.returncode == 2
    lines = done.stderr.strip().removeprefix("driftd: ").splitlines()
    places = [line.removeprefix("config.toml: ").split(":")[0] for line in lines]
    assert sorted(places) == sorted(
        [
            "daemon.tick", "daemon.measure_workers", "http.port", "source.kind", "source.batch_rowz",
            "models.fraud.task", "models.fraud.windows.min_coverage", "models.fraud.windows.size",
            "models.fraud.rules[0].name", "models.fraud.rules[0].measure",
        ]
    )  # fmt: skip
    assert "did you mean 'batch_rows'?" in done.stderr


def test_a_bad_reload_keeps_the_old_config_and_a_good_one_applies(daemons: Daemons) -> None:
    daemon = daemons.make({"kind": "files"}).start()

    def threshold() -> float:
        return daemon.metric("driftd_rule_threshold", rule="ages_missing")

    good = json.loads(json.dumps(daemon.config))
    daemon.config["models"][MODEL]["rules"][0]["above"] = "a lot"
    daemon.write_config()
    daemon.signal(signal.SIGHUP)
    until("the refusal", lambda: daemon.metric("driftd_config_reloads_total", outcome="failed") == 1)
    assert daemon.metric("driftd_config_last_reload_successful") == 0
    assert "rules[0].above" in daemon.logged("config_refused")[0]["problems"][0]
    assert threshold() == 0.2

    good["models"][MODEL]["rules"][0]["above"] = 0.6
    daemon.config = good
    daemon.write_config()
    daemon.signal(signal.SIGHUP)
    until("the new threshold", lambda: threshold() == 0.6)
    until("that the reload went well", lambda: daemon.metric("driftd_config_last_reload_successful") == 1)
    traffic = Traffic(FileSink(daemon.state / "events"))
    traffic.send(3200)  # from window six on half of the ages are missing: more than 0.2, less than 0.6
    drain(daemon, traffic, within=120)
    assert not [t for t in daemon.transitions() if t["rule"] == "ages_missing"]


def test_sigterm_under_load_leaves_nothing_to_repeat(kafka_broker: KafkaCluster, daemons: Daemons) -> None:
    topics = {Stream.PREDICTIONS: kafka_broker.create_topic(2), Stream.LABELS: kafka_broker.create_topic(2)}
    group = unique("g")
    source = kafka(kafka_broker.bootstrap, *topics.values(), group=group)
    daemon = daemons.make(source).start()
    traffic = Traffic(KafkaSink(kafka_broker.bootstrap, topics, partitions=2), rate=1000).begin()
    try:
        until("a measuring process under load", lambda: daemon.count("predictions") > 1000 and daemon.workers())
        workers = daemon.workers()
        code, seconds = daemon.stop()
    finally:
        traffic.end()
    assert code == 0
    assert seconds < 10
    assert committed(kafka_broker, group) == stored(daemon)
    until("no process to be left", lambda: not any(Path(f"/proc/{w}/cmdline").exists() for w in workers))

    daemon.start()
    drain(daemon, traffic, within=120)
    check_exactly_once(daemon, traffic)
    until("no lag", lambda: daemon.metric("driftd_source_lag") == 0)
    assert daemon.stop()[0] == 0
    assert committed(kafka_broker, group) == stored(daemon)
    before = {table: daemon.count(table) for table in ("predictions", "labels", "outcomes")}
    daemon.start()
    until("the partitions", lambda: daemon.logged("partitions_assigned"))
    until("a look at the lag", lambda: daemon.metric("driftd_source_lag") == 0 and daemon.metric("driftd_ticks_total"))
    assert {table: daemon.count(table) for table in before} == before
    assert daemon.metric("driftd_events_total") == 0


def committed(cluster: KafkaCluster, group: str) -> dict[str, int]:
    """The next offset to read per partition, as the broker has it."""
    admin = cluster.admin()
    try:
        offsets = admin.list_group_offsets([group])[group]
    finally:
        admin.close()
    return {f"{tp.topic}/{tp.partition}": found.offset for tp, found in offsets.items()}


def stored(daemon: Daemon) -> dict[str, int]:
    """The same, by what is in the lake."""
    columns = ["source_partition", "source_offset"]
    parts = [daemon.rows("predictions", columns=columns), daemon.rows("labels", columns=columns)]
    every = pl.concat([*parts, daemon.rows("dead_letters", "", columns)])
    ends = every.group_by("source_partition").agg(pl.col("source_offset").max() + 1)
    found = {}
    for name, offset in ends.iter_rows():
        topic, partition = name.rpartition("/")[0].rpartition("/")[2].split("@")[0], name.rpartition("/")[2]
        found[f"{topic}/{partition}"] = offset
    return found


def test_a_killed_measuring_process_costs_one_attempt(daemons: Daemons) -> None:
    daemon = daemons.make({"kind": "files"}).start()
    traffic = Traffic(FileSink(daemon.state / "events"))
    traffic.send(2000)
    pids = until("a measuring process", daemon.workers)
    os.kill(pids[0], signal.SIGKILL)
    traffic.send(2000)
    drain(daemon, traffic, within=120)
    check_measured_once(daemon)
    assert pids[0] not in daemon.workers()
    assert daemon.ready()[0]
    assert daemon.logged("unit_given_up") == []


# -- the HTTP port


def check_pauses(daemon: Daemon, token: str) -> None:
    """By HTTP: one model and all, refused by words that name the mistake, seen in status and metrics."""
    mine, every = f"/api/v1/models/{MODEL}/pause", "/api/v1/pause"
    assert daemon.request(mine, {})[0] == 401
    status, text = daemon.request(mine, {"for": "soon"}, token=token)
    assert (status, "must be a duration" in text) == (400, True)
    assert daemon.request("/api/v1/models/stranger/pause", {}, token=token)[0] == 404
    assert daemon.request(mine, {"for": "2h", "actor": "ann", "reason": "a fair"}, token=token)[0] == 200
    assert daemon.status()["held"].startswith("paused by ann until ")
    assert daemon.request(every, {"actor": "bob"}, token=token)[0] == 200
    assert daemon.status()["held"].startswith("all models are paused by bob")
    until("the metric", lambda: daemon.metric("driftd_retraining_held", model=MODEL) == 1)
    status, text = daemon.request(f"/api/v1/models/{MODEL}/retrain", {"actor": "ann"}, token=token)
    assert (status, "not retrained: all models are paused by bob" in json.loads(text)["error"]) == (409, True)
    assert json.loads(daemon.request("/api/v1/jobs/stranger/approve", {}, token=token)[1]) == {
        "error": "no job 'stranger'"
    }
    assert daemon.request("/api/v1/resume", {}, token=token)[0] == 200
    assert daemon.request("/api/v1/resume", {}, token=token)[0] == 409
    assert daemon.request(f"/api/v1/models/{MODEL}/resume", {}, token=token)[0] == 200
    assert daemon.status()["held"] is None


def test_calls_that_change_state_need_the_token(daemons: Daemons) -> None:
    path = f"/api/v1/models/{MODEL}/retrain"
    closed = daemons.make({"kind": "files"}).start()
    assert closed.request(path, {})[0] == 403
    assert closed.request(path, {}, token="")[0] == 403

    opened = daemons.make(
        {"kind": "files"}, name="opened", http={"token": {"env": "TOKEN"}}, environment={"TOKEN": "open-sesame"}
    ).start()
    assert opened.request(path, {})[0] == 401
    assert opened.request(path, {}, token="open-sesam")[0] == 401
    assert opened.request(path, {}, token="öpen")[0] == 401
    assert opened.request("/api/v1/models/stranger/retrain", {}, token="open-sesame")[0] == 404
    status, text = opened.request(path, {"actor": "ann", "reason": "to see"}, token="open-sesame")
    assert status == 202, text
    assert "ann" in opened.status()["decisions"][0]["words"]
    assert opened.request("/api/v1/status")[0] == 200
    assert opened.request(f"/api/v1/models/{MODEL}/serving")[0] == 404
    check_pauses(opened, "open-sesame")
    began = time.monotonic()
    assert opened.stop()[0] == 0
    assert time.monotonic() - began < 10
