"""What was found in a table -> a config.toml with the reason beside each value, and a summary for the terminal.

Invariant: pure; any name is written so that TOML reads it back; defaults are left to where they live.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import polars as pl

from monitor.config.sections import DEFAULT_METRICS, DEFAULT_RULES, ReferenceConfig, WindowConfig
from monitor.measure.performance.scores import SCORES
from monitor.start.columns import Findings
from retrain.terms.fields import format_duration
from retrain.terms.schema import Task

_SIZES = tuple(
    timedelta(hours=h)
    for h in (1 / 60, 1 / 30, 1 / 12, 1 / 6, 1 / 4, 1 / 2, 1, 2, 3, 4, 6, 8, 12, 24, 48, 168, 336, 672)
)
"""Sizes that people can tell apart; up to a day they divide it."""
_AIM, _ENOUGH = 1000, 300
_LEAST_MIN_ROWS, _MOST_MIN_ROWS = 50, 10_000
_WIDTH = 110


@dataclass(frozen=True, slots=True)
class Window:
    """`rows`: what a typical window has; None when nobody knows."""

    size: timedelta
    rows: int | None
    because: str

    @property
    def min_rows(self) -> int | None:
        return None if self.rows is None else min(_MOST_MIN_ROWS, max(_LEAST_MIN_ROWS, round(self.rows / 5)))


@dataclass(frozen=True, slots=True)
class Setup:
    """What the config says besides what was found. `reference`: path as config.toml shall name it; None when the
    registered version brings its own. `written_later`: the reference file does not exist yet and will not be made."""

    reference: str | None
    written_later: bool = False
    registered_model: str | None = None
    tracking_uri: str | None = None
    kafka: tuple[str, ...] = ()


def choose_window(
    times: pl.Series | None, size: timedelta | None = None, rows_per_day: float | None = None, *, sampled: bool = False
) -> Window:
    """The one asked for, or of the usual sizes the one that gives a typical window some 300 to 3000 rows."""
    expected: Callable[[timedelta], int]
    if rows_per_day is not None:
        source, expected = f"the {rows_per_day:g} rows a day that were said", _Rate(rows_per_day)
    elif times is not None and times.len() > 1 and times[0] != times[-1]:
        source, expected = f"the rate of the file{', of which it may be a sample' * sampled}", _Times(times)
    else:
        reason = "asked for" if size else "nothing says how many rows come: see --time and --rows-per-day"
        return Window(size or WindowConfig().size, None, reason)
    if size is not None:
        rows = expected(size)
        return Window(size, rows, f"asked for; about {rows} rows a window by {source}")
    best = _best(expected)
    rows = expected(best)
    few = "; that is little, so only large changes will be seen" if rows < _ENOUGH else ""
    return Window(best, rows, f"about {rows} rows a window by {source}{few}")


def _best(expected: Callable[[timedelta], int]) -> timedelta:
    """Up to a day: nearest to a thousand rows. Slower models: the shortest that has enough, or the longest."""
    day = timedelta(days=1)
    if expected(day) >= _ENOUGH:
        return min((s for s in _SIZES if s <= day), key=lambda s: abs(math.log(max(expected(s), 0.1) / _AIM)))
    return next((s for s in _SIZES if s > day and expected(s) >= _ENOUGH), _SIZES[-1])


class _Rate:
    def __init__(self, rows_per_day: float) -> None:
        self.rate = rows_per_day

    def __call__(self, size: timedelta) -> int:
        return round(self.rate * (size / timedelta(days=1)))


class _Times:
    """The median of the windows that have rows: nights and gaps do not count."""

    def __init__(self, times: pl.Series) -> None:
        self.seconds = times.dt.epoch("s")
        self.span = max(1, int(self.seconds[-1]) - int(self.seconds[0]))

    def __call__(self, size: timedelta) -> int:
        length = int(size.total_seconds()) or 1
        counts = (self.seconds // length).value_counts()["count"]
        if counts.len() < 3:
            return round(self.seconds.len() * length / self.span)
        return round(float(counts.median()))  # type: ignore[arg-type]


# -- the text


def propose(found: Findings, window: Window, setup: Setup) -> str:
    """config.toml for what was found. It loads as it is."""
    schema = found.schema
    model = f"models.{_key(schema.model)}"
    lines = [
        *_comment(
            f"Made by `driftd init` from {_word(found.source)}, {found.rows} rows. What is not here has its default"
        ),
        *_comment("(docs/configuration.md). `driftd check` says what is wrong after a change."),
        "",
        *_source(setup),
        f"[{model}]",
        *_about_task(found),
        *_about_registry(setup, schema.model),
        *_about_metrics(found),
        "",
        f"[{model}.features]",
        *_about_features(found),
        "",
        f"[{model}.windows]",
        *_comment(window.because),
        f"size = {_text(format_duration(window.size))}",
        *_about_min_rows(window),
        "",
        *_about_reference(found, setup, model),
        *_about_rules(schema.task, model),
    ]
    return "\n".join(lines) + "\n"


def _source(setup: Setup) -> Iterator[str]:
    if setup.kafka:
        yield from ("[source]", 'kind = "kafka"', "", "[source.kafka]", f"bootstrap = {_texts(setup.kafka)}", "")
    if setup.tracking_uri is not None:
        yield from ("[mlflow]", f"tracking_uri = {_text(setup.tracking_uri)}", "")


def _about_task(found: Findings) -> Iterator[str]:
    schema, target = found.schema, _word(found.target)
    if schema.task is Task.REGRESSION:
        yield from _comment(f"{target} is a number with many values")
    else:
        yield from _comment(f"{target} has {len(schema.classes)} values; they are the labels in events")
    yield f"task = {_text(schema.task.value)}"
    if schema.classes:
        yield f"classes = {_texts(schema.classes)}"
    if schema.positive is not None:
        yield from _comment(f"the class whose probability `score` is: {found.positive_because}")
        yield f"positive = {_text(schema.positive)}"
    if schema.segments:
        yield from _comment("asked for; measured and gated one by one")
        yield f"segments = {_texts(schema.segments)}"
    for remark in found.remarks:
        yield from _comment(remark)


def _about_registry(setup: Setup, model: str) -> Iterator[str]:
    if setup.registered_model not in (None, model):
        yield f"registered_model = {_text(str(setup.registered_model))}"


def _about_metrics(found: Findings) -> Iterator[str]:
    defaults = DEFAULT_METRICS[found.schema.task]
    without = tuple(m for m in defaults if not SCORES[m].from_scores)
    if not found.scores and without != defaults:
        missing = " and ".join(m for m in defaults if m not in without)
        yield from _comment(f"no scores were given, so without {missing}; drop this line when events carry `score`")
        yield f"metrics = {_texts(without)}"


def _about_features(found: Findings) -> Iterator[str]:
    for column, why in found.left_out.items():
        yield from _comment(f"no feature: {_word(column)} {_is(why)}")
    for feature in found.schema.features:
        if feature.name in found.notes:
            yield from _comment(f"{_word(feature.name)}: {found.notes[feature.name]}")
        yield f"{_key(feature.name)} = {_text(feature.kind.value)}"


def _about_min_rows(window: Window) -> Iterator[str]:
    if window.min_rows is None:
        yield from _comment(
            f"min_rows = {WindowConfig().min_rows}, the default; about a fifth of a window's rows is good"
        )
        return
    assert window.rows is not None
    if window.rows < _LEAST_MIN_ROWS:
        yield from _comment(
            f"{window.rows} rows a window are too few to judge: a larger size, or more rows, are needed"
        )
    yield from _comment("a fifth of a window's rows, at least 50; windows with fewer are UNDECIDED")
    yield f"min_rows = {window.min_rows}"


def _about_reference(found: Findings, setup: Setup, model: str) -> Iterator[str]:
    """The path is written when it can be read, and when performance can be compared with what it holds."""
    yield f"[{model}.reference]"
    if setup.reference is None:
        yield from _comment("the reference that was logged with the registered version is used")
    elif found.prediction is None:
        yield from _comment(
            f"{_without_predictions()} With `path` this file would be it, and performance_drop would have "
            "nothing to compare with. Better: `driftd init` again with --prediction COLUMN."
        )
        yield f"# path = {_text(setup.reference)}"
    elif setup.written_later:
        yield from _comment("the file's columns need other names: `driftd init` writes this one with --output FILE")
        yield f"# path = {_text(setup.reference)}"
    else:
        yield from _comment("what windows are compared with, unless the registered version has its own")
        yield f"path = {_text(setup.reference)}"
    yield ""


def _without_predictions() -> str:
    count = ReferenceConfig().warmup_windows
    return f"The rows hold no predictions, so the first {count} windows become the reference."


def _about_rules(task: Task, model: str) -> Iterator[str]:
    """The defaults as comments, made from where they live."""
    yield from _comment('These rules hold as long as none is written here. "auto" is what chance does not explain in a')
    yield from _comment("window of this size, so there is no number to tune.")
    for rule in DEFAULT_RULES[task]:
        yield "#"
        yield f"# [[{model}.rules]]"
        for key, value in rule.items():
            yield f"# {_key(key)} = {_value(value)}"


def summary(found: Findings, window: Window, setup: Setup) -> Iterator[str]:
    """What was found, for people."""
    schema = found.schema
    labelled = "all labelled" if found.labelled == found.rows else f"{found.labelled} labelled"
    yield f"{found.source}: {found.rows} rows, {labelled}"
    classes = f" ({', '.join(schema.classes)})" if schema.classes else ""
    positive = f"; positive is {schema.positive!r}, {found.positive_because}" if schema.positive else ""
    yield f"  task      {schema.task.value}, target {found.target!r}{classes}{positive}"
    kinds = [f.kind.value for f in schema.features]
    counts = ", ".join(f"{kinds.count(k)} {k}" for k in dict.fromkeys(kinds))
    yield f"  features  {len(kinds)}: {counts}"
    for column, why in found.left_out.items():
        yield f"  left out  {column!r} {_is(why)}"
    for name, note in found.notes.items():
        yield f"  look at   {name!r}: {note}"
    yield f"  window    {format_duration(window.size)}, {window.because}"
    if found.prediction is None:
        yield f"  missing   {_without_predictions()} --prediction COLUMN names them."
    elif setup.reference is not None:
        yield f"  reference {setup.reference}"
    for remark in found.remarks:
        yield f"  note      {remark}"


def _is(why: str) -> str:
    return why if re.match(r"(is|holds|has|equals|determines|looks) ", why) else f"is {why}"


# -- TOML


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)]


def _text(value: str) -> str:
    """A basic string; what is not printable, escaped."""
    found = json.dumps(value, ensure_ascii=False)
    return "".join(
        c if c.isprintable() else f"\\u{ord(c):04x}" if ord(c) < 2**16 else f"\\U{ord(c):08x}" for c in found
    )


def _word(name: str) -> str:
    """A name in a comment."""
    return f"`{name}`" if re.fullmatch(r"[\w .-]+", name) and name.isprintable() else _text(name)


def _texts(values: Sequence[str]) -> str:
    return f"[{', '.join(map(_text, values))}]"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _value(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case _:
            return _text(str(value))
