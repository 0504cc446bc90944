"""`python -m serving service.toml`: serve until SIGTERM.

Exit codes: 0 stopped, 2 a mistake in the settings, 1 the port or the outbox is taken. On SIGTERM requests under way are
answered and the outbox is shipped, for some seconds; what is left is shipped at the next start.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import orjson
import structlog
import uvicorn

from retrain.base.logs import configure_logs
from retrain.isolation import keep_to_oneself
from retrain.models.registry import Registry
from retrain.terms.errors import ConfigError
from serving.app import Service, ServiceMetrics, Sink, build_app
from serving.models import Follower, open_model
from serving.outbox import Files, Outbox, Shipper
from serving.settings import KafkaEvents, ServiceSettings, load

log = structlog.get_logger()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serving")
    parser.add_argument("settings", type=Path)
    parser.add_argument("--host", help="instead of the settings'")
    parser.add_argument("--port", type=int, help="instead of the settings'; 0 picks a free one")
    given = parser.parse_args(argv)
    keep_to_oneself()
    try:
        settings = load(given.settings)
        secret = settings.reload_secret.reveal() if settings.reload_secret else None
    except ConfigError as exc:
        print(exc, file=sys.stderr)  # noqa: T201
        return 2
    configure_logs("json")
    host, port = given.host or settings.host, settings.port if given.port is None else given.port
    try:
        listener = socket.create_server((host, port))
        outbox = None if settings.kafka is None else Outbox(Path(settings.outbox), settings.outbox_size)
    except OSError as exc:
        log.error("service_not_started", detail=f"{host}:{port} or {settings.outbox}: {exc}")
        return 1
    metrics = ServiceMetrics()
    follower = Follower(
        settings,
        Registry(settings.tracking_uri),
        partial(open_model, settings),
        metrics.changed,
        metrics.changes.labels("failed").inc,
    )
    sink: Sink = outbox or Files(Path(str(settings.files)), f"{socket.gethostname()}-{os.getpid()}")
    app = build_app(
        Service(settings.schema, settings.max_rows, lambda: follower.current, follower.poke, sink, metrics, secret)
    )
    shipper = None
    if settings.kafka is not None and outbox is not None:
        shipper = Shipper(
            outbox,
            settings.kafka,
            settings.kafka.topic,
            metrics.events.labels("shipped").inc,
            metrics.shipping_failures.inc,
        )
    background = _start(follower.run, *([shipper.run] if shipper else []))
    if settings.kafka is not None and settings.kafka.news is not None:
        threading.Thread(target=_hear, args=(settings, settings.kafka, follower.poke), daemon=True).start()
    log.info("service_started", url=f"http://{host}:{listener.getsockname()[1]}", model=settings.model)
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn stops on them, and raises them again when it has
        signal.signal(number, lambda *_: None)
    uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=10)).run([listener])
    follower.stop()
    if shipper is not None:
        shipper.stop()
    for thread in background:
        thread.join(timeout=15)
    log.info("service_stopped", outbox_bytes=sink.size)
    return 0


def _start(*loops: Callable[[], None]) -> list[threading.Thread]:
    """A bug in one of them ends the process: whoever runs the service starts it again."""

    def guarded(loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException:
            log.exception("service_failed")
            os._exit(1)

    threads = [threading.Thread(target=guarded, args=(loop,), daemon=True) for loop in loops]
    for thread in threads:
        thread.start()
    return threads


def _hear(settings: ServiceSettings, kafka: KafkaEvents, poke: Callable[[], None]) -> None:
    """driftd's events on a topic: each that is about this model's versions makes the follower look. Trouble with the
    broker only means that the next look comes later, by `follow_every`."""
    from kafka import KafkaConsumer

    while True:
        try:
            consumer = KafkaConsumer(kafka.news, **kafka.client_options(), auto_offset_reset="latest", group_id=None)
            for record in consumer:
                event = orjson.loads(record.value)
                if event.get("model") == settings.model and event.get("event") in ("champion_moved", "traffic_changed"):
                    poke()
        except Exception as exc:  # noqa: BLE001 - polling goes on
            log.warning("news_unheard", topic=kafka.news, detail=f"{type(exc).__name__}: {exc}"[:300])
            threading.Event().wait(10)


if __name__ == "__main__":
    sys.exit(main())
