"""An HTTP address that is told what happened: signed, as a document or by a template."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass

import requests

from monitor.config.outside_events import OutsideEvent, fill
from monitor.outlets.document import document
from monitor.outlets.sender import NotTaken, Taken
from retrain.control.audit import Recorded

TIMEOUT = 5.0
"""Seconds for a receiver to connect, and again to answer."""
SIGNATURE, NUMBER = "X-Driftd-Signature", "X-Driftd-Number"
_NEVER = frozenset({400, 405, 406, 410, 413, 414, 415, 422})
"""Answers after which the same entry need not be sent again."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """`template`: JSON text in which $text, $event, $model, $actor, $detail, $number, $at are put; None: `document`."""

    name: str
    url: str
    secret: str | None
    events: frozenset[OutsideEvent]
    template: str | None = None

    def deliver(self, entry: Recorded, event: OutsideEvent) -> Taken:
        """See `monitor.outlets.sender.Outlet`."""
        body = body_of(self, entry, event)
        headers = {"content-type": "application/json", NUMBER: str(entry.number)}
        if self.secret is not None:
            headers[SIGNATURE] = sign(self.secret, body)
        try:
            with requests.post(
                self.url, data=body, headers=headers, timeout=TIMEOUT, allow_redirects=False, stream=True
            ) as answer:  # of which only the status is read
                status = answer.status_code
        except requests.RequestException as exc:
            raise NotTaken(type(exc).__name__) from exc
        if status in _NEVER:
            return Taken.REFUSED
        if status >= 300:
            raise NotTaken(f"answer {status}")
        return Taken.YES


def body_of(hook: Webhook, entry: Recorded, event: OutsideEvent) -> bytes:
    fields = document(entry, event)
    if hook.template is None:
        return json.dumps(fields, ensure_ascii=False).encode()
    return fill(hook.template, fields).encode()


def sign(secret: str, body: bytes) -> str:
    """`sha256=` and the HMAC-SHA-256 (RFC 2104) of the body in hex."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
