"""A real Alertmanager asks a real daemon for a retrain."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from tests.broker import free_ports
from tests.conftest import require
from tests.daemons import MODEL, Daemon, Daemons, until

TOKEN = "open-sesame"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemons(tmp_path) as daemons:
        yield daemons.make(
            {"kind": "files"}, http={"token": {"env": "TOKEN"}}, environment={"TOKEN": TOKEN}
        ).start()  # fmt: skip


@pytest.fixture
def alertmanager(tmp_path: Path, daemon: Daemon) -> Iterator[str]:
    """Its address; everything it is told goes to the daemon, again and again."""
    program = next(filter(shutil.which, ("alertmanager", "prometheus-alertmanager")), None)
    require("Alertmanager", [] if program else ["alertmanager"])
    assert program is not None
    (tmp_path / "token").write_text(TOKEN)
    hook = {
        "url": f"{daemon.url}/api/v1/alerts",
        "http_config": {"authorization": {"credentials_file": str(tmp_path / "token")}},
    }
    route = {"receiver": "driftd", "group_wait": "0s", "group_interval": "1s", "repeat_interval": "1s"}
    config = {"route": route, "receivers": [{"name": "driftd", "webhook_configs": [hook]}]}
    (tmp_path / "alertmanager.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with (tmp_path / "alertmanager.log").open("wb") as log:
        process = subprocess.Popen(
            [program, f"--config.file={tmp_path}/alertmanager.yml", f"--storage.path={tmp_path}/am",
             f"--web.listen-address={address}", "--cluster.listen-address="],
            stdout=log, stderr=log,
        )  # fmt: skip
    yield address
    process.terminate()
    process.wait(20)


def fire(address: str, **labels: str) -> None:
    alert = {
        "labels": {"alertname": "FeedChanged", **labels},
        "annotations": {"summary": "the feed has new codes"},
        "startsAt": datetime.now(UTC).isoformat(),
    }
    request = urllib.request.Request(
        f"http://{address}/api/v2/alerts", json.dumps([alert]).encode(), {"content-type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=5).close()


def notifications(address: str) -> float:
    """How many the receiver has taken."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    counts = {line.split(" ")[0]: float(line.split(" ")[1]) for line in lines if 'integration="webhook"' in line}
    taken = 'alertmanager_notifications_total{integration="webhook"}'
    failed = sum(n for name, n in counts.items() if name.startswith("alertmanager_notifications_failed_total"))
    return counts[taken] - failed


def test_an_alert_asks_for_one_retrain(daemon: Daemon, alertmanager: str) -> None:
    def sent() -> bool:
        try:
            fire(alertmanager, model=MODEL)
        except OSError:  # it is still starting
            return False
        return True

    until("the alert is taken", sent)
    until("the request", lambda: daemon.metric("driftd_retrain_requests_total", model=MODEL, trigger="webhook") == 1)
    words = [d["words"] for d in daemon.status()["decisions"]]
    assert words[-1].startswith("retrain requested: alert FeedChanged fires: the feed has new codes")
    until("it is told again", lambda: notifications(alertmanager) >= 3)
    assert daemon.metric("driftd_retrain_requests_total", model=MODEL, trigger="webhook") == 1
    assert [d["outcome"] for d in daemon.status()["decisions"]] == ["requested"], "a repetition says nothing new"


def test_a_body_that_is_no_notification_is_refused_in_words(daemon: Daemon) -> None:
    assert daemon.request("/api/v1/alerts", {"alerts": []})[0] == 401
    status, text = daemon.request("/api/v1/alerts", {"alert": 1}, token=TOKEN)
    assert (status, "no notification of Alertmanager: alerts: Field required" in text) == (400, True)
    status, text = daemon.request("/api/v1/alerts", {"alerts": []}, token=TOKEN)
    assert (status, json.loads(text)) == (200, {"alerts": []})
