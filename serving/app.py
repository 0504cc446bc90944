"""The routes: predict, health, what serves, metrics, and driftd's webhook.

Invariant: a request is answered by one state of `Models`, and answered only once its events are in the outbox.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from retrain.terms.schema import ModelSchema
from serving.contract import Answers, answers, events, request_of, to_frame
from serving.models import Models
from serving.outbox import Full

log = structlog.get_logger()


class Sink(Protocol):
    """Where events go before a request is answered."""

    @property
    def size(self) -> int: ...

    def append(self, events: list[bytes]) -> None: ...


class ServiceMetrics:
    """Every name the service exports."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        self.requests = Counter("scoring_requests", "Requests by status", ("status",), registry=r)
        self.predictions = Counter("scoring_predictions", "Rows answered, by who did", ("role",), registry=r)
        self.seconds = Histogram("scoring_request_seconds", "Time to answer", registry=r)
        self.model_info = Gauge("scoring_model_info", "What serves", ("version", "role"), registry=r)
        self.share = Gauge("scoring_challenger_share_ratio", "Share that the challenger answers", registry=r)
        self.changes = Counter(
            "scoring_model_changes", "Changes of what serves, and failures to", ("outcome",), registry=r
        )
        self.events = Counter("scoring_events", "Prediction events by outcome", ("outcome",), registry=r)
        self.shipping_failures = Counter("scoring_shipping_failures", "Times that the broker took nothing", registry=r)
        self.waiting = Gauge("scoring_outbox_bytes", "Events that wait for the broker", registry=r)
        for outcome in ("written", "shipped", "lost"):
            self.events.labels(outcome)
        for outcome in ("ok", "failed"):
            self.changes.labels(outcome)
        for role in ("champion", "challenger"):
            self.predictions.labels(role)

    def changed(self, models: Models) -> None:
        self.changes.labels("ok").inc()
        self.model_info.clear()
        self.model_info.labels(models.champion.name, "champion").set(1)
        if models.challenger is not None:
            self.model_info.labels(models.challenger.name, "challenger").set(1)
        self.share.set(models.share)


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes work with. `current` answers what serves, None before there is anything."""

    schema: ModelSchema
    max_rows: int
    current: Callable[[], Models | None]
    poke: Callable[[], None]
    sink: Sink
    metrics: ServiceMetrics
    secret: str | None


def build_app(service: Service) -> FastAPI:
    schema, metrics = service.schema, service.metrics
    app = FastAPI(title=f"{schema.model}: scoring", docs_url=None, redoc_url=None)
    lost = threading.Event()

    @app.middleware("http")
    async def count(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        if request.url.path == "/predict":
            metrics.requests.labels(str(response.status_code)).inc()
        return response

    @app.exception_handler(RequestValidationError)
    async def refused(_: Request, exc: RequestValidationError) -> JSONResponse:
        """Where and why; not what was sent, which need not even be JSON."""
        return JSONResponse({"detail": [{"loc": e["loc"], "msg": e["msg"]} for e in exc.errors()]}, 422)

    def predict(body: Any) -> Answers:
        began = time.perf_counter()
        models = service.current()
        if models is None:
            raise HTTPException(503, "no model has been loaded yet")
        rows = body.rows
        ids = [row.prediction_id for row in rows]
        try:
            said, versions = models.predict(ids, to_frame(rows, schema), schema)
        except Exception as exc:
            log.exception("model_failed", **models.names())
            raise HTTPException(500, f"the model cannot answer these rows: {type(exc).__name__}") from exc
        given = answers(rows, said, versions, schema)
        took = (time.perf_counter() - began) * 1000
        try:
            service.sink.append(events(rows, given, schema, datetime.now(UTC), took))
            metrics.events.labels("written").inc(len(rows))
            lost.clear()
        except (Full, OSError):
            metrics.events.labels("lost").inc(len(rows))
            lost.set()
        mine = sum(version == models.champion.name for version in versions)
        metrics.predictions.labels("champion").inc(mine)
        metrics.predictions.labels("challenger").inc(len(rows) - mine)
        metrics.seconds.observe(time.perf_counter() - began)
        return Answers(model=schema.model, predictions=given)

    predict.__annotations__["body"] = request_of(schema, service.max_rows)  # known only now
    app.post("/predict")(predict)

    @app.get("/healthz")
    def healthz() -> dict[str, bool]:
        return {"alive": True}

    @app.get("/readyz")
    def readyz() -> JSONResponse:
        models = service.current()
        problems = [text for bad, text in ((models is None, "no model"), (lost.is_set(), "events are lost")) if bad]
        return JSONResponse({"ready": models is not None, "problems": problems}, 200 if models else 503)

    @app.get("/model")
    def model() -> dict[str, Any]:
        models = service.current()
        if models is None:
            raise HTTPException(503, "no model has been loaded yet")
        return {"model": schema.model, **models.names()}

    @app.get("/metrics")
    def exposition() -> Response:
        metrics.waiting.set(service.sink.size)
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/reload")
    async def reload(request: Request) -> dict[str, bool]:
        """driftd's webhook: the registry is asked at once."""
        if service.secret is None:
            raise HTTPException(403, "set reload_secret to allow it")
        expected = "sha256=" + hmac.new(service.secret.encode(), await request.body(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, request.headers.get("x-driftd-signature", "")):
            raise HTTPException(401, "the signature is not right")
        service.poke()
        return {"asked": True}

    return app
