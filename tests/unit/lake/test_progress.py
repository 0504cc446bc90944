"""How far windows have come, followed or rebuilt."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.lake.lake import Lake, Table
from monitor.lake.progress import DRIFT, PERFORMANCE, Followed, Progress
from monitor.rules.measurement import WindowKey
from monitor.rules.windows import Maturity, WindowPolicy
from tests.builders import DAY, HOUR, MINUTE, NOW, prediction_rows

POLICY = WindowPolicy(HOUR, 5 * MINUTE, 10 * MINUTE, min_coverage=0.9, max_delay=7 * DAY)
START = NOW.replace(hour=0)


def key(hour: int, version: str = "1") -> WindowKey:
    return WindowKey("fraud", version, START + hour * HOUR, START + (hour + 1) * HOUR)


class World:
    def __init__(self, folder: Path, policy: WindowPolicy = POLICY):
        self.lake, self.policy, self.offset = Lake(str(folder)), policy, 0
        self.restart()

    def restart(self) -> None:
        self.progress = Progress(self.lake.clone(), "fraud", self.policy)

    def add(self, table: Table, hour: float, count: int = 10, name: str = "", **more: Any) -> None:
        ts = START + timedelta(hours=hour)
        names = [f"{name or hour}-{n}" for n in range(count)]
        rows = prediction_rows(names, ts, start=self.offset, **more)
        self.offset += count
        self.lake.append(table, rows, "fraud")

    def predict(self, hour: float, count: int = 10, **more: Any) -> None:
        self.add(Table.PREDICTIONS, hour, count, **more)

    def join(self, hour: float, count: int = 10, **more: Any) -> None:
        self.add(Table.OUTCOMES, hour, count, **more)

    def measure(self, rows: int = 10, labelled: int = 0) -> list[tuple[WindowKey, str]]:
        """Do what is due and store that it was done."""
        due = list(self.progress.to_measure())
        for k, kind in due:
            final = self.progress.measured(k, kind, rows, labelled)
            row = {
                "date": f"{k.start:%Y-%m-%d}", "model_version": k.version, "window_start": k.start,
                "window_end": k.end, "kind": kind, "final": final, "coverage": labelled / rows, "window_rows": rows,
            }  # fmt: skip
            frame = pl.DataFrame([row]).with_columns(
                pl.col("window_start", "window_end").cast(pl.Datetime("us", "UTC"))
            )
            at = self.progress.sequence
            self.lake.append_next(Table.MEASUREMENTS, frame, "fraud", {"sequence": at}, {"sequence": at + 1})
            self.progress.sequence += 1
        return due


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "lake")


def test_nothing_stored_is_nothing_due(world: World) -> None:
    assert world.progress.follow(NOW) == Followed(0)
    assert list(world.progress.to_measure()) == []
    assert world.progress.mark is None


def test_window_is_due_when_the_watermark_has_passed_its_end(world: World) -> None:
    world.predict(0.5)
    world.predict(1 + 4 / 60)
    world.progress.follow(NOW)
    assert list(world.progress.to_measure()) == []
    world.predict(1 + 5 / 60)
    world.progress.follow(NOW)
    assert list(world.progress.to_measure()) == [(key(0), DRIFT)]


def test_versions_have_their_own_windows(world: World) -> None:
    world.predict(0.5, version="1")
    world.predict(0.6, version="2")
    world.predict(3, version="2")
    world.progress.follow(NOW)
    assert list(world.progress.to_measure()) == [(key(0, "1"), DRIFT), (key(0, "2"), DRIFT)]
    assert world.progress.versions() == {"1": key(0).end, "2": key(3).end}


def test_of_too_many_versions_those_with_the_most_rows_are_measured_and_the_others_counted(tmp_path: Path) -> None:
    world = World(tmp_path / "lake", replace(POLICY, max_versions=2))
    world.predict(0.1, 1, version="real", name="first")
    world.progress.follow(NOW)
    for hour in (0.5, 1.5):
        world.predict(hour, 50, version="real")
        world.predict(hour, 20, version="also real")
        for n in range(30):
            world.predict(hour, 1, version=f"stray {hour} {n}", name=f"s{hour}-{n}-")
    world.predict(3, 50, version="real")
    followed = world.progress.follow(NOW)
    assert followed == Followed(0, 60)
    assert [k.version for k, _ in world.progress.to_measure()] == ["real", "also real"] * 2
    assert world.progress.live.others == 30, "those of late"
    world.restart()
    assert world.progress.follow(NOW) == Followed(0, 0), "what is stored is not counted twice"
    assert {k.version for k, _ in world.progress.to_measure()} == {"real", "also real"}


def test_a_new_version_takes_the_place_of_strays_and_what_serves_is_never_left_out(tmp_path: Path) -> None:
    world = World(tmp_path / "lake", replace(POLICY, max_versions=2))
    world.predict(0.5, 10, version="champion")
    for n in range(8):
        world.predict(0.5, 12, version=f"stray {n}", name=f"s{n}-")
    world.progress.follow(NOW)
    for n in range(8):
        world.predict(1.5, 12, version=f"stray {n}", name=f"t{n}-")
    world.predict(1.5, 10, version="champion")
    world.predict(1.5, 100, version="new")
    world.progress.follow(NOW, lambda: {"champion"})
    world.predict(3, 10, version="new")
    world.progress.follow(NOW, lambda: {"champion"})
    due = [k.version for k, _ in world.progress.to_measure() if k.start == START + HOUR]
    assert due == ["new", "champion"]


def test_idle_partition_does_not_hold_windows_back(world: World) -> None:
    world.predict(0.2, partition="slow")
    world.progress.follow(NOW)
    world.predict(5, partition="fast")
    world.progress.follow(NOW + MINUTE)
    assert list(world.progress.to_measure()) == []
    world.progress.follow(NOW + 10 * MINUTE)
    assert list(world.progress.to_measure()) == [(key(0), DRIFT)]


def test_nothing_is_measured_twice(world: World) -> None:
    world.predict(0.5)
    world.predict(2)
    world.progress.follow(NOW)
    assert world.measure() == [(key(0), DRIFT)]
    assert world.measure() == []
    world.restart()
    world.progress.follow(NOW)
    assert world.measure() == []
    world.progress.reset()
    world.progress.follow(NOW)
    assert world.measure() == []


def test_performance_is_measured_as_labels_come_and_then_for_good(world: World) -> None:
    world.predict(0.5)
    world.predict(2)
    world.progress.follow(NOW)
    world.measure()
    due = []
    for labelled in range(1, 11):
        world.join(0.5, 1, name=str(labelled))
        if labelled % 3 == 0:
            world.restart()
        world.progress.follow(NOW)
        due.append(world.measure(labelled=labelled))
    assert due == [[(key(0), PERFORMANCE)]] * 9 + [[]]
    assert key(0) in world.progress.final


def test_performance_is_final_after_the_longest_delay_whatever_the_coverage(world: World) -> None:
    world.predict(0.5)
    world.predict(1 + 24 * 7 + 1)
    world.progress.follow(NOW + 30 * DAY)
    assert world.measure(labelled=1)[:2] == [(key(0), DRIFT), (key(0), PERFORMANCE)]
    assert key(0) in world.progress.final


def test_counts_that_were_too_high_do_not_make_a_window_final(world: World) -> None:
    """A correction makes a second outcome of one prediction."""
    world.predict(0.5)
    world.predict(2)
    world.progress.follow(NOW)
    for name in ("first", "corrected"):
        world.join(0.5, 5, name=name)
        world.progress.follow(NOW)
    assert world.measure(labelled=5) == [(key(0), DRIFT), (key(0), PERFORMANCE)]
    assert world.progress.windows[key(0)].maturity is Maturity.CLOSED
    assert world.measure(labelled=5) == []


def test_late_rows_are_counted_and_open_no_window_again(world: World) -> None:
    world.predict(0.5)
    world.predict(2)
    world.progress.follow(NOW)
    world.measure()
    world.predict(0.6, 3)
    assert world.progress.follow(NOW) == Followed(3)
    assert world.measure() == []


@pytest.mark.parametrize("restarting", [False, True])
def test_window_nobody_has_seen_is_measured_although_it_comes_late(world: World, restarting: bool) -> None:
    world.predict(5)
    world.progress.follow(NOW)
    world.predict(0.5, 3)
    if restarting:
        world.restart()
    assert world.progress.follow(NOW) == Followed(0 if restarting else 3)
    assert world.measure() == [(key(0), DRIFT)]
    world.predict(0.6, 3)
    world.progress.follow(NOW)
    assert world.measure() == []


def test_followed_through_compaction_vacuum_and_retention(world: World) -> None:
    world.predict(-30)
    world.predict(0.5)
    world.progress.follow(NOW)
    world.predict(2)
    world.lake.maintain(Table.PREDICTIONS, "fraud", f"{START:%Y-%m-%d}", timedelta(0))
    world.progress.follow(NOW)
    assert [k for k, _ in world.measure()] == [key(0)]


hours = st.integers(0, 4)
step = st.one_of(
    st.tuples(st.just("predict"), hours, st.sampled_from(["a", "b"]), st.sampled_from("12")),
    st.tuples(st.just("join"), hours),
    st.just(("measure",)),
    st.just(("restart",)),
    st.just(("reset",)),
)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(step, max_size=12))
def test_every_window_is_measured_once_whatever_the_order_and_the_restarts(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any]
) -> None:
    world, now = World(tmp_path_factory.mktemp("lake")), NOW
    drifted: list[WindowKey] = []
    expected: set[WindowKey] = set()

    def look(at: datetime) -> None:
        world.progress.follow(at)
        drifted.extend(k for k, kind in world.measure() if kind == DRIFT)

    for kind, *args in steps:
        now += MINUTE
        match kind:
            case "predict":
                hour, partition, version = args
                world.predict(hour + 0.5, 2, partition=partition, version=version)
                expected.add(key(hour, version))
            case "join":
                world.join(args[0] + 0.5, 2)
            case "measure":
                look(now)
            case "restart":
                world.restart()
            case "reset":
                world.progress.reset()
    look(now)
    world.predict(9, partition="a")
    world.predict(9, partition="b")
    look(now + HOUR)
    look(now + 2 * HOUR)
    assert sorted(drifted) == sorted(expected)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.booleans(), hours, st.integers(1, 3)), max_size=8))
def test_rebuilt_is_followed(tmp_path_factory: pytest.TempPathFactory, arrivals: list[tuple[bool, int, int]]) -> None:
    world = World(tmp_path_factory.mktemp("lake"))
    for joined, hour, count in arrivals:
        (world.join if joined else world.predict)(4 + hour / 5, count, name=str(world.offset))
        world.progress.follow(NOW)
    followed = world.progress
    world.restart()
    world.progress.follow(NOW)
    assert {k: s.rows for k, s in world.progress.windows.items()} == {k: s.rows for k, s in followed.windows.items()}
    assert world.progress.mark == followed.mark
