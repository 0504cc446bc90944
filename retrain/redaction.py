"""Secrets in text: known by the name before them, or by their own shape; and the text without them.

Invariant: idempotent; what is no secret stays as it is. A reference to a secret (`$NAME`, `env:NAME`) is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

REDACTED = "(redacted)"

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SECRET_ENDS = ("password", "passwd", "passphrase", "secret", "token", "apikey", "credential", "credentials")
_SECRET_WORDS = frozenset({"pwd", "authorization", "bearer", "cookie", "sas", "secrets"})
_KEYS_OF = frozenset(
    {"access", "account", "api", "auth", "client", "encryption", "license", "master", "private", "secret", "service"}
    | {"shared", "signing", "storage", "subscription"}
)
"""A `key` of these is one."""
_ABOUT = frozenset(
    {"id", "ids", "name", "names", "file", "path", "url", "uri", "env", "var", "type", "count", "limit", "length"}
    | {"size", "ttl", "expiry", "expires", "field", "column", "header", "endpoint", "algorithm", "provider"}
)
"""A name that ends so says something about a secret, or where it is."""
_IN_QUERY = frozenset({"key", "sig", "signature", "code", "auth", "pass", "pw"})
"""Names that mean a secret where they are parameters of an address."""

_TOKEN = re.compile(
    r"gh[pousr]_[A-Za-z0-9]{20,}"  # GitHub
    r"|github_pat_[A-Za-z0-9_]{20,}"
    r"|gl(?:pat-|sa_|c_)[A-Za-z0-9_-]{16,}"  # GitLab, Grafana
    r"|xox[a-z]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{10,}"  # Slack
    r"|\bsk-[A-Za-z0-9_-]{20,}|\b[rs]k_(?:live|test)_[A-Za-z0-9]{10,}"  # OpenAI and its like, Stripe
    r"|AIza[0-9A-Za-z_-]{30,}|ya29\.[0-9A-Za-z_-]{20,}"  # Google
    r"|\bdapi[0-9a-f]{32}|\bhf_[A-Za-z0-9]{20,}|\bnpm_[A-Za-z0-9]{30,}|\bpypi-[A-Za-z0-9_-]{30,}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"  # JSON web tokens
    r"|(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{86}=="  # keys of Azure's storage accounts
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?i:\b(?:bearer|basic)\s+)(?!\$)[A-Za-z0-9._~+/-]{8,}=*"
)
_CHAT = re.compile(
    r"(https?://(?:"
    r"hooks\.slack\.com|(?:\w+\.)?discord(?:app)?\.com/api/webhooks|[\w.-]*webhook\.office\.com|outlook\.office\.com/webhook"
    r"|[\w.-]+\.logic\.azure\.com|[\w.-]+\.powerplatform\.com|chat\.googleapis\.com/v1/spaces|api\.telegram\.org/bot"
    r"|events\.pagerduty\.com/integration|hooks\.zapier\.com|maker\.ifttt\.com|[^/\s\"']+/hooks(?=/[A-Za-z0-9]{16})"
    r"))[^\s\"'<>]+"
)
"""Addresses of chats that are secrets themselves."""
_USER = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*)://([^/\s@:?#\"']*)(?::([^\s@\"']*))?@")
_ASSIGNED = re.compile(r"([?&]?)([A-Za-z][\w.-]{0,80})(\s?=\s?)")
_QUOTED = re.compile(r"""(["'])([A-Za-z][\w. -]{0,80})\1(\s*:\s*)(["'])((?:\\.|(?!\4).)*)\4""")
_HEADER = re.compile(
    r"\b((?:proxy-)?authorization|\w+-[\w-]*(?:key|token|secret))(\s*:\s*)([^\s\"',]+(?: [^\s\"',]+)?)", re.IGNORECASE
)
_VALUE = re.compile(r"\"[^\"]*\"|'[^']*'|[^\s\"'&;,)}\]]+")
_REFERENCE = re.compile(r"\$|env:|file:|\{|<|%\(|\*{3}|\(redacted|['\"]?\(redacted|none\b|null\b|true\b|false\b", re.I)


def names_secret(name: str, in_query: bool = False) -> bool:
    """Whether what has this name (a setting, a header, a parameter) is not to be written down."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words or words[-1] in _ABOUT:
        return False
    pairs = set(pairwise(words))
    return (
        any(word.endswith(_SECRET_ENDS) or word in _SECRET_WORDS for word in words)
        or any(second == "key" and first in _KEYS_OF for first, second in pairs)
        or ("service", "account") in pairs
        or (in_query and words[-1] in _IN_QUERY)
    )


def redact(text: str) -> str:
    """The text, with `(redacted)` where a secret was."""
    text = _TOKEN.sub(REDACTED, text)
    text = _CHAT.sub(lambda found: f"{found[1]}/{REDACTED}", text)
    if "://" in text:
        text = _USER.sub(_without_user, text)
    if "=" in text:
        text = _without_assigned(text)
    if ":" in text:
        text = _QUOTED.sub(_without_quoted, text)
        text = _HEADER.sub(lambda f: f[0] if _REFERENCE.match(f[3]) or "$" in f[3] else f"{f[1]}{f[2]}{REDACTED}", text)
    return text


def redacted(value: Any, name: str = "") -> Any:
    """A JSON value of that name, the same throughout."""
    if isinstance(value, str):
        return REDACTED if _is_literal(value) and names_secret(name) else redact(value)
    if isinstance(value, Mapping):
        return {key: redacted(of, str(key)) for key, of in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return _redacted_list(value, name)
    return value


def secrets_in(value: Any, place: str = "", name: str = "") -> Iterator[str]:
    """Where a JSON value holds secrets: `lake.options.account_key`, `models.fraud.retrain.command[2]`."""
    if isinstance(value, str):
        if redacted(value, name) != value:
            yield place
    elif isinstance(value, Mapping):
        for key, of in value.items():
            yield from secrets_in(of, f"{place}.{key}" if place else str(key), str(key))
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        for at, (of, without) in enumerate(zip(value, _redacted_list(value, name), strict=True)):
            if isinstance(of, str):
                if of != without:
                    yield f"{place}[{at}]"
            else:
                yield from secrets_in(of, f"{place}[{at}]", name)


def _redacted_list(values: Sequence[Any], name: str) -> list[Any]:
    """In a command, what follows `--password` has its name."""
    found, option = [], ""
    for value in values:
        found.append(redacted(value, option or name))
        given = isinstance(value, str) and re.fullmatch(r"-{1,2}([A-Za-z][\w-]*)", value)
        option = given[1] if given else ""
        option = "password" if option in ("u", "user") and _is_pair(values, len(found)) else option
    return found


def _is_pair(values: Sequence[Any], at: int) -> bool:
    """`-u me:hunter2`"""
    return at < len(values) and isinstance(values[at], str) and ":" in values[at]


def _is_literal(value: str) -> bool:
    return bool(value) and not _REFERENCE.match(value) and "$" not in value and not re.fullmatch(r"[0-9.]{1,5}", value)


def _without_user(found: re.Match[str]) -> str:
    """The user part of an address: a password, or of an HTTP address whatever it is. Of a storage address it is a
    container, of a database or a shell a name."""
    scheme, user, password = found[1], found[2], found[3]
    web = scheme.lower() in ("http", "https", "git+https", "git+http")
    if password is not None and "/" in password and web:
        return found[0]  # a port, and an @ in the path
    literal = _is_literal(password) if password else web and _is_literal(user)
    if not literal:
        return found[0]
    return f"{scheme}://{REDACTED}@" if web else f"{scheme}://{user}:{REDACTED}@"


def _without_assigned(text: str) -> str:
    parts, at = [], 0
    for found in _ASSIGNED.finditer(text):
        if found.start() < at or not names_secret(found[2], in_query=bool(found[1])):
            continue
        value = _VALUE.match(text, found.end())
        if value is None or not _is_literal(value[0].strip("\"'")):
            continue
        parts.append(text[at : found.end()] + REDACTED)
        at = value.end()
    return "".join([*parts, text[at:]])


def _without_quoted(found: re.Match[str]) -> str:
    if not names_secret(found[2]) or not _is_literal(found[5]):
        return found[0]
    return f"{found[1]}{found[2]}{found[1]}{found[3]}{found[4]}{REDACTED}{found[4]}"
