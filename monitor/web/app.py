"""Routes of the HTTP port. Handlers are thin: they read through `status` and act through the ledger and the store.

What the answers of `/api/v1/models/{model}/timeline` and `/features` hold is said by `views.Views`, whose dicts they
are; names in them are stable.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import orjson
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from monitor.base.errors import TransientError
from monitor.metrics import Metrics
from monitor.web.page import CONTENT_SECURITY_POLICY, render
from monitor.web.views import days_of
from retrain.base.redaction import redacted
from retrain.terms.errors import LostRace, UnknownJob

LONGEST = 2000
"""Characters of what a person gives for the record."""


class WebActions(Protocol):
    """What the routes need of the daemon. `ready` answers {component: problem or ""}; `faults` what has failed and is
    left out, which makes nobody unready."""

    def alive(self) -> str: ...
    def ready(self) -> Mapping[str, str]: ...
    def faults(self) -> list[str]: ...
    def status(self) -> dict[str, Any]: ...
    def fleet(self) -> dict[str, Any]: ...
    def timeline(self, model: str, days: int) -> dict[str, Any]: ...
    def features(self, model: str, version: str, end: datetime) -> dict[str, Any]: ...
    def retrain(self, model: str, actor: str, reason: str, git_ref: str | None) -> dict[str, Any]: ...
    def alerts(self, body: dict[str, Any]) -> dict[str, Any]: ...
    def pause(self, model: str, actor: str, reason: str, length: str | None) -> dict[str, Any]: ...
    def resume(self, model: str, actor: str, reason: str) -> dict[str, Any]: ...
    def approve(self, job: str, actor: str, reason: str) -> None: ...
    def reject(self, job: str, actor: str, reason: str) -> None: ...
    def rollback(self, model: str, actor: str, reason: str, to: str) -> dict[str, Any]: ...
    def serving(self, model: str, at: datetime | None) -> dict[str, Any]: ...
    def traffic(self, model: str) -> dict[str, Any]: ...
    def card(self, job: str) -> str: ...
    def audit(self, model: str | None, before: int | None, limit: int) -> dict[str, Any]: ...


def build_app(metrics: Metrics, actions: WebActions, reports: Path, token: str | None) -> Starlette:
    """The ASGI application. Without a token every call that changes state answers 403."""

    async def metrics_route(_: Request) -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    async def healthz(_: Request) -> Response:
        problem = actions.alive()
        return JSONResponse({"alive": not problem, "problem": problem}, status_code=503 if problem else 200)

    async def readyz(_: Request) -> Response:
        components = dict(actions.ready())
        bad = {name: text for name, text in components.items() if text}
        told = {n: t or "ok" for n, t in components.items()}
        body = {"ready": not bad, "components": told, "faults": actions.faults()}
        return JSONResponse(body, status_code=503 if bad else 200)

    async def fleet_page(_: Request) -> Response:
        return _page(render("fleet", await run_in_threadpool(actions.fleet)))

    async def model_page(request: Request) -> Response:
        name, days = request.path_params["model"], _days(request)
        return _page(render("model", await run_in_threadpool(actions.timeline, name, days)))

    async def fleet(_: Request) -> Response:
        return OrjsonResponse(await run_in_threadpool(actions.fleet))

    async def timeline(request: Request) -> Response:
        name, days = request.path_params["model"], _days(request)
        return OrjsonResponse(await run_in_threadpool(actions.timeline, name, days))

    async def features(request: Request) -> Response:
        version, at = request.query_params.get("version"), _instant(request.query_params.get("end", ""))
        if not version or at is None:
            raise HTTPException(400, "give version= and end= (the window's end, in seconds since 1970)")
        return OrjsonResponse(await run_in_threadpool(actions.features, request.path_params["model"], version, at))

    async def status(_: Request) -> Response:
        return JSONResponse(await run_in_threadpool(actions.status))

    async def model(request: Request) -> Response:
        found = (await run_in_threadpool(actions.status))["models"]
        name = request.path_params["model"]
        if name not in found:
            raise HTTPException(404, f"no model {name!r}; configured are {', '.join(sorted(found))}")
        return JSONResponse(found[name])

    async def retrain(request: Request) -> Response:
        name, body = request.path_params["model"], await _body(request)
        reason, git_ref = str(body.get("reason", "")), str(body["git_ref"]) if body.get("git_ref") else None
        answer = await run_in_threadpool(actions.retrain, name, _actor(body), reason, git_ref)
        return JSONResponse(answer, status_code=202)

    async def alerts(request: Request) -> Response:
        body = await _body(request)
        try:
            return JSONResponse(await run_in_threadpool(actions.alerts, body))
        except ValidationError as exc:
            told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors())
            raise HTTPException(400, f"this is no notification of Alertmanager: {told}") from exc

    async def rollback(request: Request) -> Response:
        name, body = request.path_params["model"], await _body(request)
        reason, to = str(body.get("reason", "")), str(body.get("to") or "")
        return JSONResponse(await run_in_threadpool(actions.rollback, name, _actor(body), reason, to))

    async def serving(request: Request) -> Response:
        name, text = request.path_params["model"], request.query_params.get("at")
        at = None if text is None else _instant(text)
        if text is not None and at is None:
            raise HTTPException(400, "at= is a moment in seconds since 1970")
        return JSONResponse(await run_in_threadpool(actions.serving, name, at))

    async def traffic(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(actions.traffic, request.path_params["model"]))

    async def audit(request: Request) -> Response:
        """Newest first; the number of the last one, as `before`, gives the page after it."""
        model, before = request.query_params.get("model"), _whole(request, "before", None, 2**31)
        limit = _whole(request, "limit", 100, 1000)
        return JSONResponse(await run_in_threadpool(actions.audit, model, before, limit))

    async def card(request: Request) -> Response:
        page = await run_in_threadpool(actions.card, request.path_params["job"])
        return HTMLResponse(page, headers={"Content-Security-Policy": _SANDBOX})

    async def pause(request: Request) -> Response:
        name, body = request.path_params.get("model", ""), await _body(request)
        reason, length = str(body.get("reason", "")), body.get("for")
        try:
            return JSONResponse(await run_in_threadpool(actions.pause, name, _actor(body), reason, length))
        except ValueError as exc:
            raise HTTPException(400, f"for: {exc}") from exc

    async def resume(request: Request) -> Response:
        name, body = request.path_params.get("model", ""), await _body(request)
        return JSONResponse(await run_in_threadpool(actions.resume, name, _actor(body), str(body.get("reason", ""))))

    async def approve(request: Request) -> Response:
        body = await _body(request)
        await run_in_threadpool(actions.approve, request.path_params["job"], _actor(body), str(body.get("reason", "")))
        return JSONResponse({"approved": request.path_params["job"]})

    async def reject(request: Request) -> Response:
        job, body = request.path_params["job"], await _body(request)
        await run_in_threadpool(actions.reject, job, _actor(body), str(body.get("reason", "")))
        return JSONResponse({"rejected": job})

    async def _body(request: Request) -> dict[str, Any]:
        _authorize(request, token)
        if not await request.body():
            return {}
        try:
            body = await request.json()
        except (ValueError, RecursionError) as exc:
            raise HTTPException(400, f"the body is not JSON: {exc}") from exc
        if not isinstance(body, dict):
            raise HTTPException(400, "the body must be a JSON object")
        for name in ("actor", "reason", "to", "git_ref"):
            if (given := body.get(name)) is not None and not (isinstance(given, str) and len(given) <= LONGEST):
                raise HTTPException(400, f"{name} must be a text of at most {LONGEST} characters")
        return dict(redacted(body))  # it goes on record

    reports.mkdir(parents=True, exist_ok=True)
    return Starlette(
        routes=[
            Route("/", fleet_page),
            Route("/models/{model}", model_page),
            Route("/jobs/{job}/card", card),
            Route("/metrics", metrics_route),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/api/v1/status", status),
            Route("/api/v1/fleet", fleet),
            Route("/api/v1/models/{model}/timeline", timeline),
            Route("/api/v1/models/{model}/features", features),
            Route("/api/v1/models/{model}/serving", serving),
            Route("/api/v1/models/{model}/traffic", traffic),
            Route("/api/v1/models/{model}", model),
            Route("/api/v1/models/{model}/retrain", retrain, methods=["POST"]),
            Route("/api/v1/models/{model}/rollback", rollback, methods=["POST"]),
            Route("/api/v1/models/{model}/pause", pause, methods=["POST"]),
            Route("/api/v1/models/{model}/resume", resume, methods=["POST"]),
            Route("/api/v1/audit", audit),
            Route("/api/v1/alerts", alerts, methods=["POST"]),
            Route("/api/v1/pause", pause, methods=["POST"]),
            Route("/api/v1/resume", resume, methods=["POST"]),
            Route("/api/v1/jobs/{job}/approve", approve, methods=["POST"]),
            Route("/api/v1/jobs/{job}/reject", reject, methods=["POST"]),
            Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
            Mount("/reports", _Sandboxed(directory=reports)),
        ],
        exception_handlers={
            HTTPException: _problem,
            TransientError: _unavailable,
            LookupError: _not_found,
            UnknownJob: _not_found,
            ValueError: _conflict,
            LostRace: _conflict,
            Exception: _broken,
        },
    )


class OrjsonResponse(Response):
    """Datetimes and long columns of numbers, several times faster than the standard library."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


_SANDBOX = "sandbox allow-popups allow-downloads"


class _Sandboxed(StaticFiles):
    """Reports hold scripts of Evidently's and text from events: they run, but not as part of this page."""

    async def get_response(self, path: str, scope: Any) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Content-Security-Policy"] = f"{_SANDBOX} allow-scripts"
        return response


def _days(request: Request) -> int:
    try:
        return days_of(request.query_params.get("days"))
    except ValueError as exc:
        raise HTTPException(400, str(exc)) from exc


def _whole(request: Request, name: str, default: Any, most: int) -> Any:
    if (text := request.query_params.get(name)) is None:
        return default
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise HTTPException(400, f"{name}= is a whole number from 1 to {most} (got {text!r})")
    return int(text)


def _instant(text: str) -> datetime | None:
    try:
        return datetime.fromtimestamp(int(text), UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _page(html: str) -> Response:
    return HTMLResponse(
        html, headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY, "Referrer-Policy": "no-referrer"}
    )


def _actor(body: Mapping[str, Any]) -> str:
    return str(body.get("actor") or "http")


def _authorize(request: Request, token: str | None) -> None:
    if token is None:
        raise HTTPException(403, "set http.token to allow calls that change state")
    given = request.headers.get("authorization", "")
    if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        raise HTTPException(401, "send the header Authorization: Bearer <http.token>")


async def _problem(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    return JSONResponse({"error": exc.detail}, status_code=exc.status_code)


async def _unavailable(_: Request, exc: Exception) -> Response:
    return JSONResponse({"error": str(exc)}, status_code=503)


async def _not_found(_: Request, exc: Exception) -> Response:
    return JSONResponse({"error": str(exc)}, status_code=404)


async def _conflict(_: Request, exc: Exception) -> Response:
    return JSONResponse({"error": str(exc)}, status_code=409)


async def _broken(_: Request, exc: Exception) -> Response:
    """A bug: the server logs it, with its traceback."""
    return JSONResponse({"error": f"{type(exc).__name__}: see the log of driftd"}, status_code=500)
