"""Exactly-once appends, and reading what is new whatever maintenance has done meanwhile."""

from __future__ import annotations

import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.base.errors import TransientError
from monitor.lake.lake import Conflict, HistoryGone, Lake, Table, collect
from tests.builders import DAY, HOUR, NOW, label_rows, prediction_rows, stored

T = Table.PREDICTIONS
AT_ONCE = timedelta(0)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def ids(lake: Lake, table: Table = T) -> list[str]:
    return sorted(stored(lake, table)["prediction_id"].to_list()) if lake.version(table, "fraud") >= 0 else []


def append(lake: Lake, first: int, last: int, partition: str = "t:0") -> int:
    """Offsets `first`..`last` of a partition; the id is the origin."""
    names = [f"{partition}@{n}" for n in range(first, last + 1)]
    return lake.append(T, prediction_rows(names, partition=partition, start=first), "fraud")


def new_ids(lake: Lake, since: int, until: int | None = None, columns: list[str] | None = None) -> list[str]:
    rows = lake.new_rows(T, "fraud", since, lake.version(T, "fraud") if until is None else until, columns)
    return sorted(rows["prediction_id"].to_list()) if rows is not None else []


def test_replay_after_a_crash_appends_nothing_twice(lake: Lake) -> None:
    assert append(lake, 0, 9) == 10
    assert append(lake, 0, 9) == 0
    assert append(lake, 5, 14) == 5
    assert append(lake, 3, 3) == 0
    assert append(lake, 0, 4, "t:1") == 5
    assert len(ids(lake)) == len(set(ids(lake))) == 20


@pytest.mark.parametrize("folder", ["two words", "é日", "a;b&c$d", "{x}(y)*!", "~'\"<>@,+:"])
def test_it_may_lie_in_any_folder(tmp_path: Path, folder: str) -> None:
    lake = Lake(str(tmp_path / folder / "lake"))
    append(lake, 0, 1)
    append(lake, 2, 3)
    wanted = [f"t:0@{n}" for n in range(4)]
    assert ids(lake) == new_ids(lake, 0) == wanted
    lake.maintain(T, "fraud", "2000-01-01", AT_ONCE)
    assert ids(Lake(lake.uri)) == wanted
    assert list((tmp_path / folder).rglob("*.parquet"))


def test_first_offset_of_a_partition_may_be_zero(lake: Lake) -> None:
    assert append(lake, 0, 0) == 1
    assert append(lake, 0, 0) == 0


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 12), st.integers(0, 6)), max_size=6))
def test_any_sequence_of_overlapping_replays_stores_each_record_once(
    tmp_path_factory: pytest.TempPathFactory, replays: list[tuple[str, int, int]]
) -> None:
    clients = [Lake(str(tmp_path_factory.mktemp("lake")))]
    clients.append(clients[0].clone())
    expected: set[str] = set()
    done = {"a": -1, "b": -1}
    for n, (partition, back, more) in enumerate(replays):
        first = max(0, done[partition] + 1 - back)  # what a source does: from a committed position on, without gaps
        last = first + more
        append(clients[n % 2], first, last, partition)
        expected |= {f"{partition}@{i}" for i in range(first, last + 1)}
        done[partition] = max(done[partition], last)
    assert ids(clients[0]) == sorted(expected)


def test_two_replicas_racing_on_one_partition_store_each_record_once(lake: Lake) -> None:
    append(lake, 0, 0)
    errors: list[BaseException] = []

    def replica(client: Lake) -> None:
        try:
            for first in range(0, 20, 2):
                append(client, first, first + 3)
                append(client, first, first + 1, "own" + str(id(client)))
        except BaseException as exc:  # noqa: BLE001 - a thread's failure is the test's
            errors.append(exc)

    threads = [threading.Thread(target=replica, args=(lake.clone(),)) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    shared = [i for i in ids(lake) if i.startswith("t:0")]
    assert shared == sorted(f"t:0@{n}" for n in range(22))
    assert len(ids(lake)) == 22 + 40


def test_two_replicas_may_create_the_table_at_once(lake: Lake) -> None:
    ready = threading.Barrier(2)
    appended: list[int] = []

    def replica(partition: str) -> None:
        client = lake.clone()
        ready.wait()
        appended.append(append(client, 0, 4, partition))

    threads = [threading.Thread(target=replica, args=(p,)) for p in ("a", "b")]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert appended == [5, 5]
    assert len(ids(lake)) == 10


def test_append_next_moves_on_only_from_where_it_believes_to_be(lake: Lake) -> None:
    rows = prediction_rows(["a"])
    lake.append_next(T, rows, "fraud", {}, {"sequence": 1})
    lake.append_next(T, rows, "fraud", {"sequence": 1}, {"sequence": 2})
    for before, after in [({}, 1), ({"sequence": 1}, 2), ({"sequence": 1}, 3), ({"sequence": 3}, 4)]:
        with pytest.raises(Conflict):
            lake.append_next(T, rows, "fraud", before, {"sequence": after})
    assert lake.position(T, "fraud", "sequence") == 2
    assert stored(lake, T).height == 2


def test_append_next_refuses_one_who_did_part_of_the_work_again(lake: Lake) -> None:
    """Two leaders, both at (1, 1): one joined up to (2, 1), the other is about to write up to (2, 2)."""
    rows, start = prediction_rows(["a"]), {"labels": 1, "predictions": 1}
    lake.append_next(T, rows, "fraud", {}, start)
    lake.append_next(T, rows, "fraud", start, {"labels": 2, "predictions": 1})
    with pytest.raises(Conflict):
        lake.clone().append_next(T, rows, "fraud", start, {"labels": 2, "predictions": 2})
    assert stored(lake, T).height == 2


def test_of_two_leaders_racing_one_wins(lake: Lake) -> None:
    ready = threading.Barrier(2)
    won: list[bool] = []
    lake.append_next(T, prediction_rows(["0"]), "fraud", {}, {"sequence": 1})

    def leader(name: str) -> None:
        client = lake.clone()
        ready.wait()
        try:
            client.append_next(T, prediction_rows([name]), "fraud", {"sequence": 1}, {"sequence": 2})
            won.append(True)
        except Conflict:
            won.append(False)

    threads = [threading.Thread(target=leader, args=(n,)) for n in "ab"]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(won) == [False, True]
    assert stored(lake, T).height == 2


def test_new_rows_are_those_of_the_versions_asked_for(lake: Lake) -> None:
    assert lake.version(T, "fraud") == -1
    assert lake.new_rows(T, "fraud", -1, 5) is None
    append(lake, 0, 1)
    first = lake.version(T, "fraud")
    append(lake, 2, 2)
    append(lake, 3, 3)
    assert new_ids(lake, -1, first) == ["t:0@0", "t:0@1"]
    assert new_ids(lake, first, first + 1) == ["t:0@2"]
    assert new_ids(lake, first) == ["t:0@2", "t:0@3"]
    assert new_ids(lake, first, columns=["prediction_id"]) == ["t:0@2", "t:0@3"]
    assert new_ids(lake, first + 2) == []


def test_compaction_brings_no_row_again(lake: Lake) -> None:
    for n in range(3):
        append(lake, n, n)
    before = lake.version(T, "fraud")
    lake.maintain(T, "fraud", "2000-01-01", 7 * DAY)
    assert lake.version(T, "fraud") > before
    assert new_ids(lake, before) == []
    append(lake, 3, 3)
    assert new_ids(lake, before) == ["t:0@3"]
    assert len(ids(lake)) == 4


def test_deletes_bring_no_row_again(lake: Lake) -> None:
    append(lake, 0, 3)
    before = lake.version(T, "fraud")
    lake.forget("fraud", ["t:0@1"])
    assert new_ids(lake, before) == []
    assert append(lake, 0, 4) == 1, "what was forgotten does not come back by a replay"
    assert new_ids(lake, before) == ["t:0@4"]


def test_vacuumed_versions_are_history_gone(lake: Lake) -> None:
    for n in range(3):
        append(lake, n, n)
    lake.maintain(T, "fraud", "2000-01-01", AT_ONCE)
    with pytest.raises(HistoryGone):
        new_ids(lake, 0)
    assert len(ids(lake)) == 3


def test_maintain_expires_whole_days_and_keeps_the_rest(lake: Lake) -> None:
    for n, back in enumerate((3, 2, 1, 0)):
        lake.append(T, prediction_rows([f"{back}"], NOW - back * DAY, start=n), "fraud")
    keep = f"{NOW - 2 * DAY:%Y-%m-%d}"
    done = lake.maintain(T, "fraud", keep, AT_ONCE)
    assert done["days_expired"] == 1
    assert ids(lake) == ["0", "1", "2"]
    assert lake.dates(T, "fraud") == [f"{NOW - n * DAY:%Y-%m-%d}" for n in range(3)]
    assert lake.maintain(T, "fraud", keep, AT_ONCE)["days_expired"] == 0
    assert lake.append(T, prediction_rows(["again"], NOW, start=3), "fraud") == 0, "positions outlive maintenance"


def test_maintain_leaves_one_file_per_day(lake: Lake, tmp_path: Path) -> None:
    for n in range(4):
        append(lake, n, n)
    lake.maintain(T, "fraud", "2000-01-01", AT_ONCE)
    assert len(list((tmp_path / "lake" / "fraud" / "predictions").rglob("*.parquet"))) <= 2  # one is the checkpoint
    assert lake.maintain(Table.LABELS, "fraud", "2000-01-01", AT_ONCE) == {}


def test_forget_deletes_a_person_everywhere(lake: Lake) -> None:
    names = ["keep", "o'brien", 'quo"te', "ünï", "x); DROP TABLE", "back\\slash", ""]
    lake.append(T, prediction_rows(names), "fraud")
    lake.append(Table.LABELS, label_rows([(n, "1", NOW) for n in names]), "fraud")
    assert lake.forget("fraud", names[1:]) == {"predictions": 6, "labels": 6}
    assert ids(lake) == ids(lake, Table.LABELS) == ["keep"]
    assert lake.forget("fraud", ["nobody"]) == {"predictions": 0, "labels": 0}


def test_schema_gains_a_feature_column(lake: Lake) -> None:
    lake.append(T, prediction_rows(["a"], feature_x=1.0), "fraud")
    before = lake.version(T, "fraud")
    lake.append(T, prediction_rows(["b"], start=1, feature_x=1.0, feature_y="new"), "fraud")
    lake.append(T, prediction_rows(["c"], start=2, feature_x=1.0), "fraud")
    expected = [("a", None), ("b", "new"), ("c", None)]
    assert stored(lake, T).select("prediction_id", "feature_y").sort("prediction_id").rows() == expected
    rows = lake.new_rows(T, "fraud", -1, lake.version(T, "fraud"))
    assert rows is not None
    assert rows.select("prediction_id", "feature_y").sort("prediction_id").rows() == expected
    assert new_ids(lake, before) == ["b", "c"]


@pytest.mark.parametrize("name", ["a b", "a(b)", "a,b;c={}", "é你", 'a"b', "a'b", "a.b", "a`b", "a/b", ""])
def test_feature_names_may_hold_anything(lake: Lake, name: str) -> None:
    column = f"feature_{name}"
    lake.append(T, prediction_rows(["a"], **{column: 1.0}), "fraud")
    lake.append(T, prediction_rows(["b"], start=1, **{column: 2.0}), "fraud")
    lazy = lake.scan(T, "fraud", (f"{NOW:%Y-%m-%d}", f"{NOW:%Y-%m-%d}"))
    assert lazy is not None
    assert lazy.filter(pl.col(column) > 1).select("prediction_id").collect().item() == "b"
    rows = lake.new_rows(T, "fraud", -1, lake.version(T, "fraud"))
    assert rows is not None
    assert sorted(rows[column].to_list()) == [1.0, 2.0]
    assert lake.forget("fraud", ["a"]) == {"predictions": 1}


def test_scan_prunes_to_days_and_reads_older_versions(lake: Lake) -> None:
    assert lake.scan(T, "fraud") is None
    lake.append(T, prediction_rows(["old"], NOW - DAY), "fraud")
    version = lake.version(T, "fraud")
    lake.append(T, prediction_rows(["new"], NOW, start=1), "fraud")
    today = f"{NOW:%Y-%m-%d}"
    for lazy, found in (
        (lake.scan(T, "fraud", (today, today)), "new"),
        (lake.scan(T, "fraud", None, version), "old"),
    ):
        assert lazy is not None
        assert lazy.collect()["prediction_id"].to_list() == [found]


def test_labelled_predictions_are_counted_by_version_and_time(lake: Lake) -> None:
    before = datetime(2026, 3, 1, tzinfo=UTC)
    assert lake.count_outcomes("fraud", "1", before) == 0
    rows = prediction_rows(["a", "b"], version="1")
    lake.append(Table.OUTCOMES, rows, "fraud")
    lake.append(Table.OUTCOMES, rows[:1], "fraud")  # a correction
    assert (lake.count_outcomes("fraud", "1", before), lake.count_outcomes("fraud", "2", before)) == (2, 0)
    newest = rows["ts"].max()
    assert isinstance(newest, datetime)
    assert lake.count_outcomes("fraud", "1", newest) == 0


def test_data_that_went_away_is_a_transient_error(lake: Lake, tmp_path: Path) -> None:
    append(lake, 0, 3)
    lazy = lake.scan(T, "fraud")
    assert lazy is not None
    for folder in (tmp_path / "lake" / "fraud" / "predictions").glob("date=*"):
        shutil.rmtree(folder)
    with pytest.raises(TransientError):
        collect(lazy)


def test_store_that_refuses_is_a_transient_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(TransientError):
        append(Lake(str(tmp_path / "file" / "lake")), 0, 1)


def test_dead_letters_are_deleted_by_origin(lake: Lake) -> None:
    for partition in ("a", "it's"):
        frame = prediction_rows(["x", "y"], NOW - HOUR, partition=partition)
        lake.append(Table.DEAD_LETTERS, frame)
    lake.delete_dead_letters("it's", [1])
    left = stored(lake, Table.DEAD_LETTERS, "").select("source_partition", "source_offset").sort(pl.all()).rows()
    assert left == [("a", 0), ("a", 1), ("it's", 0)]
