"""Labels find their predictions, in whatever order and with whatever restarts."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.base.errors import TransientError
from monitor.lake.join import last_outcomes
from monitor.lake.lake import Conflict, Lake, Table
from monitor.lake.matching import ROWS, OutcomeWriter
from tests.builders import DAY, HOUR, MINUTE, NOW, label_rows, prediction_rows, stored

MAX_DELAY = 7 * DAY


class World:
    """A lake that grows, and a writer that may be restarted."""

    def __init__(self, folder: Path):
        self.lake = Lake(str(folder))
        self.orphans = 0
        self.offset = 0
        self.restart()

    def restart(self) -> None:
        self.writer = OutcomeWriter(self.lake.clone(), "fraud", MAX_DELAY, self.lost)

    def lost(self, count: int) -> None:
        self.orphans += count

    def predict(self, *ids: str, ts: datetime = NOW, **more: Any) -> None:
        self.lake.append(Table.PREDICTIONS, prediction_rows(ids, ts, start=self.offset, **more), "fraud")
        self.offset += len(ids)

    def label(self, *labels: tuple[str, str, datetime], prediction_ts: datetime | None = None) -> None:
        rows = label_rows(labels, start=self.offset, prediction_ts=prediction_ts)
        self.offset += len(labels)
        self.lake.append(Table.LABELS, rows, "fraud")

    @property
    def joined(self) -> dict[str, str]:
        frame = last_outcomes(stored(self.lake, Table.OUTCOMES))
        return dict(frame.select("prediction_id", "label").rows()) if frame.height else {}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "lake")


def test_nothing_there_is_nothing_to_do(world: World) -> None:
    assert world.writer.advance() == 0
    assert world.writer.advance() == 0


@pytest.mark.parametrize("restarting", [False, True])
def test_label_before_its_prediction_waits(world: World, restarting: bool) -> None:
    world.label(("a", "1", NOW))
    assert world.writer.advance() == 0
    assert world.writer.pending is not None
    if restarting:
        world.restart()
    world.predict("b")
    assert world.writer.advance() == 0
    world.predict("a")
    assert world.writer.advance() == 1
    assert world.joined == {"a": "1"}


def test_correction_counts_and_an_older_label_does_not(world: World) -> None:
    world.predict("a")
    for text, minute in (("1", 5), ("0", 10), ("1", 7)):
        world.label(("a", text, NOW + minute * MINUTE))
        world.writer.advance()
        assert world.joined["a"] == ("1" if minute == 5 else "0")


def test_outcome_keeps_prediction_and_label_time(world: World) -> None:
    world.predict("a", feature_x=1.5)
    world.label(("a", "1", NOW + HOUR))
    world.writer.advance()
    row = stored(world.lake, Table.OUTCOMES).row(0, named=True)
    assert (row["ts"], row["label_ts"], row["feature_x"], row["date"]) == (NOW, NOW + HOUR, 1.5, "2026-03-02")


def test_label_is_found_although_its_hint_is_off_by_midnight(world: World) -> None:
    midnight = NOW.replace(hour=0)
    world.predict("a", ts=midnight - MINUTE)
    world.predict("now")
    world.label(("a", "1", NOW), prediction_ts=midnight)
    assert world.writer.advance() == 1


def test_label_is_given_up_once_predictions_are_max_delay_further(world: World) -> None:
    world.predict("x", ts=NOW)
    world.label(("orphan", "1", NOW), ("patient", "1", NOW + 2 * DAY))
    world.writer.advance()
    world.predict("y", ts=NOW + 8 * DAY)
    world.writer.advance()
    assert world.orphans == 1
    world.predict("orphan", ts=NOW)
    world.predict("patient", ts=NOW)
    world.writer.advance()
    assert world.joined == {"patient": "1"}


@pytest.mark.parametrize("restarting", [False, True])
def test_labels_read_long_before_their_predictions_are_not_given_up(world: World, restarting: bool) -> None:
    """A backlog of 60 days: the labels' topic is drained first."""
    world.label(*((f"p{n}", "1", NOW + n * DAY) for n in range(60)))
    world.writer.advance()
    if restarting:
        world.restart()
    for n in range(60):
        world.predict(f"p{n}", ts=NOW + n * DAY - HOUR)
        if n % 20 == 19:
            world.writer.advance()
    assert len(world.joined) == 60
    assert world.orphans == 0


def test_backlog_stored_before_the_first_start_is_joined_whole(world: World) -> None:
    for n in range(0, 60, 10):
        world.predict(f"p{n}", ts=NOW + n * DAY)
        world.label((f"p{n}", "1", NOW + n * DAY + HOUR))
    assert world.writer.advance() == 6


def test_lake_that_fails_at_the_append_loses_no_waiting_label(world: World, tmp_path: Path) -> None:
    world.label(("a", "1", NOW))
    world.writer.advance()
    world.predict("a")
    obstacle = tmp_path / "lake" / "fraud" / "outcomes"
    obstacle.write_text("in the way")
    with pytest.raises(TransientError):
        world.writer.advance()
    obstacle.unlink()
    assert world.writer.advance() == 1
    assert world.joined == {"a": "1"}


def test_second_leader_is_refused_and_joins_nothing_twice(world: World) -> None:
    other = OutcomeWriter(world.lake.clone(), "fraud", MAX_DELAY, world.lost)
    world.predict("a", "b", "c")
    world.label(("a", "1", NOW))
    world.writer.advance()
    other.advance()
    world.label(("b", "1", NOW))
    world.writer.advance()
    world.label(("c", "1", NOW))  # the other one is behind by two
    with pytest.raises(Conflict):
        other.advance()
    other.reset()
    assert other.advance() == 1
    with pytest.raises(Conflict):
        world.label(("a", "0", NOW + HOUR))
        world.writer.advance()
    assert stored(world.lake, Table.OUTCOMES).height == 3


def test_rows_ever_joined_are_counted_whatever_is_deleted(world: World) -> None:
    world.predict("a", "b")
    world.label(("a", "1", NOW), ("b", "1", NOW))
    world.writer.advance()
    world.lake.forget("fraud", ["a"])
    world.restart()
    world.label(("b", "0", NOW + HOUR))
    world.writer.advance()
    assert world.lake.position(Table.OUTCOMES, "fraud", ROWS) == 3


def test_compaction_and_vacuum_between_two_looks_change_nothing(world: World) -> None:
    world.predict("a", "b")
    world.label(("a", "1", NOW))
    world.writer.advance()
    world.label(("b", "1", NOW))
    for table in (Table.LABELS, Table.PREDICTIONS, Table.OUTCOMES):
        world.lake.maintain(table, "fraud", "2000-01-01", 0 * DAY)
    assert world.writer.advance() == 1
    assert world.joined == {"a": "1", "b": "1"}


ids = st.sampled_from(["a", "b", "c"])
step = st.one_of(
    st.tuples(st.just("predict"), ids),
    st.tuples(st.just("label"), ids, st.sampled_from("01"), st.integers(0, 3)),
    st.just(("advance",)),
    st.just(("restart",)),
    st.just(("reset",)),
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(step, max_size=10))
def test_any_order_with_restarts_anywhere_gives_the_same_outcomes(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any]
) -> None:
    world = World(tmp_path_factory.mktemp("lake"))
    predicted: set[str] = set()
    labelled: dict[str, tuple[int, str]] = {}
    for kind, *args in steps:
        match kind:
            case "predict":
                world.predict(args[0])
                predicted.add(args[0])
            case "label":
                name, text, hour = args
                world.label((name, text, NOW + hour * HOUR))
                labelled[name] = max(labelled.get(name, (-1, "")), (hour, text))
            case "restart":
                world.restart()
            case "reset":
                world.writer.reset()
        if kind != "predict" and kind != "label":
            world.writer.advance()
    world.writer.advance()
    assert world.joined == {name: text for name, (_, text) in labelled.items() if name in predicted}
    labels_sent = sum(kind == "label" for kind, *_ in steps)
    assert stored(world.lake, Table.OUTCOMES).height <= labels_sent, "no label is joined twice"
