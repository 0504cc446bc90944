"""Dead letters are listed, and replayed without losing or doubling one."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitor.base.kinds import Stream
from monitor.intake.deadletters import Replayed, count_dead_letters, list_dead_letters, replay
from monitor.intake.events import decode
from monitor.intake.rejects import dead_letter_frame
from monitor.lake.lake import Lake, Table
from retrain.terms.schema import ModelSchema
from tests.builders import BINARY, DAY, HOUR, MULTICLASS, NOW, label, limits, message, prediction, records, stored

P, L = Stream.PREDICTIONS, Stream.LABELS
ONE = {"fraud": BINARY}
BOTH = {"fraud": BINARY, "topic": MULTICLASS}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def refuse(lake: Lake, values: list[bytes | None], stream: Stream = P, partition: str = "t:0", start: int = 0) -> None:
    rejected = decode(stream, [records(values, stream, partition, start)], ONE, limits()).rejected
    assert len(rejected) == len(values)
    lake.append(Table.DEAD_LETTERS, dead_letter_frame(rejected, NOW))


def topic(name: str) -> bytes:
    return message(prediction(prediction_id=name, model="topic", prediction="a"))


def run(lake: Lake, schemas: dict[str, ModelSchema] = BOTH, reason: str | None = None) -> Replayed:
    return replay(lake, schemas, limits, NOW, reason)


def ids(lake: Lake, table: Table = Table.PREDICTIONS) -> list[str]:
    return sorted(stored(lake, table, "topic")["prediction_id"].to_list())


def test_no_table_is_no_dead_letter(lake: Lake) -> None:
    assert list_dead_letters(lake, 5) == []
    assert count_dead_letters(lake) == {}
    assert run(lake) == Replayed(0, 0, {})


def test_listed_newest_first_with_reason_and_origin(lake: Lake) -> None:
    refuse(lake, [b"\xff" * 600, topic("a")])
    assert count_dead_letters(lake) == {"not_json": 1, "unknown_model": 1}
    letters = {x["reason"]: x for x in list_dead_letters(lake, 5)}
    assert len(letters["not_json"]["payload"]) == 503
    assert (letters["unknown_model"]["source_partition"], letters["unknown_model"]["source_offset"]) == ("t:0", 1)
    assert len(list_dead_letters(lake, 1)) == 1
    assert [x["reason"] for x in list_dead_letters(lake, 5, "not_json")] == ["not_json"]


def test_what_is_an_event_now_moves_and_the_rest_stays(lake: Lake) -> None:
    refuse(lake, [topic("a"), b"{", topic("b"), None])
    refuse(lake, [message(label(model="topic", prediction_id="a", label="b")), b'{"model": "fraud"}'], L, "l:0")
    assert run(lake, ONE) == Replayed(6, 0, {"unknown_model": 3, "not_json": 1, "empty": 1, "no_id": 1})
    assert run(lake) == Replayed(6, 3, {"not_json": 1, "empty": 1, "no_id": 1})
    assert ids(lake) == ["a", "b"]
    assert ids(lake, Table.LABELS) == ["a"]
    assert count_dead_letters(lake) == {"empty": 1, "no_id": 1, "not_json": 1}
    assert run(lake) == Replayed(3, 0, {"not_json": 1, "empty": 1, "no_id": 1})
    assert ids(lake) == ["a", "b"]


def test_one_reason_only(lake: Lake) -> None:
    refuse(lake, [topic("a"), b"{"])
    assert run(lake, reason="not_json") == Replayed(1, 0, {"not_json": 1})
    assert run(lake, reason="unknown_model") == Replayed(1, 1, {})


def test_later_dead_letters_of_a_partition_do_not_hide_earlier_ones(lake: Lake) -> None:
    refuse(lake, [message(prediction(prediction_id="future", ts=(NOW + 2 * HOUR).isoformat())), topic("a")])
    assert run(lake).accepted == 1
    later = replay(lake, BOTH, limits, NOW + DAY)
    assert later == Replayed(1, 1, {})
    assert stored(lake, Table.PREDICTIONS)["prediction_id"].to_list() == ["future"]


@pytest.mark.parametrize("more", [False, True])
def test_replay_cut_short_before_the_deletion_adds_nothing_twice(lake: Lake, more: bool) -> None:
    """Its rows are stored, its letters are still there; others may have come, some may be gone."""
    refuse(lake, [topic("a")], partition="t:0")
    refuse(lake, [topic("b"), topic("c")], partition="t:1")
    assert run(lake).accepted == 3
    resurrected = dead_letter_frame(
        decode(P, [records([topic("b"), topic("c")], partition="t:1")], ONE, limits()).rejected, NOW
    )
    lake.append_next(Table.DEAD_LETTERS, resurrected, "", {}, {"again": 1})
    if more:
        refuse(lake, [topic("d")], partition="t:1", start=2)
    assert run(lake).accepted == (3 if more else 2)
    assert ids(lake) == ["a", "b", "c", *(["d"] if more else [])]
    assert count_dead_letters(lake) == {}


def test_record_that_became_an_event_meanwhile_is_not_stored_again(lake: Lake) -> None:
    """Written as a dead letter, then, after a crash, read again as an event."""
    refuse(lake, [topic("a")])
    again = decode(P, [records([topic("a")])], BOTH, limits()).frames["topic"]
    lake.append(Table.PREDICTIONS, again, "topic")
    assert run(lake) == Replayed(1, 1, {})
    assert ids(lake) == ["a"]
    assert count_dead_letters(lake) == {}


def test_rows_keep_the_origin_of_their_record(lake: Lake) -> None:
    refuse(lake, [topic("a")], partition="t:7", start=41)
    run(lake)
    row = stored(lake, Table.PREDICTIONS, "topic").row(0, named=True)
    assert (row["source_partition"], row["source_offset"]) == ("t:7", 41)
