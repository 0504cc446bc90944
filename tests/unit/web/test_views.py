"""What the status page is given: worst first, limits in the metric's units, spans and marks in event time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from monitor.config.loading import from_dict
from monitor.config.plan import plans
from monitor.decide.ledger import Ledger, Round
from monitor.lake.history import History
from monitor.lake.lake import Lake, Table
from monitor.measure.measurement_table import windows_in
from monitor.rules.measurement import Measure
from monitor.rules.rules import Rule
from monitor.rules.tracking import judge_windows
from monitor.web.estimates import in_words
from monitor.web.page import render
from monitor.web.series import newest_p_value
from monitor.web.views import Views, days_of
from retrain.control.store import Store, open_store
from retrain.terms.states import JobState
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
        columns = [c for m in column.values() for c in m.values()] if isinstance(column, dict) else [column]
        assert all(len(c) == count for c in columns), name


def test_limit_is_drawn_where_the_rule_breaches(world: World) -> None:
    windows = world.model("calm")["windows"]
    assert windows["limit"] == pytest.approx([0.80] * 30)  # the reference's 0.85 less the rule's 0.05


def test_calibrated_rule_says_auto_instead_of_a_number_and_has_no_limit(world: World) -> None:
    document = made.configuration(world.folder, ["auto"]) | {"http": {"port": 0}}
    document["models"]["auto"] = {k: v for k, v in document["models"]["auto"].items() if k != "rules"}
    world.loaded = from_dict(document)
    made.measure_windows(world.lake, "auto", 6, bad_since=2, unlabelled=1)
    model = world.model("auto")
    drop, drift = model["rules"]
    assert (drop["auto"], drop["for_auto"], drop["above"], drop["below"]) == (True, True, None, None)
    assert (drift["auto"], drift["for_auto"], drift["for"]) == (True, False, "3 of 4 windows")
    assert drop["p_value"] < 1e-6  # of the newest window with labels
    assert drift["p_value"] < 1e-6
    assert model["windows"]["limit"] == [None] * 6


def test_rule_with_a_number_says_so(world: World) -> None:
    drop, share = world.model("calm")["rules"]
    assert (drop["auto"], drop["for_auto"], drop["above"], drop["significant"]) == (False, False, 0.05, False)
    assert 0 < drop["p_value"] < 1
    assert share["p_value"] is None  # what chance gives is not known of a share of features


def test_p_value_of_a_rule_is_that_of_its_own_feature() -> None:
    at = datetime(2025, 1, 1, tzinfo=UTC)
    rows = [
        {"measure": "feature_drift", "feature": f, "metric": "", "segment": "", "kind": "drift", "final": True,
         "window_end": at + n * made.SIZE, "p_value": p}
        for n, f, p in ((0, "a", 1e-9), (1, "a", 0.2), (1, "b", 0.01), (1, "c", None))
    ]  # fmt: skip
    frame = pl.DataFrame(rows)
    every = Rule("drifts", Measure.FEATURE_DRIFT, calibrated=True)
    assert newest_p_value(every, frame) == 0.01
    assert newest_p_value(replace(every, feature="a"), frame) == 0.2
    assert newest_p_value(replace(every, feature="c"), frame) is None
    assert newest_p_value(every, frame.with_columns(kind=pl.lit("performance"), final=pl.lit(False))) is None
    assert newest_p_value(every, pl.DataFrame()) is None


def test_estimate_goes_on_where_labels_have_not_come(world: World) -> None:
    made.measure_windows(world.lake, "empty", 10, unlabelled=4)
    windows = world.model("empty")["windows"]
    realized, estimated = (windows[name]["balanced_accuracy"] for name in ("performance", "estimated"))
    assert [v is None for v in realized["value"]] == [False] * 6 + [True] * 4
    assert all(
        low < v < high for v, low, high in zip(estimated["value"], estimated["lower"], estimated["upper"], strict=True)
    )
    errors = windows["estimation_error"]["balanced_accuracy"]["value"]
    assert errors[:6] == pytest.approx(
        [e - r for e, r in zip(estimated["value"][:6], realized["value"][:6], strict=True)]
    )
    assert errors[6:] == [None] * 4


def test_newest_estimation_error_is_told_in_words(world: World) -> None:
    made.measure_windows(world.lake, "empty", 10, bad_since=6, unlabelled=4)
    model = world.model("empty")
    found = model["estimation"]
    assert datetime.fromisoformat(found["window_end"]).timestamp() == model["windows"]["end"][-5]
    assert (found["outside"], found["final"], found["version"]) == (True, True, "1")
    assert 0 < found["lower"] < found["value"] < found["upper"]
    assert found["text"].startswith("turned out 0.1")
    assert world.model("calm")["estimation"]["outside"] is False


def test_without_labels_there_is_no_estimation_error(world: World) -> None:
    assert world.model("empty")["estimation"] is None
    made.measure_windows(world.lake, "empty", 3, unlabelled=3)
    assert world.model("empty")["estimation"] is None


@pytest.mark.parametrize(
    ("value", "outside", "says"),
    [
        (0.0412, True, "turned out 0.041 worse than estimated: outside the estimate's interval, what inputs mean may "
         "have changed"),
        (-0.02, False, "turned out 0.02 better than estimated: within the estimate's interval"),
        (0.0, False, "turned out as estimated: within the estimate's interval"),
    ],
)  # fmt: skip
def test_estimation_error_in_words(value: float, outside: bool, says: str) -> None:
    assert in_words(value, outside=outside) == says


def test_windows_measured_before_estimates_were_made_are_shown(world: World) -> None:
    lazy = world.lake.scan(Table.MEASUREMENTS, "hurt")
    assert lazy is not None
    new = ["estimated_performance", "estimated_drop", "estimation_error", "drift_impact"]
    old = lazy.filter(~pl.col("measure").is_in(new)).drop("p_value", "standard_error", "reference_error").collect()
    made.append(world.lake, "empty", old)
    model = world.model("empty")
    assert model["estimation"] is None
    assert model["windows"]["estimated"]["balanced_accuracy"]["value"] == [None] * 30
    assert {f["impact"] for f in model["features"]} == {f["p_value"] for f in model["features"]} == {None}
    assert [f["drifted"] for f in model["features"]] == sorted((f["drifted"] for f in model["features"]), reverse=True)


def test_features_are_by_impact_where_it_is_known(world: World) -> None:
    features = world.model("hurt")["features"]
    impacts = [f["impact"] for f in features]
    assert impacts == sorted(impacts, reverse=True)
    strongest = max(features, key=lambda f: f["value"])
    assert features[0]["feature"] == "number_4"  # drifted like others, and worth most to the model
    assert features[0]["p_value"] < 1e-6
    assert strongest["statistic"] == "distance"


def test_feature_that_drifts_by_its_missing_values_says_so(world: World) -> None:
    gone = next(f for f in world.model("hurt")["features"] if f["feature"] == "number_3")
    assert gone["drifted"]
    assert gone["value"] < gone["threshold"]
    assert gone["reason"] == "missing in 35% of the rows, 1% in the reference"
    made.predictions(world.lake, "hurt")
    shown = world.views.features("hurt", "1", made.newest_end())["features"]["number_3"]
    assert {k: shown[k] for k in ("reason", "p_value", "impact", "missing")} == {
        "reason": gone["reason"], "p_value": gone["p_value"], "impact": gone["impact"], "missing": 0.35
    }  # fmt: skip


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
    assert (number["method"], number["statistic"], number["missing"]) == ("wasserstein", "distance", 0.01)
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
