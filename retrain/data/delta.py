"""Delta tables by path or URI, wherever they lie.

Invariant: a local path means the folder of that name, whatever characters are in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from deltalake import DeltaTable


class Delta(DeltaTable):
    """polars takes what this answers for the paths of files, and of a local table they come encoded."""

    def file_uris(self, *given: Any, **named: Any) -> list[str]:
        found: list[str] = super().file_uris(*given, **named)
        return [path if "://" in path else unquote(path) for path in found]


def address(uri: str) -> str:
    """As a URI: of a plain path deltalake would decode every `%`."""
    return uri if "://" in uri else Path(uri).absolute().as_uri()


def open_delta(uri: str, options: Mapping[str, str] | None = None, version: int | None = None) -> Delta:
    """Raises deltalake's errors, TableNotFoundError among them."""
    return Delta(address(uri), version=version, storage_options=dict(options) if options else None)
