"""The demo's customers on their own, in real time: `driftd demo` with the stack's services instead of its own.

They register a first model unless the registry has a champion, then ask the scoring service about ten payments a second
and send the labels to Kafka; after four minutes the world drifts, after eleven it ends.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime, timedelta

import structlog

from monitor.config.loading import load
from monitor.demo.customers import Customers, KafkaLabels, ScoringService, register_first
from monitor.demo.world import invented
from monitor.running.build import job_spec
from retrain.models.registry import resolve_alias
from retrain.terms.request import RetrainRequest, TriggerKind

log = structlog.get_logger()
MODEL = "fraud"
FIRST_ROW = 2400
"""Rows before this one train the first model, as in `driftd demo`."""
STEP = timedelta(seconds=0.1)
BLOCK = 20
LABEL_DELAY = 100
"""Rows after which the truth about a payment is known: ten seconds."""


def main() -> None:
    """Ask until the made-up world ends."""
    loaded = load(os.environ.get("DRIFTD_CONFIG", "config.toml"))
    kafka = loaded.config.source.kafka
    if kafka is None:
        sys.exit("the demo needs [source.kafka]")
    world = invented()
    request = RetrainRequest(f"{MODEL}-first", MODEL, TriggerKind.MANUAL, "the first model", {}, datetime.now(UTC))
    spec = job_spec(loaded, request)
    if (champion := resolve_alias(spec.tracking_uri, spec.registered_model)) is None:
        champion = register_first(spec, loaded.config.control_url, world.frame[:FIRST_ROW], datetime.now(UTC))
        log.info("first_model_registered", version=champion)
    service = ScoringService(os.environ.get("SCORING_URL", "http://scoring:8080"))
    service.wait_for(champion)
    start = datetime.now(UTC)
    customers = Customers(
        world=world,
        service=service,
        labels=KafkaLabels(kafka, kafka.labels[0]),
        start=start,
        step=STEP,
        label_delay=LABEL_DELAY,
        first_row=FIRST_ROW,
        prefix=f"{start:%Y%m%dT%H%M%S}-p-",  # predictions of two runs are not the same ones
    )
    version = ""
    for first in range(FIRST_ROW, world.frame.height, BLOCK):
        last = min(first + BLOCK, world.frame.height)
        time.sleep(max(0.0, (start + STEP * (last - FIRST_ROW) - datetime.now(UTC)).total_seconds()))
        if (serves := customers.ask(first, last)) != version:
            version = serves
            log.info("version_answered", version=version, row=first)
        if first < (world.drift_at or 0) <= last:
            log.info("world_changed", row=last)
    customers.finish(world.frame.height)
    log.info("world_ended", **customers.sent)


if __name__ == "__main__":
    main()
