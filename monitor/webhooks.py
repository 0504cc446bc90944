"""Tells webhooks what happened: entries of the audit log, in their order, each at least once.

Invariant: the log is the queue and a cursor per webhook, in the control database, is how far it has come; it moves only
after the receiver has taken an entry, or will never take it. A webhook that is away keeps nobody waiting but itself.
What is older than its first start is never sent.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import requests
import structlog
from sqlalchemy import Column, Engine, Integer, String, Table, insert, select, update
from sqlalchemy.exc import IntegrityError

from monitor.metrics import Metrics
from monitor.phases import Phase
from monitor.webhook_events import WebhookEvent, fill
from retrain import audit
from retrain.audit import AuditKind, Recorded
from retrain.database import metadata, reading, writing
from retrain.records import CHAMPION
from retrain.states import JobState

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


_STATES = {
    JobState.AWAITING_APPROVAL.value: WebhookEvent.AWAITING_APPROVAL,
    JobState.PROMOTED.value: WebhookEvent.PROMOTED,
    JobState.REJECTED.value: WebhookEvent.REJECTED,
    JobState.FAILED.value: WebhookEvent.FAILED,
    JobState.ROLLED_BACK.value: WebhookEvent.ROLLED_BACK,
}


@dataclass(frozen=True, slots=True)
class Webhook:
    """`template`: JSON text in which $text, $event, $model, $actor, $detail, $number, $at are put; None: `document`."""

    name: str
    url: str
    secret: str | None
    events: frozenset[WebhookEvent]
    template: str | None = None


_NAMED = {event.value: event for event in WebhookEvent}


# -- pure


def event_of(entry: Recorded) -> WebhookEvent | None:
    """What the entry is told as; None: nobody is told of it."""
    match entry.kind:
        case AuditKind.ALIAS_MOVED:
            return WebhookEvent.CHAMPION_MOVED if entry.subject == CHAMPION else None
        case AuditKind.JOB_MOVED:
            return _STATES.get(str(entry.body.get("to_state")))
        case AuditKind.RULE_CHANGED:
            if entry.body.get("after") == Phase.FIRING:
                return WebhookEvent.RULE_FIRED
            return WebhookEvent.RULE_RESOLVED if entry.body.get("before") == Phase.FIRING else None
        case kind:
            return _NAMED.get(kind)


def document(entry: Recorded, event: WebhookEvent) -> dict[str, Any]:
    """The body of a delivery: the entry without its chain and without what only an auditor reads."""
    version = entry.body.get("version")
    return {
        "event": event.value,
        "number": entry.number,
        "at": entry.at.isoformat(),
        "model": entry.model,
        "actor": entry.actor,
        "subject": entry.subject,
        "detail": entry.detail,
        "version": version,
        "previous_version": entry.body.get("previous_version"),
        "text": _text(entry, event, version),
    }


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


class Webhooks:
    """Call `send` now and then, on one replica at a time and in one thread at a time."""

    def __init__(self, hooks: Sequence[Webhook], engine: Engine, metrics: Metrics, stop: threading.Event):
        self._hooks = hooks
        self._engine = engine
        self._metrics = metrics
        self._stop = stop
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, datetime] = {}

    def send(self, now: datetime) -> None:
        """Deliver what is due. Raises TransientError when the control database is away."""
        for hook in self._hooks:
            if now >= self._not_before.get(hook.name, now) and not self._stop.is_set():
                self._send(hook, now)

    def _send(self, hook: Webhook, now: datetime) -> None:
        begun = dealt_with = self._cursor(hook.name)
        delivered = 0
        for entry in audit.entries(self._engine, after=begun):
            event = event_of(entry)
            if event is not None and event in hook.events and entry.at > now - MAX_AGE:
                if delivered == ROUND or self._stop.is_set():
                    break
                if (problem := self._deliver(hook, entry, event)) is not None:
                    self._wait(hook, problem, now)
                    break
                delivered += 1
                self._move(hook.name, entry.number)
            dealt_with = entry.number
        else:
            self._failures.pop(hook.name, None)
        if dealt_with > begun:
            self._move(hook.name, dealt_with)

    def _deliver(self, hook: Webhook, entry: Recorded, event: WebhookEvent) -> str | None:
        """What kept the receiver from taking it; None: it is done with."""
        body = body_of(hook, entry, event)
        headers = {"content-type": "application/json", NUMBER: str(entry.number)}
        if hook.secret is not None:
            headers[SIGNATURE] = sign(hook.secret, body)
        count = self._metrics.webhook_deliveries.labels
        try:
            answer = requests.post(hook.url, data=body, headers=headers, timeout=TIMEOUT, allow_redirects=False)
        except requests.RequestException as exc:
            count(hook.name, "failed").inc()
            return type(exc).__name__
        if answer.status_code < 300:
            count(hook.name, "sent").inc()
            return None
        count(hook.name, "failed").inc()
        if answer.status_code in _NEVER:
            log.warning("webhook_refused", webhook=hook.name, number=entry.number, status=answer.status_code)
            return None
        return f"answer {answer.status_code}"

    def _wait(self, hook: Webhook, problem: str, now: datetime) -> None:
        failures = self._failures.get(hook.name, 0)
        self._failures[hook.name] = failures + 1
        self._not_before[hook.name] = now + min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(failures, 10))
        if failures == 0:
            log.warning("webhook_failed", webhook=hook.name, detail=problem)

    def _cursor(self, name: str) -> int:
        with reading(self._engine) as db:
            found = db.scalar(select(_cursors.c.number).where(_cursors.c.name == name))
        if found is not None:
            return int(found)
        newest = audit.head(self._engine)
        try:
            with writing(self._engine) as db:
                db.execute(insert(_cursors).values(name=name, number=newest))
        except IntegrityError:  # another replica that led a moment ago
            return self._cursor(name)
        return newest

    def _move(self, name: str, number: int) -> None:
        mine = (_cursors.c.name == name, _cursors.c.number < number)
        with writing(self._engine) as db:
            db.execute(update(_cursors).where(*mine).values(number=number))
