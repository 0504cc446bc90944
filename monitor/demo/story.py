"""Tells the demo live: starts the scoring service and the daemon, feeds them window by window, prints what happens.

Time is compressed: a window of events is sent at once, and the stream waits while driftd measures or retrains, as
hours would pass in production. Every figure printed is read from the daemon or scored on the rows that were served.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import tomli_w
from rich.console import Console

from monitor.build import job_spec
from monitor.config import LoadedConfig, load
from monitor.demo.world import World, WorldError, invented, recorded
from monitor.lake import Lake, Table
from monitor.measurement import Measure
from monitor.plan import plans
from retrain.request import RetrainRequest, TriggerKind
from retrain.schema import Task

SETTLE_WITHIN = 120.0
"""Seconds the daemon may take over a window of events before the demo gives up."""
JOB_WITHIN = 900.0
RULE = "performance_drop"
_EXPECTED = {"job_in_flight", "superseded"}
"""Refusals that only say that the rule's job is under way or done."""
_ENDED = {"promoted", "rejected", "failed", "watched", "rolled_back"}


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
    topics: dict[str, str] = field(default_factory=dict)

    @property
    def last_row(self) -> int:
        """Whole windows only."""
        return self.first_row + (self.world.frame.height - self.first_row) // self.window_rows * self.window_rows


def tell(options: DemoOptions) -> None:
    """Run the demo and print its story. Raises ClickException when the table or the broker cannot be used."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        world = invented() if options.stream is None else recorded(options.stream, str(options.target), options.drop)
    except (WorldError, OSError) as exc:
        raise click.ClickException(str(exc)) from exc
    stage = _set_up(world, options)
    console.print(f"[bold]driftd demo[/bold] · {world.name}: {world.schema.task.value}, "
                  f"{len(world.schema.features)} features, {world.frame.height:,} rows")  # fmt: skip
    for note in world.notes:
        console.print(f"  [dim]{note}[/dim]")
    console.print(f"  everything it makes is in {stage.folder}")
    began = time.monotonic()
    loaded = load(stage.folder / "config.toml")
    with console.status("training and registering the first model"), _scorer(stage, loaded) as scorer:
        console.print(f"  first model: version {scorer.registered}, trained on {stage.first_row:,} rows")
        with _daemon(stage) as url:
            console.print(f"  daemon at {url}, window = {stage.window_rows} rows, labels {stage.label_delay} rows late")
            console.print(
                f"  performance = {world.metric} on the window's rows, as served · "
                f"drift = features that drifted · rule = phase of performance_drop\n"
            )
            teller = Teller(console, stage, loaded, url)
            for first in range(stage.first_row, stage.last_row, stage.window_rows):
                told = scorer.ask({"serve": [first, first + stage.window_rows]})
                teller.settle(told["sent"])
            teller.settle(scorer.ask({"finish": stage.last_row})["sent"])
            windows = scorer.ask({"scores": stage.window_rows})["scores"]
            summary = teller.summary(windows)
            (stage.folder / "metrics.txt").write_text(_get(f"{url}/metrics"))
    _print_end(console, stage, summary, time.monotonic() - began)
    if options.json_path is not None:
        options.json_path.write_text(json.dumps(summary, indent=2) + "\n")


def _set_up(world: World, options: DemoOptions) -> Stage:
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
    stage = Stage(world, folder, first_row, window_rows, label_delay, datetime.fromtimestamp(epoch, UTC), options)
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
            "max_per_day": 10_000,
            "stop_after_rejected": 8,
            "min_rows": max(200, rows),
            "max_rows": max(2000, 8 * rows),
            "holdout_share": 0.1,  # the newest rows are precious right after a change
            "holdout_min_rows": max(100, rows // 2),
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
        "models": {schema.model: model},
    }


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


class _Scorer:
    """The scoring service's process and its line protocol."""

    def __init__(self, process: subprocess.Popen[str], log: Path):
        self._process = process
        self._log = log
        self.registered = self._read()["registered"]

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = self._log.read_text().strip().splitlines()[-5:]
            raise click.ClickException("the scoring service stopped:\n" + "\n".join(tail))
        return dict(json.loads(line))


@contextmanager
def _scorer(stage: Stage, loaded: LoadedConfig) -> Iterator[_Scorer]:
    options, model = stage.options, stage.world.schema.model
    request = RetrainRequest(f"{model}-first", model, TriggerKind.MANUAL, "the first model", {}, datetime.now(UTC))
    loaded.config.state.mkdir(parents=True, exist_ok=True)
    settings = {
        "stream": str(options.stream) if options.stream else None,
        "target": options.target,
        "drop": list(options.drop),
        "spec": job_spec(loaded, request).to_json(),
        "control_url": loaded.config.control_url,
        "events": str(loaded.config.events_path),
        "kafka": {"bootstrap": options.kafka, "topics": stage.topics} if options.kafka else None,
        "first_row": stage.first_row,
        "start": stage.start.isoformat(),
        "step": 1,
        "label_delay": stage.label_delay,
    }
    path, log = stage.folder / "scorer.json", stage.folder / "scorer.log"
    path.write_text(json.dumps(settings, indent=2))
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "monitor.demo.scorer", str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    try:
        yield _Scorer(process, log)
    finally:
        process.kill()
        process.wait()


@contextmanager
def _daemon(stage: Stage) -> Iterator[str]:
    log = stage.folder / "daemon.log"
    url_file = stage.folder / "state" / "url"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "monitor.cli", "--config", str(stage.folder / "config.toml"), "run"],
            stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not url_file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text().strip().splitlines()[-5:]
                raise click.ClickException("the daemon did not start:\n" + "\n".join(tail))
            time.sleep(0.1)
        yield url_file.read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)


class Teller:
    """Follows the daemon through its public doors and prints what is new."""

    def __init__(self, console: Console, stage: Stage, loaded: LoadedConfig, url: str):
        self._console = console
        self._stage = stage
        self._url = url
        self._model = stage.world.schema.model
        self._metric = plans(loaded)[self._model].metrics[0]
        self._lake = Lake(loaded.config.lake_uri)
        self._seen_version = -1
        self._told: set[str] = set()
        self._drift: dict[str, str] = {}
        self._best: float | None = None
        self.measured: list[dict[str, Any]] = []
        self.jobs: dict[str, dict[str, Any]] = {}

    def settle(self, sent: dict[str, int]) -> None:
        """Wait until the daemon has stored, measured and judged all that was sent, and no job is under way."""
        self._wait(lambda m: all(
            m.get(f'driftd_events_total{{model="{self._model}",stream="{s}"}}', 0) >= n for s, n in sent.items()
        ), SETTLE_WITHIN, "events to arrive")  # fmt: skip
        ticks = _metrics(self._url).get('driftd_ticks_total{outcome="ok"}', 0)
        self._wait(lambda m: m.get('driftd_ticks_total{outcome="ok"}', 0) >= ticks + 2, SETTLE_WITHIN, "two ticks")
        self._tell_windows()
        self._tell_jobs()
        deadline = time.monotonic() + JOB_WITHIN
        while self._busy():
            if time.monotonic() > deadline:
                raise click.ClickException(f"a job is still under way after {JOB_WITHIN:.0f} s: see {self._url}")
            time.sleep(0.5)
            self._tell_jobs()

    def _wait(self, done: Any, within: float, what: str) -> None:
        deadline = time.monotonic() + within
        while not done(_metrics(self._url)):
            if time.monotonic() > deadline:
                log = self._stage.folder / "daemon.log"
                raise click.ClickException(f"waited {within:.0f} s for {what}: see {log}")
            time.sleep(0.1)

    def _status(self) -> dict[str, Any]:
        return dict(json.loads(_get(f"{self._url}/api/v1/models/{self._model}")))

    def _busy(self) -> bool:
        status = self._status()
        requested = {d["request"] for d in status["decisions"] if d["request"] and "dropped" not in d["words"]}
        known = {j["id"]: j["state"] for j in status["jobs"]}
        return any(known.get(r) not in _ENDED for r in requested if r in known or r == _newest(status))

    def _tell_windows(self) -> None:
        newest = self._lake.version(Table.MEASUREMENTS, self._model)
        rows = self._lake.new_rows(Table.MEASUREMENTS, self._model, self._seen_version, newest)
        self._seen_version = newest
        if rows is None:
            return
        phases = {r["version"]: r for r in self._status()["rules"] if r["rule"] == RULE}
        count = len(self._stage.world.schema.features)
        for end, value in rows.filter(measure=Measure.DRIFT_SHARE.value).select("window_end", "value").iter_rows():
            self._drift[end.isoformat()] = "?" if value is None else f"{round(value * count)}/{count}"
        for row in rows.sort("window_end").iter_rows(named=True):
            key = row["window_end"].isoformat()
            whole = row["measure"] == Measure.PERFORMANCE.value and row["final"] and not row["segment"]
            if whole and row["metric"] == self._metric:
                self.measured.append(
                    {"window_end": key, "version": row["model_version"], "measured": row["value"],
                     "drift": self._drift.get(key, "?")}
                )  # fmt: skip
                phase = phases.get(row["model_version"], {}).get("phase", "")
                self._print_window(row, self._drift.get(key, "?"), phase)

    def _print_window(self, row: dict[str, Any], drift: str, phase: str) -> None:
        value = row["value"]
        shown = "undefined" if value is None else f"{value:8.3f}"
        self._best = max(self._best or 0.0, abs(value or 0.0))
        bar = "█" * round(20 * abs(value or 0.0) / self._best) if self._best else ""
        colour = {"firing": "red", "pending": "yellow"}.get(phase, "green")
        self._console.print(
            f"window {len(self.measured):3}  v{row['model_version']:<3} {self._metric} {shown} "
            f"[{colour}]{bar:20}[/{colour}] drift {drift:>5}  rule [{colour}]{phase}[/{colour}]"
        )

    def _tell_jobs(self) -> None:
        status = self._status()
        for decision in reversed(status["decisions"]):
            if decision["outcome"] not in _EXPECTED:
                self._once(f"decision {decision['at']}", f"[yellow]→ {decision['words']}[/yellow]")
        for job in reversed(status["jobs"]):
            self.jobs[job["id"]] = job
            self._once(f"job {job['id']} {job['state']}", f"[cyan]  job {job['id']}: {_job_words(job)}[/cyan]")

    def _once(self, key: str, text: str) -> None:
        if key not in self._told:
            self._told.add(key)
            self._console.print(text)

    def summary(self, windows: list[dict[str, Any]]) -> dict[str, Any]:
        """What `--json` holds; see docs/demo.md for each key."""
        by_end = {m["window_end"]: m for m in self.measured}
        for window in windows:
            found = by_end.get(window["window_end"], {})
            window |= {"measured": found.get("measured"), "drift": found.get("drift")}
        jobs = list(self.jobs.values())
        return {
            "stream": self._stage.world.name,
            "task": self._stage.world.schema.task.value,
            "metric": self._stage.world.metric,
            "performance": _chapters(windows, self._status()["transitions"]),
            "retrains": [
                {
                    "job": j["id"], "state": j["state"], "reason": j["reason"], "version": j["result"].get("version"),
                    "at": j["created_at"], "error": j["error"], "result": j["result"],
                }
                for j in sorted(jobs, key=lambda j: j["created_at"])
            ],
            "windows": windows,
        }  # fmt: skip


def _newest(status: dict[str, Any]) -> str | None:
    return next((str(d["request"]) for d in status["decisions"] if d["request"]), None)


def _job_words(job: dict[str, Any]) -> str:
    if job["state"] == "promoted":
        return f"[bold]promoted version {job['result'].get('version')}[/bold]"
    detail = job["error"] or job["waiting"]
    return f"{job['state']} ({detail})" if detail else str(job["state"])


def _chapters(windows: list[dict[str, Any]], transitions: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean performance over windows, by chapter.

    `before`: the first version's windows until the rule's last breach began that ended in a promotion; `drifted`:
    from there on; `after`: the windows of later versions. Without a promotion everything is `before`.
    """
    first = [w for w in windows if w["version"] == windows[0]["version"]]
    later = [w for w in windows if w["version"] != windows[0]["version"]]
    begun = [
        t["at"]
        for t in transitions
        if t["rule"] == RULE and t["version"] == windows[0]["version"] and t["before"] == "inactive"
    ]
    breach = datetime.fromisoformat(max(begun)) if begun and later else None
    drifted = [w for w in first if breach is not None and datetime.fromisoformat(w["window_end"]) >= breach]
    before = [w for w in first if w not in drifted]

    def mean(part: list[dict[str, Any]], key: str = "performance") -> float | None:
        values = [w[key] for w in part if w[key] is not None]
        return sum(values) / len(values) if values else None

    return {
        "before": mean(before),
        "drifted": mean(drifted),
        "after": mean(later),
        "after_never_retrained": mean(later, "never_retrained"),
        "overall": mean(windows),
        "overall_never_retrained": mean(windows, "never_retrained"),
    }


def _print_end(console: Console, stage: Stage, summary: dict[str, Any], seconds: float) -> None:
    chapters, metric = summary["performance"], summary["metric"]

    def show(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    promoted = [r for r in summary["retrains"] if r["state"] in ("promoted", "watched")]
    console.print(f"\n[bold]Summary[/bold] ({seconds:.0f} s)")
    console.print(f"  {metric}: before {show(chapters['before'])} · drifted {show(chapters['drifted'])} · "
                  f"after retraining {show(chapters['after'])} "
                  f"(never retrained, same rows: {show(chapters['after_never_retrained'])})")  # fmt: skip
    console.print(f"  retrain jobs {len(summary['retrains'])}, promoted {len(promoted)}, "
                  f"windows {len(summary['windows'])}")  # fmt: skip
    reports = sorted((stage.folder / "state" / "reports").rglob("*.html"))
    store = (stage.folder / "state" / "mlflow.db").absolute()
    console.print("[bold]Where to look[/bold]")
    console.print(f"  metrics   {stage.folder / 'metrics.txt'}", soft_wrap=True)
    console.print(f"  MLflow    mlflow ui --backend-store-uri sqlite:///{store}", soft_wrap=True)
    console.print(f"  report    {reports[0] if reports else '(none: no rule fired)'}", soft_wrap=True)
    console.print(f"  status    driftd --config {stage.folder / 'config.toml'} status", soft_wrap=True)
    console.print(f"  daemon    driftd --config {stage.folder / 'config.toml'} run", soft_wrap=True)


def _get(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310 - our own daemon's address
            return str(response.read().decode())
    except (urllib.error.URLError, TimeoutError) as exc:
        raise click.ClickException(f"{url}: {exc}: the daemon has stopped; see daemon.log") from exc


def _metrics(url: str) -> dict[str, float]:
    """Sample -> value, by their text in the exposition."""
    found = {}
    for line in _get(f"{url}/metrics").splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found
