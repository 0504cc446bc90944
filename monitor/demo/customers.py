"""The scoring service's customers: they ask it, and later tell how things turned out.

They register a first model, as a team does before it has driftd, then ask for blocks of rows on command and send the
labels that are due. They keep the first model aside and let it answer the same rows, for the comparison. Speaks JSON
lines on stdin and stdout with the storyteller. Invariant: they know the service's address and nothing of the daemon.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
import polars as pl
import requests
import structlog

from monitor.demo.world import World, invented, recorded
from monitor.measure.performance.compute import reference_performance
from retrain.config.connection import KafkaConnection
from retrain.config.spec import JobSpec
from retrain.control.store import open_store
from retrain.data.frame import features_frame
from retrain.job.manual_actions import register_initial
from retrain.models.model_files import LoadedModel, load_model
from retrain.models.quality import Predictions
from retrain.models.registry import Registry, resolve_alias
from retrain.terms.schema import Task

BLOCK = 5000
"""Rows of one request, at most."""
FOLLOWS_WITHIN = 60.0
"""Seconds for the service to follow the alias."""


class Labels(Protocol):
    def send(self, events: list[bytes]) -> None:
        """Durably hand over label events, in order."""


class FileLabels:
    """One growing NDJSON file, as a batch job leaves it."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "customers.ndjson").open("ab")

    def send(self, events: list[bytes]) -> None:
        self._file.write(b"\n".join(events) + b"\n")
        self._file.flush()


class KafkaLabels:
    def __init__(self, connection: KafkaConnection, topic: str):
        from kafka import KafkaProducer

        self._producer = KafkaProducer(**connection.client_options(), acks="all", linger_ms=5)
        self._topic = topic

    def send(self, events: list[bytes]) -> None:
        futures = [self._producer.send(self._topic, event) for event in events]
        self._producer.flush()
        for future in futures:
            future.get(timeout=30)


class ScoringService:
    """Its HTTP side, as a customer sees it."""

    def __init__(self, url: str):
        self._url = url
        self._session = requests.Session()

    def predict(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        answer = self._session.post(f"{self._url}/predict", json={"rows": rows}, timeout=60)
        if not answer.ok:
            raise RuntimeError(f"{self._url}/predict: {answer.status_code} {answer.text[:500]}")
        return list(answer.json()["predictions"])

    def champion(self) -> str | None:
        """None while it has none."""
        try:
            answer = self._session.get(f"{self._url}/model", timeout=10)
        except requests.ConnectionError:
            return None
        return str(answer.json()["champion"]) if answer.ok else None

    def wait_for(self, version: str) -> None:
        """Until it serves the version."""
        deadline = time.monotonic() + FOLLOWS_WITHIN
        while (serves := self.champion()) != version:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self._url} serves version {serves}, the champion is version {version}")
            time.sleep(0.05)


@dataclass(slots=True)
class Customers:
    """What they ask for, and what they were answered. `prefix` makes the ids of one run unlike those of another."""

    world: World
    service: ScoringService
    labels: Labels
    start: datetime
    step: timedelta
    label_delay: int
    first_row: int
    first_model: LoadedModel | None = None
    prefix: str = "p-"
    labelled: int = 0
    sent: dict[str, int] = field(default_factory=lambda: {"predictions": 0, "labels": 0})
    answers: list[pl.DataFrame] = field(default_factory=list)

    def ask(self, first: int, last: int) -> str:
        """Ask for rows `first`..`last` (exclusive) and send the labels that are due. Answers the version of the
        last."""
        schema = self.world.schema
        rows = self.world.frame[first:last]
        asked = [self._row(first + n, row) for n, row in enumerate(rows.iter_rows(named=True))]
        answered: list[dict[str, Any]] = []
        for begin in range(0, len(asked), BLOCK):
            answered += self.service.predict(asked[begin : begin + BLOCK])
        self.sent["predictions"] += len(answered)
        numeric = schema.task is Task.REGRESSION
        known = pl.DataFrame(
            {
                "prediction_id": [a["prediction_id"] for a in answered],
                "model_version": [a["model_version"] for a in answered],
                "ts": pl.Series([self._at(row) for row in range(first, last)], dtype=pl.Datetime("us", "UTC")),
                "prediction": [float(a["prediction"]) if numeric else str(a["prediction"]) for a in answered],
                **_scores(self.world, [a["score"] for a in answered]),
                "label": rows["label"],
            }
        )
        if self.first_model is not None:
            frozen = self.first_model.predictions(features_frame(rows, schema), schema)
            known = known.with_columns(frozen=pl.Series(_values(self.world, frozen)))
            self.answers.append(known)
        self._send_labels(last - self.label_delay)
        return str(answered[-1]["model_version"])

    def finish(self, last: int) -> None:
        """Send the labels that are still owed."""
        self._send_labels(last)

    def scores(self, window_rows: int) -> list[dict[str, Any]]:
        """Per window of rows: performance of what was answered and of the first model, on the same rows."""
        found = []
        for part in pl.concat(self.answers).iter_slices(window_rows):
            known = part.drop_nulls("label")
            found.append(
                {
                    "rows": part.height,
                    "version": part["model_version"][-1],
                    "window_end": (part["ts"][0] + self.step * window_rows).isoformat(),
                    "performance": self._performance(known),
                    "never_retrained": self._performance(known.with_columns(prediction=pl.col("frozen"))),
                }
            )
        return found

    def _performance(self, rows: pl.DataFrame) -> float | None:
        values = reference_performance(rows, self.world.schema, [self.world.metric], 1)
        return values.get((self.world.metric, ""))

    def _at(self, row: int) -> datetime:
        return self.start + self.step * (row - self.first_row)

    def _id(self, row: int) -> str:
        return f"{self.prefix}{row:08d}"

    def _row(self, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
        schema = self.world.schema
        asked: dict[str, Any] = {
            "prediction_id": self._id(number),
            "ts": self._at(number).isoformat(),
            "features": {f.name: row[f.column] for f in schema.features},
        }
        if schema.segments:
            asked["segment"] = {name: row[f"segment_{name}"] for name in schema.segments}
        return asked

    def _send_labels(self, until: int) -> None:
        begin = self.first_row + self.labelled
        if until <= begin:
            return
        delay = self.step * self.label_delay
        events = [
            orjson.dumps(
                {
                    "prediction_id": self._id(row),
                    "model": self.world.schema.model,
                    "ts": self._at(row) + delay,
                    "label": label,
                    "prediction_ts": self._at(row),
                }
            )
            for row, label in enumerate(self.world.frame[begin:until]["label"].to_list(), start=begin)
            if label is not None
        ]
        self.labelled = until - self.first_row
        if events:
            self.labels.send(events)
            self.sent["labels"] += len(events)


def _values(world: World, predicted: Predictions) -> Any:
    values = np.asarray(predicted.values)
    return values.astype(float) if world.schema.task is Task.REGRESSION else [str(v) for v in values]


def _scores(world: World, scores: list[Any]) -> dict[str, Any]:
    """Score columns of the lake; none where the model gives no probabilities."""
    if not scores or scores[0] is None:
        return {}
    if world.schema.task is Task.BINARY:
        return {"score": scores}
    return {f"score_{name}": [score[name] for score in scores] for name in world.schema.classes}


def register_first(spec: JobSpec, control_url: str, rows: pl.DataFrame, end: datetime) -> str:
    """Trains a first model on labelled rows, the newest 30 % for its reference, and makes it champion."""
    known = rows.drop_nulls("label")
    ids = pl.Series([f"t-{n:08d}" for n in range(known.height)])
    times = [end - timedelta(seconds=known.height - n) for n in range(known.height)]
    known = known.with_columns(prediction_id=ids, ts=pl.Series(times, dtype=pl.Datetime("us", "UTC")))
    cut = int(known.height * 0.7)
    store = open_store(control_url)
    return register_initial(store, spec, known[:cut], known[cut:], os.environ, datetime.now(UTC), "demo")


def load_world(settings: Mapping[str, Any]) -> World:
    if settings["stream"] is None:
        return invented()
    return recorded(Path(settings["stream"]), settings["target"], tuple(settings["drop"]))


def main() -> None:
    """Read the settings file named on the command line, register the first model, then obey stdin."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for the storyteller
    settings = json.loads(Path(sys.argv[1]).read_text())
    world, spec = load_world(settings), JobSpec.from_json(settings["spec"])
    first_row, start = settings["first_row"], datetime.fromisoformat(settings["start"])
    version = register_first(spec, settings["control_url"], world.frame[:first_row], start)
    with tempfile.TemporaryDirectory() as folder:
        files = Registry(spec.tracking_uri).fetch_model(spec.registered_model, version, Path(folder) / "model")
        first_model = load_model(files)  # made by the shipped trainer a moment ago
    kafka = settings["kafka"]
    customers = Customers(
        world=world,
        service=ScoringService(settings["service"]),
        labels=KafkaLabels(KafkaConnection(bootstrap=(kafka["bootstrap"],)), kafka["topics"]["labels"])
        if kafka
        else FileLabels(Path(settings["events"]) / "labels"),
        start=start,
        step=timedelta(seconds=settings["step"]),
        label_delay=settings["label_delay"],
        first_row=first_row,
        first_model=first_model,
    )
    _say({"registered": version})
    for line in sys.stdin:
        command = json.loads(line)
        if "serve" in command:
            champion = resolve_alias(spec.tracking_uri, spec.registered_model)
            customers.service.wait_for(str(champion))
            _say({"version": customers.ask(*command["serve"]), "sent": customers.sent})
        elif "finish" in command:
            customers.finish(command["finish"])
            _say({"sent": customers.sent})
        else:
            _say({"scores": customers.scores(command["scores"])})


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
