"""The scoring service's parts: what a request may hold, who answers, what it follows, the outbox."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import orjson
import pandas as pd
import pytest
from fastapi.testclient import TestClient

from retrain.models.model_files import LoadedModel, UnusableModel
from retrain.models.quality import Predictions
from retrain.models.registry import Registry
from retrain.terms.aliases import CHAMPION, TRAFFIC_TAG
from retrain.terms.errors import ConfigError, TransientError
from retrain.terms.schema import ModelSchema, Task
from serving.app import Service, ServiceMetrics, build_app
from serving.models import Follower, Models, Version, open_model, share_point
from serving.outbox import SEGMENT_BYTES, Files, Full, Outbox
from serving.settings import ServiceSettings, from_dict
from tests.retrain_data import BINARY, MULTICLASS, REGRESSION

SCHEMA_FILE = Path(__file__).parents[3] / "monitor" / "schemas" / "prediction.schema.json"
ROW = {"features": {"amount": 1.5, "kind": "k1", "new": True}, "segment": {"country": "de"}}
TRAFFIC = json.dumps({"champion": "1", "challenger": "2", "share": 0.25})


class Fixed(LoadedModel):
    """Answers every row alike, whatever it is asked."""

    def __init__(self, value: Any, scores: Any = None):
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "row", scores)

    def predictions(self, frame: pd.DataFrame, schema: ModelSchema) -> Predictions:
        if isinstance(self.value, Exception):
            raise self.value
        scores = None if self.row is None else np.array([self.row] * len(frame))
        return Predictions(np.array([self.value] * len(frame), dtype=object), scores)


CHAMPION_MODEL = Models(Version("1", Fixed("ok", 0.2)))
SPLIT = Models(Version("1", Fixed("ok", 0.2)), Version("2", Fixed("fraud", 0.9)), 0.25)


class Recorder:
    def __init__(self, full: bool = False) -> None:
        self.sent: list[bytes] = []
        self.size, self.full = 7, full

    def append(self, events: list[bytes]) -> None:
        if self.full:
            raise Full
        self.sent += events


class Asked:
    """An app around `models`, and what it did."""

    def __init__(self, models: Models | None = CHAMPION_MODEL, schema: ModelSchema = BINARY, full: bool = False):
        self.sink, self.metrics, self.pokes = Recorder(full), ServiceMetrics(), 0
        service = Service(schema, 100, lambda: models, self._poke, self.sink, self.metrics, "hush")
        self.client = TestClient(build_app(service), raise_server_exceptions=False)

    def _poke(self) -> None:
        self.pokes += 1

    def predict(self, *rows: Mapping[str, Any]) -> Any:
        return self.client.post("/predict", json={"rows": list(rows)})

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    def events(self) -> list[dict[str, Any]]:
        return [orjson.loads(e) for e in self.sink.sent]


def test_an_answer_leaves_an_event_of_the_contract() -> None:
    asked = Asked()
    answered = asked.predict(
        {**ROW, "prediction_id": "a", "ts": "2026-03-01T12:00:00+02:00"},
        {"features": {"amount": None, "kind": None, "new": None}},
    )
    assert answered.status_code == 200
    first, second = answered.json()["predictions"]
    assert first == {"prediction_id": "a", "model_version": "1", "prediction": "ok", "score": 0.2}
    assert len(second["prediction_id"]) == 32
    schema = json.loads(SCHEMA_FILE.read_text())
    for event in asked.events():
        jsonschema.validate(event, schema)
    sent, other = asked.events()
    assert sent.pop("latency_ms") > 0
    assert sent == {
        "prediction_id": "a", "model": "fraud", "model_version": "1", "ts": "2026-03-01T10:00:00+00:00",
        "features": ROW["features"], "prediction": "ok", "score": 0.2, "segment": {"country": "de"},
    }  # fmt: skip
    assert other["prediction_id"] == second["prediction_id"]
    assert "segment" not in other
    assert asked.value("scoring_events_total", outcome="written") == 2
    assert asked.value("scoring_requests_total", status="200") == 1


@pytest.mark.parametrize(
    ("schema", "model", "prediction", "score"),
    [
        (MULTICLASS, Fixed("mid", [0.1, 0.7, 0.2]), "mid", {"low": 0.1, "mid": 0.7, "high": 0.2}),
        (REGRESSION, Fixed(1.25), 1.25, None),
    ],
)
def test_classes_and_numbers_are_answered(schema: ModelSchema, model: Fixed, prediction: Any, score: Any) -> None:
    asked = Asked(Models(Version("3", model)), schema)
    (answer,) = asked.predict(ROW).json()["predictions"]
    assert (answer["prediction"], answer["score"]) == (prediction, score)
    (event,) = asked.events()
    jsonschema.validate(event, json.loads(SCHEMA_FILE.read_text()))
    assert event.get("score") == score


@pytest.mark.parametrize(
    ("row", "where", "what"),
    [
        ({"features": {"amount": "1.5", "kind": "a", "new": True}}, ["features", "amount"], "valid number"),
        ({"features": {"amount": True, "kind": "a", "new": True}}, ["features", "amount"], "valid number"),
        ({"features": {"amount": 1, "kind": 7, "new": True}}, ["features", "kind"], "valid string"),
        ({"features": {"amount": 1, "kind": "a", "new": 1}}, ["features", "new"], "valid boolean"),
        ({"features": {"amount": 1, "kind": "a"}}, ["features", "new"], "required"),
        ({"features": {"amount": 1, "kind": "a", "new": True, "old": 1}}, ["features", "old"], "not permitted"),
        ({**ROW, "segment": {"country": 7}}, ["segment", "country"], "valid string"),
        ({**ROW, "segment": {"city": "x"}}, ["segment", "city"], "not permitted"),
        ({**ROW, "ts": "2026-03-01T12:00:00"}, ["ts"], "needs a zone"),
        ({**ROW, "prediction_id": ""}, ["prediction_id"], "at least 1"),
        ({**ROW, "weight": 1}, ["weight"], "not permitted"),
    ],
)
def test_what_does_not_fit_the_schema_is_refused_with_its_place(
    row: dict[str, Any], where: list[str], what: str
) -> None:
    asked = Asked()
    refused = asked.predict(ROW, row)
    assert refused.status_code == 422
    (problem,) = refused.json()["detail"]
    assert problem["loc"] == ["body", "rows", 1, *where]
    assert what in problem["msg"]
    assert asked.sink.sent == []


def test_a_number_that_is_none_is_refused() -> None:
    body = '{"rows": [{"features": {"amount": NaN, "kind": "a", "new": true}}]}'
    assert (
        Asked().client.post("/predict", content=body, headers={"content-type": "application/json"}).status_code == 422
    )


def test_the_schema_is_in_the_service_s_own_description() -> None:
    described = Asked().client.get("/openapi.json").json()["components"]["schemas"]["Features"]
    assert described["required"] == ["amount", "kind", "new"]
    assert described["properties"]["kind"]["anyOf"] == [{"type": "string"}, {"type": "null"}]


def test_too_many_rows_no_rows_and_no_model_are_said() -> None:
    assert Asked().predict(*[ROW] * 101).status_code == 422
    assert Asked().predict().status_code == 422
    empty = Asked(None)
    assert (empty.predict(ROW).status_code, empty.client.get("/readyz").status_code) == (503, 503)
    assert empty.client.get("/model").status_code == 503


def test_a_model_that_raises_is_an_answer_and_no_event() -> None:
    asked = Asked(Models(Version("1", Fixed(KeyError("secret value")))))
    failed = asked.predict(ROW)
    assert (failed.status_code, failed.json()["detail"]) == (500, "the model cannot answer these rows: KeyError")
    assert asked.sink.sent == []


def test_an_outbox_that_is_full_does_not_stop_answers_and_is_told() -> None:
    asked = Asked(full=True)
    assert asked.predict(ROW).status_code == 200
    assert asked.value("scoring_events_total", outcome="lost") == 1
    ready = asked.client.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "problems": ["events are lost"]})


def test_a_challenger_gets_its_share_and_an_id_always_the_same_version() -> None:
    asked = Asked(SPLIT)
    rows = [{**ROW, "prediction_id": f"id-{n}"} for n in range(100)]
    first = asked.predict(*rows).json()["predictions"]
    assert first == asked.predict(*rows).json()["predictions"]
    by_id = {a["prediction_id"]: a for a in first}
    assert all(a["prediction"] == ("fraud" if a["model_version"] == "2" else "ok") for a in first)
    assert all((by_id[i]["model_version"] == "2") == (share_point(i) < 0.25) for i in by_id)
    assert [a["score"] for a in first if a["model_version"] == "2"] == [0.9] * sum(share_point(i) < 0.25 for i in by_id)
    wider = np.mean([share_point(f"x-{n}") < 0.25 for n in range(20_000)])
    assert wider == pytest.approx(0.25, abs=0.01)
    for start in range(0, 2000, 400):  # ids that are counted up: a checksum would give some hundreds of them 4 %
        near = np.mean([share_point(f"{person}-{n}-a") < 0.3 for person in range(3) for n in range(start, start + 100)])
        assert near == pytest.approx(0.3, abs=0.11)
    counted = asked.value("scoring_predictions_total", role="challenger")
    assert counted == 2 * sum(a["model_version"] == "2" for a in first)


def test_only_a_signed_webhook_makes_it_look() -> None:
    asked, body = Asked(), b'{"event": "champion_moved"}'
    signature = "sha256=" + hmac.new(b"hush", body, hashlib.sha256).hexdigest()
    for given, status in (("", 401), ("sha256=00", 401), (signature, 200)):
        answer = asked.client.post("/reload", content=body, headers={"x-driftd-signature": given})
        assert answer.status_code == status
    assert asked.pokes == 1


def test_metrics_and_model_tell_what_serves() -> None:
    asked = Asked(SPLIT)
    asked.metrics.changed(SPLIT)
    assert asked.client.get("/model").json() == {"model": "fraud", "champion": "1", "challenger": "2", "share": 0.25}
    text = asked.client.get("/metrics").text
    assert 'scoring_model_info{role="challenger",version="2"} 1.0' in text
    assert "scoring_outbox_bytes 7.0" in text


# -- following the registry


class Pointers(Registry):
    """A registry whose state is set by hand."""

    def __init__(self) -> None:
        self.aliases: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.away, self.broken, self.fetched = False, set[str](), list[str]()

    def pointers(self, name: str) -> tuple[dict[str, str], dict[str, str]]:
        if self.away:
            raise TransientError("no route")
        return self.aliases, self.tags

    def fetch_model(self, name: str, version: str, folder: Path) -> Path:
        self.fetched.append(version)
        folder.mkdir()
        (folder / "version").write_text(version)
        return folder

    def open(self, folder: Path) -> LoadedModel:
        if not (folder / "version").exists():
            return open_model(settings(), folder)
        if (folder / "version").read_text() in self.broken:
            raise UnusableModel("stored as pickle")
        return Fixed("ok")


def settings(**more: Any) -> ServiceSettings:
    schema = {"task": "binary", "features": {"amount": "number"}, "classes": ["ok", "fraud"], "positive": "fraud"}
    return from_dict(
        {"model": "fraud", "registered_model": "fraud", "tracking_uri": "u", "schema": schema, "files": "f", **more}
    )


class Followed:
    def __init__(self, **more: Any) -> None:
        self.registry, self.changes, self.failures = Pointers(), list[Any](), 0
        self.follower = Follower(
            settings(**more),
            self.registry,
            self.registry.open,
            lambda m: self.changes.append(m.names()),
            self._failed,
        )

    def _failed(self) -> None:
        self.failures += 1

    def look(self, champion: str | None, tag: str | None = None) -> dict[str, Any] | None:
        self.registry.aliases = {CHAMPION: champion} if champion else {}
        self.registry.tags = {TRAFFIC_TAG: tag} if tag else {}
        self.follower.follow()
        return self.follower.current.names() if self.follower.current else None


def serves(champion: str, challenger: str | None = None, share: float = 0.0) -> dict[str, Any]:
    return {"champion": champion, "challenger": challenger, "share": share}


def test_the_alias_is_followed_and_a_version_is_fetched_once() -> None:
    followed = Followed()
    assert followed.look(None) is None
    for _ in range(2):
        assert followed.look("1") == serves("1")
    assert followed.look("1", TRAFFIC) == serves("1", "2", 0.25)
    assert followed.look("2") == serves("2")  # promoted: it is in memory already
    assert followed.registry.fetched == ["1", "2"]
    assert followed.changes == [serves("1"), serves("1", "2", 0.25), serves("2")]
    assert followed.look("1") == serves("1")  # rolled back
    assert followed.registry.fetched == ["1", "2", "1"]


def test_what_cannot_be_loaded_or_reached_changes_nothing() -> None:
    followed = Followed()
    followed.look("1")
    followed.registry.broken = {"2"}
    for _ in range(2):
        assert followed.look("2") == serves("1")
        assert followed.look("1", TRAFFIC) == serves("1")
    assert followed.registry.fetched == ["1", "2"], "it is not asked for at every look"
    followed.registry.away = True
    assert followed.look("3") == serves("1")
    assert followed.failures == 2
    assert followed.changes == [serves("1")]


@pytest.mark.parametrize(
    "tag",
    [
        "no json", "[]", "{}", '{"champion": "1"}', '{"champion": "0", "challenger": "2", "share": 0.5}',
        '{"champion": "1", "challenger": "2", "share": 1.5}', '{"champion": "1", "challenger": "1", "share": 0.5}',
        '{"champion": "1", "challenger": "2", "share": "half"}',
    ],
)  # fmt: skip
def test_a_wish_for_traffic_that_makes_no_sense_is_ignored(tag: str) -> None:
    assert Followed().look("1", tag) == serves("1")


def test_a_baked_model_serves_while_the_registry_is_away_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "version.json").write_text('{"version": "7"}')
    followed = Followed(baked=str(tmp_path))
    followed.registry.away = True
    assert followed.look("8") is None, "a folder without a model is said and not served"
    from retrain.data.frame import features_frame
    from retrain.models.model_files import save_model
    from tests.retrain_data import outcomes, trains_logistic

    rows = outcomes(100)
    frame = features_frame(rows, BINARY)
    save_model(trains_logistic(frame, rows["label"].to_list(), Context()), tmp_path, BINARY, frame.head(2), ())
    (tmp_path / "version.json").write_text('{"version": "7"}')
    assert followed.look("8") == serves("7")
    followed.registry.away = False
    assert followed.look("8") == serves("8")


class Context:
    parameters: Mapping[str, Any] = {}


# -- the outbox


def test_an_outbox_gives_back_what_was_put_in_also_after_a_crash(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, 1000)
    outbox.append([b"1", b"2"])
    outbox.append([b"3"])
    with pytest.raises(OSError, match="temporarily unavailable"):
        Outbox(tmp_path, 1000)
    outbox.close()
    with next(tmp_path.glob("*.ndjson")).open("ab") as torn:
        torn.write(b"4 was never answ")
    again = Outbox(tmp_path, 1000)
    again.append([b"5"])
    taken = again.take()
    assert taken is not None
    assert taken[1] == [b"1", b"2", b"3"]
    assert again.take() == taken, "until it has been shipped"
    again.shipped(taken[0])
    last = again.take()
    assert last is not None
    assert last[1] == [b"5"]
    again.append([b"6"])  # not into a segment that is on its way
    again.shipped(last[0])
    final = again.take()
    assert final is not None
    assert final[1] == [b"6"]
    again.shipped(final[0])
    assert (again.take(), again.size) == (None, 0)
    again.close()


def test_nothing_is_lost_between_who_writes_and_who_ships(tmp_path: Path) -> None:
    outbox, shipped, done = Outbox(tmp_path, 1 << 20), list[bytes](), threading.Event()

    def ship() -> None:
        while not done.is_set() or outbox.size:
            if (taken := outbox.take()) is not None:
                shipped.extend(taken[1])
                outbox.shipped(taken[0])

    shipper = threading.Thread(target=ship)
    shipper.start()
    written = [f"{n}".encode() for n in range(3000)]
    for line in written:
        outbox.append([line])
    done.set()
    shipper.join(30)
    assert shipped == written
    outbox.close()


def test_an_outbox_has_an_end(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, 10)
    outbox.append([b"12345678"])
    with pytest.raises(Full):
        outbox.append([b"12"])
    taken = outbox.take()
    assert taken is not None
    outbox.shipped(taken[0])
    outbox.append([b"12"])
    outbox.close()


def test_files_are_written_as_driftd_reads_them_and_do_not_grow_without_end(tmp_path: Path) -> None:
    files = Files(tmp_path, "host-1")
    files.append([b"{}", b"{}"])
    files.append([b"x" * SEGMENT_BYTES])
    files.append([b"{}"])
    first, second = sorted((tmp_path / "predictions").iterdir())
    assert first.read_bytes().startswith(b"{}\n{}\nxx")
    assert second.read_bytes() == b"{}\n"


# -- settings


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"files": None}, "give [kafka] or files = FOLDER"),
        ({"kafka": {"bootstrap": ["b:9092"]}}, "give [kafka] or files = FOLDER"),
        ({"port": 70000}, "service.toml: port: Input should be less than or equal to 65535"),
        ({"pott": 1}, "service.toml: pott: Extra inputs are not permitted"),
        (
            {"schema": {"task": "ternary", "features": {"a": "number"}}},
            "schema: 'ternary' is not a valid",
        ),
        ({"schema": {"task": "binary", "features": {"a": "text"}}}, "service.toml: schema: 'text' is not a valid"),
        ({"reload_secret": "plain"}, "service.toml: reload_secret"),
    ],
)
def test_mistakes_in_the_settings_are_told(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        settings(**change)
    assert problem in str(raised.value)


def test_the_schema_of_the_settings_is_the_model_s() -> None:
    found = settings().schema
    assert (found.task, found.positive, found.feature_columns) == (Task.BINARY, "fraud", ("feature_amount",))
