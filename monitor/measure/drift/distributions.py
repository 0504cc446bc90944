"""How a column is distributed in a window and in its reference, side by side, small enough to draw.

Invariant: polars only (it runs in the daemon's own process), and bounded in bins and in rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from monitor.measure.reference import column, usable
from retrain.terms.schema import FeatureKind

BINS = 24
TOP_CATEGORIES = 12
OTHER = "(other)"
MISSING = "(missing)"


def side_by_side(window: pl.DataFrame, reference: pl.DataFrame, name: str, kind: FeatureKind) -> dict[str, Any]:
    """Shares per bin (numbers) or category of both, as JSON values.

    Numbers: `edges` (BINS + 1, from the reference's 1 % to 99 % quantile; the outer bins take what lies beyond),
    `window` and `reference` shares of the usable values. Otherwise: `categories` and shares of all rows.
    """
    ours, theirs = column(window, name, kind), column(reference, name, kind)
    if kind is FeatureKind.NUMBER:
        return _binned(usable(ours).to_numpy(), usable(theirs).to_numpy())
    return _counted(ours, theirs)


def _binned(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> dict[str, Any]:
    base = theirs if len(theirs) else ours
    if not len(base):
        return {"edges": [], "window": [], "reference": []}
    low, high = (float(q) for q in np.quantile(base, [0.01, 0.99]))
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1)
    return {"edges": edges.tolist(), "window": _shares(ours, edges), "reference": _shares(theirs, edges)}


def _shares(values: np.ndarray[Any, Any], edges: np.ndarray[Any, Any]) -> list[float]:
    if not len(values):
        return []
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return [float(c) for c in counts / len(values)]


def _counted(ours: pl.Series, theirs: pl.Series) -> dict[str, Any]:
    shares = [_category_shares(ours), _category_shares(theirs)]
    known = {name for side in shares for name in side}
    order = sorted(known - {MISSING}, key=lambda c: -max(side.get(c, 0.0) for side in shares))
    shown, rest = order[:TOP_CATEGORIES], order[TOP_CATEGORIES:]
    rows = {name: [side.get(name, 0.0) for side in shares] for name in shown}
    if rest:
        rows[OTHER] = [sum(side.get(name, 0.0) for name in rest) for side in shares]
    if MISSING in known:
        rows[MISSING] = [side.get(MISSING, 0.0) for side in shares]
    return {
        "categories": list(rows),
        "window": [w for w, _ in rows.values()] if len(ours) else [],
        "reference": [r for _, r in rows.values()] if len(theirs) else [],
    }


def _category_shares(series: pl.Series) -> dict[str, float]:
    if not len(series):
        return {}
    counts = series.cast(pl.String).fill_null(MISSING).value_counts()
    names, numbers = counts.columns
    return {str(n): c / len(series) for n, c in zip(counts[names], counts[numbers], strict=True)}
