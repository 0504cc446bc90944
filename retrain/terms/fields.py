"""The field types that every section of the configuration uses, and secrets by reference.

Invariant: frozen; a secret's value is never part of a configuration, only where it is found.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from retrain.terms.errors import ConfigError

_UNITS = {"us": 0.000_001, "ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_LONGEST = 36_500 * 86_400
_SIZES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_duration(value: object) -> timedelta:
    """`"90s"`, `"1h30m"`, `"7d"`, `"250us"` -> timedelta. Raises ValueError naming the accepted form."""
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str) and re.fullmatch(r"(\d+(\.\d+)?(us|ms|s|m|h|d|w))+", value):
        parts = re.findall(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d|w)", value)
        seconds = sum(float(n) * _UNITS[u] for n, u in parts)
        if seconds <= _LONGEST:
            return timedelta(seconds=seconds)
        raise ValueError("must not be longer than 36500d")
    raise ValueError('must be a duration such as "30s", "5m", "1h30m" or "7d"')


def format_duration(value: timedelta) -> str:
    """timedelta -> the largest-units-first spelling that `parse_duration` reads back."""
    left = value // timedelta(microseconds=1)
    text = ""
    for unit in ("d", "h", "m", "s", "ms", "us"):
        count, left = divmod(left, round(_UNITS[unit] * 1_000_000))
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def parse_size(value: object) -> int:
    """`"512MiB"`, `"4GiB"` -> bytes. Raises ValueError naming the accepted form."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+)\s*(B|KiB|MiB|GiB)", value)):
        return int(match[1]) * _SIZES[match[2]]
    raise ValueError('must be a size such as "512MiB" or "4GiB"')


Duration = Annotated[timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A part of the configuration: no unknown keys, no coercion, no change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), hide_input_in_errors=True
    )


_NOT_SHOWN = "(not shown: is it the secret itself?)"


class Secret(Section):
    """A secret by reference: `{ env = "NAME" }` or `{ file = "/run/secrets/name" }`; never the value itself."""

    env: str | None = None
    file: str | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Secret:
        if (self.env is None) == (self.file is None):
            raise ValueError('give exactly one of env = "NAME" or file = "PATH"')
        return self

    def reveal(self) -> str:
        """The secret's value. Raises ConfigError naming the variable or file that is missing."""
        if self.env is not None:
            if not (value := os.environ.get(self.env)):
                name = self.env if re.fullmatch(r"[A-Z][A-Z0-9_]*", self.env) else _NOT_SHOWN
                raise ConfigError([f"environment variable {name} is not set: export it or use file = ..."])
            return value
        path = Path(str(self.file))
        shown = path if len(path.parts) > 1 or path.suffix else _NOT_SHOWN
        try:
            value = path.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as exc:
            why = "is not UTF-8 text" if isinstance(exc, UnicodeDecodeError) else getattr(exc, "strerror", "is no path")
            raise ConfigError([f"secret file {shown}: {why}"]) from exc
        if not value:
            raise ConfigError([f"secret file {shown}: is empty"])
        return value
