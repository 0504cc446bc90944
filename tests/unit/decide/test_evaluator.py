"""A tick that fails, restarts or is asked about two rules at once neither loses nor doubles anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from monitor.base.errors import TransientError
from monitor.base.faults import Failed
from monitor.config.loading import from_dict
from monitor.config.plan import plans
from monitor.decide.evaluator import ModelEvaluator
from monitor.decide.ledger import REQUESTED, Ledger, Round
from monitor.decide.units import MOST_TRIES, Units
from monitor.lake.lake import Lake, Table
from monitor.measure.worker import MeasureResult, MeasureTask, freeze_warmup
from monitor.metrics import Metrics
from monitor.rules.measurement import Measure, Measurement, WindowKey
from monitor.rules.phases import Phase
from monitor.rules.triggers import Cause, JobHistory, PastJob, decide
from retrain.control.database import open_engine
from retrain.terms.request import TriggerKind
from tests.builders import DAY, HOUR, NOW, label_rows, prediction_rows, stored

START = NOW.replace(hour=0)
RULES = [
    {"name": n, "measure": "missing_share", "feature": f, "above": 0.1, "for": "1 of 1", "action": "retrain"}
    for n, f in (("one", "x"), ("two", "y"))
]


class Inline:
    """Measures in this process: what each window's features miss is given beforehand, and which windows fail."""

    def __init__(self, missing: dict[str, float], failing: dict[datetime, Failed]):
        self.missing = missing
        self.failing = failing

    def __call__(self, tasks: Iterable[MeasureTask]) -> list[MeasureResult | Failed]:
        found = [Measurement(Measure.MISSING_SHARE, v, 500, feature=f) for f, v in self.missing.items()]
        return [
            self.failing.get(t.key.start) or MeasureResult(t.key, t.performance, 500, 0, "file:r", tuple(found))
            for t in tasks
        ]


@dataclass
class World:
    folder: Path
    ledger: Ledger
    missing: dict[str, float] = field(default_factory=lambda: {"x": 0.5, "y": 0.0})
    history: JobHistory = field(default_factory=JobHistory)
    failing: dict[datetime, Failed] = field(default_factory=dict)
    new_labels: int | None = None
    combinations: list[dict[str, Any]] = field(default_factory=list)
    offset: int = 0

    def __post_init__(self) -> None:
        self.lake = Lake(str(self.folder / "lake"))
        self.restart()

    def restart(self) -> None:
        model: dict[str, Any] = {"task": "regression", "features": {"x": "number", "y": "number"}, "rules": RULES}
        if self.new_labels:
            model |= {"new_labels": self.new_labels, "rules": []}
        if self.combinations:
            rules = [{**rule, "action": "alert"} for rule in RULES]
            model |= {"rules": rules, "combinations": self.combinations}
        document = {"daemon": {"state": str(self.folder)}, "models": {"fraud": model}}
        plan = plans(from_dict(document))["fraud"]
        self.metrics = Metrics()
        self.units = Units(self.ledger._engine, self.metrics)
        self.units.load()
        self.metrics.declare("1", {"fraud": plan.rules})
        self.evaluator = ModelEvaluator(
            plan, self.lake.clone(), self.ledger, Inline(self.missing, self.failing), self.metrics,
            lambda _model, _now: self.history, lambda _rule, _key: None, self.units,
        )  # fmt: skip

    def predict(self, hour: float, count: int = 3) -> list[str]:
        names = [f"p{self.offset + n}" for n in range(count)]
        rows = prediction_rows(names, START + HOUR * hour, start=self.offset)
        self.offset += count
        self.lake.append(Table.PREDICTIONS, rows, "fraud")
        return names

    def tick(self, now: datetime = NOW) -> bool:
        return self.evaluator.tick(now)

    def phase(self, phase: str) -> float | None:
        labels = {"model": "fraud", "rule": "one", "phase": phase}
        return self.metrics.registry.get_sample_value("driftd_rule_phase", labels)

    @property
    def outcomes(self) -> list[str]:
        return [d.outcome for d in reversed(self.ledger.decisions("fraud"))]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    engine = open_engine(f"sqlite:///{tmp_path / 'control.db'}")
    ledger = Ledger(engine)
    ledger.create()
    yield World(tmp_path, ledger)
    engine.dispose()


def test_breach_becomes_a_request_once(world: World) -> None:
    world.predict(0.5)
    world.predict(2)
    for _ in range(3):
        world.tick()
        world.restart()
    assert world.outcomes == [REQUESTED]
    assert stored(world.lake, Table.MEASUREMENTS).height == 2


@pytest.mark.parametrize(
    ("at_least", "second", "asked"), [(None, 0.0, False), (None, 0.5, True), (1, 0.0, True), (2, 0.5, True)]
)
def test_rules_that_only_alert_retrain_together(world: World, at_least: int | None, second: float, asked: bool) -> None:
    world.combinations = [{"name": "both", "rules": ["one", "two"]} | ({"at_least": at_least} if at_least else {})]
    world.missing = {"x": 0.5, "y": second}
    world.restart()
    world.predict(0.5)
    world.predict(2)
    for _ in range(2):
        world.tick()
    assert world.outcomes == ([REQUESTED] if asked else [])
    if asked:
        request = world.ledger.last_request("fraud")
        assert request is not None
        assert request.evidence["rule"] == "both"
        assert request.evidence["rules"] == {"one": 0.5} | ({"two": 0.5} if second else {})
        assert request.reason.startswith("combination both: rule one fires on version 1: ")


def label(world: World, names: Sequence[str], at: datetime = START + HOUR) -> None:
    rows = label_rows([(name, 1.0, at) for name in names], start=world.offset)  # type: ignore[misc]
    world.lake.append(Table.LABELS, rows, "fraud")


@pytest.mark.parametrize(
    ("now", "labels", "drift", "at_least", "asked"),
    [
        (NOW, 3, 0.5, None, "rule"),
        (NOW - timedelta(minutes=1), 3, 0.5, None, None),  # the schedule's time has not come
        (NOW + HOUR, 3, 0.5, None, "rule"),
        (NOW + timedelta(minutes=61), 3, 0.5, None, None),
        (NOW, 2, 0.5, None, None),
        (NOW, 3, 0.0, None, None),
        (NOW, 2, 0.5, 2, "rule"),
        (NOW, 3, 0.0, 2, "labels"),
        (NOW - HOUR, 3, 0.0, 1, "labels"),
        (NOW, 0, 0.0, 1, "schedule"),
        (NOW - HOUR, 0, 0.0, 1, None),
    ],
)
def test_rules_labels_and_a_schedule_retrain_together(
    world: World, now: datetime, labels: int, drift: float, at_least: int | None, asked: str | None
) -> None:
    wanted = {"name": "by_noon", "rules": ["one"], "new_labels": 3, "schedule": "0 12 * * *"}
    world.combinations = [wanted | ({"at_least": at_least} if at_least else {})]
    world.missing = {"x": drift, "y": 0.0}
    world.restart()
    names = world.predict(0.5)
    world.predict(2)
    label(world, names[:labels])
    for _ in range(3):
        world.tick(now)
        world.restart()
    found = world.ledger.decisions("fraud")
    assert [(d.trigger, d.outcome) for d in found] == ([(asked, REQUESTED)] if asked else [])
    if asked:
        assert found[0].cause.startswith("combination by_noon: ")
        assert found[0].evidence["rule"] == "by_noon"


def test_a_schedule_of_a_combination_asks_once_a_time(world: World) -> None:
    world.combinations = [{"name": "by_noon", "rules": ["one"], "schedule": "0 12 * * *"}]
    world.restart()
    for hour in range(3):
        world.predict(hour + 0.5)
        world.tick(NOW + timedelta(minutes=hour))  # a further window that breaches, and the hour is not over
    assert world.outcomes == [REQUESTED]
    request = world.ledger.last_request("fraud")
    assert request is not None
    assert request.reason.endswith("; schedule 0 12 * * *")
    assert request.evidence["also"] == ["schedule"]


def test_window_is_measured_again_when_its_measurements_could_not_be_stored(world: World) -> None:
    world.predict(0.5)
    world.predict(2)
    obstacle = world.folder / "lake" / "fraud" / "measurements"
    obstacle.write_text("in the way")
    with pytest.raises(TransientError):
        world.tick()
    obstacle.unlink()
    world.tick()
    assert world.outcomes == [REQUESTED]


def test_restart_does_not_look_as_if_the_rule_had_resolved(world: World) -> None:
    world.predict(0.5)
    world.predict(2)
    world.tick()
    assert world.phase("firing") == 1
    world.restart()
    assert world.phase("firing") == 0
    world.tick()
    assert world.phase("firing") == 1


def test_warm_up_windows_whose_labels_never_came_freeze_nothing(world: World) -> None:
    world.predict(0.5)
    key = WindowKey("fraud", "1", START, START + HOUR)
    assert freeze_warmup(world.lake, [key], world.folder, with_labels=True) is None
    frozen = freeze_warmup(world.lake, [key], world.folder, with_labels=False)
    assert frozen is not None
    assert Path(frozen).exists()


def test_who_takes_over_exports_what_stands_by_then(world: World) -> None:
    world.predict(0.5)
    world.predict(2)
    world.tick()
    assert world.phase("firing") == 1
    record = world.ledger.rule_records("fraud")["1", "one"]
    cursor = world.ledger.cursor("fraud")
    resolved = replace(record, state=replace(record.state, phase=Phase.INACTIVE))
    world.ledger.record(Round("fraud", cursor, cursor, [resolved]), NOW)  # by another replica
    world.tick()
    assert world.phase("firing") == 1
    world.evaluator.take_over()
    world.tick()
    assert world.phase("firing") == 0


def test_a_lake_that_is_emptier_than_what_was_judged_is_not_taken_for_silence(world: World) -> None:
    world.predict(0.5)
    world.predict(2)
    world.tick()
    world.lake = Lake(str(world.folder / "another"))
    world.restart()
    with pytest.raises(TransientError, match="is the right lake mounted"):
        world.tick()
    assert [r.rule for r in world.ledger.rule_records("fraud").values()] == ["one", "two"]


def test_the_state_of_a_rule_that_is_configured_no_more_is_forgotten(world: World) -> None:
    world.predict(0.5)
    world.predict(2)
    world.tick()
    world.new_labels = 10**6  # a configuration without rules
    world.restart()
    world.tick()
    assert not world.ledger.rule_records("fraud")


def test_rejected_request_of_a_person_does_not_block_the_rule_for_ever(world: World) -> None:
    world.predict(0.5)
    world.predict(2)
    world.history = JobHistory(in_flight="theirs")
    world.tick()
    asked = Cause("fraud", TriggerKind.MANUAL, "o", "asked for by ada", {"actor": "ada"})
    manual = decide(asked, world.evaluator.plan.triggers, JobHistory(), NOW)
    world.ledger.decide(manual, NOW)
    world.history = JobHistory(last_ended_at=NOW - DAY, past=(PastJob(NOW - DAY, stands=False),))
    world.tick()
    assert world.outcomes == ["job_in_flight", REQUESTED, REQUESTED]


def test_two_firing_rules_that_are_refused_are_recorded_once_each(world: World) -> None:
    world.missing["y"] = 0.5
    world.history = JobHistory(last_ended_at=NOW, champion="1")
    world.predict(0.5)
    world.predict(2)
    for _ in range(3):
        world.tick()
    assert world.outcomes == ["cooldown", "cooldown"]


def test_new_labels_are_counted_on_although_retention_deletes_old_ones(world: World) -> None:
    world.new_labels = 3
    world.restart()
    for n in range(3):
        names = world.predict(n * 24)
        at = START + n * DAY + HOUR
        label(world, names, at)
        world.tick()
        world.lake.maintain(Table.OUTCOMES, "fraud", f"{at + DAY:%Y-%m-%d}", 7 * DAY)
    assert world.outcomes == [REQUESTED] * 3


def test_backlog_of_windows_is_judged_in_order(world: World) -> None:
    for hour in range(5):
        world.predict(hour + 0.5)
    world.predict(9)
    world.tick()
    (record,) = [r for r in world.ledger.rule_records("fraud").values() if r.rule == "one"]
    assert (record.judged, record.state.at) == (5, START + 5 * HOUR)
    assert replace(record, judged=0).firing_since == NOW


# -- windows that cannot be measured


def faults(world: World) -> list[tuple[str, int, bool]]:
    return [(f.error, f.tries, f.given_up) for f in world.units.faults()]


def test_a_window_that_fails_is_tried_again_later_and_given_up_while_the_others_go_on(world: World) -> None:
    world.failing[START] = Failed("ValueError: no such thing")
    for hour in (0.5, 1.5, 3):
        world.predict(hour)
    assert world.tick() is False
    assert stored(world.lake, Table.MEASUREMENTS)["window_start"].unique().to_list() == [START + HOUR]
    assert faults(world) == [("ValueError: no such thing", 1, False)]
    now = NOW
    for tries in range(2, MOST_TRIES + 1):
        world.tick(now)
        assert faults(world)[0][1] == tries - 1, "its pause is not over"
        world.restart()  # which another replica could be
        now = world.units.faults()[0].again_at
        world.tick(now)
    assert faults(world) == [("ValueError: no such thing", MOST_TRIES, True)]
    rows = stored(world.lake, Table.MEASUREMENTS).filter(pl.col("window_start") == START)
    assert rows.select("measure", "value", "reason").rows() == [("failed", 1.0, "ValueError: no such thing")]
    world.restart()
    assert world.tick(now + DAY) is False, "it is not measured again"
    assert world.metrics.registry.get_sample_value("driftd_faults", {"model": "fraud", "state": "given_up"}) == 1
    world.units.forget(now + 2 * DAY, ["fraud"])
    assert faults(world) == []


def test_a_window_given_up_says_nothing_to_the_rules(world: World) -> None:
    world.predict(0.5)
    world.predict(1.5)
    world.tick()
    before = world.ledger.rule_records("fraud")
    world.failing[START + HOUR] = Failed("boom")
    world.predict(3)
    now = NOW
    for _ in range(MOST_TRIES):
        world.tick(now)
        now = now + 2 * HOUR
    assert faults(world) == [("boom", MOST_TRIES, True)]
    assert world.ledger.rule_records("fraud") == before


def test_a_window_that_waits_for_something_outside_is_never_given_up(world: World) -> None:
    world.failing[START] = Failed("registry: no route", passing=True)
    world.predict(0.5)
    world.predict(2)
    now = NOW
    for _ in range(3 * MOST_TRIES):
        world.tick(now)
        now = now + 2 * HOUR
    assert faults(world) == [("registry: no route", 3 * MOST_TRIES, False)]
    del world.failing[START]
    world.tick(now)
    assert faults(world) == []
    assert stored(world.lake, Table.MEASUREMENTS).height == 2
