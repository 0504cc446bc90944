"""A small HTTP server that stands in for Grafana's annotation API; no pytest in here."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "glsa_0123"


@dataclass
class Grafana:
    """Grafana's `POST /api/annotations` below `/grafana`, and ways to be broken."""

    status: int = 200
    body: Any = None
    delay: float = 0.0
    refuse: str = ""
    got: list[dict[str, Any]] = field(default_factory=list)
    asked: int = 0

    def __enter__(self) -> Grafana:
        grafana = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                grafana.asked += 1
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                time.sleep(grafana.delay)
                self._answer(*grafana.answer(self.path, self.headers.get("Authorization", ""), body))

            def do_GET(self) -> None:
                self._answer(200, [])  # what a redirected POST ends as: the list of annotations

            def _answer(self, status: int, body: Any) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                if status == 301:
                    self.send_header("Location", "/grafana/api/annotations")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """The client gave up waiting: that is what the test is about."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/grafana"

    def answer(self, path: str, authorization: str, body: dict[str, Any]) -> tuple[int, Any]:
        if self.status != 200 or self.body is not None:
            return self.status, self.body
        if path != "/grafana/api/annotations":
            return 404, {"message": "Not found"}
        if authorization != f"Bearer {TOKEN}":
            return 401, {"message": "Invalid API key"}
        if self.refuse and self.refuse in body["text"]:
            return 400, {"message": "bad request data"}
        self.got.append(body)
        return 200, {"message": "Annotation added", "id": len(self.got)}

    @property
    def texts(self) -> list[str]:
        return [body["text"] for body in self.got]
