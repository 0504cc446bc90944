"""Recorded history replayed: no label from the future, windows mature as the daemon's do, settings side by side."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.backtest.document import FORMAT
from monitor.backtest.history import History, from_events
from monitor.backtest.page import render
from monitor.backtest.policies import run_driftd, spread
from monitor.backtest.replay import final_at
from monitor.backtest.run import Options, backtest, of_table
from monitor.backtest.serving import Serving
from monitor.backtest.trainings import Trainings, first_version
from monitor.base.errors import ConfigError
from monitor.config.loading import from_dict
from monitor.config.plan import plans
from monitor.decide.ledger import REQUESTED
from monitor.intake.events import Limits
from monitor.rules.measurement import WindowKey
from monitor.rules.windows import Maturity, WindowState, advance
from retrain.terms.request import RetrainRequest, TriggerKind
from tests.builders import HOUR

ROWS, CHANGE, WINDOW = 3000, 1500, 100


def silent(_name: str, _done: int, _total: int) -> None:
    pass


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """At row 1,500 the answer turns round; the inputs stay as they are."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 3))
    sign = np.where(np.arange(ROWS) < CHANGE, 1, -1)
    label = np.where(rng.random(ROWS) < 1 / (1 + np.exp(-3 * sign * x[:, 0])), "yes", "no")
    path = tmp_path_factory.mktemp("table") / "turning.csv"
    pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "label": label}).write_csv(path)
    return path


@pytest.fixture(scope="module")
def found(table: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    options = Options(
        stream=table, target="label", window_rows=WINDOW, train_share=0.3, closed_loop=True, changes=(str(CHANGE),)
    )
    return backtest(options, tmp_path_factory.mktemp("work"), silent)


def test_closed_loop_learns_the_change_and_the_fixed_model_does_not(found: dict[str, Any]) -> None:
    policies = {p["name"]: p for p in found["closed_loop"]["policies"]}
    driftd, never, every = policies["defaults"], policies["never"], policies["every window"]
    assert never["trainings"] == 0
    assert never["share_of_the_way"] == 0.0
    assert every["share_of_the_way"] == 1.0
    assert every["trainings"] == len(found["closed_loop"]["window_ends"]) - 1
    assert driftd["share_of_the_way"] > 0.5
    assert driftd["trainings"] <= every["trainings"] / 3
    assert any(name.startswith("every ") and name != "every window" for name in policies)


def test_change_is_detected_and_nothing_before_it(found: dict[str, Any]) -> None:
    detected = found["runs"][0]["detection"][0]["detected"]["performance_drop"]
    assert 0 < detected["windows"] < 4
    fired = [t for t in found["runs"][0]["transitions"] if t["after"] == "firing"]
    assert min(t["at"] for t in fired) >= found["history"]["changes"][0]


def test_reason_says_what_changed(found: dict[str, Any]) -> None:
    first = found["runs"][0]["decisions"][0]
    assert first["outcome"] == "requested"
    assert "what they mean has changed (concept drift)" in first["cause"]


def test_document_is_json_and_the_page_takes_it(found: dict[str, Any]) -> None:
    assert found["format"] == FORMAT
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert "performance_drop" in render(found)


def serving_of(table: Path, folder: Path, **options: Any) -> Serving:
    given = Options(stream=table, target="label", window_rows=WINDOW, train_share=0.2, **options)
    settings, history = of_table(given, folder)
    trainings = Trainings(settings[0].plan)
    return Serving(settings[0].plan, history, trainings, first_version(settings[0].plan, history, trainings))


def test_no_job_knows_a_label_that_has_not_come(table: Path, tmp_path: Path) -> None:
    serving = serving_of(table, tmp_path, label_delay=150)
    at = serving.history.first + 10 * serving.plan.windows.size
    serving.serve(at)
    rows, _ = serving.labelled(at)
    stream = rows.filter(pl.col("prediction_id").str.starts_with("p-"))
    assert stream.height == 850 + 1  # ten windows less a window and a half; the row at that very time included
    request = RetrainRequest("r", serving.plan.model, TriggerKind.MANUAL, "", {}, at)
    serving.retrain(request, at)
    assert next(iter(serving.jobs)).at == at


def test_a_model_answers_only_rows_that_came_after_it(table: Path, tmp_path: Path) -> None:
    serving = serving_of(table, tmp_path)
    size = serving.plan.windows.size
    at = serving.history.first + 3.5 * size
    serving.replace_now(at)
    frame = serving.window(serving.history.first + 3 * size, serving.history.first + 4 * size)
    versions = frame.group_by("model_version").agg(pl.col("ts").min().alias("first"), pl.col("ts").max().alias("last"))
    by = {row["model_version"]: row for row in versions.iter_rows(named=True)}
    assert by["1"]["last"] < at <= by["2"]["first"]


def test_follow_ups_keep_the_pace_though_labels_are_late(table: Path, tmp_path: Path) -> None:
    """Rules judge performance ten windows after drift: requests of both count by one clock."""
    serving = serving_of(table, tmp_path, label_delay=10 * WINDOW)
    plan = replace(serving.plan, triggers=replace(serving.plan.triggers, pace=2))
    found = run_driftd("driftd", plan, serving.history, serving.trainings, serving.versions["1"], lambda _rows: None)
    assert found.replayed is not None
    asked = [d for d in found.replayed.decisions if d.outcome == REQUESTED]
    assert [d.trigger for d in asked][:2] == ["rule", "follow_up"]
    at = [datetime.fromisoformat(d.evidence["position"]) for d in asked]
    assert min((b - a) / plan.windows.size for a, b in itertools.pairwise(at)) == plan.triggers.pace


@pytest.mark.parametrize(("windows", "trainings", "at"), [(10, 1, {4}), (12, 3, {2, 5, 8}), (5, 0, set())])
def test_periodic_trainings_are_spread_evenly(windows: int, trainings: int, at: set[int]) -> None:
    assert spread(windows, trainings) == at


@pytest.mark.parametrize("part_rows", [2, 3, 100])
def test_history_is_the_same_however_it_is_cut_into_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_rows: int
) -> None:
    """Delivered twice, with another time too; labels corrected, late and of nobody."""
    monkeypatch.setattr("monitor.backtest.history.PART_ROWS", part_rows)
    model = {"task": "regression", "features": {"x": "number"}}
    plan = plans(from_dict({"models": {"m": model}}))["m"]
    hours = [0, 1, 2, 3, 3, 4, 6, 1]
    names = ["a", "b", "c", "d", "d", "e", "a", "b"]
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    events = tmp_path / "events"
    for stream, rows in {
        "predictions": [
            {"prediction_id": n, "model": "m", "model_version": "1", "ts": (start + h * HOUR).isoformat(),
             "features": {"x": k}, "prediction": k} for k, (n, h) in enumerate(zip(names, hours, strict=True))
        ],
        "labels": [
            {"prediction_id": n, "model": "m", "ts": (start + h * HOUR).isoformat(), "label": v}
            for n, h, v in (("a", 9, 1), ("a", 8, 2), ("d", 7, 3), ("nobody", 9, 4), ("e", 9, 5))
        ],
    }.items():  # fmt: skip
        (events / stream).mkdir(parents=True)
        (events / stream / "1.ndjson").write_text("".join(json.dumps(row) + "\n" for row in rows))
    limits = Limits(datetime.now(UTC), timedelta(days=9), HOUR, 10_000)
    history = from_events(events, plan.schema, limits, timedelta(0), tmp_path / "work")
    rows = history.slice(0, history.rows)
    assert rows.select("prediction_id", "feature_x", "label").rows() == [
        ("a", 0.0, 1.0), ("b", 1.0, None), ("c", 2.0, None), ("d", 3.0, 3.0), ("e", 5.0, 5.0)
    ]  # fmt: skip
    assert (history.rows, history.labelled) == (5, 3)
    assert rows["label_ts"].drop_nulls().to_list() == [start + 9 * HOUR, start + 7 * HOUR, start + 9 * HOUR]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.integers(0, 400)), min_size=1, max_size=20),
    st.sampled_from([0.5, 0.9, 1.0]),
    st.integers(60, 300),
)
def test_window_matures_when_the_daemon_would_say_so(delays: list[int | None], coverage: float, longest: int) -> None:
    """Minute by minute: the first at which the pure window says FINAL is the one that the replay computes."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    minute, size = timedelta(minutes=1), timedelta(hours=1)
    model = {
        "task": "regression", "features": {"x": "number"},
        "windows": {"size": "1h", "lateness": "0s", "min_coverage": coverage, "max_delay": f"{longest}m"},
    }  # fmt: skip
    plan = plans(from_dict({"models": {"m": model}}))["m"]
    end = start + size
    rows = pl.DataFrame(
        {"label": [None if d is None else 1.0 for d in delays],
         "label_ts": [None if d is None else start + d * minute for d in delays]},
        schema={"label": pl.Float64, "label_ts": pl.Datetime("us", "UTC")},
    )  # fmt: skip
    found = final_at(rows, end, end, plan.windows, until=start + timedelta(days=2))
    key = WindowKey("m", "1", start, end)
    expected = next(
        at
        for at in (end + n * minute for n in range(1000))
        if advance(
            WindowState(key, len(delays), sum(d is not None and start + d * minute <= at for d in delays)),
            at, plan.windows,
        ).maturity is Maturity.FINAL
    )  # fmt: skip
    assert found == expected


def test_settings_are_swept_side_by_side(table: Path, tmp_path: Path) -> None:
    sweep = ("rules.performance_drop.above=0.05,0.9", "rules.performance_drop.for=1 of 1 windows")
    options = Options(stream=table, target="label", window_rows=WINDOW, train_share=0.2, sweep=sweep)
    runs = backtest(options, tmp_path, silent)["runs"]
    assert [r["settings"]["rules.performance_drop.above"] for r in runs] == [0.05, 0.9]
    fired = [{rule["rule"]: rule["fired"] for rule in run["rules"]}["performance_drop"] for run in runs]
    assert fired[0] >= 1
    assert fired[1] == 0
    assert runs[0]["retrains"]["requested"] >= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sweep": ("rules.performance_drop.above",)}, "must be KEY=VALUE,VALUE"),
        ({"sweep": ("rules.nothing.above=1",)}, "no rule 'nothing'; there are performance_drop, features_drift"),
        ({"sweep": ("windows.size=0s",)}, "models.turning.windows.size"),
        ({"changes": ("5",)}, "--changes 5: the stream has rows 600 and later"),
        ({"changes": ("soon",)}, "must be a time such as"),
        ({"window_rows": 2000}, "fewer than 3 windows of 2000"),
        ({"target": "nothing"}, "has no column 'nothing'"),
    ],
)
def test_mistakes_are_named(table: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    options = Options(**{"stream": table, "target": "label", "window_rows": WINDOW, "train_share": 0.2, **changes})
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        backtest(options, tmp_path, silent)


def test_windows_of_a_history_with_gaps_are_those_that_hold_rows() -> None:
    hour = timedelta(hours=1)
    times = np.array(["2026-01-01T00:30", "2026-01-01T05:10", "2026-01-01T05:20"], dtype="datetime64[us]")
    schema = plans(from_dict({"models": {"m": {"task": "regression", "features": {"x": "number"}}}}))["m"].schema
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    history = History("h", schema, Path(), times, begin + 6 * hour, 0)
    assert list(history.windows(hour)) == [(begin, begin + hour), (begin + 5 * hour, begin + 6 * hour)]
    cut = History("h", schema, Path(), times, begin + 5.5 * hour, 0)
    assert list(cut.windows(hour)) == [(begin, begin + hour)]
