"""Where the demo plays: its folder, its sizes in rows, its clock, and a configuration as an operator would write it."""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import tomli_w

from monitor.demo.world import World
from retrain.terms.schema import Task

KEY_FILE = "webhook_key"
"""Signs what the daemon tells the service."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    stream: Path | None
    target: str | None
    drop: tuple[str, ...]
    train_share: float
    label_delay: int | None
    window_rows: int | None
    kafka: str | None
    json_path: Path | None
    folder: Path | None
    wait: bool


@dataclass(slots=True)
class Stage:
    """Where the demo plays: its folder, clock and sizes in rows."""

    world: World
    folder: Path
    first_row: int
    window_rows: int
    label_delay: int
    start: datetime
    options: DemoOptions
    service_port: int
    topics: dict[str, str] = field(default_factory=dict)

    @property
    def service_url(self) -> str:
        return f"http://127.0.0.1:{self.service_port}"

    @property
    def last_row(self) -> int:
        """Whole windows only."""
        return self.first_row + (self.world.frame.height - self.first_row) // self.window_rows * self.window_rows


def set_up(world: World, options: DemoOptions) -> Stage:
    rows = world.frame.height
    first_row = int(rows * options.train_share) if options.stream else 2400
    window_rows = options.window_rows or (300 if options.stream is None else max(50, min(1000, rows // 60)))
    label_delay = options.label_delay if options.label_delay is not None else window_rows // 3
    if rows - first_row < 3 * window_rows:
        raise click.ClickException(
            f"{rows - first_row} rows are left after training, fewer than 3 windows of {window_rows}: "
            f"lower --window-rows or --train-share"
        )
    folder = options.folder or Path(".driftd-demo") / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    span = timedelta(seconds=rows - first_row + 2 * window_rows)
    epoch = int((datetime.now(UTC) - span).timestamp()) // window_rows * window_rows
    start = datetime.fromtimestamp(epoch, UTC)
    stage = Stage(world, folder, first_row, window_rows, label_delay, start, options, _free_port())
    secret = folder / KEY_FILE
    secret.touch(mode=0o600)
    secret.write_text(secrets.token_hex(16))
    if options.kafka:
        stage.topics = _create_topics(options.kafka, folder.name)
    (folder / "config.toml").write_text(tomli_w.dumps(_config(stage)))
    return stage


def _config(stage: Stage) -> dict[str, Any]:
    """A configuration as an operator would write it; a window is as many seconds as it has rows."""
    schema, rows = stage.world.schema, stage.window_rows
    model: dict[str, Any] = {
        "task": schema.task.value,
        "metrics": [stage.world.metric, *_more_metrics(schema.task)],
        "segments": list(schema.segments),
        "features": {f.name: f.kind.value for f in schema.features},
        "windows": {
            "size": f"{rows}s",
            "lateness": "0s",
            "min_rows": max(20, rows // 4),
            "max_delay": f"{stage.label_delay + 20 * rows}s",
        },
        "retrain": {
            "cooldown": "0s",
            "max_per_day": 10_000,  # a day of the demo is a minute
            "watch_rows": 2 * rows,
        },
    }
    if schema.task is not Task.REGRESSION:
        model["classes"] = list(schema.classes)
    if schema.positive:
        model["positive"] = schema.positive
    source: dict[str, Any] = {"kind": "files", "batch_wait": "100ms", "max_age": "4000d"}
    if stage.options.kafka:
        source["kind"] = "kafka"
        source["kafka"] = {
            "bootstrap": [stage.options.kafka],
            "group": f"driftd-demo-{stage.folder.name}",
            "predictions": [stage.topics["predictions"]],
            "labels": [stage.topics["labels"]],
        }
    return {
        "daemon": {"state": str(stage.folder / "state"), "tick": "250ms", "log_format": "json"},
        "http": {"port": 0},
        "source": source,
        "webhooks": [
            {
                "name": "scoring",
                "url": f"{stage.service_url}/reload",
                "secret": {"file": str(stage.folder / KEY_FILE)},
                "events": ["champion_moved", "traffic_changed"],
            }
        ],
        "models": {schema.model: model},
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _more_metrics(task: Task) -> list[str]:
    return ["rmse", "r2"] if task is Task.REGRESSION else ["accuracy"]


def _create_topics(bootstrap: str, name: str) -> dict[str, str]:
    from kafka.admin import KafkaAdminClient, NewTopic
    from kafka.errors import KafkaError, TopicAlreadyExistsError

    topics = {s: f"driftd-demo-{name}-{s}" for s in ("predictions", "labels")}
    try:
        admin = KafkaAdminClient(bootstrap_servers=bootstrap)
        try:
            admin.create_topics([NewTopic(t, num_partitions=1, replication_factor=1) for t in topics.values()])
        except TopicAlreadyExistsError:
            pass
        finally:
            admin.close()
    except KafkaError as exc:
        raise click.ClickException(f"Kafka at {bootstrap}: {exc}") from exc
    return topics
