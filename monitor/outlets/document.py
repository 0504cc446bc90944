"""What an entry of the audit log is told as.

Invariant: pure; the same for every outlet.
"""

from __future__ import annotations

from typing import Any

from monitor.config.outside_events import OutsideEvent
from monitor.rules.phases import Phase
from retrain.control.audit import AuditKind, Recorded
from retrain.terms.aliases import CHAMPION

_NAMED = {event.value: event for event in OutsideEvent}


def event_of(entry: Recorded) -> OutsideEvent | None:
    """What the entry is told as; None: nobody is told of it."""
    match entry.kind:
        case AuditKind.ALIAS_MOVED:
            return OutsideEvent.CHAMPION_MOVED if entry.subject == CHAMPION else None
        case AuditKind.JOB_MOVED:
            return _NAMED.get(str(entry.body.get("to_state")))
        case AuditKind.RULE_CHANGED:
            if entry.body.get("after") == Phase.FIRING:
                return OutsideEvent.RULE_FIRED
            return OutsideEvent.RULE_RESOLVED if entry.body.get("before") == Phase.FIRING else None
        case kind:
            return _NAMED.get(kind)


def document(entry: Recorded, event: OutsideEvent) -> dict[str, Any]:
    """The entry without its chain and without what only an auditor reads; JSON values."""
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


def _text(entry: Recorded, event: OutsideEvent, version: Any) -> str:
    words = event.value.replace("_", " ")
    if event is OutsideEvent.CHAMPION_MOVED:
        words = f"version {version} is the champion" if version else "no champion any more"
    return f"{entry.model or 'driftd'}: {words}" + (f": {entry.detail}" if entry.detail else "")
