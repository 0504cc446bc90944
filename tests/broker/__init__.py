"""A real Apache Kafka broker (KRaft, one node) for tests, the benchmark and the demo; no pytest in here.

Invariant: a broker keeps its ports and its log folder over `stop`, `kill` and `start`, so that clients see
the same cluster come back; and the process dies with `stop`, whatever state it is in.

The jars come from Maven Central once (`pom.xml` pins the version) and stay in the user's cache folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from tests.shared import end

POM = Path(__file__).with_name("pom.xml")
START_TIMEOUT = 60.0  # seconds; a cold start on two busy cores takes about ten

_LOG4J = """\
status = error
appender.file.type = File
appender.file.name = file
appender.file.fileName = {log}
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d %p %c{{1}} %m%n
rootLogger.level = info
rootLogger.appenderRef.file.ref = file
"""


class BrokerError(Exception):
    """The broker cannot be fetched or does not start; the message says why."""


def missing_tools() -> list[str]:
    """Names of the programs that a broker needs and this machine lacks."""
    return [tool for tool in ("java", "mvn") if shutil.which(tool) is None]


def kafka_version() -> str:
    found = re.search(r"<kafka\.version>([^<]+)<", POM.read_text(encoding="utf-8"))
    assert found, "pom.xml names the version"
    return found.group(1)


def fetch_jars() -> Path:
    """The folder with the broker's jars, downloaded on first use; safe when several processes race."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "driftd"
    digest = hashlib.sha256(POM.read_bytes()).hexdigest()[:8]
    jars = cache / f"kafka-{kafka_version()}-{digest}"
    if jars.is_dir():
        return jars
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{jars.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if jars.is_dir():
            return jars
        with tempfile.TemporaryDirectory(dir=cache, prefix=jars.name) as partial:
            target = Path(partial) / "lib"
            command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
            command += ["-DincludeScope=runtime", f"-DoutputDirectory={target}"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode != 0 or not target.is_dir():
                raise BrokerError(f"mvn cannot fetch the broker: {(done.stdout + done.stderr)[-2000:]}")
            target.rename(jars)
    return jars


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@dataclass
class Broker:
    """One broker in `folder`. `sasl_users` adds a SASL_PLAINTEXT listener (PLAIN) with those users."""

    folder: Path
    sasl_users: dict[str, str] = field(default_factory=dict)
    heap: str = "512m"
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _pid: int | None = field(default=None, init=False)
    """Of a broker that another process has started (`tests.shared`)."""
    _ports: list[int] = field(default_factory=lambda: free_ports(3), init=False)

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def sasl_bootstrap(self) -> str:
        assert self.sasl_users, "no SASL listener without users"
        return f"127.0.0.1:{self._ports[2]}"

    @property
    def log(self) -> Path:
        return self.folder / "broker.log"

    def start(self) -> None:
        """Start and wait until the broker answers. Does nothing when it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        settings = self.folder / "server.properties"
        if not settings.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "log4j2.properties").write_text(_LOG4J.format(log=self.log), encoding="utf-8")
            settings.write_text(self._properties(), encoding="utf-8")
            cluster = str(uuid.uuid4())
            self._run("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(settings))
        with (self.folder / "stdout.log").open("ab") as out:
            self._process = subprocess.Popen(
                self._java("kafka.Kafka", str(settings)), stdout=out, stderr=out, cwd=self.folder
            )
        self._wait_until_ready()

    def stop(self) -> None:
        """End it in order; a broker that does not comply in 20 s is killed. Safe to call twice."""
        if self._process is None:
            if self._pid is not None:
                end(self._pid)
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def leave(self) -> None:
        """It is for another process to end it."""
        if self._process is not None:
            self._process.returncode = 0  # or Popen complains that it runs

    def kill(self) -> None:
        """End it at once, as a power cut does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_process": None, "_pid": self._process and self._process.pid}

    def __enter__(self) -> Broker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_ready(self) -> None:
        from kafka import KafkaAdminClient  # imported here: stopping and fetching do not need it
        from kafka.errors import KafkaError

        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                raise BrokerError(f"the broker ended with {self._process.returncode}: {self._tail()}")
            if _accepts(self._ports[0]):
                try:
                    KafkaAdminClient(bootstrap_servers=self.bootstrap, bootstrap_timeout_ms=2000).close()
                except KafkaError:
                    continue
                return
            time.sleep(0.05)
        self.kill()
        raise BrokerError(f"the broker is not ready after {START_TIMEOUT:.0f} s: {self._tail()}")

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            self._java(*arguments), cwd=self.folder, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode != 0:
            raise BrokerError(f"{arguments[0]}: {(done.stdout + done.stderr)[-2000:]}")

    def _java(self, *arguments: str) -> list[str]:
        return [
            "java",
            f"-Xmx{self.heap}",
            "-XX:TieredStopAtLevel=1",  # a test broker lives for minutes: start fast, never optimise
            "-XX:+UseSerialGC",
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}",
            "-cp",
            f"{fetch_jars()}/*",
            *arguments,
        ]

    def _tail(self) -> str:
        texts = [self.folder / "stdout.log", self.log]
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in texts if path.exists())

    def _properties(self) -> str:
        broker, controller, sasl = self._ports
        listeners = {"PLAINTEXT": broker, "CONTROLLER": controller}
        lines = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
            "message.max.bytes": str(16 * 1024 * 1024),
            "auto.create.topics.enable": "false",
            "num.partitions": "1",
            "default.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "controlled.shutdown.enable": "false",  # nobody to hand over to
            "broker.heartbeat.interval.ms": "200",
            "broker.session.timeout.ms": "1000",  # else a restart waits nine seconds for its former self
            "num.network.threads": "2",
            "num.io.threads": "2",
            "log.cleaner.enable": "false",
        }
        if self.sasl_users:
            listeners["SASL"] = sasl
            users = " ".join(f'user_{name}="{word}"' for name, word in self.sasl_users.items())
            lines["sasl.enabled.mechanisms"] = "PLAIN"
            lines["listener.name.sasl.plain.sasl.jaas.config"] = (
                f"org.apache.kafka.common.security.plain.PlainLoginModule required {users};"
            )
        urls = {name: f"{name}://127.0.0.1:{port}" for name, port in listeners.items()}
        lines["listeners"] = ",".join(urls.values())
        lines["advertised.listeners"] = ",".join(url for name, url in urls.items() if name != "CONTROLLER")
        return "".join(f"{key}={value}\n" for key, value in lines.items())


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
