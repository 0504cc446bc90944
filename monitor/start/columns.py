"""What the columns of a recorded table are: the truth, features, times, identifiers, copies of the truth.

Invariant: pure; every column ends up with a use or with the reason why it has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import polars as pl

from monitor.base.errors import ConfigError
from monitor.base.table_files import as_time, finite, without_gap_words
from monitor.config.explain import hint
from monitor.measure.reference import kind_of, to_lake_columns
from monitor.start.target import UnfitTable, task_of
from retrain.data.leaks import as_text, auc, copy_of_label, strength
from retrain.terms.schema import Feature, FeatureKind, ModelSchema, Task
from retrain.trainers.default import MAX_CATEGORIES

_TRUE_WORDS = frozenset({"1", "true", "yes", "y", "t", "positive"})
_ANSWER_NAMES = re.compile(r"(y_?|model_?)?(hat|pred(icted|iction)?|prob(a|ability)?)(_?proba?)?", re.I)
_LAKE_ONLY = frozenset(
    {"prediction_id", "model", "model_version", "latency_ms", "label_ts", "invalid_features", "date"}
)
_FEW = 20
"""Tables shorter than this say nothing about what is unique or constant."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the operator said about the columns. `inputs`: feature -> kind by a registered model's signature."""

    target: str | None = None
    prediction: str | None = None
    score: str | None = None
    time: str | None = None
    segments: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    inputs: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Findings:
    """`lake`: the table in lake columns, ordered by time when `time` is known. `notes`: feature -> what to know about
    it. `left_out`: column -> why it is no feature; `others`: all columns that are neither features nor the target.
    `times`: of all rows, sorted."""

    source: str
    target: str
    rows: int
    labelled: int
    schema: ModelSchema
    positive_because: str
    lake: pl.DataFrame
    prediction: str | None
    scores: tuple[str, ...]
    time: str | None
    times: pl.Series | None
    notes: Mapping[str, str]
    left_out: Mapping[str, str]
    others: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def look(frame: pl.DataFrame, asked: Asked, *, source: str, model: str) -> Findings:
    """What is in the table. Raises ConfigError with one line per mistake."""
    frame, gaps = without_gap_words(frame)
    asked = _with_usual_names(frame, asked)
    _check_columns(frame, asked, source)
    assert asked.target is not None
    try:
        task, label = task_of(finite(frame[asked.target]))
    except (UnfitTable, pl.exceptions.PolarsError) as exc:
        raise ConfigError([f"--target: {exc}"]) from exc
    classes = () if task is Task.REGRESSION else tuple(sorted(label.drop_nulls().unique().to_list()))
    scores = _score_columns(frame, asked, task, classes)
    positive, because = _positive(
        classes,
        label,
        frame[asked.prediction] if asked.prediction else None,
        frame[scores["score"]] if "score" in scores else None,
    )
    time, times = _time(frame, asked, tuple(scores.values()))
    used = _used(asked, tuple(scores.values()), time)
    features, notes, left_out = _features(frame, label, task, positive, used, asked, gaps)
    schema = ModelSchema(
        model=model,
        task=task,
        features=tuple(Feature(n, k) for n, (_, k) in features.items()),
        classes=classes,
        positive=positive if task is Task.BINARY else None,
        segments=tuple(dict.fromkeys(s.removeprefix("segment_") for s in asked.segments)),
    )
    sources = {f"feature_{n}": column for n, (column, _) in features.items()}
    sources |= {f"segment_{s}": s if s in frame.columns else f"segment_{s}" for s in schema.segments}
    sources |= scores | ({"prediction": asked.prediction} if asked.prediction else {})
    columns = [frame[column].alias(name) for name, column in sources.items()]
    lake = to_lake_columns(pl.DataFrame([*columns, label.alias("label")]), schema)
    if times is not None:
        lake = lake.with_columns(times.alias("ts")).sort("ts", maintain_order=True)
    if problems := [*_about_answers(lake, schema, asked), *_about_features(schema, asked, source)]:
        raise ConfigError(problems)
    return Findings(
        source=source,
        target=asked.target,
        rows=frame.height,
        labelled=frame.height - label.null_count(),
        schema=schema,
        positive_because=because,
        lake=lake,
        prediction=asked.prediction,
        scores=tuple(scores.values()),
        time=time,
        times=times.drop_nulls().sort() if times is not None else None,
        notes=notes,
        left_out={c: why for c, why in left_out.items() if c != asked.target},
        others=tuple(c for c in frame.columns if c not in {asked.target, *(c for c, _ in features.values())}),
        remarks=tuple(_remarks(lake, schema, asked)),
    )


# -- what was asked for


def _used(asked: Asked, scores: Sequence[str], time: str | None) -> dict[str, str]:
    """Columns that have another use than as a feature, and which."""
    used = dict.fromkeys(scores, "the model's score") | dict.fromkeys(asked.drop, "named in --drop")
    named = ((asked.target, "the target"), (asked.prediction, "the model's prediction"), (time, "the time of the row"))
    return used | {column: use for column, use in named if column is not None}


def _with_usual_names(frame: pl.DataFrame, asked: Asked) -> Asked:
    """driftd's own column names need not be said."""
    taken = {asked.target, asked.prediction, asked.score, asked.time, *asked.drop, *(asked.inputs or ())}

    def usual(given: str | None, name: str) -> str | None:
        return given or (name if name in frame.columns and name not in taken else None)

    return replace(
        asked,
        target=usual(asked.target, "label"),
        prediction=usual(asked.prediction, "prediction"),
        time=usual(asked.time, "ts"),
    )


def _check_columns(frame: pl.DataFrame, asked: Asked, source: str) -> None:
    if not frame.height or not frame.width:
        raise ConfigError([f"{source}: has no rows"])
    problems = []
    if frame.width == 1 and (found := re.search(r"[;\t|]", frame.columns[0])):
        raise ConfigError([f"{source}: is separated by {found[0]!r}: driftd reads commas"])
    if asked.target is None:
        problems.append(f"--target: say which column holds the truth{hint('target', frame.columns)}")
    given: list[tuple[str, str | None]] = [("--target", asked.target), ("--prediction", asked.prediction)]
    given += [("--score", asked.score), ("--time", asked.time), *(("--drop", c) for c in asked.drop)]
    known = {c.removeprefix("segment_"): c for c in frame.columns}
    for option, column in (*given, *(("--segment", known.get(s, s)) for s in asked.segments)):
        if column is not None and column not in frame.columns:
            problems.append(f"{option}: {source} has no column {column!r}{hint(column, frame.columns)}")
    seen: dict[str, str] = {}
    for option, column in given[:4]:
        if column is not None and (other := seen.setdefault(column, option)) != option:
            problems.append(f"{option}: {column!r} is already {other}: name another column")
        if column is not None and column in asked.drop:
            problems.append(f"--drop: {column!r} is also {option}: leave it out of one of them")
    if problems:
        raise ConfigError(problems)


def _score_columns(frame: pl.DataFrame, asked: Asked, task: Task, classes: Sequence[str]) -> dict[str, str]:
    """Lake score column -> the table's column. A column that only has the name is taken if it holds probabilities."""
    wanted = [f"score_{c}" for c in classes] if task is Task.MULTICLASS else ["score"]
    if asked.score is None:
        found = {c: c for c in wanted if c in frame.columns and c not in (*asked.drop, *(asked.inputs or ()))}
        good = (
            task is not Task.REGRESSION and len(found) == len(wanted) and all(_is_probability(frame[c]) for c in found)
        )
        return found if good and asked.target not in found else {}
    match task:
        case Task.BINARY if _is_probability(frame[asked.score]):
            return {"score": asked.score}
        case Task.BINARY:
            text = f"{asked.score!r} must hold probabilities, numbers from 0 to 1"
        case Task.MULTICLASS:
            text = f"{len(classes)} classes need a column each, named {', '.join(wanted)}: leave --score away"
        case Task.REGRESSION:
            text = f"{asked.target!r} is a number to predict, which has no score: leave --score away"
        case _:
            assert_never(task)
    raise ConfigError([f"--score: {text}"])


def _is_probability(series: pl.Series) -> bool:
    values = series.drop_nulls()
    return bool(series.dtype.is_numeric() and values.len() and values.is_between(0, 1).all())


def _positive(
    classes: Sequence[str], label: pl.Series, prediction: pl.Series | None, score: pl.Series | None
) -> tuple[str | None, str]:
    """Of two classes: the one that the score speaks of; without a score, by name; else the rarer one."""
    if len(classes) != 2:
        return None, ""
    named = [c for c in classes if c.lower() in _TRUE_WORDS]
    for answers, said in ((prediction, "the prediction"), (label, "the label")):
        higher = _spoken_of(classes, answers, score)
        if higher is not None:
            return higher, f"the score is higher where {said} is this one"
    if len(named) == 1:
        return named[0], "by its name"
    counts = {c: int((label == c).sum()) for c in classes}
    rarer = min(reversed(classes), key=lambda c: counts[c])
    return rarer, f"the rarer one, {counts[rarer]} of {sum(counts.values())} labels"


def _spoken_of(classes: Sequence[str], answers: pl.Series | None, score: pl.Series | None) -> str | None:
    """The class that goes with high scores, if one clearly does."""
    if answers is None or score is None:
        return None
    pairs = pl.DataFrame([score.alias("x"), as_text(answers).alias("y")]).drop_nulls()
    found = auc(pairs["x"], pairs["y"] == classes[1])
    return None if found is None or abs(found - 0.5) < 0.1 else classes[int(found > 0.5)]


def _about_answers(lake: pl.DataFrame, schema: ModelSchema, asked: Asked) -> Iterator[str]:
    if asked.prediction is None:
        return
    given = lake["prediction"].drop_nulls()
    if not given.len():
        yield f"--prediction: {asked.prediction!r} holds nothing that could be a prediction: name another column"
    elif schema.task is not Task.REGRESSION:
        strange = given.filter(~given.is_in(list(schema.classes))).unique().sort().head(3).to_list()
        if strange:
            shown = ", ".join(map(repr, strange))
            classes = ", ".join(map(repr, schema.classes))
            yield (
                f"--prediction: {asked.prediction!r} holds {shown}, no classes of {asked.target!r} ({classes}): "
                f"name the column with the predicted class; probabilities go to --score"
            )


def _about_features(schema: ModelSchema, asked: Asked, source: str) -> Iterator[str]:
    if not schema.features:
        yield f"{source}: no column is left that can be a feature: every one is dropped, empty, constant or a copy"
    seen: dict[str, str] = {}
    for feature in schema.features:
        first = seen.setdefault(feature.name.lower(), feature.name)
        if first != feature.name:
            yield f"{source}: {first!r} and {feature.name!r} differ only in upper and lower case: --drop one of them"


def _remarks(lake: pl.DataFrame, schema: ModelSchema, asked: Asked) -> Iterator[str]:
    for name in schema.segments:
        count = lake[f"segment_{name}"].n_unique()
        if count > 50:
            yield f"segment {name!r} has {count} values; the 50 largest are measured"
    if "ts" in lake.columns and (gaps := lake["ts"].null_count()):
        yield f"{gaps} rows have no readable time"


# -- time


def _time(frame: pl.DataFrame, asked: Asked, scores: Sequence[str]) -> tuple[str | None, pl.Series | None]:
    """The column that says when a row happened: the one asked for, else the likeliest of those that hold times."""
    if asked.time is not None:
        times = as_time(frame[asked.time], asked=True)
        if times is None:
            text = f"{asked.time!r} holds no times: RFC 3339 text, dates or seconds since 1970 are read"
            raise ConfigError([f"--time: {text}"])
        return asked.time, times
    others = (asked.target, asked.prediction, *scores, *asked.drop, *(asked.inputs or ()))
    found = [(c, t) for c in frame.columns if c not in others and (t := as_time(frame[c])) is not None]
    found.sort(key=lambda at: (not at[1].drop_nulls().is_sorted(), -at[1].n_unique()))
    return found[0] if found else (None, None)


# -- features

_Chosen = dict[str, tuple[str, FeatureKind]]


def _features(
    frame: pl.DataFrame,
    label: pl.Series,
    task: Task,
    positive: str | None,
    used: Mapping[str, str],
    asked: Asked,
    gaps: Mapping[str, str],
) -> tuple[_Chosen, dict[str, str], dict[str, str]]:
    """Feature -> (column, kind); feature -> what to know about it; column -> why it is none."""
    features: _Chosen = {}
    notes: dict[str, str] = {}
    left_out = dict(used)
    missing: list[str] = []
    in_lake_form = any(c.startswith("feature_") for c in frame.columns)
    for column in frame.columns:
        series, name = frame[column], column.removeprefix("feature_") if in_lake_form else column
        if column in used or (in_lake_form and (column in _LAKE_ONLY or column.startswith("segment_"))):
            continue
        if asked.inputs is not None:
            kind, why = _by_signature(name, asked.inputs)
        elif in_lake_form and not column.startswith("feature_"):
            kind, why = None, "has no feature_ before its name, as others have"
        else:
            kind, why = kind_of(series.dtype), _no_feature(series, label, task)
        if kind is None or why:
            left_out[column] = why or "holds values of a type that is no feature's"
            continue
        features[name] = (column, kind)
        if about := [n for n in (gaps.get(column), _note(series, kind, label, positive)) if n]:
            notes[name] = "; ".join(about)
    for name in asked.inputs or {}:
        kind, why = _by_signature(name, asked.inputs or {})
        if kind is None:
            left_out[name] = why
        elif name not in features:
            known = [c.removeprefix("feature_") for c in frame.columns]
            said = f": it is {used[name]}" if name in used else hint(name, known)
            missing.append(f"the registered model takes {name!r}, which is no feature of these rows{said}")
    if missing:
        raise ConfigError(missing)
    return features, notes, left_out


def _by_signature(name: str, inputs: Mapping[str, str]) -> tuple[FeatureKind | None, str]:
    if name not in inputs:
        return None, "is no input of the registered model"
    if inputs[name] not in set(FeatureKind):
        return None, f"is an input of type {inputs[name]}, which driftd does not watch"
    return FeatureKind(inputs[name]), ""


def _no_feature(series: pl.Series, label: pl.Series, task: Task) -> str:
    """Why a column is no feature, "" when it is one."""
    known = series.drop_nulls()
    if not known.len():
        return "is always empty"
    if as_time(series) is not None:
        return "holds times: they only move forward, which is no drift"
    kind = kind_of(series.dtype)
    if kind is None:
        return f"holds {str(series.dtype).split('(')[0].lower()} values, which are no feature's"
    enough = series.len() >= _FEW
    distinct = known.n_unique()
    if distinct == 1 and enough and known.len() == series.len():
        return f"is always {_short(known[0])}"
    if _ANSWER_NAMES.fullmatch(series.name):
        return "looks like a model's answer by its name: give it as --prediction or --score"
    if enough and kind is FeatureKind.CATEGORY and distinct >= 0.5 * known.len() and distinct > _FEW:
        what = "is an identifier" if distinct >= 0.95 * known.len() else "is nearly unique text"
        return f"{what}: {distinct} values in {known.len()} rows"
    if enough and _counts_up(known):
        return "is an identifier: whole numbers that only grow from row to row"
    if (why := copy_of_label(series, kind, label, task)) is not None:
        return f"{why}; known before the answer? then list it as a feature"
    return ""


def _counts_up(known: pl.Series) -> bool:
    if not known.dtype.is_numeric():
        return False
    if known.dtype.is_float() and not (known == known.round()).all():
        return False
    if known.n_unique() != known.len():
        return False
    named = re.search(r"(^|_)(id|no|nr|key|index|uid|uuid)$|[a-z]I[dD]$", known.name) is not None
    return bool(named or known.is_sorted() or known.is_sorted(descending=True))


def _note(series: pl.Series, kind: FeatureKind, label: pl.Series, positive: str | None) -> str | None:
    known = series.drop_nulls()
    if kind is FeatureKind.CATEGORY and (count := known.n_unique()) > MAX_CATEGORIES:
        return f"{count} values; the shipped trainer tells the {MAX_CATEGORIES} most frequent apart"
    if not series.dtype.is_numeric():
        return None
    if (found := strength(series, kind, label, positive)) is not None:
        return f"tells the target almost alone ({found}): --drop it if it is known only afterwards"
    if known.len() >= 100 and known.n_unique() > _FEW and known.is_sorted():
        return "only grows from row to row: --drop it if it is a clock or a counter"
    return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
