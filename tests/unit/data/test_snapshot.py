from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from retrain.config.settings import RetrainConfig
from retrain.config.spec import JobSpec
from retrain.data.labelled_rows import digest, newest_labelled, partition_rows
from retrain.data.snapshot import Snapshot, TooLittle, split, take_snapshot
from tests.retrain_data import BINARY, REGRESSION, START, outcomes, spec, write


def taken(wanted: JobSpec, version: int | None = None) -> Snapshot:
    snapshot = take_snapshot(wanted, {}, version)
    assert isinstance(snapshot, Snapshot), snapshot
    return snapshot


def test_holdout_is_the_newest_share_and_strictly_later(tmp_path: Path) -> None:
    write(tmp_path / "outcomes", outcomes(1000))
    snapshot = taken(spec(tmp_path, holdout_share=0.3))
    train, holdout = snapshot.train(), snapshot.holdout()
    assert (len(train), len(holdout)) == (700, 300)
    assert train["ts"].max() < holdout["ts"].min()  # type: ignore[operator]
    assert snapshot.manifest["delta_version"] == 0
    assert snapshot.manifest["schema"] == BINARY.to_json()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=40, max_size=120), st.floats(0.05, 0.8))
def test_rows_of_one_time_never_straddle_the_border(seconds: list[int], share: float) -> None:
    rows = outcomes(len(seconds)).with_columns(ts=START + pl.duration(seconds=pl.Series(sorted(seconds))))
    config = RetrainConfig.model_validate({"min_rows": 20, "holdout_min_rows": 10, "holdout_share": share})
    parts = split(rows, replace(spec(Path(), tracking_uri="unused"), config=config))
    if isinstance(parts, TooLittle):
        return
    train, holdout = parts
    assert train["ts"].max() < holdout["ts"].min()  # type: ignore[operator]
    assert len(train) + len(holdout) == len(rows)
    assert len(holdout) >= max(share * len(rows), 10) - 1


def test_the_last_label_counts_and_rows_without_one_do_not(tmp_path: Path) -> None:
    rows = outcomes(500)
    write(tmp_path / "outcomes", rows)
    later = pl.col("label_ts") + timedelta(days=1)
    other = pl.when(pl.col("label") == "ok").then(pl.lit("fraud")).otherwise(pl.lit("ok"))
    write(tmp_path / "outcomes", rows[:10].with_columns(label=other, label_ts=later))
    write(tmp_path / "outcomes", rows[10:20].with_columns(label_ts=later, label=pl.lit(None, pl.String)))
    write(tmp_path / "outcomes", rows[20:30].with_columns(label_ts=later, label=pl.lit("martian")))
    early = pl.col("label_ts") - timedelta(minutes=30)
    write(tmp_path / "outcomes", rows[30:40].with_columns(label=other, label_ts=early))
    snapshot = taken(spec(tmp_path))
    found = pl.concat([snapshot.train(), snapshot.holdout()]).sort("ts")
    assert len(found) == 480
    assert found["prediction_id"].n_unique() == 480
    assert (found["label"][:10] != rows["label"][:10]).all()
    assert (found["label"][10:20] == rows["label"][30:40]).all()
    assert snapshot.manifest["rows_dropped"] == 20


def test_newest_rows_are_taken_and_old_partitions_not_read(tmp_path: Path) -> None:
    uri = write(tmp_path / "outcomes", outcomes(3000, days=30))
    table = DeltaTable(uri)
    found = newest_labelled(table, BINARY, max_rows=250)
    assert len(found.rows) == 250
    assert found.rows["ts"].max() == outcomes(3000, days=30)["ts"].max()
    assert found.predicate.startswith("date >= '2026-01-2")
    for path in Path(uri).glob("date=2026-01-0*/*.parquet"):  # would fail if it were read
        path.unlink()
    assert newest_labelled(DeltaTable(uri), BINARY, max_rows=250).rows.equals(found.rows)
    assert len(partition_rows(table)) == 30


def test_reading_goes_further_back_when_the_newest_rows_have_no_labels(tmp_path: Path) -> None:
    rows = outcomes(1000, days=10)
    unlabelled = pl.when(pl.col("date") < "2026-01-06").then("label")
    uri = write(tmp_path / "outcomes", rows.with_columns(label=unlabelled))
    found = newest_labelled(DeltaTable(uri), BINARY, max_rows=300)
    assert len(found.rows) == 300
    assert found.rows["ts"].max().date() == date(2026, 1, 5)  # type: ignore[union-attr]


def test_span_leaves_older_rows_out(tmp_path: Path) -> None:
    uri = write(tmp_path / "outcomes", outcomes(1000, days=10))
    found = newest_labelled(DeltaTable(uri), BINARY, max_rows=5000, span=timedelta(days=2)).rows
    assert found["ts"].max() - found["ts"].min() < timedelta(days=2)  # type: ignore[operator]
    assert 150 < len(found) < 250


@pytest.mark.parametrize(
    ("rows", "config", "reason"),
    [
        (100, {}, "100 labelled rows, min_rows is 200"),
        (220, {"holdout_min_rows": 220}, "leave none to train on"),
        (0, {}, "no outcomes table"),
    ],
)
def test_too_little_is_a_value_with_its_reason(tmp_path: Path, rows: int, config: dict[str, int], reason: str) -> None:
    if rows:
        write(tmp_path / "outcomes", outcomes(rows))
    found = take_snapshot(spec(tmp_path, **config), {})
    assert isinstance(found, TooLittle)
    assert reason in found.reason


def test_one_label_only_is_too_little(tmp_path: Path) -> None:
    write(tmp_path / "outcomes", outcomes(300).with_columns(label=pl.lit("ok")))
    assert take_snapshot(spec(tmp_path), {}) == TooLittle("all 200 training rows have the label 'ok'")


def test_a_resumed_job_has_the_same_rows_whatever_came_in(tmp_path: Path) -> None:
    write(tmp_path / "outcomes", outcomes(500))
    first = taken(spec(tmp_path))
    write(tmp_path / "outcomes", outcomes(500, seed=1))
    assert taken(spec(tmp_path)).manifest == first.manifest
    again = taken(spec(tmp_path, id="other"), version=0)
    assert again.fingerprint == first.fingerprint
    assert taken(spec(tmp_path, id="third")).fingerprint != first.fingerprint


def test_the_fingerprint_depends_on_config_that_matters(tmp_path: Path) -> None:
    write(tmp_path / "outcomes", outcomes(500))
    first = taken(spec(tmp_path)).fingerprint
    assert taken(spec(tmp_path, id="b", cooldown="9h")).fingerprint == first
    assert taken(spec(tmp_path, id="c", seed=7)).fingerprint != first


def test_the_digest_sees_values_and_not_how_they_are_stored() -> None:
    rows = outcomes(50).drop("invalid_features")
    assert digest(pl.concat([rows[:20], rows[20:]], rechunk=False)) == digest(rows)
    assert digest(rows.with_columns(pl.col("feature_amount") * 1.0000001)) != digest(rows)
    with_null = rows.with_columns(feature_amount=pl.when(pl.int_range(pl.len()) > 0).then("feature_amount"))
    assert digest(with_null) != digest(with_null.with_columns(pl.col("feature_amount").fill_null(0.0)))


def test_regression_labels_are_numbers(tmp_path: Path) -> None:
    rows = outcomes(400, schema=REGRESSION)
    label = pl.when(pl.int_range(pl.len()) > 4).then("label").otherwise(float("nan"))
    write(tmp_path / "outcomes", rows.with_columns(label=label))
    snapshot = taken(spec(tmp_path, schema=REGRESSION))
    assert snapshot.manifest["rows_dropped"] == 5
    assert snapshot.train().schema["label"] == pl.Float64


def parts_of(rows: pl.DataFrame, evidence: dict[str, str] | None = None, **config: object) -> tuple[int, int]:
    wanted = spec(Path(), tracking_uri="unused", holdout_share=0.5, holdout_min_rows=10, **config)
    wanted = replace(wanted, request=replace(wanted.request, evidence=evidence or {}))
    parts = split(rows, wanted)
    assert not isinstance(parts, TooLittle), parts
    return len(parts[0]), len(parts[1])


def hourly(labels: list[str]) -> pl.DataFrame:
    rows = outcomes(len(labels))
    hours = pl.Series(range(len(labels)))
    return rows.with_columns(ts=START + pl.duration(hours=hours), label=pl.Series(labels))


MIXED = ["ok", "fraud"] * 200


def test_holdout_reaches_back_no_further_than_its_span() -> None:
    assert parts_of(hourly(MIXED)) == (200, 200)
    assert parts_of(hourly(MIXED), holdout_span="48h") == (352, 48)


def test_of_the_time_since_something_went_amiss_half_is_left_to_train_on() -> None:
    since = (START + timedelta(hours=399 - 60)).isoformat()
    assert parts_of(hourly(MIXED), {"since": since}, holdout_span="48h") == (370, 30)
    long_ago = (START + timedelta(hours=100)).isoformat()
    assert parts_of(hourly(MIXED), {"since": long_ago}, holdout_span="48h") == (352, 48)


def test_holdout_of_one_class_is_made_longer_until_a_contest_can_be_decided() -> None:
    calm = [*MIXED[:320], *["ok"] * 80]
    assert parts_of(hourly(calm), holdout_span="24h") == (301, 99)  # as far back as the tenth newest fraud
    assert parts_of(hourly([*MIXED[:100], *["ok"] * 300]), holdout_span="24h") == (200, 200)  # never above its share
