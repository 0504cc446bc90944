"""The demo's scoring service on its own: it serves `champion` from MLflow and produces events to Kafka, in real time.

`driftd demo --kafka` tells the same story with a daemon of its own; here the daemon is the stack's. The service is
`monitor.demo.scorer`, the configuration is the daemon's. It registers a first model unless the registry has a
champion, then answers ten payments a second; after four minutes the world drifts, after eleven it ends.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime, timedelta

import orjson
import polars as pl
import structlog

from monitor.build import job_spec
from monitor.config import LoadedConfig, load
from monitor.demo.scorer import KafkaSink, Scorer, Sink
from monitor.demo.world import World, invented
from retrain.operate import register_initial
from retrain.registry import resolve_alias
from retrain.request import RetrainRequest, TriggerKind
from retrain.spec import JobSpec
from retrain.store import open_store

log = structlog.get_logger()
MODEL = "fraud"
FIRST_ROW = 2400
"""Rows before this one train the first model, as in `driftd demo`."""
STEP = timedelta(seconds=0.1)
BLOCK = 20
LABEL_DELAY = 100
"""Rows after which the truth about a payment is known: ten seconds."""


class OfThisRun:
    """A sink that makes the ids of this run unlike those of the last: predictions sent twice count once."""

    def __init__(self, sink: Sink, run: str):
        self._sink = sink
        self._run = run

    def send(self, stream: str, events: list[bytes]) -> None:
        self._sink.send(stream, [self._named(orjson.loads(event)) for event in events])

    def _named(self, event: dict[str, object]) -> bytes:
        return orjson.dumps(event | {"prediction_id": f"{self._run}-{event['prediction_id']}"})


def main() -> None:
    """Serve until the made-up world ends."""
    loaded = load(os.environ.get("DRIFTD_CONFIG", "config.toml"))
    kafka = loaded.config.source.kafka
    if kafka is None:
        sys.exit("the demo service needs [source.kafka]")
    world = invented()
    request = RetrainRequest(f"{MODEL}-first", MODEL, TriggerKind.MANUAL, "the first model", {}, datetime.now(UTC))
    spec = job_spec(loaded, request)
    if resolve_alias(spec.tracking_uri, spec.registered_model) is None:
        log.info("first_model_registered", version=_register(loaded, spec, world))
    start = datetime.now(UTC)
    sink = KafkaSink(",".join(kafka.bootstrap), {"predictions": kafka.predictions[0], "labels": kafka.labels[0]})
    scorer = Scorer(
        world=world,
        spec=spec,
        sink=OfThisRun(sink, f"{start:%Y%m%dT%H%M%S}"),
        start=start,
        step=STEP,
        label_delay=LABEL_DELAY,
        first_row=FIRST_ROW,
    )
    version = ""
    for first in range(FIRST_ROW, world.frame.height, BLOCK):
        last = min(first + BLOCK, world.frame.height)
        time.sleep(max(0.0, (start + STEP * (last - FIRST_ROW) - datetime.now(UTC)).total_seconds()))
        scorer.serve(first, last)
        if scorer.version != version:
            version = scorer.version
            log.info("version_served", version=version, row=first)
        if first < (world.drift_at or 0) <= last:
            log.info("world_changed", row=last)
    scorer.finish(world.frame.height)
    log.info("world_ended", **scorer.sent)


def _register(loaded: LoadedConfig, spec: JobSpec, world: World) -> str:
    now = datetime.now(UTC)
    known = world.frame[:FIRST_ROW].drop_nulls("label")
    rows = known.with_columns(
        prediction_id=pl.Series([f"t-{i:08d}" for i in range(known.height)]),
        ts=pl.Series([now - STEP * (known.height - i) for i in range(known.height)], dtype=pl.Datetime("us", "UTC")),
    )
    cut = int(rows.height * 0.7)
    store = open_store(loaded.config.control_url)
    return register_initial(store, spec, rows[:cut], rows[cut:], os.environ, now, "demo")


if __name__ == "__main__":
    main()
