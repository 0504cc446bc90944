"""A stand-in scoring service, as a service team would write it: loads the `champion`, answers, produces events.

It registers a first model, then serves blocks of rows on command and follows the alias: before each block it asks the
registry who the champion is. It keeps the first model aside and scores the same rows with it, for the comparison.
Speaks JSON lines on stdin and stdout with the storyteller. Invariant: it knows nothing of the daemon.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
import polars as pl
import structlog

from monitor.demo.world import World, invented, recorded
from monitor.measure.performance import reference_performance
from retrain.frame import features_frame
from retrain.model_files import LoadedModel, trusted_for
from retrain.operate import register_initial
from retrain.quality import Predictions
from retrain.registry import load_champion, resolve_alias
from retrain.schema import Task
from retrain.spec import JobSpec
from retrain.store import open_store


class Sink(Protocol):
    def send(self, stream: str, events: list[bytes]) -> None:
        """Durably hand over events, in order."""


class FileSink:
    """One growing NDJSON file per stream, as a batch scorer leaves them."""

    def __init__(self, folder: Path):
        self._files = {}
        for stream in ("predictions", "labels"):
            (folder / stream).mkdir(parents=True, exist_ok=True)
            self._files[stream] = (folder / stream / "scorer.ndjson").open("ab")

    def send(self, stream: str, events: list[bytes]) -> None:
        handle = self._files[stream]
        handle.write(b"\n".join(events) + b"\n")
        handle.flush()


class KafkaSink:
    def __init__(self, bootstrap: str, topics: dict[str, str]):
        from kafka import KafkaProducer

        self._producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=5)
        self._topics = topics

    def send(self, stream: str, events: list[bytes]) -> None:
        futures = [self._producer.send(self._topics[stream], event) for event in events]
        self._producer.flush()
        for future in futures:
            future.get(timeout=30)


@dataclass(slots=True)
class Scorer:
    """State of the service: the model it serves now, and what it answered."""

    world: World
    spec: JobSpec
    sink: Sink
    start: datetime
    step: timedelta
    label_delay: int
    first_row: int
    version: str = ""
    model: LoadedModel | None = None
    first_model: LoadedModel | None = None
    labelled: int = 0
    sent: dict[str, int] = field(default_factory=lambda: {"predictions": 0, "labels": 0})
    answers: list[pl.DataFrame] = field(default_factory=list)

    def follow(self) -> None:
        """Load the champion if it has changed."""
        version = resolve_alias(self.spec.tracking_uri, self.spec.registered_model)
        if version == self.version:
            return
        with tempfile.TemporaryDirectory() as folder:
            found = load_champion(
                self.spec.tracking_uri, self.spec.registered_model, Path(folder), trusted_for(self.spec.config)
            )
        assert found is not None
        self.version, self.model = found
        self.first_model = self.first_model or self.model

    def serve(self, first: int, last: int) -> None:
        """Answer rows `first`..`last` (exclusive) and send their events, and the labels that are due."""
        self.follow()
        assert self.model is not None and self.first_model is not None
        rows = self.world.frame[first:last]
        frame = features_frame(rows, self.world.schema)
        began = datetime.now(UTC)
        predicted = self.model.predictions(frame, self.world.schema)
        took = (datetime.now(UTC) - began).total_seconds() * 1000 / max(1, last - first)
        times = [self.start + self.step * (row - self.first_row) for row in range(first, last)]
        answer = _answer(self.world, rows, predicted, times, self.version, first)
        same = self.first_model is self.model
        frozen = predicted if same else self.first_model.predictions(frame, self.world.schema)
        self.answers.append(answer.with_columns(frozen=pl.Series(_values(self.world, frozen)), label=rows["label"]))
        self._send("predictions", list(self._prediction_events(answer, rows, took)))
        self._send_labels(last - self.label_delay)

    def finish(self, last: int) -> None:
        """Send the labels that are still owed."""
        self._send_labels(last)

    def scores(self, window_rows: int) -> list[dict[str, Any]]:
        """Per window of rows: performance of what was served and of the first model, on the same rows."""
        every = pl.concat(self.answers)
        found = []
        for part in every.iter_slices(window_rows):
            known = part.drop_nulls("label")
            ours, frozen = known, known.with_columns(prediction=pl.col("frozen"))
            found.append(
                {
                    "rows": part.height,
                    "version": part["model_version"][-1],
                    "window_end": (part["ts"][0] + self.step * window_rows).isoformat(),
                    "performance": self._performance(ours),
                    "never_retrained": self._performance(frozen),
                }
            )
        return found

    def _performance(self, rows: pl.DataFrame) -> float | None:
        values = reference_performance(rows, self.world.schema, [self.world.metric], 1)
        return values.get((self.world.metric, ""))

    def _prediction_events(self, answer: pl.DataFrame, rows: pl.DataFrame, latency_ms: float) -> Iterator[bytes]:
        schema = self.world.schema
        features = rows.select(pl.col(f.column).alias(f.name) for f in schema.features).to_dicts()
        segments = rows.select(pl.col(c).alias(c.removeprefix("segment_")) for c in schema.segment_columns).to_dicts()
        for at, row in enumerate(answer.iter_rows(named=True)):
            event = {
                "prediction_id": row["prediction_id"],
                "model": schema.model,
                "model_version": row["model_version"],
                "ts": row["ts"],
                "features": features[at],
                "prediction": row["prediction"],
                "latency_ms": latency_ms,
            }
            if row.get("score") is not None:
                event["score"] = row["score"]
            elif schema.task is Task.MULTICLASS:
                event["score"] = {c: row[f"score_{c}"] for c in schema.classes if f"score_{c}" in row}
            if segments:
                event["segment"] = segments[at]
            yield orjson.dumps(event)

    def _send_labels(self, until: int) -> None:
        start = self.first_row + self.labelled
        if until <= start:
            return
        known = self.world.frame[start:until]["label"].to_list()
        delay = self.step * self.label_delay
        events = []
        for row, label in enumerate(known, start=start):
            if label is None:
                continue
            at = self.start + self.step * (row - self.first_row)
            events.append(
                orjson.dumps(
                    {
                        "prediction_id": _id(row),
                        "model": self.world.schema.model,
                        "ts": at + delay,
                        "label": label,
                        "prediction_ts": at,
                    }
                )
            )
        self.labelled = until - self.first_row
        if events:
            self._send("labels", events)

    def _send(self, stream: str, events: list[bytes]) -> None:
        self.sink.send(stream, events)
        self.sent[stream] += len(events)


def _id(row: int) -> str:
    return f"p-{row:08d}"


def _values(world: World, predicted: Predictions) -> Any:
    values = np.asarray(predicted.values)
    return values.astype(float) if world.schema.task is Task.REGRESSION else [str(v) for v in values]


def _answer(
    world: World, rows: pl.DataFrame, predicted: Predictions, times: list[datetime], version: str, first: int
) -> pl.DataFrame:
    columns: dict[str, Any] = {
        "prediction_id": [_id(row) for row in range(first, first + rows.height)],
        "model_version": [version] * rows.height,
        "ts": pl.Series(times, dtype=pl.Datetime("us", "UTC")),
        "prediction": _values(world, predicted),
    }
    if predicted.scores is not None:
        scores = np.asarray(predicted.scores)
        for at, name in enumerate(world.schema.score_columns):
            columns[name] = scores if scores.ndim == 1 else scores[:, at]
    return pl.DataFrame(columns)


def load_world(settings: dict[str, Any]) -> World:
    if settings["stream"] is None:
        return invented()
    return recorded(Path(settings["stream"]), settings["target"], tuple(settings["drop"]))


def main() -> None:
    """Read the settings file named on the command line, register the first model, then obey stdin."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for the storyteller
    settings = json.loads(Path(sys.argv[1]).read_text())
    world = load_world(settings)
    spec = JobSpec.from_json(settings["spec"])
    first_row = settings["first_row"]
    training = world.frame[:first_row].drop_nulls("label")
    training = training.with_columns(
        prediction_id=pl.Series([f"t-{i:08d}" for i in range(training.height)]),
        ts=pl.Series(
            [datetime.fromisoformat(settings["start"]) - timedelta(seconds=training.height - i) for i in
             range(training.height)], dtype=pl.Datetime("us", "UTC"),
        ),
    )  # fmt: skip
    cut = int(training.height * 0.7)
    store = open_store(settings["control_url"])
    version = register_initial(store, spec, training[:cut], training[cut:], os.environ, datetime.now(UTC), "demo")
    kafka = settings["kafka"]
    sink: Sink = KafkaSink(kafka["bootstrap"], kafka["topics"]) if kafka else FileSink(Path(settings["events"]))
    scorer = Scorer(
        world=world,
        spec=spec,
        sink=sink,
        start=datetime.fromisoformat(settings["start"]),
        step=timedelta(seconds=settings["step"]),
        label_delay=settings["label_delay"],
        first_row=first_row,
    )
    _say({"registered": version})
    for line in sys.stdin:
        command = json.loads(line)
        if "serve" in command:
            scorer.serve(*command["serve"])
            _say({"version": scorer.version, "sent": scorer.sent})
        elif "finish" in command:
            scorer.finish(command["finish"])
            _say({"sent": scorer.sent})
        else:
            _say({"scores": scorer.scores(command["scores"])})


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
