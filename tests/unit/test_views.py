"""What the status page is given: worst first, limits in the metric's units, spans and marks in event time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from monitor.config import from_dict
from monitor.history import History
from monitor.judging import judge_windows
from monitor.lake import Lake, Table
from monitor.ledger import Ledger, Round
from monitor.measurement_table import windows_in
from monitor.plan import plans
from monitor.web.page import render
from monitor.web.views import Views, days_of
from retrain.states import JobState
from retrain.store import Store, open_store
from tests import measured_world as made

_GATE = {"name": "quality", "passed": True, "value": 0.1, "limit": 0.0, "detail": "better", "interval": [0.05, 0.15]}


class World:
    def __init__(self, folder: Path, models: list[str]):
        self.loaded = from_dict(made.configuration(folder, models) | {"http": {"port": 0}})
        self.folder = folder
        self.lake = Lake(self.loaded.config.lake_uri)
        self.store: Store = open_store(f"sqlite:///{folder / 'control.db'}")
        self.ledger = Ledger(self.store.engine)
        self.ledger.create()
        self.views = Views(
            lambda: plans(self.loaded), self.lake, self.ledger, self.store, folder / "reports", "http://mlflow:5000"
        )
        self.now = datetime.now(UTC)

    def judge(self, model: str) -> None:
        """As the evaluator does after windows were measured."""
        plan = plans(self.loaded)[model]
        rows = pl.DataFrame() if (lazy := self.lake.scan(Table.MEASUREMENTS, model)) is None else lazy.collect()
        judged = judge_windows(plan.rules, plan.min_rows, {}, windows_in(rows, model), self.now)
        transitions = [(key.version, t) for t, key in judged.transitions]
        self.ledger.record(Round(model, -1, 1, list(judged.records.values()), transitions), self.now)

    def fleet(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.views.fleet(self.now)["models"]
        return found

    def model(self, name: str, days: int = 7) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps(self.views.model(name, days, self.now)))
        return found


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, ["calm", "empty", "hurt"])
    made.measure_windows(world.lake, "calm", 30)
    made.measure_windows(world.lake, "hurt", 30, bad_since=5)
    world.judge("calm")
    world.judge("hurt")
    yield world
    world.store.engine.dispose()


def test_fleet_is_worst_first_and_says_why(world: World) -> None:
    lines = world.fleet()
    assert [(m["model"], m["state"]) for m in lines] == [("hurt", "firing"), ("calm", "ok"), ("empty", "waiting")]
    hurt = lines[0]
    assert hurt["alarms"][0]["severity"] == "critical"
    assert "performance_drop" in hurt["alarms"][0]["reason"]
    assert hurt["lower"] < hurt["value"] < hurt["upper"]
    assert hurt["drop"] > 0.2
    assert len(hurt["spark"]) == 30
    assert lines[2]["value"] is None


def test_fleet_follows_new_windows(world: World) -> None:
    world.fleet()
    made.measure_windows(world.lake, "empty", 3)
    line = next(m for m in world.fleet() if m["model"] == "empty")
    assert line["value"] is not None
    assert line["drift_share"] is not None
    assert len(line["spark"]) == 3


def test_columns_of_a_model_are_as_long_as_its_windows(world: World) -> None:
    windows = world.model("hurt")["windows"]
    count = len(windows["end"])
    assert count == 30
    assert windows["end"] == sorted(windows["end"])
    for name, column in windows.items():
        columns = [c for m in column.values() for c in m.values()] if name == "performance" else [column]
        assert all(len(c) == count for c in columns), name


def test_limit_is_drawn_where_the_rule_breaches(world: World) -> None:
    windows = world.model("calm")["windows"]
    assert windows["limit"] == pytest.approx([0.80] * 30)  # the reference's 0.85 less the rule's 0.05


def test_features_are_worst_first_with_their_history(world: World) -> None:
    features = world.model("hurt")["features"]
    assert features[0]["drifted"]
    assert not features[-1]["drifted"]
    assert len(features[0]["history"]) == 30
    assert features[0]["history"][0] < 0.2 < features[0]["history"][-1]


def test_spans_of_a_firing_rule_begin_with_the_window_that_breached(world: World) -> None:
    model = world.model("hurt")
    rule = next(r for r in model["rules"] if r["measure"] == "performance_drop")
    assert [s["phase"] for s in rule["spans"]] == ["pending", "firing"]
    pending, firing = rule["spans"]
    assert pending["from"] == model["windows"]["end"][-6]  # the start of the fifth window from the end
    assert pending["to"] == firing["from"]
    assert firing["to"] is None
    assert model["state"] == "firing"


def test_segments_of_the_newest_window_are_there(world: World) -> None:
    assert {s["segment"] for s in world.model("calm")["segments"]} == {"country=de", "country=fr"}


def test_jobs_show_gates_steps_and_where_the_run_is(world: World) -> None:
    steps = (JobState.SNAPSHOT, JobState.TRAINING, JobState.EVALUATING, JobState.REJECTED)
    made.job(world.store, world.loaded, "calm", "job-1", *steps, gates=[_GATE], run_id="abc", version=None)
    job = world.model("calm")["jobs"][0]
    assert job["gates"] == [_GATE]
    assert [s["state"] for s in job["steps"]] == ["requested", *(s.value for s in steps)]
    assert job["mlflow"] == "http://mlflow:5000/#/runs/abc"
    assert world.model("calm")["marks"][0]["kind"] == "rejected"


def test_promotion_is_marked_where_the_new_version_began(world: World) -> None:
    made.measure_windows(world.lake, "empty", 5, version="6", until=-2)
    made.measure_windows(world.lake, "empty", 2, version="7")
    steps = (JobState.SNAPSHOT, JobState.TRAINING, JobState.EVALUATING, JobState.PROMOTED)
    made.job(world.store, world.loaded, "empty", "job-7", *steps, version="7")
    model = world.model("empty")
    [mark] = model["marks"]
    assert model["windows"]["version"] == ["6"] * 5 + ["7"] * 2
    assert (mark["kind"], mark["at"]) == ("promoted", model["windows"]["end"][5])


def test_promotion_from_before_the_picture_is_not_marked_at_its_edge(world: World) -> None:
    made.measure_windows(world.lake, "empty", 2, version="7")
    steps = (JobState.SNAPSHOT, JobState.TRAINING, JobState.EVALUATING, JobState.PROMOTED)
    made.job(world.store, world.loaded, "empty", "job-7", *steps, version="7")
    model = world.model("empty")
    assert model["marks"][0]["at"] not in model["windows"]["end"]


def test_of_two_versions_at_a_time_the_champions_performance_is_shown(world: World) -> None:
    made.measure_windows(world.lake, "empty", 3, version="9", bad_since=3)
    made.measure_windows(world.lake, "empty", 3, version="10")
    made.champion(world.store, "empty", "10")
    line = next(m for m in world.fleet() if m["model"] == "empty")
    assert (line["version"], line["measured_version"]) == ("10", "10")
    assert line["value"] > 0.8
    assert min(line["spark"]) > 0.8


def test_overview_of_another_metric_is_read_anew(world: World) -> None:
    history = History(world.lake)
    before = history.overview("hurt", "balanced_accuracy", world.now)
    after = history.overview("hurt", "f1", world.now)
    assert before["value"].to_list() != after["value"].to_list()
    assert after["value"].to_list() == History(world.lake).overview("hurt", "f1", world.now)["value"].to_list()


def test_overview_followed_is_the_overview_read_at_once(world: World) -> None:
    history = History(world.lake)
    history.overview("calm", "f1", world.now)
    made.measure_windows(world.lake, "calm", 4, bad_since=4)  # the last four, measured again
    followed = history.overview("calm", "f1", world.now)
    assert followed.equals(History(world.lake).overview("calm", "f1", world.now))
    assert followed.height == 30
    assert followed["value"][-1] < 0.7


def test_distributions_stand_beside_the_reference(world: World) -> None:
    made.predictions(world.lake, "calm")
    folder = Path(plans(world.loaded)["calm"].reference.folder) / "1"
    folder.mkdir(parents=True)
    lazy = world.lake.scan(Table.PREDICTIONS, "calm")
    assert lazy is not None
    lazy.head(200).collect().write_parquet(folder / "registry.parquet")
    found = world.views.features("calm", "1", made.newest_end())
    assert (found["rows"], found["reference_rows"]) == (500, 200)
    number, category = found["features"]["number_0"], found["features"]["channel"]
    assert (number["method"], number["p_value"], number["missing"]) == ("wasserstein", False, 0.01)
    assert len(number["edges"]) == len(number["window"]) + 1
    assert sum(number["window"]) == pytest.approx(1)
    assert sum(number["reference"]) == pytest.approx(1)
    assert sorted(category["categories"]) == ["a", "b", "c"]
    assert sum(category["window"]) == pytest.approx(1)


def test_window_without_rows_and_unknown_model_are_named(world: World) -> None:
    with pytest.raises(LookupError, match="no rows of version '9'"):
        world.views.features("calm", "9", made.newest_end())
    with pytest.raises(LookupError, match="configured are calm, empty, hurt"):
        world.model("stranger")


@pytest.mark.parametrize("text", ["0", "31", "x", "-1"])
def test_days_are_bounded(text: str) -> None:
    with pytest.raises(ValueError, match="from 1 to 30"):
        days_of(text)


def test_names_cannot_become_markup() -> None:
    page = render("fleet", {"models": [{"model": "</script><script>alert(1)</script>"}]})
    assert "<script>alert" not in page
    assert "\\u003c/script" in page
