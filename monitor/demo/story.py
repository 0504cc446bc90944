"""Tells the demo live: starts customers, service and daemon, lets time pass window by window, prints what happens.

Time is compressed: a window of events is sent at once, and the stream waits while driftd measures or retrains, as
hours would pass in production. Every figure printed is read from the daemon or scored on the rows that were served.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from rich.console import Console

from monitor.config.loading import LoadedConfig, load
from monitor.config.plan import plans
from monitor.demo.actors import customers, daemon_process, scoring_service
from monitor.demo.stage import DemoOptions, Stage, set_up
from monitor.demo.world import invented, recorded
from monitor.lake.lake import Lake, Table
from monitor.rules.measurement import Measure
from monitor.start.target import UnfitTable

SETTLE_WITHIN = 120.0
"""Seconds the daemon may take over a window of events before the demo gives up."""
JOB_WITHIN = 900.0
RULE = "performance_drop"
_EXPECTED = {"job_in_flight", "superseded"}
"""Refusals that only say that the rule's job is under way or done."""
_ENDED = {"promoted", "rejected", "failed", "watched", "rolled_back"}


def tell(options: DemoOptions) -> None:
    """Run the demo and print its story. Raises ClickException when the table or the broker cannot be used."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        world = invented() if options.stream is None else recorded(options.stream, str(options.target), options.drop)
    except (UnfitTable, OSError) as exc:
        raise click.ClickException(str(exc)) from exc
    stage = set_up(world, options)
    console.print(f"[bold]driftd demo[/bold] · {world.name}: {world.schema.task.value}, "
                  f"{len(world.schema.features)} features, {world.frame.height:,} rows")  # fmt: skip
    for note in world.notes:
        console.print(f"  [dim]{note}[/dim]")
    console.print(f"  everything it makes is in {stage.folder}")
    began = time.monotonic()
    loaded = load(stage.folder / "config.toml")
    with console.status("training and registering the first model"), customers(stage, loaded) as asking:
        console.print(f"  first model: version {asking.registered}, trained on {stage.first_row:,} rows")
        with scoring_service(stage, loaded), daemon_process(stage) as url:
            console.print(f"  scoring service at {stage.service_url}, which follows the champion")
            console.print(
                f"  daemon and status page at {url}, window = {stage.window_rows} rows, "
                f"labels {stage.label_delay} rows late"
            )
            console.print(
                f"  performance = {world.metric} on the window's rows, as served · "
                f"drift = features that drifted · rule = phase of performance_drop\n"
            )
            teller = Teller(console, stage, loaded, url)
            for first in range(stage.first_row, stage.last_row, stage.window_rows):
                told = asking.ask({"serve": [first, first + stage.window_rows]})
                teller.settle(told["sent"])
            teller.settle(asking.ask({"finish": stage.last_row})["sent"])
            windows = asking.ask({"scores": stage.window_rows})["scores"]
            summary = teller.summary(windows)
            (stage.folder / "metrics.txt").write_text(_get(f"{url}/metrics"))
            _print_end(console, stage, summary, time.monotonic() - began)
            if options.json_path is not None:
                options.json_path.write_text(json.dumps(summary, indent=2) + "\n")
            if options.wait:
                _wait(console, f"{url}/models/{quote(world.schema.model)}")


def _wait(console: Console, page: str) -> None:
    """The daemon goes on and its page stays open until somebody has seen enough."""
    console.print(f"\nThe status page stays open at [bold]{page}[/bold] · Ctrl-C ends the demo")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print("ended")


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
    console.print(f"  MLflow    {_command('mlflow')} ui --backend-store-uri sqlite:///{store}", soft_wrap=True)
    console.print(f"  report    {reports[0] if reports else '(none: no rule fired)'}", soft_wrap=True)
    ours = f"{_command('driftd')} --config {stage.folder / 'config.toml'}"
    console.print(f"  status    {ours} status", soft_wrap=True)
    console.print(f"  page      {ours} run", soft_wrap=True)


def _command(name: str) -> str:
    """As it can be typed here: the environment of the demo need not be on the PATH."""
    return name if shutil.which(name) else os.path.relpath(Path(sys.executable).with_name(name))


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
