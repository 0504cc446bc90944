"""Text from outside as names of driftd's own: in folders, keys and labels.

Invariant: injective and bounded. Two texts never get the same name, and no name is longer than 128 characters, holds a
control character, or means anything to a file system. What was a name already stays as it is.
"""

from __future__ import annotations

import hashlib
import re

LONGEST = 128
_MADE = re.compile(r"~[0-9a-f]{20}$")
"""How a name ends that was made here."""
_PATH = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
_NO_SLUG = re.compile(r"[^a-z0-9._-]+")


def shown_name(text: str) -> str:
    """For keys and labels that people read: any printable text of at most LONGEST characters is one."""
    plain = 0 < len(text) <= LONGEST and text.isprintable() and not text.isspace() and not _MADE.search(text)
    return text if plain else _made(text)


def path_name(text: str) -> str:
    """For one component of a path, also where upper and lower case are the same."""
    return text if _PATH.fullmatch(text) and not text.endswith(".") else _made(text)


def printable(text: str, keep: str = "") -> str:
    """For a terminal: what would move its cursor, change its colours or turn the reading direction is spelled out, but
    for the characters to `keep`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def _made(text: str) -> str:
    """Something of the text for people, and its digest."""
    slug = _NO_SLUG.sub("-", text.lower()[:200]).strip(".-")[:40]
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]
    return f"{slug}~{digest}"
