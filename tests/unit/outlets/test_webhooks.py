"""Webhooks are told what happened, in order and at least once, by real HTTP; one that is away keeps itself waiting."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import re
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from structlog.testing import capture_logs

from monitor.base.errors import ConfigError
from monitor.config.loading import from_dict
from monitor.config.outside_events import DEFAULT_EVENTS, FIELDS, OutsideEvent, fill
from monitor.metrics import Metrics
from monitor.outlets.sender import MAX_AGE, ROUND, Sender
from monitor.outlets.webhook import Webhook
from retrain.control import audit
from retrain.control.audit import AuditKind, Entry
from retrain.control.database import create_tables, open_engine
from tests.builders import HOUR, MINUTE, NOW

DOCS = Path(__file__).parents[3] / "docs" / "webhooks.md"
LATER = NOW + timedelta(hours=2)


class Receiver:
    """Keeps what is posted to it; answers with `status`."""

    def __init__(self) -> None:
        self.status = 200
        self.taken: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if receiver.status < 300:
                    receiver.taken.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"

    @property
    def numbers(self) -> list[int]:
        return [int(headers["x-driftd-number"]) for headers, _ in self.taken]

    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.taken]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


class Teller:
    """The webhooks of a daemon; `restart` is what a fresh start has."""

    def __init__(self, engine: Engine, *hooks: Webhook):
        self.engine, self.hooks = engine, hooks
        self.leads = True
        self.restart()

    def restart(self) -> None:
        self.metrics = Metrics()
        stop = threading.Event()
        self.senders = [Sender(hook, self.engine, self.metrics, stop, lambda: self.leads) for hook in self.hooks]
        for sender in self.senders:
            sender.begin()

    def send(self, now: datetime = NOW) -> None:
        for sender in self.senders:
            sender.send(now)

    def count(self, outcome: str, name: str = "ops") -> float:
        labels = {"outlet": name, "outcome": outcome}
        return self.metrics.registry.get_sample_value("driftd_event_deliveries_total", labels) or 0.0


def hook(url: str, name: str = "ops", events: Any = DEFAULT_EVENTS, **more: Any) -> Webhook:
    return Webhook(name, url, more.pop("secret", None), frozenset(events), **more)


def moved(engine: Engine, version: str, hours: int = 0) -> None:
    body = {"version": version, "previous_version": "1", "job": "j"}
    entry = Entry(NOW + hours * HOUR, AuditKind.ALIAS_MOVED, "fraud", "job", "champion", 'drop of "x"', body)
    audit.note(engine, entry)


def test_what_happened_before_the_first_start_is_not_told(engine: Engine, receiver: Receiver) -> None:
    moved(engine, "1")
    teller = Teller(engine, hook(receiver.url))
    moved(engine, "2")
    teller.send(NOW)
    teller.restart()
    teller.send(NOW)
    assert receiver.numbers == [2]
    assert receiver.documents() == [
        {
            "event": "champion_moved", "number": 2, "at": NOW.isoformat(), "model": "fraud", "actor": "job",
            "subject": "champion", "detail": 'drop of "x"', "version": "2", "previous_version": "1",
                "share": None,
            "text": 'fraud: version 2 is the champion: drop of "x"',
        }
    ]  # fmt: skip
    assert teller.count("sent") == 0  # by the daemon before it


def test_body_is_signed_so_that_the_receiver_can_check_it(engine: Engine, receiver: Receiver) -> None:
    teller = Teller(engine, hook(receiver.url, secret="s3cret"), hook(receiver.url, "plain"))
    moved(engine, "2")
    teller.send(NOW)
    (headers, body), (unsigned, _) = receiver.taken
    expected = hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
    assert headers["x-driftd-signature"] == f"sha256={expected}"
    assert "x-driftd-signature" not in unsigned


def test_receiver_that_is_away_gets_everything_in_order_when_it_is_back(engine: Engine, receiver: Receiver) -> None:
    teller = Teller(engine, hook(receiver.url))
    teller.send(NOW)
    for version in "234":
        moved(engine, version)
    receiver.status = 503
    teller.send(NOW)
    teller.send(NOW)  # too soon to try again
    assert teller.count("failed") == 1
    receiver.status = 200
    teller.send(NOW + MINUTE)
    assert [d["version"] for d in receiver.documents()] == ["2", "3", "4"]


def test_one_that_is_away_keeps_the_other_waiting_for_nothing(engine: Engine, receiver: Receiver) -> None:
    teller = Teller(engine, hook("http://127.0.0.1:1/", "away"), hook(receiver.url))
    moved(engine, "2")
    teller.send(NOW)
    assert receiver.numbers == [1]
    assert teller.count("failed", "away") == 1


def test_a_replica_that_leads_no_more_posts_no_more(engine: Engine, receiver: Receiver) -> None:
    teller = Teller(engine, hook(receiver.url))
    for version in "23":
        moved(engine, version)
    teller.leads = False
    teller.send()
    assert receiver.taken == []
    teller.leads = True
    teller.send()
    assert receiver.numbers == [1, 2]


def test_a_damaged_log_stops_the_webhook_and_not_the_daemon(tmp_path: Path, receiver: Receiver) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'control.db'}")
    create_tables(engine)
    teller = Teller(engine, hook(receiver.url))
    moved(engine, "2")
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER audit_log_redacts_only")
        connection.exec_driver_sql("UPDATE audit_log SET body = '{ }'")
    with capture_logs() as logs:
        teller.send()
    assert [(e["event"], e["detail"]) for e in logs] == [
        ("delivery_failed", "the body of entry 1 is not as it was written")
    ]
    engine.dispose()


def test_only_the_status_of_an_answer_is_read(engine: Engine) -> None:
    """A receiver that sends its answer's body for ever is done with when the status is there."""
    served = threading.Event()

    class Endless(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while not served.wait(0.1):
                    self.wfile.write(b"x")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    teller = Teller(engine, hook(f"http://127.0.0.1:{server.server_port}/"))
    moved(engine, "2")
    teller.send()
    assert teller.count("sent") == 1
    served.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("status", "goes_on"), [(400, True), (413, True), (401, False), (404, False), (302, False)])
def test_an_entry_that_is_refused_for_good_does_not_keep_the_next_back(
    engine: Engine, receiver: Receiver, status: int, goes_on: bool
) -> None:
    teller = Teller(engine, hook(receiver.url))
    moved(engine, "2")
    receiver.status = status
    teller.send(NOW)
    moved(engine, "3")
    receiver.status = 200
    teller.send(NOW + HOUR)
    assert [d["version"] for d in receiver.documents()] == (["3"] if goes_on else ["2", "3"])


def test_a_long_time_away_ends_without_a_flood(engine: Engine, receiver: Receiver) -> None:
    teller = Teller(engine, hook(receiver.url))
    teller.send(NOW)
    moved(engine, "old")
    for n in range(ROUND + 5):
        moved(engine, f"new{n}", hours=24)
    later = NOW + MAX_AGE + HOUR
    teller.send(later)
    assert len(receiver.taken) == ROUND
    teller.send(later)
    assert [d["version"] for d in receiver.documents()] == [f"new{n}" for n in range(ROUND + 5)]


def job_moved(engine: Engine, state: str) -> None:
    audit.note(engine, Entry(NOW, AuditKind.JOB_MOVED, "fraud", "job", "j", "why", {"to_state": state}))


def rule_changed(engine: Engine, before: str, after: str) -> None:
    body = {"before": before, "after": after, "version": "1"}
    audit.note(engine, Entry(NOW, AuditKind.RULE_CHANGED, "fraud", "driftd", "drop", "why", body))


def test_only_what_was_asked_for_is_told_and_by_its_name(engine: Engine, receiver: Receiver) -> None:
    teller = Teller(engine, hook(receiver.url, events=list(OutsideEvent)))
    teller.send(NOW)
    for state in (
        "requested",
        "snapshot",
        "training",
        "evaluating",
        "awaiting_approval",
        "promoted",
        "rejected",
        "failed",
        "rolled_back",
    ):
        job_moved(engine, state)
    rule_changed(engine, "pending", "firing")
    rule_changed(engine, "inactive", "pending")
    rule_changed(engine, "firing", "inactive")
    audit.note(engine, Entry(NOW, AuditKind.ALIAS_MOVED, "fraud", "job", "previous", "", {"version": "1"}))
    audit.note(engine, Entry(NOW, AuditKind.ROWS_FORGOTTEN, "fraud", "ada", "3", ""))
    audit.note(engine, Entry(NOW, AuditKind.PAUSED, "", "ada", "retraining", "freeze"))
    teller.send(NOW)
    told = [d["event"] for d in receiver.documents()]
    states = ["requested", "training", "awaiting_approval", "promoted", "rejected", "failed", "rolled_back"]
    assert told == [*states, "rule_fired", "rule_resolved", "paused"]
    assert receiver.documents()[-1]["text"] == "driftd: paused: freeze"
    few = Teller(engine, hook(receiver.url, "few", events=["failed"]))
    few.send(NOW)
    job_moved(engine, "rejected")
    job_moved(engine, "failed")
    few.send(NOW)
    assert [d["event"] for d in receiver.documents()][len(told) :] == ["failed"]


# -- templates and configuration


def templates() -> list[str]:
    return re.findall(r"template = \'\'\'(.*?)\'\'\'", DOCS.read_text(), re.DOTALL)


def test_templates_of_the_docs_take_any_text(engine: Engine, receiver: Receiver) -> None:
    assert len(templates()) >= 2
    nasty = 'a "quoted" \\ line\nand $money </script>'
    for template in templates():
        filled = json.loads(fill(template, {**dict.fromkeys(FIELDS, "x"), "text": nasty}))
        assert any(nasty in text for text in _texts(filled))
    teller = Teller(engine, hook(receiver.url, template=templates()[0]))
    moved(engine, "2")
    teller.send(NOW)
    assert any('version 2 is the champion: drop of "x"' in text for text in _texts(receiver.documents()[0]))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for of in value.values():
            yield from _texts(of)
    elif isinstance(value, list):
        for of in value:
            yield from _texts(of)
    else:
        yield str(value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"url": "ftp://x"}, "webhooks.ops.url: must begin with http:// or https://"),
        ({"url": "https://user:hunter2@x"}, "webhooks.ops.url: must hold no user and password"),
        ({"events": ["champion_moves"]}, "webhooks[0].events[0]: 'champion_moves' is not known: did you mean"),
        ({"template": '{"text": "$txt"}'}, "webhooks[0]: template: there is no $txt; there are $event, $number"),
        ({"template": '{"text": $text}'}, "webhooks[0]: template: it does not become JSON"),
        ({"secret": {"env": "NOT_SET_ANYWHERE"}}, "webhooks[0].secret: environment variable NOT_SET_ANYWHERE"),
        ({"secret": "plain"}, "webhooks[0].secret: must be"),
    ],
)
def test_mistakes_are_told_before_anything_runs(change: dict[str, Any], problem: str) -> None:
    good = {"name": "ops", "url": "https://hooks.example.org/x"}
    models = {"fraud": {"task": "regression", "features": {"a": "number"}}}
    assert from_dict({"webhooks": [good], "models": models}).config.webhooks[0].events == DEFAULT_EVENTS
    with pytest.raises(ConfigError) as raised:
        from_dict({"webhooks": [good | change], "models": models})
    assert problem in str(raised.value)
    with pytest.raises(ConfigError, match="'ops' is there twice"):
        from_dict({"webhooks": [good, good], "models": models})
