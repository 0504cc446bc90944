"""From a firing rule to a notification: a real Prometheus with the shipped rules, a real Alertmanager with the shipped
routes and inhibition, and a receiver that keeps what it gets.

The copies the servers read differ from what is shipped in addresses and in waiting times only.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitor.metrics import COMPONENTS, Metrics
from monitor.rules.measurement import Measure
from monitor.rules.phases import Phase
from monitor.rules.rules import Action, Rule, Severity
from tests.broker import free_ports
from tests.conftest import require
from tests.daemons import until

SHIPPED = Path(__file__).parents[2] / "dashboards"
PERFORMANCE = Rule(
    "performance_drop", Measure.PERFORMANCE_DROP, above=0.05, severity=Severity.CRITICAL, action=Action.RETRAIN
)
MISSING = Rule("values_missing", Measure.MISSING_SHARE, above=0.2)
SHORT = "1s"
RESEND = [f"--rules.alert.resend-delay={SHORT}"]
DOWN = "DriftdModelPerformanceDown"


@dataclass
class Inbox:
    """Notifications as Alertmanager sends them, with the receiver they were for."""

    received: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def alerts(self, receiver: str, status: str = "firing", **labels: str) -> list[dict[str, Any]]:
        """Each with the labels of its group."""
        return [
            alert | {"group": notification["groupLabels"]}
            for to, notification in list(self.received)
            if to == receiver
            for alert in notification["alerts"]
            if alert["status"] == status and labels.items() <= alert["labels"].items()
        ]


class Handler(BaseHTTPRequestHandler):
    """Serves `/metrics`; takes notifications at `/RECEIVER`."""

    def __init__(self, metrics: Metrics, inbox: Inbox, *args: Any):
        self.metrics = metrics
        self.inbox = inbox
        super().__init__(*args)

    def do_GET(self) -> None:
        body = self.metrics.exposition()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"]))
        self.inbox.received.append((self.path.strip("/"), json.loads(text)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@contextmanager
def listening(metrics: Metrics, inbox: Inbox) -> Iterator[str]:
    """Address of a server for both."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, metrics, inbox)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def running(command: list[str], address: str, log: Path) -> Iterator[None]:
    """A server, from the moment it is ready; stopped at the end."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"http://{address}/-/ready", timeout=5).close()
        except OSError:
            return False
        return True

    try:
        until(f"{command[0]} to be ready", ready, 30)
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def impatient_prometheus(folder: Path, target: str, alertmanager: str, patient: str) -> Path:
    """A copy of the shipped configuration and rules; the alert `patient` waits as long as it does there."""
    (folder / "rules").mkdir(parents=True)
    config = load(SHIPPED / "prometheus" / "prometheus.yml")
    config["global"] = {"scrape_interval": SHORT, "evaluation_interval": SHORT}
    config["alerting"]["alertmanagers"][0]["static_configs"] = [{"targets": [alertmanager]}]
    driftd = next(job for job in config["scrape_configs"] if job["job_name"] == "driftd")
    driftd["static_configs"] = [{"targets": [target]}]
    config["scrape_configs"] = [driftd]
    for path in (SHIPPED / "prometheus" / "rules").glob("*.yml"):
        rules = load(path)
        for rule in (r for group in rules["groups"] for r in group["rules"] if r.get("alert") != patient):
            rule |= {wait: SHORT for wait in ("for", "keep_firing_for") if wait in rule}
        (folder / "rules" / path.name).write_text(yaml.safe_dump(rules), encoding="utf-8")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder / "prometheus.yml"


def impatient_alertmanager(folder: Path, inbox: str) -> Path:
    """A copy of the shipped configuration that notifies `inbox`."""
    folder.mkdir()
    config = load(SHIPPED / "alertmanager" / "alertmanager.yml")
    config["route"] |= {"group_wait": SHORT, "group_interval": SHORT}
    for receiver in config["receivers"]:
        receiver["webhook_configs"] = [{"url": f"http://{inbox}/{receiver['name']}"}]
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder / "alertmanager.yml"


@dataclass
class Alerting:
    metrics: Metrics
    inbox: Inbox
    alertmanager: str

    def fire(self, model: str, rule: Rule, phase: Phase = Phase.FIRING) -> None:
        self.metrics.set_phase(model, rule.name, phase)

    def states(self, alert: str, model: str) -> list[str]:
        """What Alertmanager says of it: "active", "suppressed" (inhibited), or nothing of one that has ended."""
        with urllib.request.urlopen(f"http://{self.alertmanager}/api/v2/alerts", timeout=10) as answer:
            known = json.load(answer)
        wanted = {"alertname": alert, "model": model}
        return [a["status"]["state"] for a in known if wanted.items() <= a["labels"].items()]

    def inhibited(self, alert: str, model: str) -> bool:
        return self.states(alert, model) == ["suppressed"]


@contextmanager
def alerting_of(tmp_path: Path, patient: str = "") -> Iterator[Alerting]:
    """A driftd with two models that is well, watched by Prometheus, with Alertmanager behind it."""
    manager = next(filter(shutil.which, ("alertmanager", "prometheus-alertmanager")), None)
    require("Prometheus", [] if shutil.which("prometheus") else ["prometheus"])
    require("Alertmanager", [] if manager else ["alertmanager"])
    assert manager is not None
    metrics, inbox = Metrics(), Inbox()
    metrics.declare("1", {"fraud": [PERFORMANCE, MISSING], "churn": [MISSING]})
    metrics.leader.set(1)
    metrics.ticked_at.set(time.time() + 3600)
    metrics.config_ok.set(1)
    for component in COMPONENTS:
        metrics.ready.good(component)
    metrics.rule_value.labels("fraud", PERFORMANCE.name).set(0.0712)
    prometheus_at, manager_at = (f"127.0.0.1:{port}" for port in free_ports(2))
    with ExitStack() as stack:
        address = stack.enter_context(listening(metrics, inbox))
        for program, config, at, more in (
            (manager, impatient_alertmanager(tmp_path / "a", address), manager_at, ["--cluster.listen-address="]),
            ("prometheus", impatient_prometheus(tmp_path / "p", address, manager_at, patient), prometheus_at, RESEND),
        ):
            data = config.parent / "data"
            storage = f"--storage.tsdb.path={data}" if program == "prometheus" else f"--storage.path={data}"
            command = [program, f"--config.file={config}", storage, f"--web.listen-address={at}", *more]
            stack.enter_context(running(command, at, config.parent / "log"))
        yield Alerting(metrics, inbox, manager_at)


@pytest.fixture
def alerting(tmp_path: Path) -> Iterator[Alerting]:
    """Where one slow scrape on a busy machine is not yet a driftd that is down."""
    with alerting_of(tmp_path, patient="DriftdDown") as found:
        yield found


@pytest.fixture
def nervous(tmp_path: Path) -> Iterator[Alerting]:
    """Where it is."""
    with alerting_of(tmp_path) as found:
        yield found


def test_a_firing_rule_reaches_the_pager_and_explains_itself_and_holds_back_what_follows_from_it(
    alerting: Alerting,
) -> None:
    pager = partial(alerting.inbox.alerts, "pager")
    chat = partial(alerting.inbox.alerts, "chat")

    alerting.fire("fraud", PERFORMANCE)
    page = until("the pager", lambda: pager(alertname=DOWN))[0]
    assert page["group"] == {"job": "driftd", "model": "fraud"}
    assert page["labels"] == {
        "alertname": DOWN, "job": "driftd", "model": "fraud", "rule": "performance_drop",
        "measure": "performance_drop", "action": "retrain", "severity": "critical", "area": "performance",
    }  # fmt: skip
    assert page["annotations"]["runbook_url"].endswith("/docs/runbook.md#performance-down")
    assert page["annotations"]["dashboard_url"] == "/d/driftd-model?var-model=fraud"
    assert "0.0712, threshold 0.05" in page["annotations"]["description"]

    alerting.fire("fraud", MISSING)
    alerting.fire("churn", MISSING)
    told = until("the chat", lambda: chat(alertname="DriftdModelDataQuality", model="churn"))[0]
    assert told["group"] == {"job": "driftd", "model": "churn"}
    assert told["labels"]["severity"] == "warning"
    until("fraud's data to be held back", lambda: alerting.inhibited("DriftdModelDataQuality", "fraud"))
    assert not alerting.inhibited("DriftdModelDataQuality", "churn"), "the fault of another model"

    alerting.metrics.ready.bad("lake", "the disk is full")
    page = until("the pager", lambda: pager(alertname="DriftdNotReady"))[0]
    assert (page["group"], page["labels"]["component"]) == ({"job": "driftd"}, "lake")
    until("all of churn to be held back", lambda: alerting.inhibited("DriftdModelDataQuality", "churn"))
    until("all of fraud to be held back", lambda: alerting.inhibited(DOWN, "fraud"))

    alerting.metrics.ready.good("lake")
    alerting.fire("fraud", PERFORMANCE, Phase.INACTIVE)
    until("the end of it", lambda: pager("resolved", alertname=DOWN))
    until("the news of fraud's data", lambda: chat(alertname="DriftdModelDataQuality", model="fraud"))
    assert {a["labels"]["alertname"] for a in pager()} == {DOWN, "DriftdNotReady"}
    assert {a["labels"]["alertname"] for a in chat()} == {"DriftdModelDataQuality"}


def test_a_driftd_that_has_gone_is_reported_and_its_models_are_not(nervous: Alerting) -> None:
    nervous.fire("fraud", PERFORMANCE)
    until("the pager", lambda: nervous.inbox.alerts("pager", alertname=DOWN))
    nervous.metrics.exposition = lambda: b"not an exposition\n"  # type: ignore[method-assign]  # scrapes fail
    page = until("the pager", lambda: nervous.inbox.alerts("pager", alertname="DriftdDown"))[0]
    assert page["annotations"]["runbook_url"].endswith("#driftd-is-down")
    until("the model's alert to end with its series", lambda: not nervous.states(DOWN, "fraud"))
    assert not nervous.inbox.alerts("chat")
