"""From what was asked on the command line to a document: history, configurations side by side, policies.

Invariant: writes nothing but below the folder it is given.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from monitor.backtest.document import Run, document
from monitor.backtest.history import History, from_events, from_lake, from_table
from monitor.backtest.jobs import SimulatedJobs
from monitor.backtest.policies import PolicyResult, run_driftd, run_plain, spread
from monitor.backtest.replay import Measured, RecordedRows, Replay, Replayed
from monitor.backtest.serving import Serving
from monitor.backtest.trainings import Trainings, Version, first_version
from monitor.base.errors import ConfigError
from monitor.config.explain import hint
from monitor.config.loading import from_dict, load
from monitor.config.plan import ModelPlan, plans
from monitor.config.sections import DEFAULT_RULES
from monitor.demo.world import World, recorded
from monitor.intake.events import Limits
from monitor.lake.lake import Lake
from monitor.start.target import UnfitTable
from retrain.terms.schema import Task

WINDOWS = 200
"""Windows that a table without times is cut into."""
WINDOW_ROWS = (50, 1000)
Progress = Callable[[str, int, int], None]
"""What is going on, rows done, rows in all."""


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for. One of `stream`, `events`, or neither (the lake of the configuration)."""

    configs: tuple[Path, ...] = ()
    stream: Path | None = None
    target: str | None = None
    drop: tuple[str, ...] = ()
    events: Path | None = None
    since: str | None = None
    until: str | None = None
    model: str | None = None
    train_share: float = 0.1
    window_rows: int | None = None
    label_delay: int | None = None
    changes: tuple[str, ...] = ()
    sweep: tuple[str, ...] = ()
    closed_loop: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """One configuration to try: its name, what was swept in it, and the plan of the model."""

    name: str
    swept: Mapping[str, Any]
    plan: ModelPlan


def backtest(options: Options, folder: Path, progress: Progress) -> dict[str, Any]:
    """Replay history through every configuration; the document that says what came of it (see `document`).

    Raises ConfigError for what cannot be used, CannotTrain when there is no first model to begin with.
    """
    if options.stream is not None:
        settings, history = of_table(options, folder)
    else:
        settings, history = _of_config(options, folder)
    changes = _changes(options.changes, history)
    policies: list[PolicyResult] = []
    if options.closed_loop or history.training is not None:
        runs, policies = _closed(settings, history, progress, compare=options.closed_loop)
    else:
        measured: Measured | None = {} if _measures_alike(settings) else None
        runs = [
            Run(s.name, s.swept, s.plan, _replayed(s, history, progress, measured, warm_again=options.since is None))
            for s in settings
        ]
    return document(history, settings[0].plan, runs, changes, policies)


def _replayed(
    setting: Setting, history: History, progress: Progress, measured: Measured | None, *, warm_again: bool
) -> Replayed:
    rows, jobs = RecordedRows(history, setting.plan, warm_again=warm_again), SimulatedJobs()
    replay = Replay(setting.plan, history, rows, jobs.history, jobs.note, measured)
    return replay.run(_on_window(setting.name, history, progress))


def _on_window(name: str, history: History, progress: Progress) -> Callable[[int], None]:
    seen = 0

    def on_window(rows: int) -> None:
        nonlocal seen
        seen += rows
        progress(name, seen, history.rows)

    return on_window


def _measures_alike(settings: Sequence[Setting]) -> bool:
    """Whether the configurations differ in rules and triggers alone: then windows are measured once."""
    first = settings[0].plan
    return all(
        (s.plan.settings, s.plan.windows, s.plan.warmup_windows, s.plan.reference)
        == (first.settings, first.windows, first.warmup_windows, first.reference)
        for s in settings
    )


# -- the loop closed


def _closed(
    settings: Sequence[Setting], history: History, progress: Progress, *, compare: bool
) -> tuple[list[Run], list[PolicyResult]]:
    if history.training is None:
        raise ConfigError(["--closed-loop trains a first model: give a table (--stream) with rows before the stream"])
    plan = settings[0].plan
    with ExitStack() as open_models:
        trainings = open_models.enter_context(Trainings(plan))
        progress("training the first model", 0, history.rows)
        first = first_version(plan, history, trainings)
        policies, runs = [], []
        for s in settings:
            alike = s.plan.retrain == plan.retrain
            mine = trainings if alike else open_models.enter_context(Trainings(s.plan))
            on_window = _on_window(s.name, history, progress)
            result = run_driftd(s.name, s.plan, history, mine, first, on_window, act=compare)
            assert result.replayed is not None
            runs.append(Run(s.name, s.swept, s.plan, result.replayed))
            policies.append(result)
        return runs, policies + _plain(plan, history, trainings, first, policies, progress) if compare else []


def _plain(
    plan: ModelPlan,
    history: History,
    trainings: Trainings,
    first: Version,
    driftd: Sequence[PolicyResult],
    progress: Progress,
) -> list[PolicyResult]:
    """Never, at every window, and every k windows with as many trainings as the first configuration."""
    windows = len(list(history.windows(plan.windows.size)))

    def plain(name: str, wanted: Callable[[int], bool]) -> PolicyResult:
        def watched(n: int) -> bool:
            progress(name, (n + 1) * history.rows // windows, history.rows)
            return wanted(n)

        return run_plain(name, Serving(plan, history, trainings, first), watched)

    found = [plain("never", lambda _n: False)]
    if trained := driftd[0].trainings:
        found.append(plain(f"every {windows / (trained + 1):.3g} windows", spread(windows, trained).__contains__))
    return [*found, plain("every window", lambda _n: True)]


# -- what is replayed, and how it is configured


def of_table(options: Options, folder: Path) -> tuple[list[Setting], History]:
    """Settings and history of `options.stream`. Raises ConfigError for a table that cannot be used."""
    assert options.stream is not None and options.target is not None
    try:
        world = recorded(options.stream, options.target, options.drop)
    except (UnfitTable, OSError) as exc:
        raise ConfigError([str(exc)]) from exc
    rows = world.frame.height
    window_rows = options.window_rows or max(WINDOW_ROWS[0], min(WINDOW_ROWS[1], rows // WINDOWS))
    first_row = int(rows * options.train_share)
    if rows - first_row < 3 * window_rows:
        raise ConfigError(
            [f"{rows - first_row} rows are left after training, fewer than 3 windows of {window_rows}: "
             "lower --window-rows or --train-share"]
        )  # fmt: skip
    documents = [(path.name, _document(path)) for path in options.configs] or [("defaults", {})]
    settings = []
    for name, text in documents:
        base = _table_document(world, window_rows, text, options.model)
        settings += list(_swept(name, base, world.schema.model, options.sweep, Path()))
    size = settings[0].plan.windows.size
    if any(s.plan.windows.size != size for s in settings):
        raise ConfigError(["configurations that are compared on a table need the same windows.size"])
    delay = options.label_delay if options.label_delay is not None else window_rows // 3
    return settings, from_table(world, first_row, window_rows, delay, size, folder)


def _table_document(world: World, window_rows: int, given: Mapping[str, Any], model: str | None) -> dict[str, Any]:
    """A configuration for the table's columns; of a given one, the model's windows, rules, drift and retrain hold."""
    schema = world.schema
    section: dict[str, Any] = {
        "task": schema.task.value,
        "features": {f.name: f.kind.value for f in schema.features},
    }
    if schema.task is not Task.REGRESSION:
        section["classes"] = list(schema.classes)
    if schema.positive:
        section["positive"] = schema.positive
    models = given.get("models", {})
    if models:
        name = _which(models, model)
        kept = ("windows", "rules", "drift", "retrain", "metrics", "schedule", "new_labels")
        section |= {key: value for key, value in models[name].items() if key in kept}
    windows = dict(section.get("windows", {}))
    windows.setdefault("min_rows", max(20, window_rows // 4))
    return {"models": {schema.model: {**section, "windows": windows}}}


def _of_config(options: Options, folder: Path) -> tuple[list[Setting], History]:
    if not options.configs:
        raise ConfigError(["give --config FILE, or a table with --stream and --target"])
    first = load(options.configs[0])
    model = _which(first.schemas, options.model)
    settings = []
    for path in options.configs:
        settings += list(_swept(path.name, _document(path), model, options.sweep, path.parent))
    lateness = first.config.models[model].windows.lateness
    schema = first.schemas[model]
    if options.events is not None:
        source = first.config.source
        limits = Limits(datetime.now(UTC), timedelta(days=36_500), source.max_future, source.max_bytes)
        return settings, from_events(options.events, schema, limits, lateness, folder)
    lake = Lake(first.config.lake_uri, first.config.storage_options())
    return settings, from_lake(lake, schema, options.since, options.until, lateness, folder)


def _which(models: Collection[str], model: str | None) -> str:
    if model is None and len(models) == 1:
        return next(iter(models))
    if model is None or model not in models:
        known = ", ".join(sorted(models))
        raise ConfigError([f"--model: which of the models is meant: {known}{hint(str(model), models)}"])
    return model


def _document(path: Path) -> dict[str, Any]:
    load(path)  # says every mistake at once
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _swept(name: str, document: Mapping[str, Any], model: str, sweep: Sequence[str], base: Path) -> Iterator[Setting]:
    """One setting per combination of the swept values. `rules.NAME.above=0.1,0.2` names a rule by its name."""
    axes = [_axis(text) for text in sweep]
    for values in itertools.product(*(options for _, options in axes)):
        chosen = dict(zip((key for key, _ in axes), values, strict=True))
        changed = _changed(document, model, chosen)
        label = name + "".join(f" {key}={value}" for key, value in chosen.items())
        plan = plans(from_dict(changed, name=name, base=base))[model]
        yield Setting(label, chosen, plan)


def _axis(text: str) -> tuple[str, list[Any]]:
    key, equals, values = text.partition("=")
    if not equals or not values:
        raise ConfigError([f"--sweep {text}: must be KEY=VALUE,VALUE such as rules.performance_drop.above=0.1,0.2"])
    return key.strip(), [_value(v.strip()) for v in values.split(",")]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _changed(document: Mapping[str, Any], model: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the model's keys replaced; rules that are swept and not written out are the defaults'."""
    section = dict(document["models"][model])
    for key, value in chosen.items():
        path = key.split(".")
        if path[0] == "rules":
            if len(path) != 3:
                raise ConfigError([f"--sweep {key}: must be rules.<name>.<key>"])
            rules = [dict(r) for r in section.get("rules", DEFAULT_RULES[Task(section["task"])])]
            rule = next((r for r in rules if r["name"] == path[1]), None)
            if rule is None:
                known = [r["name"] for r in rules]
                raise ConfigError([f"--sweep {key}: no rule {path[1]!r}; there are {', '.join(known)}"])
            rule[path[2]] = value
            section["rules"] = rules
            continue
        table = section
        for name in path[:-1]:
            table[name] = dict(table.get(name, {}))
            table = table[name]
        table[path[-1]] = value
    return {**document, "models": {**document["models"], model: section}}


def _changes(given: Sequence[str], history: History) -> list[datetime]:
    """True change points: times, or (tables) row numbers of the file."""
    found = []
    for text in given:
        if text.isdigit():
            if history.training is None:
                raise ConfigError([f"--changes {text}: row numbers are for tables: give a time"])
            row = int(text) - history.training_rows
            if not 0 <= row < history.rows:
                raise ConfigError([f"--changes {text}: the stream has rows {history.training_rows} and later"])
            found.append(history.time_of(row))
            continue
        try:
            at = datetime.fromisoformat(text)
        except ValueError as exc:
            raise ConfigError(
                [f"--changes {text}: must be a time such as 2026-03-01T12:00:00Z or a row number"]
            ) from exc
        found.append(at if at.tzinfo else at.replace(tzinfo=UTC))
    return sorted(found)
