"""A tracking server that answers as MLflow does not: refusals, pages, loops, nothing; no pytest in here."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NOTHING = -1
"""A status: the line is closed without a word."""


@dataclass(frozen=True, slots=True)
class OddAnswer:
    status: int
    body: bytes = b""
    kind: str = "text/html"
    location: str | None = None

    def __str__(self) -> str:
        return f"{self.status} {self.body[:30]!r}{self.location or ''}"


PAGE = b"<!doctype html><html><body>Log in, please</body></html>"
REFUSALS = [OddAnswer(status, PAGE) for status in (400, 401, 403, 404, 405, 407, 410, 418, 451)] + [
    OddAnswer(401, b'{"error_code": "UNAUTHENTICATED", "message": "token expired"}', "application/json"),
    OddAnswer(403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}', "application/json"),
    OddAnswer(403, b'{"message": "Forbidden"}', "application/json"),
    OddAnswer(404, b'{"error": {"code": 404, "message": "no Route matched"}}', "application/json"),
    OddAnswer(404, b'{"error_code": "ENDPOINT_NOT_FOUND", "message": "no"}', "application/json"),
    OddAnswer(404, b"404 page not found", "text/plain"),
]
FAILURES = [OddAnswer(status, PAGE) for status in (429, 500, 502, 503, 504)]
ODDITIES = [
    OddAnswer(200, PAGE),
    OddAnswer(200),
    OddAnswer(200, b"[]", "application/json"),
    OddAnswer(200, b"null", "application/json"),
    OddAnswer(200, b'{"status": "ok"}', "application/json"),
    OddAnswer(200, b'{"registered_model": "yes", "run": 1, "model_version": []}', "application/json"),
    OddAnswer(200, b'{"registered_model": {"name": "another"}}', "application/json"),
    OddAnswer(200, b'{"registered_model": {"name":', "application/json"),
    OddAnswer(200, b"\xff\xfe\x00", "application/octet-stream"),
    OddAnswer(204),
    OddAnswer(302, location="/"),
    OddAnswer(307, location="/again"),
    OddAnswer(301),
    OddAnswer(NOTHING),
]
ANSWERS = [*REFUSALS, *FAILURES, *ODDITIES]


class OddMlflow:
    """Gives `answer` to whatever it is asked."""

    def __init__(self) -> None:
        self.answer, self.asked = ANSWERS[0], 0
        odd = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                odd.asked += 1
                self.rfile.read(int(self.headers.get("content-length", 0)))
                answer = odd.answer
                if answer.status == NOTHING:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                self.send_header("content-type", answer.kind)
                self.send_header("content-length", str(len(answer.body)))
                if answer.location is not None:
                    self.send_header("location", answer.location)
                self.end_headers()
                self.wfile.write(answer.body)

            do_POST = do_PATCH = do_DELETE = do_PUT = do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
