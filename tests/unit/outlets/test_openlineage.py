"""A retrain job as a run of OpenLineage: what it read, what it made, and its end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from monitor.base.errors import ConfigError
from monitor.config.loading import from_dict
from monitor.metrics import Metrics
from monitor.outlets.openlineage import OpenLineage
from monitor.outlets.sender import Sender
from retrain.control.store import Store, open_store
from retrain.terms.states import JobState as S
from tests.builders import HOUR, NOW
from tests.retrain_data import spec

SNAPSHOT = {
    "outcomes": "s3://bucket/driftd/fraud/outcomes", "delta_version": 7, "git_commit": "abc",
    "train": {"rows": 900}, "holdout": {"rows": 300},
}  # fmt: skip


class Server:
    """Keeps the events it is sent; answers with `status`."""

    def __init__(self) -> None:
        self.status, self.events, self.keys = 201, list[dict[str, Any]](), list[str | None]()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if server.status < 300:
                    server.events.append(json.loads(body))
                    server.keys.append(self.headers.get("authorization"))
                self.send_response(server.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/api/v1/lineage"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = open_store(f"sqlite:///{tmp_path / 'control.db'}")
    yield made
    made.engine.dispose()


def sender(server: Server, store: Store) -> Sender:
    outlet = OpenLineage(server.url, "ml", "key-1", store.find)
    made = Sender(outlet, store.engine, Metrics(), threading.Event(), lambda: True)
    made.begin()
    return made


def run(store: Store, folder: Path, *path: S, **result: Any) -> None:
    store.submit(spec(folder, tracking_uri="http://mlflow:5000"), NOW)
    at = S.REQUESTED
    for state in path:
        if at is S.SNAPSHOT:
            store.update("job-1", None, result=result)
        store.advance("job-1", at, state, f"to {state}", NOW, error="no such luck" if state is S.FAILED else None)
        at = state


def well_formed(event: dict[str, Any]) -> None:
    """What the format asks of every event and facet."""
    assert event["producer"].startswith("https://")
    assert event["schemaURL"].startswith("https://openlineage.io/spec/")
    assert {"eventTime", "eventType", "run", "job"} <= event.keys()
    UUID(event["run"]["runId"])
    datasets = [*event["inputs"], *event["outputs"]]
    assert all(d["namespace"] and d["name"] for d in datasets)
    holders = [event["run"]["facets"], event["job"]["facets"]]
    holders += [d[k] for d in datasets for k in ("facets", "inputFacets", "outputFacets") if k in d]
    for facet in (facet for holder in holders for facet in holder.values()):
        assert facet["_producer"] == event["producer"]
        assert facet["_schemaURL"].startswith("https://openlineage.io/spec/facets/")


def test_a_promotion_tells_what_was_read_and_what_was_made(server: Server, store: Store, tmp_path: Path) -> None:
    teller = sender(server, store)
    run(store, tmp_path, S.SNAPSHOT, S.TRAINING, S.EVALUATING, S.PROMOTED, snapshot=SNAPSHOT, version="8")
    teller.send(NOW)
    for event in server.events:
        well_formed(event)
    assert [e["eventType"] for e in server.events] == ["START", "RUNNING", "COMPLETE"]
    assert len({e["run"]["runId"] for e in server.events}) == 1
    last = server.events[-1]
    assert (last["job"]["namespace"], last["job"]["name"]) == ("ml", "retrain.fraud")
    (read,), (made,) = last["inputs"], last["outputs"]
    assert (read["namespace"], read["name"]) == ("s3://bucket", "driftd/fraud/outcomes")
    assert read["facets"]["version"]["datasetVersion"] == "7"
    assert [f["name"] for f in read["facets"]["schema"]["fields"]] == ["feature_amount", "feature_kind", "feature_new"]
    assert read["inputFacets"]["inputStatistics"]["rowCount"] == 1200
    assert (made["namespace"], made["name"]) == ("http://mlflow:5000", "models/fraud")
    assert made["facets"]["version"]["datasetVersion"] == "8"
    assert last["job"]["facets"]["sourceCodeLocation"]["version"] == "abc"
    assert set(server.keys) == {"Bearer key-1"}


def test_a_failure_and_a_rejection_make_nothing(server: Server, store: Store, tmp_path: Path) -> None:
    teller = sender(server, store)
    run(store, tmp_path, S.SNAPSHOT, S.TRAINING, S.FAILED, snapshot=SNAPSHOT)
    teller.send(NOW)
    assert [e["eventType"] for e in server.events] == ["START", "RUNNING", "FAIL"]
    assert server.events[-1]["run"]["facets"]["errorMessage"]["message"] == "no such luck"
    assert server.events[-1]["outputs"] == []


def test_a_server_that_is_away_hears_it_later_and_one_that_refuses_holds_nothing_up(
    server: Server, store: Store, tmp_path: Path
) -> None:
    teller = sender(server, store)
    run(store, tmp_path, S.SNAPSHOT, S.REJECTED)
    server.status = 503
    teller.send(NOW)
    assert server.events == []
    server.status = 201
    teller.send(NOW + HOUR)
    assert [e["eventType"] for e in server.events] == ["START", "COMPLETE"]
    again = sender(server, store)
    again.send(NOW + HOUR)
    assert len(server.events) == 2


def test_the_table_is_checked() -> None:
    models = {"fraud": {"task": "regression", "features": {"a": "number"}}}
    with pytest.raises(ConfigError, match=r"openlineage.url"):
        from_dict({"openlineage": {"url": "marquez:5000"}, "models": models})
    assert from_dict(
        {"openlineage": {"url": "http://marquez:5000/api/v1/lineage"}, "models": models}
    ).config.openlineage
