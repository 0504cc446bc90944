"""Which configuration was in force when: an entry of the audit log for each that differs from the one before.

Invariant: an entry holds the whole configuration, secrets as references, so that of any moment can be read back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Engine

from monitor.config.sections import Config
from retrain.control import audit
from retrain.control.audit import AuditKind, Entry

_SHOWN = 10
_ABSENT = object()


def note_configuration(engine: Engine, config: Config, now: datetime) -> None:
    """Append the configuration unless it is the one noted last. Raises TransientError."""
    digest, found = config.digest(), config.to_json()
    last = audit.newest(engine, AuditKind.CONFIGURED)
    if last is not None and last.subject == digest:
        return
    if last is None:
        detail = "first configuration"
    elif (before := last.body.get("config")) is None:
        detail = "the entry of the one before was redacted"
    else:
        detail = _changes(before, found)
    audit.note(engine, Entry(now, AuditKind.CONFIGURED, "", audit.DRIFTD, digest, detail, {"config": found}))


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    old, new = dict(_flat(before)), dict(_flat(after))
    changed = [
        f"{key}: {_word(old.get(key, _ABSENT))} -> {_word(new.get(key, _ABSENT))}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, _ABSENT) != new.get(key, _ABSENT)
    ]
    more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    return "; ".join(changed[:_SHOWN]) + more


def _flat(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    items: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        items = [(f"{at}.{name}" if at else str(name), of) for name, of in value.items()]
    elif isinstance(value, list):
        items = [(f"{at}[{i}]", of) for i, of in enumerate(value)]
    if not items:
        yield at, value
    for name, of in items:
        yield from _flat(of, name)


def _word(value: Any) -> str:
    return "absent" if value is _ABSENT else repr(value)
