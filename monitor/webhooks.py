"""Tells webhooks what happened: entries of the audit log, in their order, each at least once.

Invariant: the log is the queue and a cursor per webhook, in the control database, is how far it has come; it moves only
after the receiver has taken an entry, or will never take it. Each webhook has a thread of its own, so one that is away
or slow keeps nobody waiting but itself. What is older than its first start is never sent.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import requests
import structlog
from sqlalchemy import Column, Engine, Integer, String, Table, insert, select, update
from sqlalchemy.exc import IntegrityError

from monitor.errors import TransientError
from monitor.metrics import Metrics
from monitor.phases import Phase
from monitor.webhook_events import WebhookEvent, fill
from retrain import audit
from retrain.audit import AuditKind, Recorded
from retrain.database import metadata, reading, writing
from retrain.records import CHAMPION

log = structlog.get_logger()

TIMEOUT = 5.0
"""Seconds for a receiver to connect, and again to answer."""
MAX_AGE = timedelta(days=7)
"""Older entries are passed over: after a long time away a flood helps nobody."""
ROUND = 100
"""Deliveries to one webhook in one round at most."""
SIGNATURE, NUMBER = "X-Driftd-Signature", "X-Driftd-Number"
_FIRST_WAIT, _LONGEST_WAIT = timedelta(seconds=5), timedelta(minutes=5)
_NEVER = frozenset({400, 405, 406, 410, 413, 414, 415, 422})
"""Answers after which the same entry need not be sent again."""

_cursors = Table(
    "webhook_cursors",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("number", Integer, nullable=False),  # the audit log's entry that was dealt with last
)

_NAMED = {event.value: event for event in WebhookEvent}


@dataclass(frozen=True, slots=True)
class Webhook:
    """`template`: JSON text in which $text, $event, $model, $actor, $detail, $number, $at are put; None: `document`."""

    name: str
    url: str
    secret: str | None
    events: frozenset[WebhookEvent]
    template: str | None = None


# -- pure


def event_of(entry: Recorded) -> WebhookEvent | None:
    """What the entry is told as; None: nobody is told of it."""
    match entry.kind:
        case AuditKind.ALIAS_MOVED:
            return WebhookEvent.CHAMPION_MOVED if entry.subject == CHAMPION else None
        case AuditKind.JOB_MOVED:
            return _NAMED.get(str(entry.body.get("to_state")))
        case AuditKind.RULE_CHANGED:
            if entry.body.get("after") == Phase.FIRING:
                return WebhookEvent.RULE_FIRED
            return WebhookEvent.RULE_RESOLVED if entry.body.get("before") == Phase.FIRING else None
        case kind:
            return _NAMED.get(kind)


def document(entry: Recorded, event: WebhookEvent) -> dict[str, Any]:
    """The body of a delivery: the entry without its chain and without what only an auditor reads."""
    version = entry.body.get("version")
    found: dict[str, Any] = {
        "event": event.value,
        "number": entry.number,
        "at": entry.at.isoformat(),
        "model": entry.model,
        "actor": entry.actor,
        "subject": entry.subject,
        "detail": entry.detail,
        "version": version,
        "previous_version": entry.body.get("previous_version"),
        "share": entry.body.get("share"),
        "text": _text(entry, event, version),
    }
    if (gates := _gates(entry)) is not None:
        found["gates"] = gates
    return found


def _gates(entry: Recorded) -> list[dict[str, Any]] | None:
    """What the challenger was held against, where the entry knows it."""
    known = (entry.body, *(entry.body.get(of) for of in ("result", "shadow", "canary")))
    return next((of["gates"] for of in known if of and of.get("gates")), None)


def _text(entry: Recorded, event: WebhookEvent, version: Any) -> str:
    words = event.value.replace("_", " ")
    if event is WebhookEvent.CHAMPION_MOVED:
        words = f"version {version} is the champion" if version else "no champion any more"
    return f"{entry.model or 'driftd'}: {words}" + (f": {entry.detail}" if entry.detail else "")


def body_of(hook: Webhook, entry: Recorded, event: WebhookEvent) -> bytes:
    fields = document(entry, event)
    if hook.template is None:
        return json.dumps(fields, ensure_ascii=False).encode()
    return fill(hook.template, fields).encode()


def sign(secret: str, body: bytes) -> str:
    """`sha256=` and the HMAC-SHA-256 (RFC 2104) of the body in hex."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


# -- shell


class Sender:
    """Of one webhook: call `begin` once, then `send` now and then, in one thread at a time. Only while `leads` answers
    True is anything posted."""

    def __init__(
        self, hook: Webhook, engine: Engine, metrics: Metrics, stop: threading.Event, leads: Callable[[], bool]
    ):
        self.hook = hook
        self._engine = engine
        self._deliveries = metrics.webhook_deliveries
        self._stop = stop
        self._leads = leads
        self._failures = 0
        self._not_before: datetime | None = None

    def begin(self) -> None:
        """From here on everything is posted. Raises TransientError when the control database is away."""
        self._cursor()

    def send(self, now: datetime) -> None:
        """Deliver what is due."""
        if self._not_before is not None and now < self._not_before:
            return
        try:
            problem = self._send(now)
        except (TransientError, audit.DamagedEntry) as exc:
            problem = str(exc)
        if problem:
            self._wait(problem, now)

    def _send(self, now: datetime) -> str:
        """What stood in the way, empty if nothing did."""
        begun = dealt_with = self._cursor()
        delivered = 0
        for entry in audit.entries(self._engine, after=begun):
            event = event_of(entry)
            if event is not None and event in self.hook.events and entry.at > now - MAX_AGE:
                if delivered == ROUND or self._stop.is_set() or not self._leads():
                    break
                if problem := self._deliver(entry, event):
                    self._move(dealt_with)
                    return problem
                self._move(entry.number)
                self._failures, delivered = 0, delivered + 1
            dealt_with = entry.number
        if dealt_with > begun:
            self._move(dealt_with)
        self._failures, self._not_before = 0, None
        return ""

    def _deliver(self, entry: Recorded, event: WebhookEvent) -> str:
        """What kept the receiver from taking it; empty: it is done with."""
        body = body_of(self.hook, entry, event)
        headers = {"content-type": "application/json", NUMBER: str(entry.number)}
        if self.hook.secret is not None:
            headers[SIGNATURE] = sign(self.hook.secret, body)
        try:
            with requests.post(
                self.hook.url, data=body, headers=headers, timeout=TIMEOUT, allow_redirects=False, stream=True
            ) as answer:  # of which only the status is read
                status = answer.status_code
        except requests.RequestException as exc:
            self._deliveries.labels(self.hook.name, "failed").inc()
            return type(exc).__name__
        self._deliveries.labels(self.hook.name, "sent" if status < 300 else "failed").inc()
        if status in _NEVER:
            log.warning("webhook_refused", webhook=self.hook.name, number=entry.number, status=status)
            return ""
        return "" if status < 300 else f"answer {status}"

    def _wait(self, problem: str, now: datetime) -> None:
        self._not_before = now + min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(self._failures, 10))
        self._failures += 1
        if self._failures == 1:
            log.warning("webhook_failed", webhook=self.hook.name, detail=problem)

    def _cursor(self) -> int:
        with reading(self._engine) as db:
            found = db.scalar(select(_cursors.c.number).where(_cursors.c.name == self.hook.name))
        if found is not None:
            return int(found)
        newest = audit.newest_number(self._engine)
        try:
            with writing(self._engine) as db:
                db.execute(insert(_cursors).values(name=self.hook.name, number=newest))
        except IntegrityError:  # another replica began at this moment
            return self._cursor()
        return newest

    def _move(self, number: int) -> None:
        mine = (_cursors.c.name == self.hook.name, _cursors.c.number < number)
        with writing(self._engine) as db:
            db.execute(update(_cursors).where(*mine).values(number=number))
