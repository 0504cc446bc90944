"""What goes wrong behind the HTTP port is told as JSON, with the status that says whose fault it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from monitor.base.errors import TransientError
from monitor.metrics import Metrics
from monitor.web.app import LONGEST, build_app
from retrain.terms.errors import LostRace, UnknownJob

AUTHORIZED = {"authorization": "Bearer hush"}


class Failing:
    """Every action of the daemon fails in the same way."""

    def __init__(self) -> None:
        self.error: Exception = LookupError("no model 'x'")

    def __getattr__(self, name: str) -> Any:
        def fail(*_: object) -> Any:
            raise self.error

        return fail


@pytest.fixture
def failing() -> Failing:
    return Failing()


@pytest.fixture
def client(failing: Failing, tmp_path: Path) -> Iterator[TestClient]:
    app = build_app(Metrics(), failing, tmp_path / "reports", "hush")
    yield TestClient(app, raise_server_exceptions=False)


GETS = [
    "/", "/models/m", "/api/v1/fleet", "/api/v1/status", "/api/v1/models/m", "/api/v1/models/m/timeline",
    "/api/v1/models/m/features?version=1&end=1772449200", "/api/v1/models/m/serving", "/api/v1/models/m/traffic",
    "/api/v1/audit", "/jobs/j/card", "/healthz", "/readyz",
]  # fmt: skip
POSTS = [
    "/api/v1/models/m/retrain", "/api/v1/models/m/rollback", "/api/v1/models/m/pause", "/api/v1/models/m/resume",
    "/api/v1/pause", "/api/v1/resume", "/api/v1/jobs/j/approve", "/api/v1/jobs/j/reject", "/api/v1/alerts",
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (LookupError("no such thing"), 404, "no such thing"),
        (UnknownJob("no job 'j'"), 404, "no job 'j'"),
        (LostRace("it is promoted by now"), 409, "it is promoted by now"),
        (TransientError("the lake is away"), 503, "the lake is away"),
        (ZeroDivisionError("secret 42"), 500, "ZeroDivisionError: see the log of driftd"),
    ],
)
def test_every_failure_is_json_with_its_status(
    client: TestClient, failing: Failing, error: Exception, status: int, told: str
) -> None:
    failing.error = error
    answers = [client.get(path) for path in GETS] + [client.post(path, json={}, headers=AUTHORIZED) for path in POSTS]
    assert [(a.status_code, a.json()) for a in answers] == [(status, {"error": told})] * len(answers)


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "the body is not JSON"),
        (b"[]", "must be a JSON object"),
        (b"\xff\xfe", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b'{"actor": {"a": 1}}', "actor must be a text"),
        (b'{"reason": "' + b"x" * (LONGEST + 1) + b'"}', f"reason must be a text of at most {LONGEST} characters"),
    ],
)
def test_a_body_that_is_none_is_refused_by_what_is_wrong(
    client: TestClient, path: str, content: bytes, told: str
) -> None:
    answer = client.post(path, content=content, headers=AUTHORIZED)
    assert answer.status_code == 400
    assert told in answer.json()["error"]


@pytest.mark.parametrize("path", ["/nowhere", "/api/v1/nowhere", "/static/nowhere.js", "/reports/nowhere.html"])
def test_what_is_not_there_is_json_too(client: TestClient, path: str) -> None:
    assert (client.get(path).status_code, client.get(path).json()) == (404, {"error": "Not Found"})
    assert client.get("/api/v1/pause").json() == {"error": "Method Not Allowed"}
    assert client.post("/api/v1/pause", json={}).json()["error"].startswith("send the header Authorization")
