"""What people use instead of driftd, behind one door: river's detectors on errors, Evidently's preset on columns.

Invariant: every method and threshold is the library's own default. river is asked for only when a detector is made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import polars as pl

from monitor.measure._evidently import load, quiet
from retrain.terms.schema import FeatureKind, ModelSchema

DETECTORS = ("ADWIN", "DDM", "KSWIN", "PageHinkley")
ZERO_ONE_ONLY = frozenset({"DDM"})
"""Detectors that take errors of 0 and 1 only, so none of a regression."""
SEED = 0
CHECK_EVERY = 100
"""Of so many windows one is given to Evidently's report as well."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is there to see when a window closes. `errors`: of the champion, whose labels came since the last window,
    in the order they came. `rows`, `reference`: lake columns."""

    number: int
    version: str
    rows: pl.DataFrame
    reference: pl.DataFrame | None
    errors: np.ndarray[Any, Any]


class Watcher(Protocol):
    """Asks for a retrain, or does not, at the end of each window."""

    def asks(self, seen: Seen) -> bool: ...

    def reset(self) -> None:
        """A model was trained: what was seen until now is of the past."""


class ErrorDetector:
    """One of river's detectors over single errors; it asks once for a window, however often it detected."""

    def __init__(self, name: str):
        if name not in DETECTORS:
            raise ValueError(f"no detector {name!r}; there are {', '.join(DETECTORS)}")
        self._name = name
        self._detector = _made(name)

    def update(self, error: float) -> bool:
        """Whether this error is where it detects a change."""
        self._detector.update(error)
        return bool(self._detector.drift_detected)

    def asks(self, seen: Seen) -> bool:
        found = [self.update(error) for error in seen.errors.tolist()]
        return any(found)

    def reset(self) -> None:
        self._detector = _made(self._name)


def _made(name: str) -> Any:
    from river import drift

    if name == "DDM":
        return drift.binary.DDM()
    return drift.KSWIN(seed=SEED) if name == "KSWIN" else getattr(drift, name)()


@dataclass
class Columns:
    """Which columns Evidently's `DataDriftPreset` calls drifted, without drawing the report.

    The registered tests that the preset would choose are called on the same values; the first window of a reference
    kind and then one in `CHECK_EVERY` are given to `Report.run` too, and anything that differs raises. `checked`
    counts these. What the first version's reference gives is kept, for the two rules share it.
    """

    schema: ModelSchema
    checked: int = 0
    _kept: dict[int, frozenset[str]] = field(default_factory=dict)

    def drifted(self, seen: Seen, *, first: str) -> frozenset[str]:
        """Names of drifted columns; a column without any value on one side is not one (the report would fail)."""
        if seen.reference is None:
            return frozenset()
        if seen.version == first and seen.number in self._kept:
            return self._kept[seen.number]
        with quiet():
            current, reference = self._pandas(seen.rows), self._pandas(seen.reference)
            found = self._tested(current, reference)
            if seen.number % CHECK_EVERY == 0 and len(found) == len(self.schema.features):
                self._check(current, reference, found)
        names = frozenset(name for name, (_, drifted) in found.items() if drifted)
        if seen.version == first:
            self._kept[seen.number] = names
        return names

    def _pandas(self, rows: pl.DataFrame) -> Any:
        return rows.select(
            pl.col(f.column) if f.kind is FeatureKind.NUMBER else pl.col(f.column).cast(pl.String)
            for f in self.schema.features
        ).to_pandas()

    def _tested(self, current: Any, reference: Any) -> dict[str, tuple[float, bool]]:
        load()
        from evidently.legacy.calculations.stattests.registry import get_stattest
        from evidently.legacy.core import ColumnType

        found = {}
        for feature in self.schema.features:
            kind = ColumnType.Numerical if feature.kind is FeatureKind.NUMBER else ColumnType.Categorical
            sides = [side[feature.column].replace([-np.inf, np.inf], np.nan).dropna() for side in (reference, current)]
            if any(side.empty for side in sides):
                continue
            result = get_stattest(*sides, kind, None)(*sides, kind, None)
            found[feature.column] = (float(result.drift_score), bool(result.drifted))
        return found

    def _check(self, current: Any, reference: Any, ours: dict[str, tuple[float, bool]]) -> None:
        evidently = load()
        numbers = [f.column for f in self.schema.features if f.kind is FeatureKind.NUMBER]
        definition = evidently.DataDefinition(
            numerical_columns=numbers,
            categorical_columns=[f.column for f in self.schema.features if f.column not in numbers],
        )
        sides = [evidently.Dataset.from_pandas(side, definition) for side in (current, reference)]
        report = evidently.Report([evidently.presets.DataDriftPreset()]).run(*sides).dict()
        count, *values = report["metrics"]
        theirs = {metric["config"]["column"]: float(metric["value"]) for metric in values}
        same = count["value"]["count"] == sum(drifted for _, drifted in ours.values()) and theirs.keys() == ours.keys()
        if not same or not all(np.isclose(theirs[name], ours[name][0], equal_nan=True) for name in ours):
            raise AssertionError(f"Evidently's report says {count['value']} and {theirs}, its tests said {ours}")
        self.checked += 1


class Preset:
    """Evidently's preset as a rule. `share`: the report's own test (it fails from this share of drifted columns on);
    None: one drifted column is enough."""

    def __init__(self, columns: Columns, share: float | None, first: str):
        self._columns = columns
        self._share = share
        self._first = first

    def asks(self, seen: Seen) -> bool:
        drifted = self._columns.drifted(seen, first=self._first)
        if self._share is None:
            return bool(drifted)
        return len(drifted) / len(self._columns.schema.features) >= self._share

    def reset(self) -> None:
        """It has no memory: the next window is held against the reference of whatever version is in force then."""
