"""Are these rows fit to learn from? Asked of every snapshot before anything is trained on it.

Invariant: pure but for a team's own functions; every check answers with its numbers whether it passed or not. What
failed stops the job, what is only odd is said. Nothing is mended here: rows are as the lake holds them.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import polars as pl

from retrain.config.settings import ValidationConfig
from retrain.data.frame import features_frame, labels_array
from retrain.data.leaks import copy_of_label, strength
from retrain.terms.schema import Feature, FeatureKind, ModelSchema, Task

LIVE_ROWS = 2000
"""With fewer of the newest predictions nothing is said of what is missing in them."""
SUDDENLY = 0.5
"""A feature that is missing so much more often in the newest predictions is odd."""
LISTED = 20
"""Features listed one by one in one check's words."""


class Level(StrEnum):
    OK = "ok"
    ODD = "odd"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """`value` is held against `limit`, where there are numbers; `subject` is the feature, or empty."""

    name: str
    level: Level
    detail: str
    subject: str = ""
    value: float | None = None
    limit: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "level": self.level.value}

    def to_words(self) -> str:
        return ": ".join(filter(None, (self.name, self.subject, self.detail)))


def validate(
    train: pl.DataFrame, holdout: pl.DataFrame, live: pl.DataFrame | None, schema: ModelSchema, config: ValidationConfig
) -> tuple[Check, ...]:
    """Every check on the rows (lake columns); `live` holds the newest predictions, labelled or not, None if unknown."""
    every = pl.concat([train, holdout])
    return (
        *_missing(every, live, schema, config),
        *_ranges(every, schema, config),
        *_duplicates(every, schema, config),
        *_labels(train, holdout, schema, config),
        *_leakage(every, schema, config),
        *_functions(every, schema, config.functions),
    )


def failures(checks: Sequence[Check]) -> list[str]:
    return [check.to_words() for check in checks if check.level is Level.FAILED]


def _missing(
    rows: pl.DataFrame, live: pl.DataFrame | None, schema: ModelSchema, config: ValidationConfig
) -> Iterator[Check]:
    """Too often missing in the rows; or there when it was learned from, and missing when it is asked."""
    limit, found = config.max_missing, False
    known = live if live is not None and len(live) >= LIVE_ROWS else None
    for feature in schema.features:
        share = _null_share(rows, feature)
        now = _null_share(known, feature) if known is not None else None
        if share > limit:
            found = True
            detail = f"missing in {share:.1%} of {len(rows)} rows, {limit:.0%} is allowed"
            yield Check("missing", Level.FAILED, detail, feature.name, share, limit)
        elif known is not None and now is not None and now > limit:
            found = True
            detail = f"missing in {now:.1%} of the newest {len(known)} predictions: it is not there when it is asked"
            yield Check("missing", Level.FAILED, detail, feature.name, now, limit)
        elif known is not None and now is not None and now - share > SUDDENLY:
            found = True
            detail = f"missing in {now:.1%} of the newest {len(known)} predictions, in {share:.1%} of the rows"
            yield Check("missing", Level.ODD, detail, feature.name, now, share + SUDDENLY)
    if not found:
        of = f" and of the newest {len(known)} predictions" if known is not None else ""
        yield Check("missing", Level.OK, f"no feature is missing in more than {limit:.0%} of the rows{of}")


def _null_share(rows: pl.DataFrame, feature: Feature) -> float:
    if feature.column not in rows.columns:
        return 1.0
    return rows[feature.column].null_count() / max(len(rows), 1)


def _ranges(rows: pl.DataFrame, schema: ModelSchema, config: ValidationConfig) -> Iterator[Check]:
    """Numbers outside the configured ranges; infinities always count."""
    limit, found = config.max_out_of_range, False
    for feature in schema.features:
        if feature.kind is not FeatureKind.NUMBER:
            continue
        values = rows[feature.column].cast(pl.Float64).drop_nulls()
        low, high = config.ranges.get(feature.name, (float("-inf"), float("inf")))
        outside = values.is_infinite() | (values < low) | (values > high)
        share = float(outside.mean() or 0.0)  # type: ignore[arg-type]
        if share > limit:
            found = True
            worst = values.filter(outside)
            detail = f"{share:.1%} of {len(values)} values are outside {low:g} to {high:g}, such as {worst[0]:g}"
            yield Check("range", Level.FAILED, detail, feature.name, share, limit)
    if not found:
        told = f"{len(config.ranges)} ranges are given" if config.ranges else "no range is given"
        yield Check("range", Level.OK, f"{told}; no more than {limit:.1%} of the values of a feature lie outside")


def _duplicates(rows: pl.DataFrame, schema: ModelSchema, config: ValidationConfig) -> Iterator[Check]:
    """Rows with the same inputs and the same label as another: a source that repeats itself is learned by heart."""
    again = 1 - rows.select(*schema.feature_columns, "label").n_unique() / max(len(rows), 1)
    limit = config.max_duplicates  # few categories repeat themselves by nature: no limit fits every model
    level = Level.FAILED if limit is not None and again > limit else Level.OK
    detail = f"{again:.1%} of {len(rows)} rows repeat another" + (f", {limit:.0%} is allowed" if limit else "")
    yield Check("duplicates", level, detail, value=again, limit=limit)


def _labels(
    train: pl.DataFrame, holdout: pl.DataFrame, schema: ModelSchema, config: ValidationConfig
) -> Iterator[Check]:
    """Enough rows of every class; a spread of numbers."""
    if schema.task is Task.REGRESSION:
        spread = float(train["label"].cast(pl.Float64).std() or 0.0)  # type: ignore[arg-type]
        level = Level.OK if spread > 0 else Level.FAILED
        yield Check("labels", level, f"standard deviation {spread:.4g} in {len(train)} training rows", value=spread)
        return
    counts = dict(train["label"].value_counts().iter_rows())
    rare = {name: int(counts.get(name, 0)) for name in schema.classes if counts.get(name, 0) < config.min_class_rows}
    told = ", ".join(f"{name} {count}" for name, count in list(rare.items())[:LISTED])
    if rare:
        # One class of many may be out of season; of two, nothing can be learned.
        level = Level.FAILED if schema.task is Task.BINARY else Level.ODD
        detail = f"fewer than {config.min_class_rows} training rows: {told}"
        yield Check("labels", level, detail, value=float(min(rare.values())), limit=float(config.min_class_rows))
        return
    shares = [
        max(rows["label"].value_counts()["count"].to_list(), default=0) / max(len(rows), 1) for rows in (train, holdout)
    ]
    detail = f"every class has {config.min_class_rows} training rows or more; the largest is {shares[0]:.1%} of them"
    yield Check("labels", Level.OK, f"{detail}, {shares[1]:.1%} of the holdout", value=shares[0])


def _leakage(rows: pl.DataFrame, schema: ModelSchema, config: ValidationConfig) -> Iterator[Check]:
    """A feature that tells the label all by itself may only be known once the label is."""
    if config.leakage == "off":
        yield Check("leakage", Level.OK, "not looked for")
        return
    label = rows["label"].cast(pl.Float64 if schema.task is Task.REGRESSION else pl.String)
    found = False
    for feature in schema.features:
        series = rows[feature.column]
        if (copy := copy_of_label(series, feature.kind, label, schema.task)) is not None:
            found = True
            level = Level.FAILED if config.leakage == "fail" else Level.ODD
            yield Check("leakage", level, f"{copy}: is it known when the model is asked?", feature.name)
        elif (strong := strength(series, feature.kind, label, schema.positive)) is not None:
            found = True
            yield Check("leakage", Level.ODD, f"tells the label almost by itself, {strong}", feature.name)
    if not found:
        yield Check("leakage", Level.OK, "no feature tells the label by itself")


def _functions(rows: pl.DataFrame, schema: ModelSchema, names: Sequence[str]) -> Iterator[Check]:
    """Checks of a team's own: each answers with what is wrong."""
    for name in names:
        try:
            module, _, function = name.partition(":")
            ask: Callable[..., Sequence[str]] = getattr(importlib.import_module(module), function)
            problems = list(ask(features_frame(rows, schema), labels_array(rows, schema)))
        except Exception as exc:  # noqa: BLE001 - the team's code
            told = traceback.format_exception_only(exc)[-1].strip()[:300]
            yield Check("function", Level.FAILED, f"raised {told}", name)
            continue
        if not problems:
            yield Check("function", Level.OK, "nothing is wrong", name)
        yield from (Check("function", Level.FAILED, str(problem)[:300], name) for problem in problems)


def report(checks: Sequence[Check], facts: Mapping[str, Any]) -> str:
    """Markdown for people: what was looked at and what was found, the worst first."""
    order = [Level.FAILED, Level.ODD, Level.OK]
    lines = ["# Data validation", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    lines += ["| | check | of | |", "|---|---|---|---|"]
    for check in sorted(checks, key=lambda c: order.index(c.level)):
        cells = (check.level.value, check.name, check.subject, check.detail)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
