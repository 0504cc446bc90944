"""Validation errors -> lines an operator can act on: the place in the file, what is wrong, the nearest known word.

Invariant: pure; a secret's value is never shown.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from retrain.base.redaction import names_secret, redact, secrets_in
from retrain.terms.fields import format_duration


class MistakesFound(ValueError):
    """All that is inconsistent in one section, by path inside it."""

    def __init__(self, found: list[tuple[str, str]]):
        super().__init__("; ".join(f"{path}: {text}" for path, text in found))
        self.found = found


def explain(exc: ValidationError, root: type[BaseModel]) -> Iterator[str]:
    """One line per mistake: `models.fraud.rules[2].above: must be > 0 (got -0.1)`, each once."""
    seen = set()
    for line in (line for error in exc.errors() for line in _lines(error, root)):
        if line not in seen:
            seen.add(line)
            yield line


def _lines(error: ErrorDetails, root: type[BaseModel]) -> Iterator[str]:
    place, cause = _place(error["loc"]), error.get("ctx", {}).get("error")
    if isinstance(cause, MistakesFound):
        yield from (f"{place}.{path}: {redact(text)}" for path, text in cause.found)
    else:
        yield f"{place}: {redact(_message(error, root))}"


def _place(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part != "[key]" and not part.startswith(("function-", "lax-or-strict", "is-instance")):
            text += f".{part}" if text else part
    return text


def _message(error: ErrorDetails, root: type[BaseModel]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    given = error.get("input")
    shown = repr(format_duration(given) if isinstance(given, timedelta) else given)
    if len(shown) > 60 or _may_hold_secret(error):
        shown = f"a {type(error.get('input')).__name__}"
    match kind:
        case "extra_forbidden":
            return f"unknown key{hint(str(error['loc'][-1]), _known_keys(error['loc'], root))}"
        case "missing":
            return "is required"
        case "value_error":
            text = str(context.get("error", error["msg"]))
            return text if " (got" in text or isinstance(error.get("input"), dict) else f"{text} (got {shown})"
        case "greater_than":
            return f"must be > {context['gt']} (got {shown})"
        case "greater_than_equal":
            return f"must be >= {context['ge']} (got {shown})"
        case "less_than":
            return f"must be < {context['lt']} (got {shown})"
        case "less_than_equal":
            return f"must be <= {context['le']} (got {shown})"
        case "model_type" if context.get("class_name") == "Secret":
            return 'must be { env = "NAME" } or { file = "PATH" }, never the secret itself'
        case "too_short":
            return f"must not be empty (got {shown})"
        case "enum" | "literal_error" if len(known := re.findall(r"'([^']+)'", context["expected"])) > 6:
            return f"{shown} is not known{hint(str(given), known)}"
        case "enum" | "literal_error":
            return f"must be {context['expected']} (got {shown})"
        case "string_pattern_mismatch":
            return f"must match {context['pattern']} (got {shown})"
        case _:
            return f"{error['msg'][0].lower()}{error['msg'][1:]} (got {shown})"


def _may_hold_secret(error: ErrorDetails) -> bool:
    """Whether what was given is not to be shown: by its place, or by what it looks like."""
    names = [part for part in error["loc"] if isinstance(part, str)]
    return (
        any(names_secret(name) or name in _SEALED for name in names)
        or next(secrets_in(error.get("input")), None) is not None
    )


_SEALED = frozenset(
    {"url", "uri", "tracking_uri", "control_url", "command", "environment", "headers", "body", "options"}
)
"""Keys whose values people put secrets into without a name."""


def _known_keys(loc: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    model: Any = root
    for part in loc[:-1]:
        if isinstance(part, int):
            continue
        field = getattr(model, "model_fields", {}).get(part) or next(
            (f for f in getattr(model, "model_fields", {}).values() if f.alias == part), None
        )
        if field is None:
            continue
        model = _section_of(field.annotation)
    return [f.alias or n for n, f in getattr(model, "model_fields", {}).items()]


def _section_of(annotation: Any) -> Any:
    """The Section inside `X`, `X | None`, `dict[str, X]`, `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        if (found := _section_of(argument)) is not None:
            return found
    return None


def hint(word: str, known: Iterable[str]) -> str:
    """`: did you mean ..?` with the nearest known word, or the known ones when they are few."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    if close:
        return f": did you mean {close[0]!r}?"
    options = sorted(known)
    return f": known are {', '.join(options)}" if 0 < len(options) <= 25 else ""
