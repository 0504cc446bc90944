"""Secrets in text: known by the name before them, or by their own shape; and the text without them.

Invariant: idempotent, and linear in the length of the text; what is no secret stays as it is. A reference to one
(`$NAME`, `env:NAME`) or a path is none. Names that a team gives (features, classes, models) are never read as names of
settings.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any
from urllib.parse import unquote

REDACTED = "(redacted)"
_VOCABULARY = frozenset(
    {"features", "feature", "classes", "positive", "segments", "segment", "fairness_segment", "ranges", "drift"}
    | {"model", "registered_model", "model_version", "subject", "job", "job_id", "run_id", "prediction_id"}
    | {"outcomes_uri", "predictions_uri"}
)
"""Keys of what teams name themselves; what is below them is left as it is."""

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SECRET_ENDS = (
    *("password", "passwd", "passphrase", "passcode", "secret", "token", "apikey", "credential", "bearer"),
    *("secretkey", "accesskey", "accountkey", "privatekey", "authkey"),
)
_SECRET_WORDS = frozenset({"pwd", "pass", "authorization", "cookie", "sas"})
_KEYS_OF = frozenset(
    {"access", "account", "api", "auth", "client", "customer", "encryption", "fernet", "hmac", "integration", "license"}
    | {"master", "openai", "private", "routing", "sas", "secret", "session", "shared", "signing", "ssh", "storage"}
    | {"subscription"}
)
"""A `key` of these is one."""
_AFTER = frozenset({"value", "base", "b", "pem"})
"""Words that may follow the one that says secret."""
_COUNTED = frozenset({"pad", "unk", "eos", "bos", "sep", "cls", "mask", "max", "min", "num", "n", "stop", "special"})
"""A `token` of these is a word of a language."""
_PLAINLY = frozenset({"password", "passwd", "passphrase", "passcode", "pwd"})
_IN_QUERY = frozenset({"key", "sig", "signature", "code", "auth", "pass", "pw"})
"""Names that mean a secret where they are parameters of an address."""
_LOGINS = frozenset({"curl", "wget"})
_ATTACHED = frozenset({"mysql", "mysqldump", "mysqladmin", "mariadb", "sshpass"})

_TOKEN = re.compile(
    r"gh[pousr]_[A-Za-z0-9]{20,}"  # GitHub
    r"|github_pat_[A-Za-z0-9_]{20,}"
    r"|gl(?:pat-|sa_|c_)[A-Za-z0-9_-]{16,}"  # GitLab, Grafana
    r"|xox[a-z]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{10,}"  # Slack
    r"|sk-(?=[A-Za-z_-]{0,99}[0-9])(?=[a-z0-9_-]{0,99}[A-Z])[A-Za-z0-9_-]{20,}"  # OpenAI and its like
    r"|[rs]k_(?:live|test)_[A-Za-z0-9]{10,}"  # Stripe
    r"|AIza[0-9A-Za-z_-]{30,}|ya29\.[0-9A-Za-z_-]{20,}"  # Google
    r"|dapi[0-9a-f]{32}|hf_[A-Za-z0-9]{20,}|npm_[A-Za-z0-9]{30,}|pypi-[A-Za-z0-9_-]{30,}"
    r"|eyJ[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_-]{8,4000}(?:\.[A-Za-z0-9_-]*)?"  # JSON web tokens
    r"|(?<![A-Za-z0-9+/-])[A-Za-z0-9+/]{86}=="  # keys of Azure's storage accounts
    r"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]{0,8000}?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)"
    r"|(?i:(?:bearer|basic)\s{1,3})(?=[A-Za-z._~+/-]{0,200}[0-9])[A-Za-z0-9._~+/-]{12,2000}=*"
)
_CHAT = re.compile(
    r"(https?://(?:hooks\.slack\.com|(?:\w{1,20}\.)?discord(?:app)?\.com/api/webhooks"
    r"|[\w.-]{0,100}webhook\.office\.com|outlook\.office\.com/webhook|[\w.-]{1,100}\.logic\.azure\.com"
    r"|[\w.-]{1,100}\.powerplatform\.com|chat\.googleapis\.com/v1/spaces|api\.telegram\.org/bot"
    r"|events\.pagerduty\.com/integration|hooks\.zapier\.com|maker\.ifttt\.com"
    r"|[^/\s\"']{1,200}/hooks(?=/[A-Za-z0-9]{15})))[^\s\"'<>]+"
)
"""Addresses of chats that are secrets themselves."""
_USER = re.compile(
    r"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]{0,30})://([^/\s@:?#\"'<>]{0,200})"
    r"(?::([^\s/\"'<>]{0,200}|[^\s@\"'<>]{1,200}))?@"
)
_ASSIGNED = re.compile(r"(?<![/\w.-])-{0,2}([A-Za-z][\w.-]{0,80})(\s{0,2}={1,3}\s{0,2})")
_VALUE = re.compile(r"\"[^\"]{0,500}\"|'[^']{0,500}'|(?:[^\s\"'&;,]|,(?!\s|$|\w{1,40}=)|;(?!\s|$|\w{1,40}=)){1,20000}")
_OPTION = re.compile(r"(?<![\w-])(--?([A-Za-z][\w-]{0,60})\s{1,3})(\"[^\"]{0,500}\"|'[^']{0,500}'|[^\s\"'-]\S{0,500})")
_TOLD = re.compile(r"(?<![\w.-])([A-Za-z][\w.-]{0,80})(:\s{1,3})([^\s\"'{\[(]{6,500})")
_QUOTED = re.compile(r"""(["'])([A-Za-z][\w. -]{0,80})\1(\s{0,5}:\s{0,5}b?)(["'])((?:\\.|(?!\4)[^\\]){0,4000})\4""")
_ESCAPED = re.compile(r"""(\\{1,3}")([A-Za-z][\w. -]{0,80})\1(\s{0,5}:\s{0,5})(\1)((?:(?!\1).){0,2000})\1""")
_HEADER = re.compile(
    r"(?<![\w.-])((?:proxy-)?authorization|(?:set-)?cookie|api-key|private-token|x-[\w-]{0,40}(?:key|token|secret|auth))"
    r"(\s{0,3}:\s{0,3})(digest \w+=[^\r\n]{0,2000}|[^\s\"',][^\"'\r\n]{0,2000})",
    re.IGNORECASE,
)
_ENCODED = re.compile(r"([?&][\w.-]{1,80}=)([^&\s\"'<>#]{0,300}%3[dD][^&\s\"'<>#]{0,2000})")
_REFERENCE = re.compile(
    r"(?:(?:bearer|basic|token|digest)\s+)?(?:\$\{?[A-Z_a-z]\w*\}?|\{\{.*\}\}|<[\w .-]+>|\*+|\(redacted\))"
    r"|env:[A-Za-z_]\w*|file:/[\w./-]+|none|null|true|false|\[[A-Z]+\]|[0-9.]{1,3}|\{(?:env|file)\b.*",
    re.IGNORECASE,
)
_PATH = re.compile(r"(?:~|\.{1,2})?/[\w.-]*[a-z][\w.-]*(?:/[\w.-]+)*/?")
_WORD = re.compile(r"[A-Za-z_.]+")


def names_secret(name: str, in_query: bool = False) -> bool:
    """Whether what has this name (a setting, a header, a parameter) is not to be written down."""
    words = [word.lower() for word in _WORDS.findall(name)]
    while words and (words[-1] in _AFTER or words[-1].isdigit()):
        words.pop()
    if not words:
        return False
    last, before = words[-1].removesuffix("s") if words[-1] not in ("pass", "sas") else words[-1], words[-2:-1]
    if last == "token" and before and before[0] in _COUNTED:
        return False
    return (
        last.endswith(_SECRET_ENDS)
        or last in _SECRET_WORDS
        or (last == "key" and bool(before) and before[0] in _KEYS_OF)
        or (in_query and name.lower() in _IN_QUERY)
    )


def redact(text: str) -> str:
    """The text, with `(redacted)` where a secret was."""
    for _ in range(3):
        if (found := _redact(text)) == text:
            break
        text = found
    return text


def _redact(text: str) -> str:
    if text[:1] in ("{", "[") and len(text) < 200_000:
        with suppress(ValueError, RecursionError):
            value = json.loads(text)
            if isinstance(value, dict | list):
                without = redacted(value)
                return text if without == value else json.dumps(without, ensure_ascii=False)
    text = _TOKEN.sub(REDACTED, text)
    if "://" in text:
        text = _CHAT.sub(lambda found: f"{found[1]}/{REDACTED}", text)
        text = _USER.sub(_without_user, text)
        text = _ENCODED.sub(lambda f: f[0] if _is_clean(unquote(f[2])) else f[1] + REDACTED, text)
    if "=" in text:
        text = _without_assigned(text)
    if "-" in text:
        text = _OPTION.sub(lambda f: f[1] + REDACTED if names_secret(f[2]) and _is_option(f[2], f[3]) else f[0], text)
    if ":" in text:
        text = _HEADER.sub(lambda f: f[0] if _is_reference_or_word(f[3]) else f"{f[1]}{f[2]}{REDACTED}", text)
        text = _QUOTED.sub(_without_quoted, text)
        text = _ESCAPED.sub(_without_quoted, text)
        text = _TOLD.sub(lambda f: f"{f[1]}{f[2]}{REDACTED}" if _is_told(f[1], f[3]) else f[0], text)
    return text


def redacted(value: Any, name: str = "") -> Any:
    """A JSON value of that name, the same throughout."""
    if name in _VOCABULARY:
        return value
    if isinstance(value, str):
        return REDACTED if names_secret(name) and _is_literal(value) else redact(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return REDACTED if abs(value) >= 1000 and names_secret(name) else value
    if isinstance(value, Mapping):
        # Kubernetes' way to give a variable: {"name": .., "value": ..}
        named = name if names_secret(name) else str(value.get("name", ""))
        return {key: redacted(of, named if key == "value" and named else str(key)) for key, of in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return _redacted_list(value, name)
    return value


def secrets_in(value: Any, place: str = "", name: str = "") -> Iterator[str]:
    """Where a JSON value holds secrets: `lake.options.account_key`, `models.fraud.retrain.command[2]`."""
    yield from _changed(value, redacted(value, name), place)


def _changed(before: Any, after: Any, place: str) -> Iterator[str]:
    if isinstance(before, Mapping):
        for key in before:
            yield from _changed(before[key], after[key], f"{place}.{key}" if place else str(key))
    elif isinstance(before, Sequence) and not isinstance(before, str | bytes | bytearray):
        for at, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _changed(one, other, f"{place}[{at}]")
    elif before is not after and before != after:
        yield place


def _is_literal(value: str) -> bool:
    """Whether the value of a setting whose name says secret is one: no reference, no path."""
    value = value.strip()
    return bool(value) and not _REFERENCE.fullmatch(value) and not _PATH.fullmatch(value)


def _redacted_list(values: Sequence[Any], name: str) -> list[Any]:
    """In a command, what follows `--password` has its name."""
    found: list[Any] = []
    programs = {str(v).rsplit("/", 1)[-1] for v in values if isinstance(v, str)}
    for before, value in pairwise([None, *values]):
        if not isinstance(value, str):
            found.append(redacted(value, name))
            continue
        option = re.fullmatch(r"-{1,2}([A-Za-z][\w-]{0,60})", before) if isinstance(before, str) else None
        if option and names_secret(option[1]) and _is_option(option[1], value) and not value.startswith("-"):
            found.append(REDACTED)
        elif programs & (_LOGINS | _ATTACHED):
            found.append(_without_login(value, before, programs, name))
        elif " " in value.strip():
            found.append(_without_in_words(redacted(value, name)))
        else:
            found.append(redacted(value, name))
    return found


def _without_login(value: str, before: Any, programs: set[str], name: str) -> str:
    """`curl -u me:hunter2`, `mysql -phunter2`."""
    if programs & _LOGINS:
        if before in ("-u", "--user", "--proxy-user") and ":" in value and _is_literal(value.split(":", 1)[1]):
            return REDACTED
        if (given := re.match(r"(-u|--(?:proxy-)?user=)[^:]{1,200}:(.+)", value)) and _is_literal(given[2]):
            return given[1] + REDACTED
    if programs & _ATTACHED and (given := re.match(r"-p(.+)", value)) and _is_literal(given[1]):
        return f"-p{REDACTED}"
    if "sshpass" in programs and before == "-p" and _is_literal(value):
        return REDACTED
    return str(redacted(value, name))


def _without_in_words(text: str) -> str:
    """Of a whole command line in one argument."""
    with suppress(ValueError):
        words = shlex.split(text)
        for word, without in zip(words, _redacted_list(words, "") if len(words) > 1 else words, strict=True):
            if word != without:
                text = text.replace(word, without)
    return text


def _without_user(found: re.Match[str]) -> str:
    """The user part of an address: a password, or of an HTTP address whatever it is. Of a storage address it is a
    container, of a database or a shell a name."""
    scheme, user, password = found[1], found[2], found[3]
    web = scheme.lower() in ("http", "https", "git+https", "git+http")
    if password is not None and re.match(r"[0-9]{1,5}/", password):
        return found[0]  # a port, and an @ in the path
    reference = r"\$\{?[A-Za-z_]\w*\}?|\*+|\(redacted\)|"
    literal = not re.fullmatch(reference, password) if password else web and not re.fullmatch(reference, user)
    if not literal:
        return found[0]
    return f"{scheme}://{REDACTED}@" if web else f"{scheme}://{user}:{REDACTED}@"


def _without_assigned(text: str) -> str:
    parts, at = [], 0
    for found in _ASSIGNED.finditer(text):
        if found.start() < at:
            continue
        in_query = found.start() > 0 and text[found.start() - 1] in "?&"
        name, sign = found.groups()
        if text.startswith(REDACTED, found.end()) or not names_secret(name, in_query):
            continue
        if (value := _VALUE.match(text, found.end())) is None:
            continue
        given = value[0].rstrip(")]}.,>")
        bare = given.strip("\"'")
        if not _is_literal(bare) or (sign != sign.strip() and _is_code(name, bare)):
            continue
        if in_query and not names_secret(name) and not re.search(r"(?=.{12})(?=.*[0-9])[A-Za-z0-9]", bare):
            continue
        parts.append(text[at : found.end()] + REDACTED)
        at = found.end() + len(given)
    return "".join([*parts, text[at:]])


def _is_clean(text: str) -> bool:
    return _without_assigned(text) == text


def _is_code(name: str, value: str) -> bool:
    """`WHERE token = users.token`: both sides are words."""
    return _WORD.fullmatch(value) is not None and name.lower() not in _PLAINLY


def _is_option(name: str, value: str) -> bool:
    """`--no-password db`, `--password-stdin host` and `--authorization approved` give none."""
    told = name.lower().startswith("no-") or (_WORD.fullmatch(value) and "pass" not in name.lower())
    return not told and _is_literal(value.strip("\"'"))


def _is_told(name: str, value: str) -> bool:
    """`password: hunter2`; `the token: expired` tells none."""
    return names_secret(name) and re.search(r"[0-9]", value) is not None and _is_literal(value)


def _is_reference_or_word(value: str) -> bool:
    first = value.strip().split(" ")[0] if not re.match(r"(?i:bearer|basic|token|digest)\s", value) else value.strip()
    return _REFERENCE.fullmatch(first) is not None or re.fullmatch(r"[A-Za-z_]+[.:]?", first) is not None


def _without_quoted(found: re.Match[str]) -> str:
    if not names_secret(found[2]) or not _is_literal(found[5]):
        return found[0]
    return f"{found[1]}{found[2]}{found[1]}{found[3]}{found[4]}{REDACTED}{found[4]}"
