"""Which versions of a model are measured: those that serve, a bounded number of them.

Invariant: what is kept is bounded, whatever versions events name. A version that answers more rows takes the place of
one that answers fewer, so strays that came first keep no real one out.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

RECENT = 3
"""Windows back from the newest in which rows count as served now."""
_PRUNE = 100


class LiveVersions:
    """The `most` versions with the most rows of late; `favoured` ones (an alias points at them) before all others."""

    def __init__(self, most: int, size: timedelta):
        self._most = most
        self._size = size
        self._rows: dict[str, dict[datetime, int]] = {}
        self._newest: datetime | None = None
        self._live: frozenset[str] = frozenset()
        self.favoured: frozenset[str] = frozenset()

    def observe(self, version: str, start: datetime, rows: int) -> None:
        """So many rows more in the window of `version` that begins then."""
        windows = self._rows.setdefault(version, {})
        windows[start] = windows.get(start, 0) + rows
        self._newest = start if self._newest is None else max(self._newest, start)

    def settle(self) -> Collection[str]:
        """The versions that are live now; call it after a batch was observed."""
        if self._newest is not None and len(self._rows) > self._most * _PRUNE:
            kept = sorted(self._rows, key=self._rank, reverse=True)[: self._most * _PRUNE // 2]
            self._rows = {version: self._rows[version] for version in kept}
        if len(self._rows) <= self._most:
            self._live = frozenset(self._rows)
        else:
            self._live = frozenset(sorted(self._rows, key=self._rank, reverse=True)[: self._most])
        return self._live

    def __contains__(self, version: str) -> bool:
        return version in self._live

    @property
    def crowded(self) -> bool:
        """There are more versions than are measured."""
        return len(self._rows) > self._most

    @property
    def others(self) -> int:
        """Versions with rows of late that are not measured."""
        return sum(1 for version in self._rows if version not in self._live and self._recent(version))

    def _recent(self, version: str) -> int:
        assert self._newest is not None
        since = self._newest - RECENT * self._size
        return sum(rows for start, rows in self._rows[version].items() if start > since)

    def _rank(self, version: str) -> tuple[bool, int, datetime, int, str]:
        """Favoured, rows of late, how new, rows at all; the name only makes it certain."""
        windows = self._rows[version]
        return (
            version in self.favoured,
            self._recent(version),
            max(windows),
            sum(windows.values()),
            version,
        )
