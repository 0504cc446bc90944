"""Columns that give the truth away: copies of it, or what is only known once it is known.

Invariant: pure and seeded. A column is called a copy only when hardly a row contradicts it, whatever the class shares.
"""

from __future__ import annotations

import polars as pl

from retrain.terms.schema import FeatureKind, Task

MIN_ROWS = 50
MAX_ROWS = 50_000
MIN_MINORITY = 10
TOLERATED = 0.005
"""Share of the rows outside the largest class that may contradict a copy."""
STRONG_AUC, STRONG_CORRELATION = 0.98, 0.97


def copy_of_label(series: pl.Series, kind: FeatureKind, label: pl.Series, task: Task) -> str | None:
    """Why the column is taken for the truth itself, None when it is not."""
    gaps = series.is_null() if 0 < series.null_count() < series.len() and task is not Task.REGRESSION else None
    if gaps is not None and copy_of_label(gaps, FeatureKind.BOOL, label, task) is not None:
        return "determines the target: whether it is empty goes with the class"
    pairs = _pairs(series, kind, label)
    if pairs.height < MIN_ROWS:
        return None
    if task is Task.REGRESSION:
        return _copy_of_number(pairs, kind)
    minority = pairs.height - int(pairs["y"].value_counts()["count"].max())  # type: ignore[arg-type]
    if minority < MIN_MINORITY:
        return None
    if as_text(pairs["x"]).equals(pairs["y"], check_names=False):
        return "equals the target"
    allowed = TOLERATED * minority
    groups = _groups(pairs)
    if groups.height <= pairs.height / 20 and _recall(pairs) >= 1 - TOLERATED:
        return "determines the target: each of its values goes with one class"
    if kind is FeatureKind.NUMBER and _contradictions(groups) <= pairs["y"].n_unique() - 1 + allowed:
        return "determines the target: sorted by it, the classes lie apart"
    return None


def strength(series: pl.Series, kind: FeatureKind, label: pl.Series, schema_positive: str | None) -> str | None:
    """How well a number alone tells the truth, in words, when that is suspiciously well."""
    pairs = _pairs(series, kind, label)
    if kind is not FeatureKind.NUMBER or pairs.height < MIN_ROWS:
        return None
    if schema_positive is not None:
        found = auc(pairs["x"], pairs["y"] == schema_positive)
        found = None if found is None else max(found, 1 - found)
        return f"AUC {found:.3f}" if found is not None and found >= STRONG_AUC else None
    if label.dtype.is_float():
        r = _correlation(pairs)
        return f"rank correlation {r:.3f}" if abs(r) >= STRONG_CORRELATION else None
    return None


def auc(score: pl.Series, positive: pl.Series) -> float | None:
    """Chance that a positive row has the higher score than another; None with one class only."""
    count = int(positive.sum())
    others = positive.len() - count
    if not count or not others:
        return None
    ranks = float(score.rank("average").filter(positive).sum())
    return (ranks - count * (count + 1) / 2) / (count * others)


def _pairs(series: pl.Series, kind: FeatureKind, label: pl.Series) -> pl.DataFrame:
    values = series.cast(pl.Float64) if kind is FeatureKind.NUMBER else series.cast(pl.String)
    pairs = pl.DataFrame([values.alias("x"), label.alias("y")]).drop_nulls()
    return pairs.sample(MAX_ROWS, seed=0) if pairs.height > MAX_ROWS else pairs


def as_text(values: pl.Series) -> pl.Series:
    """Values as class names: 1.0 is "1"."""
    if values.dtype.is_float() and bool(((values == values.round()) & values.is_finite()).all()):
        values = values.cast(pl.Int64, strict=False)
    return values.cast(pl.String)


def _groups(pairs: pl.DataFrame) -> pl.DataFrame:
    """A row per value, in order: rows, rows of its largest class, that class."""
    counts = pairs.group_by("x", "y").len().sort("x", "len", "y", descending=[False, True, False])
    return counts.group_by("x", maintain_order=True).agg(
        pl.col("len").sum().alias("rows"), pl.col("len").first().alias("largest"), pl.col("y").first()
    )


def _recall(pairs: pl.DataFrame) -> float:
    """Mean recall over the classes when each row is told by the other rows that share its value."""
    counts = pairs.group_by("x", "y").len().with_columns(pl.col("len").cast(pl.Int64))
    both = counts.sort("len", descending=True).with_columns(
        pl.col("len").first().over("x").alias("first"),
        pl.col("len").slice(1, 1).sum().over("x").alias("second"),
        pl.col("y").first().over("x").alias("winner"),
    )
    told = (pl.col("winner") == pl.col("y")) & (pl.col("first") - 1 > pl.col("second"))
    by_class = both.group_by("y").agg((pl.col("len") * told).sum().alias("told"), pl.col("len").sum())
    return float((by_class["told"] / by_class["len"]).mean())  # type: ignore[arg-type]


def _contradictions(groups: pl.DataFrame) -> int:
    """Rows that are not of their value's class, and changes of the class along the values."""
    changes = int((groups["y"] != groups["y"].shift(1)).fill_null(False).sum())
    return changes + int((groups["rows"] - groups["largest"]).sum())


def _copy_of_number(pairs: pl.DataFrame, kind: FeatureKind) -> str | None:
    spread = pairs["y"].var()
    if not spread:
        return None
    if kind is FeatureKind.NUMBER:
        if pairs["x"].equals(pairs["y"], check_names=False):
            return "equals the target"
        if abs(_correlation(pairs)) >= 0.9999:
            return "determines the target: the one grows with the other"
    if pairs["x"].n_unique() > pairs.height / 20:
        return None
    within = (pairs["y"] - pairs.select(pl.col("y").mean().over("x"))["y"]).pow(2).mean()
    if float(within) < 1e-6 * float(spread):  # type: ignore[arg-type]
        return "determines the target: each of its values goes with one number"
    return None


def _correlation(pairs: pl.DataFrame) -> float:
    found = pairs.select(pl.corr("x", "y", method="spearman")).item()
    return float(found) if found is not None and found == found else 0.0
