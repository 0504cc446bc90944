"""Small stand-ins for the HTTP APIs of orchestrators, as strict as those about what driftd sends; no pytest in here.

Invariant: `submitted` grows by one training a start; its state is what the test, or a real training, makes it.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "s3cret-t0ken"
Answer = tuple[int, Any]


@dataclass
class Training:
    """`about`: run, stage and tracking URI, as the orchestrator was told them."""

    key: str
    id: str
    about: dict[str, str]
    state: str


@dataclass
class StandIn:
    """Answers on `url`. `fails_with`: status codes for the next calls, before anything else."""

    host: str
    queued: str
    on_submit: Callable[[Training], None] = lambda _: None
    submitted: list[Training] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    fails_with: list[int] = field(default_factory=list)
    hidden: bool = False

    def __post_init__(self) -> None:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def _any(self) -> None:
                size = int(self.headers.get("content-length") or 0)
                status, body = stand_in.answer(self.command, self.path, dict(self.headers), self.rfile.read(size))
                data = b"" if body is None else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = _any

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def configured(self, text: str) -> str:
        """The configuration of the docs, pointed at this stand-in."""
        assert self.host in text
        return text.replace(self.host, self.url)

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        if self.fails_with:
            return self.fails_with.pop(0), {"message": f"token {TOKEN} is not wanted"}
        lower = {k.lower(): v for k, v in headers.items()}
        if not self.authorized(lower):
            return 401, {"message": "who are you?"}
        if body and lower.get("content-type") != "application/json":
            return 415, None
        parts = urlsplit(target)
        query = {k: v[0] for k, v in parse_qs(parts.query).items()}
        return self.route(method, parts.path, query, json.loads(body) if body else None)

    def authorized(self, headers: dict[str, str]) -> bool:
        return headers.get("authorization") == f"Bearer {TOKEN}"

    def route(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        raise NotImplementedError

    # -- what they have in common

    def take(self, key: str, about: dict[str, str], id: str | None = None) -> Training:
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", key), key
        training = Training(key, id or str(1000 + len(self.submitted)), about, self.queued)
        self.submitted.append(training)
        self.on_submit(training)
        return training

    def by_key(self, key: str) -> Training | None:
        return next((t for t in self.submitted if t.key == key), None)

    def by_id(self, id: str) -> Training | None:
        return next((t for t in self.submitted if t.id == id), None)


class Airflow(StandIn):
    def route(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        base = "/api/v2/dags/driftd_train/dagRuns"
        if method == "POST" and path == base:
            assert body.keys() == {"dag_run_id", "logical_date", "conf"}
            assert body["logical_date"] is None
            if self.by_key(body["dag_run_id"]):
                return 409, {"detail": "DAGRun already exists"}
            training = self.take(body["dag_run_id"], body["conf"], body["dag_run_id"])
            return 200, {"dag_run_id": training.key, "state": training.state}
        training_ = self.by_id(path.removeprefix(base + "/"))
        if training_ is None:
            return 404, {"detail": "no such DAG run"}
        if method == "PATCH":
            self.cancelled.append(training_.id)
            training_.state = body["state"]
        return 200, {"dag_run_id": training_.key, "state": training_.state}


class Argo(StandIn):
    def route(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        base = "/api/v1/workflows/ml/"
        if method == "POST" and path == base + "submit":
            assert (body["resourceKind"], body["resourceName"]) == ("WorkflowTemplate", "driftd-train")
            options = body["submitOptions"]
            if self.by_key(options["name"]):
                return 409, {"code": 6, "message": "already exists"}
            given = dict(p.split("=", 1) for p in options["parameters"])
            about = {"run": given["run"], "stage": given["stage"], "tracking_uri": given["tracking-uri"]}
            training = self.take(options["name"], about, options["name"])
            return 200, {"metadata": {"name": training.key}, "status": {}}
        name, _, action = path.removeprefix(base).partition("/")
        if (training_ := self.by_id(name)) is None:
            return 404, {"code": 5, "message": "not found"}
        if method == "PUT":
            assert action == "terminate"
            self.cancelled.append(name)
        return 200, {"metadata": {"name": name}, "status": {"phase": training_.state} if training_.state else {}}


class Kubeflow(StandIn):
    def route(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        base = "/pipeline/apis/v2beta1/runs"
        if method == "POST" and path == base:
            assert body["pipeline_version_reference"].keys() == {"pipeline_id", "pipeline_version_id"}
            training = self.take(body["display_name"], body["runtime_config"]["parameters"])
            return 200, {"run_id": training.id, "display_name": training.key, "state": training.state}
        if path == base:
            assert query == {"page_size": "50", "sort_by": "created_at desc"}
            found = [] if self.hidden else [{"run_id": t.id, "display_name": t.key} for t in self.submitted]
            return 200, {"runs": found, "total_size": len(found)} if found else {}
        if method == "POST":
            id, _, action = path.removeprefix(base + "/").partition(":")
            assert action == "terminate"
            self.cancelled.append(id)
            return 200, {}
        training_ = self.by_id(path.removeprefix(base + "/"))
        return (404, {}) if training_ is None else (200, {"run_id": training_.id, "state": training_.state})


class GitHub(StandIn):
    def route(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        base = "/repos/our/models/actions/"
        if method == "POST" and path == base + "workflows/train.yml/dispatches":
            assert body["ref"] == "main"
            assert all(isinstance(v, str) for v in body["inputs"].values())
            self.take(body["inputs"]["key"], body["inputs"])
            return 204, None
        if path == base + "workflows/train.yml/runs":
            assert query == {"event": "workflow_dispatch", "per_page": "50"}
            found = [] if self.hidden else [{"id": int(t.id), "display_title": t.key} for t in self.submitted]
            return 200, {"total_count": len(found), "workflow_runs": found}
        id, _, action = path.removeprefix(base + "runs/").partition("/")
        if (training := self.by_id(id)) is None:
            return 404, {"message": "Not Found"}
        if method == "POST":
            assert action == "cancel"
            self.cancelled.append(id)
            return 202, {}
        going = training.state in ("queued", "in_progress")
        return 200, {
            "id": int(id),
            "status": training.state if going else "completed",
            "conclusion": None if going else training.state,
        }


class GitLab(StandIn):
    def authorized(self, headers: dict[str, str]) -> bool:
        return headers.get("private-token") == TOKEN

    def route(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        base = "/api/v4/projects/42/pipeline"
        if method == "POST" and path == base:
            given = {v["key"]: v["value"] for v in body["variables"]}
            about = {"run": given["MLFLOW_RUN"], "stage": given["STAGE"], "tracking_uri": given["TRACKING_URI"]}
            training = self.take(given["DRIFTD_KEY"], about)
            return 201, {"id": int(training.id), "status": training.state}
        if path == base + "s":
            found = [t for t in self.submitted if t.key == query["name"] and not self.hidden]
            return 200, [{"id": int(t.id), "name": t.key, "status": t.state} for t in found]
        id, _, action = path.removeprefix(base + "s/").partition("/")
        if (training_ := self.by_id(id)) is None:
            return 404, {"message": "404 Not found"}
        if method == "POST":
            assert action == "cancel"
            self.cancelled.append(id)
        return 200, {"id": int(id), "status": training_.state}


def stand_ins() -> dict[str, Callable[[], StandIn]]:
    """By the heading of the example in docs/trainers.md."""
    return {
        "Airflow": lambda: Airflow("https://airflow.internal", "queued"),
        "Argo Workflows": lambda: Argo("https://argo.internal", ""),
        "Kubeflow Pipelines": lambda: Kubeflow("https://kubeflow.internal", "PENDING"),
        "GitHub Actions": lambda: GitHub("https://api.github.com", "queued"),
        "GitLab CI": lambda: GitLab("https://gitlab.internal", "created"),
    }
