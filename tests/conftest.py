"""Fixtures that start real services. A missing program skips the test by name; in CI it fails instead."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import uuid4

import pytest

from tests.broker import Broker, free_ports, missing_tools
from tests.mlflow_server import MlflowServer
from tests.postgres import PostgresServer, find_programs
from tests.shared import shared

if TYPE_CHECKING:
    from kafka import KafkaAdminClient
    from sqlalchemy import Engine

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small data: threads only wait for each other
LONG = {"tests/worlds/test_worlds.py"} | {
    f"tests/e2e/test_{name}.py" for name in ("crash", "faults", "job", "job_faults", "serving", "trials")
}
SASL_USERS = {"driftd": "right-password"}


def pytest_collection_finish() -> None:
    """What was imported is no garbage, and large: it is not looked at again."""
    gc.freeze()


def pytest_configure() -> None:
    """Import kafka-python before warnings are errors: it reads its schemas by a deprecated function (3.0.12)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import kafka  # noqa: F401  # for the effect


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files go to a worker whole; of these, whose tests are long and share nothing but servers, each test by itself."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return nodeid if file in LONG else file

    return Scheduling(config, log)


def of_the_run(tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder that all workers of this run name alike."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name


def require(service: str, missing: list[str]) -> None:
    """Skip, or fail in CI, when programs that `service` needs are not installed."""
    if not missing:
        return
    reason = f"{service} cannot be started here: {', '.join(missing)} not found"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True)
class KafkaCluster:
    """A running cluster; `broker` is None when KAFKA_BOOTSTRAP points at one that is not ours to stop."""

    bootstrap: str
    broker: Broker | None

    def own_broker(self) -> Broker:
        if self.broker is None:
            pytest.skip("KAFKA_BOOTSTRAP is set: that broker is not ours to stop")
        return self.broker

    def admin(self) -> KafkaAdminClient:
        from kafka import KafkaAdminClient

        return KafkaAdminClient(bootstrap_servers=self.bootstrap)

    def create_topic(self, partitions: int = 1, name: str | None = None, **configs: str) -> str:
        """Make a topic, with a fresh name unless one is given, and wait until it can be used."""
        topic = name or f"t-{uuid4().hex[:12]}"
        admin = self.admin()
        try:
            options = {"num_partitions": partitions, "replication_factor": 1, "configs": configs}
            admin.create_topics({topic: options}, wait_for_metadata=True)
        finally:
            admin.close()
        return topic

    def delete_topic(self, topic: str) -> None:
        admin = self.admin()
        try:
            admin.delete_topics([topic])
        finally:
            admin.close()

    def produce(self, topic: str, values: list[bytes | None], partition: int = 0) -> None:
        """Append and wait until the broker has all of them."""
        from kafka import KafkaProducer

        producer = KafkaProducer(bootstrap_servers=self.bootstrap, max_request_size=16 * 1024 * 1024, linger_ms=5)
        try:
            sent = [producer.send(topic, value, partition=partition, key=b"k") for value in values]
            for each in sent:
                each.get(timeout=30)
        finally:
            producer.close()


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """One broker for the whole run: tests take fresh topics and groups, not fresh brokers."""
    elsewhere = os.environ.get("KAFKA_BOOTSTRAP")
    if elsewhere:
        yield KafkaCluster(elsewhere, None)
        return
    require("Apache Kafka", missing_tools())
    place = of_the_run(tmp_path_factory, "kafka")
    with shared(place, lambda: Broker(place / "broker", sasl_users=SASL_USERS)) as broker:
        yield KafkaCluster(broker.bootstrap, broker)


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[Callable[[], KafkaCluster]]:
    """Starts a broker for this test alone, for tests that stop it."""
    require("Apache Kafka", missing_tools())
    started: list[Broker] = []

    def start() -> KafkaCluster:
        broker = Broker(tmp_path / f"broker{len(started)}")
        started.append(broker)
        broker.start()
        return KafkaCluster(broker.bootstrap, broker)

    yield start
    for broker in started:
        broker.stop()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """One server for the whole run: tests take fresh databases."""
    programs = find_programs()
    require("PostgreSQL", [] if programs else ["pg_ctl"])
    assert programs is not None
    with shared(of_the_run(tmp_path_factory, "postgres"), lambda: PostgresServer(programs)) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def control_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty control database, on each kind of server."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'control.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.create_database()


@pytest.fixture
def engine(control_url: str) -> Iterator[Engine]:
    """An empty control database with its tables."""
    from retrain.control.database import create_tables, open_engine

    engine = open_engine(control_url)
    create_tables(engine)
    yield engine
    engine.dispose()


@dataclass(frozen=True)
class PrometheusServer:
    """A running Prometheus and its HTTP API."""

    url: str

    def query(self, expression: str) -> dict[str, float]:
        """Labels (without job and instance) -> value of an instant query."""
        asked = urllib.request.urlopen(f"{self.url}/api/v1/query?query={quote(expression)}", timeout=10)
        with asked as answer:
            found = json.load(answer)["data"]["result"]
        return {_labels(series["metric"]): float(series["value"][1]) for series in found}


def _labels(metric: dict[str, str]) -> str:
    hidden = ("__name__", "job", "instance")
    return ",".join(f"{k}={v}" for k, v in sorted(metric.items()) if k not in hidden)


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[[str], PrometheusServer]]:
    """Starts a Prometheus that scrapes `host:port` every second."""
    require("Prometheus", [tool for tool in ("prometheus", "promtool") if shutil.which(tool) is None])
    started: list[subprocess.Popen[bytes]] = []

    def start(target: str) -> PrometheusServer:
        folder = tmp_path / f"prometheus{len(started)}"
        folder.mkdir()
        config = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [{"job_name": "driftd", "static_configs": [{"targets": [target]}]}],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        address = f"127.0.0.1:{free_ports(1)[0]}"
        options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        with (folder / "log").open("wb") as out:
            command = ["prometheus", *options, f"--web.listen-address={address}"]
            started.append(subprocess.Popen(command, stdout=out, stderr=out))
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"http://{address}/-/ready", timeout=5).close()
            except OSError as error:
                text = (folder / "log").read_text()
                assert started[-1].poll() is None, text
                assert time.monotonic() < deadline, f"{error}: {text}"
                time.sleep(0.05)
            else:
                return PrometheusServer(f"http://{address}")

    yield start
    for process in started:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One server for the whole run: each test gives its registered model a name of its own."""
    place = of_the_run(tmp_path_factory, "mlflow")
    with shared(place, lambda: MlflowServer(place / "server")) as server:
        yield server
