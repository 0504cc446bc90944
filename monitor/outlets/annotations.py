"""Sends what happened to the models to Grafana, as annotations on its dashboards.

Invariant: an activity is marked as sent only after Grafana has taken it, in the control database: so none is lost by a
restart or an outage, and only one whose mark was lost with the process is sent twice. What happened before the first
start with `[grafana]` is never sent.
"""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Protocol
from urllib.parse import urlsplit

import requests
import structlog
from grafana_api.grafana_api import GrafanaAPI, GrafanaException
from sqlalchemy import Column, Engine, String, Table, delete, insert, select, update

from monitor.base.kinds import ActivityKind
from monitor.jobs.activity import Activity
from monitor.metrics import Metrics
from retrain.control.database import UtcDateTime, metadata, reading, writing

log = structlog.get_logger()

SENT_KINDS = frozenset(ActivityKind) - {ActivityKind.RETRAIN_SUPPRESSED, ActivityKind.AWAITING_APPROVAL}
"""What is worth a line on every graph. A refusal may come with every window; the dashboards count those."""
TIMEOUT = 5.0
"""Seconds for Grafana to connect, and again to answer."""
MAX_AGE = timedelta(days=7)
"""Older activities are not sent any more: after a long time without `[grafana]`, a flood helps nobody."""
OVERLAP = timedelta(hours=1)
"""The cursor stays this far behind: records carry the time their round began, and replicas' clocks differ."""
ROUND = 100
"""Annotations sent in one round at most."""
_RECENT, _BACKLOG = 200, 10_000
_TEXT = 2000
_FIRST_WAIT, _LONGEST_WAIT = timedelta(seconds=5), timedelta(minutes=5)

_cursor = Table(
    "monitor_annotation_cursor",
    metadata,
    Column("name", String(20), primary_key=True),
    Column("since", UtcDateTime, nullable=False),  # everything before it was sent, or is never to be
)
_sent = Table(
    "monitor_annotations_sent",
    metadata,
    Column("activity", String(200), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
)

Feed = Callable[[str, int], list[Activity]]
"""(model, limit) -> its newest activities, as `monitor.jobs.activity.activities` reads them."""


class AnnotationRefused(Exception):
    """Grafana did not take an annotation; the text says what to change. `content`: only this one was refused."""

    def __init__(self, text: str, *, content: bool = False):
        super().__init__(text)
        self.content = content


class AnnotationSink(Protocol):
    def add(self, annotation: Mapping[str, Any]) -> None:
        """Raises AnnotationRefused."""


# -- pure


def annotation(activity: Activity, dashboard: str | None = None) -> dict[str, Any]:
    """The body of `POST /api/annotations`. Grafana renders the text as HTML, so a reason such as `a < b` is escaped."""
    text = f"{activity.model}: {activity.text}"
    text = text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"
    found: dict[str, Any] = {
        "time": int(activity.at.timestamp() * 1000),
        "tags": ["driftd", activity.kind.value, f"model:{activity.model}"],
        "text": html.escape(text, quote=False),
    }
    return found | ({"dashboardUID": dashboard} if dashboard else {})


def unsent(found: Iterable[Activity], sent: Collection[str], since: datetime) -> list[Activity]:
    """What is to be sent now, oldest first."""
    due = [a for a in found if a.kind in SENT_KINDS and a.at >= since and a.id not in sent]
    return sorted(due, key=lambda a: (a.at, a.id))


# -- edges


class GrafanaAnnotations:
    """Grafana's annotation API. Constructed without I/O."""

    def __init__(self, url: str, token: str, timeout: float = TIMEOUT):
        parts = urlsplit(url)
        prefix = parts.path.strip("/")
        self._api = GrafanaAPI(
            token,
            host=parts.netloc,  # with the port: the library puts no port behind it unless it is told one
            protocol=parts.scheme,
            url_path_prefix=f"{prefix}/" if prefix else "",
            timeout=timeout,
        )
        self._url = url

    def add(self, annotation: Mapping[str, Any]) -> None:
        # not `Annotations.add_annotation` of the library: that knows numeric dashboard ids only, which Grafana gave up
        try:
            answer = self._api.POST("/annotations", json=dict(annotation))
        except GrafanaException as exc:
            raise AnnotationRefused(self._refusal(exc), content=exc.status_code == 400) from exc
        except requests.JSONDecodeError as exc:
            raise AnnotationRefused(f"{self._url}: the answer is not JSON: is grafana.url right?") from exc
        except requests.RequestException as exc:
            raise AnnotationRefused(f"{self._url}: {type(exc).__name__}: is it up, and grafana.url right?") from exc
        except TypeError as exc:  # the library indexes an error's body as if it were always an object
            raise AnnotationRefused(f"{self._url}: an error that is not Grafana's: is grafana.url right?") from exc
        if not (isinstance(answer, dict) and "id" in answer):  # a redirect turns the POST into a GET, which is a list
            raise AnnotationRefused(f"{self._url}: redirected or not Grafana: is grafana.url right?")

    def _refusal(self, exc: GrafanaException) -> str:
        hints = {
            401: "the token is wrong or has expired: change grafana.token",
            403: "the token may not write annotations: give its service account the role Editor",
            404: "no such API or dashboard: change grafana.url or grafana.dashboard",
        }
        return f"{self._url}: {exc.status_code}: {hints.get(exc.status_code, str(exc.message)[:200])}"


class SentLog:
    """What was sent, in the control database. TransientError when that is away."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def since(self, now: datetime) -> datetime:
        """Activities before this are done with. The first call ever sets it to now."""
        with reading(self._engine) as db:
            found = db.scalar(select(_cursor.c.since))
        if found is None:
            with writing(self._engine) as db:
                found = db.scalar(select(_cursor.c.since))
                if found is None:
                    db.execute(insert(_cursor).values(name="grafana", since=now))
        return max(found or now, now - MAX_AGE)

    def sent(self, since: datetime) -> set[str]:
        with reading(self._engine) as db:
            return set(db.scalars(select(_sent.c.activity).where(_sent.c.at >= since)))

    def mark(self, activity: Activity) -> None:
        with writing(self._engine) as db:
            if db.scalar(select(_sent.c.activity).where(_sent.c.activity == activity.id)) is None:
                db.execute(insert(_sent).values(activity=activity.id, at=activity.at))

    def move(self, since: datetime) -> None:
        """Everything before `since` was sent: what was remembered of it is forgotten."""
        with writing(self._engine) as db:
            db.execute(update(_cursor).values(since=since))
            db.execute(delete(_sent).where(_sent.c.at < since))


# -- shell


class Annotator:
    """Call `send` now and then, on one replica at a time and in one thread at a time."""

    def __init__(
        self,
        sink: AnnotationSink,
        sent: SentLog,
        feed: Feed,
        metrics: Metrics,
        stop: threading.Event,
        dashboard: str | None = None,
    ):
        self._sink = sink
        self._log = sent
        self._feed = feed
        self._count = metrics.annotations
        self._stop = stop
        self._dashboard = dashboard
        self._limit = _BACKLOG  # what happened since the last daemon was there
        self._failures = 0
        self._not_before: datetime | None = None
        self._problem = ""

    def send(self, models: Iterable[str], now: datetime) -> None:
        """Send what is due, unless the last failure is too recent. TransientError: the control database is away."""
        if self._not_before is not None and now < self._not_before:
            return
        since = self._log.since(now)
        sent = self._log.sent(since)
        due = unsent((a for model in models for a in self._feed(model, self._limit)), sent, since)
        problem = ""
        for activity in due[:ROUND]:
            if self._stop.is_set():
                return
            try:
                self._sink.add(annotation(activity, self._dashboard))
            except AnnotationRefused as exc:
                self._count.labels("failed").inc()
                problem = str(exc)
                if exc.content:
                    continue  # one that Grafana will not have must not keep the others back
                break
            self._log.mark(activity)
            self._count.labels("sent").inc()
        self._note(problem, now)
        done = not problem and len(due) <= ROUND
        self._limit = _RECENT if done else _BACKLOG
        if done and now - since > 2 * OVERLAP:
            self._log.move(now - OVERLAP)

    def _note(self, problem: str, now: datetime) -> None:
        if problem:
            wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(self._failures, 10))
            self._failures += 1
            self._not_before = now + wait
        else:
            self._failures, self._not_before = 0, None
        if problem != self._problem:
            if problem:
                log.warning("annotations_failed", detail=problem)
            else:
                log.info("annotations_recovered")
            self._problem = problem
