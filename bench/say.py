"""How a benchmark tells what it is doing."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]


def quietly(_: str) -> None:
    """Say nothing."""
