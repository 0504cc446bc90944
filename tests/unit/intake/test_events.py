"""Every record comes out exactly once, and the fast and the slow way say the same about it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import monitor
from monitor.base.kinds import RejectReason, Stream
from monitor.intake.events import SAMPLE_EVERY, decode, empty_frame
from monitor.intake.rejects import dead_letter_frame
from tests.builders import BINARY, MULTICLASS, NOW, REGRESSION, decoded, label, limits, message, prediction, records

P, L = Stream.PREDICTIONS, Stream.LABELS
GOOD = message(prediction(prediction_id="good"))
SCHEMAS = Path(monitor.__file__).parent / "schemas"

quickly = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(10**40), max_value=10**40),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "1_000", " 7 ", "NaN", "inf", "1e5", "{", "[1]", "true", "\ud800", "x\udfff", "\x00", "é"]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
timestamps = st.one_of(
    values,
    st.just("2026-03-02T11:00:00Z"),
    st.integers(1_772_000_000_000, 1_772_449_200_000),
    st.datetimes().map(str),
)


@st.composite
def mutated(draw: st.DrawFn, stream: Stream) -> bytes:
    """A valid event of which a few fields were replaced, dropped, added or given twice."""
    event = prediction() if stream is P else label()
    for name in draw(st.lists(st.sampled_from([*event, "extra"]), max_size=3)):
        event[name] = draw(timestamps if name.endswith("ts") else values)
    if stream is P and isinstance(event["features"], dict) and draw(st.booleans()):
        event["features"] |= {draw(st.sampled_from(["amount", "country", "is new (y/n)", "new"])): draw(values)}
    for name in draw(st.lists(st.sampled_from(sorted(event)), max_size=1)):
        event.pop(name)
    text = json.dumps(event, ensure_ascii=draw(st.booleans()))
    if draw(st.booleans()):
        text = text[:-1] + "," + json.dumps({draw(st.sampled_from(sorted(event) or ["ts"])): draw(values)})[1:]
    body = text.encode("utf-8", "surrogatepass")
    return draw(st.sampled_from([body, body.replace(b", ", b",\n"), body[: len(body) // 2], b"\r\n" + body + b" "]))


def anything(stream: Stream) -> st.SearchStrategy[bytes | None]:
    junk = st.sampled_from(
        [None, b"", b" \n\t ", b"null", b"[]", b"[{}]", b"{}{}", b"{}\n{}", b"\xff\xfe", b"\x00", b"NaN", b'"x"',
         b"{",
         b"[" * 3000, b'{"a":' * 3000, b'{"prediction_id":"\\ud800"}', b"\xef\xbb\xbf{}", b"1" * 5000]
    )  # fmt: skip
    return st.one_of(mutated(stream), mutated(stream), st.binary(max_size=40), junk)


def rows_by_offset(frames: dict[str, pl.DataFrame]) -> dict[int, tuple[str, dict[str, Any]]]:
    return {row["source_offset"]: (m, row) for m, frame in frames.items() for row in frame.iter_rows(named=True)}


@pytest.mark.parametrize("stream", list(Stream))
@pytest.mark.parametrize("schemas", [(BINARY,), (REGRESSION,), (BINARY, MULTICLASS, REGRESSION)])
@quickly
@given(data=st.data())
def test_every_record_comes_out_exactly_once_and_alone_as_in_company(
    stream: Stream, schemas: tuple[Any, ...], data: st.DataObject
) -> None:
    messages = data.draw(st.lists(anything(stream), max_size=8))
    whole = decoded(messages, stream, schemas)
    rows = rows_by_offset(dict(whole.frames))
    rejected = {r.offset: r.reason for r in whole.rejected}
    assert sorted([*rows, *rejected]) == list(range(len(messages)))
    assert len(whole.rejected) == len(rejected)
    for at, body in enumerate(messages):
        # A poisoned neighbour sends the whole batch the slow way; a lone good record goes the fast way.
        for company in ([body], [body, b"{"]):
            alone = decode(stream, [records(company, stream, start=at)], {s.model: s for s in schemas}, limits())
            one = rows_by_offset(dict(alone.frames))
            assert repr(one.get(at)) == repr(rows.get(at))
            assert [r.reason for r in alone.rejected if r.offset == at] == ([rejected[at]] if at in rejected else [])


@quickly
@given(value=values)
def test_fast_and_slow_path_store_the_same_text(value: Any) -> None:
    body = json.dumps(prediction(prediction_id=value, model_version=value, prediction=value)).encode()
    fast, slow = decoded([body]), decoded([body, b"{"])
    assert repr({m: f.rows() for m, f in fast.frames.items()}) == repr({m: f.rows() for m, f in slow.frames.items()})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (None, RejectReason.EMPTY),
        (b"", RejectReason.EMPTY),
        (b" \r\n", RejectReason.EMPTY),
        (b"{", RejectReason.NOT_JSON),
        (b"\xff", RejectReason.NOT_JSON),
        (b'{"a":' * 100_000, RejectReason.NOT_JSON),
        (b'{"n": ' + b"9" * 5000 + b"}", RejectReason.NOT_JSON),
        (b"[]", RejectReason.NOT_AN_OBJECT),
        (b"null", RejectReason.NOT_AN_OBJECT),
        (b"{}", RejectReason.NO_ID),
        (message(prediction(prediction_id="")), RejectReason.NO_ID),
        (message(prediction(prediction_id=None)), RejectReason.NO_ID),
        (message(prediction(prediction_id={"a": 1})), RejectReason.NO_ID),
        (message(prediction(model=None)), RejectReason.NO_MODEL),
        (message(prediction(model="")), RejectReason.NO_MODEL),
        (message(prediction(model="froud")), RejectReason.UNKNOWN_MODEL),
        (message(prediction(ts=None)), RejectReason.NO_TIMESTAMP),
        (message(prediction(ts="2026-03-02T11:00:00")), RejectReason.NO_TIMESTAMP),
        (message(prediction(ts=True)), RejectReason.NO_TIMESTAMP),
        (message(prediction(ts=float("nan"))), RejectReason.NO_TIMESTAMP),
        (message(prediction(ts=10**20)), RejectReason.NO_TIMESTAMP),
        (message(prediction(ts=1_772_449_200)), RejectReason.TOO_OLD),  # seconds, not milliseconds
        (message(prediction(ts="0001-01-01T00:00:00Z")), RejectReason.TOO_OLD),
        (message(prediction(ts=999_999_999_999_999)), RejectReason.IN_FUTURE),
        (message(prediction(ts="9999-12-31T23:59:59Z")), RejectReason.IN_FUTURE),
        (message(prediction(prediction=None)), RejectReason.NO_PREDICTION),
        (message(prediction(prediction="")), RejectReason.NO_PREDICTION),
        (message(prediction(prediction=[1])), RejectReason.NO_PREDICTION),
        (message(prediction(prediction="x" * 1025)), RejectReason.NO_PREDICTION),
        (message(prediction(prediction_id="é" * 513)), RejectReason.NO_ID),
    ],
)
def test_broken_record_is_rejected_with_its_reason_and_its_neighbours_stay(
    body: bytes | None, reason: RejectReason
) -> None:
    found = decoded([GOOD, body, GOOD])
    assert [(r.offset, r.reason, r.payload) for r in found.rejected] == [(1, reason, body or b"")]
    assert found.frames["fraud"]["source_offset"].to_list() == [0, 2]


def test_message_above_the_limit_is_rejected_whole() -> None:
    huge = message(prediction(extra="x" * 10_000_000))
    found = decoded([GOOD, huge], bounds=limits(max_bytes=1 << 20))
    assert [(r.reason, len(r.payload)) for r in found.rejected] == [(RejectReason.TOO_LARGE, len(huge))]
    assert decoded([huge], bounds=limits(max_bytes=1 << 24)).frames["fraud"].height == 1


@pytest.mark.parametrize(
    "ts",
    ["2026-03-02T11:00:00Z", "2026-03-02T12:00:00+01:00", "2026-03-02t11:00:00.000z", 1_772_449_200_000,
     "1772449200000", 1772449200000.0],
)  # fmt: skip
def test_timestamp_is_rfc_3339_or_epoch_milliseconds(ts: object) -> None:
    for company in ([], [b"{"]):
        row = decoded([message(prediction(ts=ts)), *company]).frames["fraud"].row(0, named=True)
        assert row["ts"] == datetime(2026, 3, 2, 11, tzinfo=UTC)
        assert row["date"] == "2026-03-02"


@pytest.mark.parametrize("offset", [timedelta(days=-400), timedelta(hours=1)])
def test_time_limits_are_inclusive(offset: timedelta) -> None:
    at, over = NOW + offset, NOW + offset + timedelta(milliseconds=1 if offset > timedelta(0) else -1)
    found = decoded([message(prediction(ts=at.isoformat())), message(prediction(ts=over.isoformat()))])
    assert [r.offset for r in found.rejected] == [1]


@pytest.mark.parametrize(
    ("features", "invalid"),
    [
        ({"amount": "12", "country": 7, "is new (y/n)": False}, None),
        ({"amount": "abc"}, ["amount"]),
        ({"amount": float("nan"), "country": "de"}, ["amount"]),
        ({"amount": True, "country": {"a": 1}, "is new (y/n)": "often"}, ["amount", "country", "is new (y/n)"]),
        ({"amount": 1e300, "is new (y/n)": 2}, ["amount", "is new (y/n)"]),
        ({"amount": -1.8e308, "country": "x" * 1025}, ["amount", "country"]),
        ({"amount": 1e100, "country": "x" * 1024}, None),
        ({"amount": None}, None),
        ("no object", ["amount", "country", "is new (y/n)"]),
        (None, None),
    ],
)
def test_broken_feature_value_is_null_and_named(features: object, invalid: list[str] | None) -> None:
    row = decoded([message(prediction(features=features))]).frames["fraud"].row(0, named=True)
    assert row["invalid_features"] == invalid
    assert all(row[f"feature_{name}"] is None for name in invalid or ())


@pytest.mark.parametrize(
    ("given", "read"),
    [(True, True), (1, True), (1.0, True), ("1", True), ("TRUE", True), (False, False), (0, False), ("False", False)],
)
def test_a_boolean_is_read_as_producers_spell_it(given: object, read: bool) -> None:
    for company in ([], [b"{"]):
        row = (
            decoded([message(prediction(features={"is new (y/n)": given})), *company])
            .frames["fraud"]
            .row(0, named=True)
        )
        assert (row["feature_is new (y/n)"], row["invalid_features"]) == (read, None)


@pytest.mark.parametrize(
    ("classes", "given", "meant"),
    [
        (("0", "1"), True, "1"),
        (("0", "1"), 0.0, "0"),
        (("0", "1"), "1.0", "1"),
        (("0", "1"), "2", "2"),
        (("false", "true"), 1, "true"),
        (("False", "True"), False, "False"),
        (("true", "1"), True, "true"),
        (("true", "1"), 1, "1"),
        (("true", "1"), 1.0, "1"),
        (("1000001", "5"), 1000002, "1000002"),
        (("01", "2"), "1", "01"),
        (("no", "yes"), "YES", "YES"),
    ],
)
def test_an_answer_means_the_declared_class_that_it_spells(classes: tuple[str, ...], given: object, meant: str) -> None:
    schema = replace(BINARY, classes=classes, positive=classes[1])
    for stream, event in ((P, prediction(prediction=given)), (L, label(label=given))):
        frame = decoded([message(event)], stream, [schema]).frames["fraud"]
        assert frame["prediction" if stream is P else "label"].to_list() == [meant]


def test_text_that_becomes_a_name_is_bounded_and_stays_apart() -> None:
    odd = ["x" * 300, "x" * 301, "a\x00b", "\u202eb", "..", "a/b", "", " ", "7"]
    rows = decoded([message(prediction(model_version=v, segment={"region": v})) for v in odd]).frames["fraud"]
    for column in ("model_version", "segment_region"):
        names = rows[column].to_list()
        assert len(set(names)) == len(odd)
        assert all(len(name) <= 128 and name.isprintable() and name.strip() for name in names)
        assert names[-1] == "7"


@pytest.mark.parametrize("stream", list(Stream))
def test_a_record_that_the_decoder_has_a_bug_with_costs_itself_alone(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def buggy(columns: pl.DataFrame, *given: object) -> pl.DataFrame:
        if "bad" in columns["prediction_id"].to_list():
            raise IndexError("out of range")
        return columns

    monkeypatch.setattr("monitor.intake.events.with_classes", buggy)
    event = prediction if stream is P else label
    ids = [f"p{n}" for n in range(50)]
    ids[17] = ids[40] = "bad"
    found = decoded([*(message(event(prediction_id=i)) for i in ids), b"{"], stream)
    assert [(r.offset, r.reason.value) for r in found.rejected] == [
        (17, "unreadable"), (40, "unreadable"), (50, "not_json"),
    ]  # fmt: skip
    assert found.rejected[0].detail == "IndexError: out of range"
    assert found.frames["fraud"]["prediction_id"].to_list() == [i for i in ids if i != "bad"]


def test_name_given_twice_has_its_first_value_on_both_paths() -> None:
    body = GOOD[:-1] + b', "prediction_id": "second", "features": {"amount": 99}}'
    for company in ([], [b"{"]):
        row = decoded([body, *company]).frames["fraud"].row(0, named=True)
        assert (row["prediction_id"], row["feature_amount"]) == ("good", 12.5)


def test_long_numeric_ids_stay_apart_on_both_paths() -> None:
    bodies = [message(prediction(prediction_id=10**25 + n)) for n in (1, 2)]
    for company in ([], [b"{"]):
        ids = decoded([*bodies, *company]).frames["fraud"]["prediction_id"].to_list()
        assert ids == [str(10**25 + 1), str(10**25 + 2)]


def test_ids_with_lone_surrogates_stay_apart() -> None:
    bodies = [b'{"prediction_id": "x%s", "model": "fraud", "ts": 1772449200000, "prediction": 1}' % half
              for half in (b"\\ud800", b"\\ud801", b"\\uDC00", b"\\ud83d\\ude00")]  # fmt: skip
    ids = decoded(bodies).frames["fraud"]["prediction_id"].to_list()
    assert ids == ["x\\ud800", "x\\ud801", "x\\udc00", "x😀"]


def test_backslash_before_a_surrogate_escape_is_a_backslash() -> None:
    body = b'{"prediction_id": "x\\\\ud800", "model": "fraud", "ts": 1772449200000, "prediction": 1}'
    for company in ([], [b"{"]):
        assert decoded([body, *company]).frames["fraud"]["prediction_id"].to_list() == ["x\\ud800"]


def test_binary_score_is_a_number_or_the_positive_class_of_an_object() -> None:
    bodies = [message(prediction(score=s)) for s in (0.25, {"0": 0.75, "1": 0.25}, "0.25", None, {"0": 1}, [1])]
    assert decoded(bodies).frames["fraud"]["score"].to_list() == [0.25, 0.25, 0.25, None, None, None]


def test_multiclass_has_a_score_column_per_class() -> None:
    event = prediction(model="topic", prediction="b", score={"a": 0.1, "b": 0.9, "other": 1})
    row = decoded([message(event)], schemas=[MULTICLASS]).frames["topic"].row(0, named=True)
    assert [row[f"score_{c}"] for c in "abc"] == [0.1, 0.9, None]
    assert row["prediction"] == "b"


@pytest.mark.parametrize(
    ("given", "kept"), [(3, 3.0), ("3.5", 3.5), (True, None), ("x", None), (float("inf"), None), ({}, None)]
)
def test_regression_answer_is_a_finite_number(given: object, kept: float | None) -> None:
    events = {P: prediction(model="price", prediction=given), L: label(model="price", label=given)}
    for stream, event in events.items():
        found = decoded([message(event)], stream, [REGRESSION])
        column = "prediction" if stream is P else "label"
        assert [v for f in found.frames.values() for v in f[column]] == ([] if kept is None else [kept])
        reason = RejectReason.NO_PREDICTION if stream is P else RejectReason.NO_LABEL
        assert [r.reason for r in found.rejected] == ([reason] if kept is None else [])


def test_records_go_to_the_model_they_name() -> None:
    found = decoded(
        [message(prediction(model=m)) for m in ("topic", "fraud", "nobody", "topic")], schemas=[BINARY, MULTICLASS]
    )
    assert {m: f["source_offset"].to_list() for m, f in found.frames.items()} == {"topic": [0, 3], "fraud": [1]}
    assert [(r.offset, r.reason) for r in found.rejected] == [(2, RejectReason.UNKNOWN_MODEL)]


def test_segment_values_are_text_and_a_broken_segment_is_null() -> None:
    bodies = [message(prediction(segment=s)) for s in ({"region": "eu", "x": 1}, {"region": 7}, "eu", None)]
    assert decoded(bodies).frames["fraud"]["segment_region"].to_list() == ["eu", "7", None, None]


def test_absurd_prediction_time_of_a_label_is_no_hint() -> None:
    hints = [999_999_999_999_999, "0001-01-01T00:00:00Z", "soon", "2026-03-02T10:00:00Z"]
    found = decoded([message(label(prediction_ts=h)) for h in hints], L)
    assert found.frames["fraud"]["prediction_ts"].to_list() == [None] * 3 + [datetime(2026, 3, 2, 10, tzinfo=UTC)]


def test_unknown_fields_are_counted_in_the_sampled_records() -> None:
    event = prediction(extra=1, more=2)
    event["features"] |= {"unknown": 1}
    found = decoded([message(event)] * (SAMPLE_EVERY + 1))
    assert found.unknown_fields == {"fraud": 6}


@pytest.mark.parametrize("schema", [BINARY, MULTICLASS, REGRESSION])
@pytest.mark.parametrize("stream", list(Stream))
def test_empty_frame_has_the_columns_of_a_decoded_one(schema: Any, stream: Stream) -> None:
    event = prediction(model=schema.model, prediction=1) if stream is P else label(model=schema.model, label=1)
    frame = decoded([message(event)], stream, [schema]).frames[schema.model]
    assert empty_frame(stream, schema).schema == frame.schema


def test_dead_letter_rows_keep_payload_and_origin() -> None:
    rejected = decoded([GOOD, b"\xff\x00"]).rejected
    frame = dead_letter_frame(rejected, NOW)
    assert frame.row(0, named=True) | {"detail": ""} == {
        "received_at": NOW, "date": "2026-03-02", "stream": "predictions", "reason": "not_json", "detail": "",
        "payload": b"\xff\x00", "source_partition": "t:0", "source_offset": 1,
    }  # fmt: skip
    assert dead_letter_frame([], NOW).schema == frame.schema


@pytest.mark.parametrize("stream", list(Stream))
def test_examples_of_the_json_schema_are_events(stream: Stream) -> None:
    schema = json.loads((SCHEMAS / f"{stream.value.removesuffix('s')}.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    assert schema["examples"]
    for example in schema["examples"]:
        Draft202012Validator(schema).validate(example)
    found = decoded([message(e) for e in schema["examples"]], stream)
    assert not found.rejected
    assert found.frames["fraud"].height == len(schema["examples"])
    assert not any(found.unknown_fields.values())


@pytest.mark.parametrize("stream", list(Stream))
@quickly
@given(data=st.data())
def test_what_the_json_schema_takes_is_rejected_only_for_what_it_cannot_know(
    stream: Stream, data: st.DataObject
) -> None:
    schema = json.loads((SCHEMAS / f"{stream.value.removesuffix('s')}.schema.json").read_text())
    body = data.draw(mutated(stream))
    try:
        event = json.loads(body.decode(), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    except ValueError:
        return
    if Draft202012Validator(schema).is_valid(event):
        reasons = {r.reason for r in decoded([body], stream).rejected}
        time = {RejectReason.TOO_OLD, RejectReason.IN_FUTURE, RejectReason.NO_TIMESTAMP}
        assert reasons <= time | {RejectReason.UNKNOWN_MODEL, RejectReason.NO_ID, RejectReason.NO_PREDICTION,
                                  RejectReason.NO_LABEL}  # fmt: skip
