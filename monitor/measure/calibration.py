"""What chance gives: how far the measurements of an unchanged window stray, found on the reference itself.

Invariant: seeded; depends only on the reference, the methods and the window's size. A value's p-value is the chance
of one at least as extreme in a window of that size when nothing has changed, with the reference's own luck and the
dependence of neighbouring rows counted in.

- drift: the reference's own chunks of the window's size, in order of time, each against the rest; and, because there
  are few of them, both sides drawn from the reference again and again in blocks of neighbouring rows (circular block
  bootstrap: Politis and Romano 1992; length of the blocks: Politis and White 2004, as in the library arch). All are
  compared by the method itself, and a gamma distribution is fitted by its moments, for its tail: those of the chunks
  where they stray more than the draws do
- shares: beta-binomial, the prediction of a count from the count in the reference (Jeffreys' prior), with both numbers
  of rows divided by the variance inflation of neighbouring rows; chance of an unseen category: Good and Turing's
  share of categories that were seen once; of a number out of range: two extremes among so many
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from monitor.measure._evidently import quiet
from monitor.measure.drift.compare import compare_column
from monitor.measure.drift.methods import METHODS, DriftMethod, Statistic
from monitor.measure.reference import Reference, ReferenceColumn, answer_kind
from monitor.rules.measurement import Measure, Measurement
from retrain.base.files import write_whole
from retrain.terms.schema import FeatureKind, ModelSchema

DRAWS = 100
MIN_CHUNKS, MOST_CHUNKS = 8, 50
"""With fewer chunks of the window's size the reference's own course says too little."""
MIN_ROWS = 50
"""A reference or a window with fewer usable rows says nothing about chance."""
_ROWS_AT_MOST = 5000
"""Rows drawn per side. A larger window strays less than this says: fewer alarms, never more."""
_MANY_FEATURES = 50
_ROWS_OF_MANY = 1500
_DRIFT = (Measure.FEATURE_DRIFT, Measure.PREDICTION_DRIFT, Measure.LABEL_DRIFT)
_SHARES = (Measure.MISSING_SHARE, Measure.UNSEEN_SHARE, Measure.OUT_OF_RANGE_SHARE)
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Tail:
    """A gamma distribution fitted to what chance gave in `draws` comparisons, drawn in blocks of `block` rows, and in
    `chunks` of the reference in order of time."""

    mean: float
    variance: float
    largest: float
    draws: int
    block: int
    chunks: int = 0

    def p_value(self, surprise: float) -> float:
        """The chance of `surprise` or more."""
        if self.variance <= 1e-24 or self.mean <= 0:
            return 1.0 if surprise <= self.largest + 1e-12 else 0.0
        return float(stats.gamma.sf(surprise, self.mean**2 / self.variance, scale=self.variance / self.mean))

    def at(self, p_value: float) -> float:
        """The surprise that chance exceeds with probability `p_value`."""
        if self.variance <= 1e-24 or self.mean <= 0:
            return self.largest
        return float(stats.gamma.isf(p_value, self.mean**2 / self.variance, scale=self.variance / self.mean))


@dataclass(frozen=True, slots=True)
class Share:
    """A share in the reference: `count` of `rows`, both already divided by the inflation of neighbouring rows."""

    count: float
    rows: float
    inflation: float

    def p_value(self, share: float, rows: int) -> float:
        """The chance of so large a share, or larger, in a window of `rows` rows."""
        n = max(1, round(rows / self.inflation))
        k = math.ceil(share * n - 1e-9)
        if k <= 0:
            return 1.0
        return float(stats.betabinom.sf(k - 1, n, self.count + 0.5, max(self.rows - self.count, 0.0) + 0.5))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What chance gives in windows of `rows` rows. `error_inflation`: by how much the standard error of a performance
    is larger than it would be for independent rows."""

    rows: int
    reference_rows: int
    tails: Mapping[tuple[str, str], Tail]
    shares: Mapping[tuple[str, str], Share]
    error_inflation: float

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "reference_rows": self.reference_rows,
            "error_inflation": self.error_inflation,
            "tails": [{"measure": m, "feature": f, **asdict(t)} for (m, f), t in self.tails.items()],
            "shares": [{"measure": m, "feature": f, **asdict(s)} for (m, f), s in self.shares.items()],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        def keyed(kind: type[Any], entries: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Any]:
            return {
                (e["measure"], e["feature"]): kind(**{k: v for k, v in e.items() if k not in ("measure", "feature")})
                for e in entries
            }

        return cls(
            rows=data["rows"],
            reference_rows=data["reference_rows"],
            tails=keyed(Tail, data["tails"]),
            shares=keyed(Share, data["shares"]),
            error_inflation=data["error_inflation"],
        )


def size_class(rows: int) -> int:
    """The window size that is calibrated for: the next one below on a grid with steps of about 1.4.

    A smaller window strays more, so what holds for it errs on the quiet side.
    """
    return int(MIN_ROWS * math.sqrt(2) ** math.floor(math.log(rows / MIN_ROWS, math.sqrt(2)) + 1e-9))


def calibrate(
    reference: Reference,
    schema: ModelSchema,
    methods: Mapping[str, DriftMethod],
    rows: int,
    seed: int = 0,
) -> Calibration:
    """Find what chance gives in windows of `rows` rows. `methods` is by feature, `prediction` and `label`."""
    columns = _columns(reference, schema, methods)
    limit = _ROWS_AT_MOST if len(schema.features) <= _MANY_FEATURES else _ROWS_OF_MANY
    tails = {}
    with quiet():
        for at, ((measure, feature), (column, method)) in enumerate(columns.items()):
            if column.values.len() >= MIN_ROWS and rows >= MIN_ROWS:
                tail = _tail(column, method, rows, limit, np.random.default_rng((seed, at)))
                if tail is not None:
                    tails[measure, feature] = tail
    return Calibration(rows, reference.rows, tails, _shares(reference, schema), _error_inflation(reference, schema))


def with_chance(measurements: Iterable[Measurement], calibration: Calibration) -> list[Measurement]:
    """The measurements with their p-values, where chance is known.

    A feature drifts when its values do or when its missing values do: its p-value is that of the smaller of the two,
    doubled (Bonferroni).
    """
    found = [replace(m, p_value=_p_value(m, calibration)) for m in measurements]
    missing = {m.feature: m for m in found if m.measure is Measure.MISSING_SHARE}
    return [_with_missing(m, missing.get(m.feature)) if m.measure is Measure.FEATURE_DRIFT else m for m in found]


def _with_missing(m: Measurement, missing: Measurement | None) -> Measurement:
    if m.value is None or m.p_value is None or missing is None or missing.p_value is None:
        return m
    return replace(m, p_value=min(1.0, 2 * min(m.p_value, missing.p_value)))


def _p_value(m: Measurement, calibration: Calibration) -> float | None:
    key = (m.measure.value, m.feature)
    if m.value is None or m.rows < MIN_ROWS:
        return m.p_value
    if m.measure in _DRIFT and key in calibration.tails:
        return calibration.tails[key].p_value(_surprise(m.value, m.method))
    if m.measure in _SHARES and key in calibration.shares:
        return calibration.shares[key].p_value(m.value, m.rows)
    return m.p_value


def _surprise(value: float, method: str) -> float:
    """More is stranger: a distance as it is, a test's p-value as its negative logarithm."""
    return -math.log(max(value, 1e-300)) if METHODS[method].statistic is Statistic.P_VALUE else value


def _columns(
    reference: Reference, schema: ModelSchema, methods: Mapping[str, DriftMethod]
) -> dict[tuple[str, str], tuple[ReferenceColumn, DriftMethod | None]]:
    columns: dict[tuple[str, str], tuple[ReferenceColumn, DriftMethod | None]] = {
        (Measure.FEATURE_DRIFT.value, f.name): (reference.features[f.name], methods.get(f.name))
        for f in schema.features
    }
    answers = reference.score if reference.score is not None else reference.prediction
    columns[Measure.PREDICTION_DRIFT.value, ""] = (answers, methods.get("prediction"))
    if reference.label is not None:
        columns[Measure.LABEL_DRIFT.value, ""] = (reference.label, methods.get("label"))
    return columns


def _tail(
    column: ReferenceColumn, method: DriftMethod | None, rows: int, limit: int, rng: np.random.Generator
) -> Tail | None:
    values = column.values
    block = block_length(_numbers(column))
    ours, theirs = min(rows, limit), min(values.len(), limit)
    found = []
    for _ in range(DRAWS):
        resampled = _resampled(column, _blocks(values.len(), theirs, block, rng))
        result, used = compare_column(values[_blocks(values.len(), ours, block, rng)], resampled, method)
        if result is not None:
            found.append(_surprise(result, used))
    if len(found) < DRAWS // 2:
        return None
    mean, variance, largest = float(np.mean(found)), float(np.var(found, ddof=1)), max(found)
    chunks = _in_order_of_time(column, method, rows, limit)
    if len(chunks) >= MIN_CHUNKS:
        mean, variance = max(mean, float(np.mean(chunks))), max(variance, float(np.var(chunks, ddof=1)))
        largest = max(largest, *chunks)
    return Tail(mean, variance, float(largest), len(found), block, len(chunks))


def _in_order_of_time(column: ReferenceColumn, method: DriftMethod | None, rows: int, limit: int) -> list[float]:
    """How far each chunk of `rows` rows is from the rest of the reference."""
    population = column.values.len()
    if population < MIN_CHUNKS * rows:
        return []
    everything = np.arange(population)
    found = []
    for start in range(0, population - rows + 1, max(rows, population // MOST_CHUNKS)):
        inside = (everything >= start) & (everything < start + rows)
        rest = np.flatnonzero(~inside)
        rest = rest[np.linspace(0, len(rest) - 1, min(len(rest), limit)).astype(int)]
        result, used = compare_column(column.values[np.flatnonzero(inside)[:limit]], _resampled(column, rest), method)
        if result is not None:
            found.append(_surprise(result, used))
    return found


def _resampled(column: ReferenceColumn, rows: Array) -> ReferenceColumn:
    values = column.values[rows]
    prepared = values.sort() if column.kind is FeatureKind.NUMBER else column.prepared[rows]
    return replace(column, values=values, prepared=prepared)


def _blocks(population: int, rows: int, block: int, rng: np.random.Generator) -> Array:
    """Row numbers in circular blocks of neighbours."""
    starts = rng.integers(0, population, size=-(-rows // block))
    return np.asarray(((starts[:, None] + np.arange(block)) % population).ravel()[:rows])


def _numbers(column: ReferenceColumn) -> Array:
    """The column in row order as numbers: ranks are not swayed by a few large values."""
    if column.kind is FeatureKind.NUMBER:
        return np.asarray(stats.rankdata(column.values.to_numpy()))
    return column.prepared.to_numpy().astype(float)


def block_length(values: Array) -> int:
    """Rows that belong together: Politis and White's length for the circular block bootstrap, at most a fifth."""
    if len(values) < MIN_ROWS or np.ptp(values) == 0:
        return 1
    from arch.bootstrap import optimal_block_length

    found = float(optimal_block_length(values)["circular"].iloc[0])
    return 1 if not math.isfinite(found) else int(min(max(1, round(found)), len(values) // 5))


def variance_inflation(values: Array) -> float:
    """Variance of the mean of `values` over what it would be if the rows were independent, at least 1.

    From the means of overlapping blocks (Künsch 1989).
    """
    block = block_length(values)
    variance = float(np.var(values)) if len(values) else 0.0
    if block < 2 or variance == 0:
        return 1.0
    means = np.convolve(values - values.mean(), np.ones(block) / block, mode="valid")
    return max(1.0, float(np.mean(means**2)) * block / variance)


def _shares(reference: Reference, schema: ModelSchema) -> dict[tuple[str, str], Share]:
    found = {}
    for f in schema.features:
        column = reference.features[f.name]
        missing = _missing(reference.frame, f.column)
        inflation = variance_inflation(missing.astype(float)) if 0 < missing.mean() < 1 else 1.0
        rows = reference.rows / inflation
        found[Measure.MISSING_SHARE.value, f.name] = Share(column.missing_share * rows, rows, inflation)
        if (usable := column.values.len()) >= MIN_ROWS:
            number = f.kind is FeatureKind.NUMBER
            dependence = variance_inflation(_numbers(column))
            rare = 2.0 if number else float((column.values.value_counts()["count"] == 1).sum())
            strange = Measure.OUT_OF_RANGE_SHARE if number else Measure.UNSEEN_SHARE
            found[strange.value, f.name] = Share(rare, max(usable / dependence, rare), dependence)
    return found


def _missing(frame: pl.DataFrame, name: str) -> Array:
    if name not in frame.columns or not frame.height:
        return np.ones(1, dtype=bool)
    series = frame[name]
    bad = (
        series.is_null() | (~series.is_finite()).fill_null(value=True) if series.dtype.is_float() else series.is_null()
    )
    return bad.to_numpy()


def _error_inflation(reference: Reference, schema: ModelSchema) -> float:
    """By the model's errors on the reference's labelled rows, in row order."""
    frame = reference.frame
    if reference.label is None or "prediction" not in frame.columns:
        return 1.0
    known = frame.select("prediction", "label").drop_nulls()
    if answer_kind(schema) is FeatureKind.NUMBER:
        errors = (known["prediction"].cast(pl.Float64) - known["label"].cast(pl.Float64)).abs().to_numpy()
    else:
        errors = (known["prediction"].cast(pl.String) != known["label"].cast(pl.String)).to_numpy().astype(float)
    errors = errors[np.isfinite(errors)]
    return math.sqrt(variance_inflation(errors)) if len(errors) >= MIN_ROWS else 1.0


def load_calibration(path: Path) -> Calibration | None:
    """What an earlier process found; None when there is nothing, or nothing that can be read."""
    try:
        return Calibration.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_calibration(calibration: Calibration, path: Path) -> None:
    write_json(path, calibration.to_json())


def write_json(path: Path, value: Any) -> None:
    """In one piece, whatever happens. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(value, indent=1))
