"""Every query of the Grafana dashboards, asked of a real Prometheus that scraped a real daemon in good and bad times.

A query must give data in every state, or stand in `SOMETIMES` or `NEVER` with the reason why not.
"""

from __future__ import annotations

import json
import random
import re
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.conftest import PrometheusServer
from tests.daemons import MODEL, Daemon, Daemons, until
from tests.grafana_api import TOKEN, Grafana
from tests.grafana_queries import FILES, Query, annotation_queries, load, panel_queries, substituted, variable_queries

STATES = ("healthy", "drifting", "retraining", "retrained", "broken")
VALUES = {
    "job": "driftd",
    "instance": ".*",
    "model": MODEL,
    "version": ".*",
    "segment": ".+",
    "__rate_interval": "5m",
    "__range": "5m",
}
"""What Grafana would put in. Rates over this whole test, so that no moment is too late to see what happened."""

ONCE_FIRING = ("drifting", "retraining", "retrained", "broken")
ONCE_REQUESTED = ("retraining", "retrained", "broken")
ONCE_ENDED = ("retrained", "broken")
BOARDS = ("driftd-fleet", "driftd-model", "driftd-retraining")
SOMETIMES: dict[str, tuple[tuple[str, ...], str]] = {
    "driftd-daemon/Configuration reloads/A": (("broken",), "only a reload is counted"),
    "driftd-daemon/Trouble with the source/A": (("broken",), "there is none before"),
    "driftd-daemon/Annotations sent to Grafana/A": (ONCE_FIRING, "nothing is sent before something happens"),
    "driftd-daemon/Left out/B": (("retraining", "retrained", "broken"), "late rows are sent with the drift"),
    "driftd-fleet/Models, worst first/B": (ONCE_ENDED, "driftd has promoted nothing before"),
    "driftd-fleet/Retrains requested/A": (ONCE_REQUESTED, "nothing is requested while all is well"),
    "driftd-model/Champions/A": (ONCE_ENDED, "driftd has promoted nothing before"),
    "driftd-model/Champion/A": (ONCE_ENDED, "driftd has promoted nothing before"),
    "driftd-model/What happened last/A": (ONCE_FIRING, "nothing happens while all is well"),
    "driftd-retraining/What happened last/A": (ONCE_FIRING, "nothing happens while all is well"),
    "driftd-retraining/Gates of the last challenger/A": (ONCE_ENDED, "no challenger was judged before"),
    "driftd-retraining/Requests by trigger/A": (ONCE_REQUESTED, "nothing is requested while all is well"),
    "driftd-retraining/Refusals by reason/A": (ONCE_ENDED, "a second breach while the job runs is refused"),
    "driftd-retraining/Why a model was not retrained/A": (ONCE_ENDED, "a second breach while the job runs is refused"),
    "driftd-retraining/Jobs under way by state/A": (("retraining",), "no job is under way before and after"),
    "driftd-retraining/Duration of the last job/A": (ONCE_ENDED, "no job has ended before"),
    "driftd-retraining/Champions over time/A": (ONCE_ENDED, "driftd has promoted nothing before"),
    "driftd-retraining/Champions now/A": (ONCE_ENDED, "driftd has promoted nothing before"),
    **{
        f"{board}/annotation Last {what} (scraped)/A": (states, "nothing of this kind has happened before")
        for board in BOARDS
        for what, states in (
            ("trouble", ONCE_FIRING), ("retrain wanted", ONCE_REQUESTED), ("good news", ONCE_ENDED),
            ("not promoted", ("broken",)),
        )
    },
}  # fmt: skip
"""Place -> the states that must have data, and why the others need not."""
NEVER: dict[str, str] = {
    "driftd-daemon/Lag by partition/A": "files that are read to their end are not listed, and these are read at once",
    "driftd-daemon/Trouble with the source/B": "files have no topics that could be missing",
    "driftd-daemon/Rebalances/A": "files have no consumer group",
    "driftd-retraining/Trials: rows against what they are judged on/A": "no challenger is tried here: that takes long",
    "driftd-daemon/Left out/A": "one small model stays far below the budget of series",
}
"""Place -> why it is empty in every state of this test."""

RULES: list[dict[str, Any]] = [
    {"name": "performance_drop", "measure": "performance_drop", "above": 0.1, "for": "1 of 1 windows",
     "severity": "critical", "action": "retrain"},
    {"name": "amount_drifts", "measure": "feature_drift", "feature": "amount", "above": 0.5, "for": "1 of 1 windows"},
    *(
        {"name": f"{measure}_high", "measure": measure, "above": 50}
        for measure in (
            "performance_drop_ratio", "drift_share", "prediction_drift", "label_drift", "missing_share",
            "unseen_share", "out_of_range_share", "invalid_share", "latency_p50", "latency_p95", "latency_p99",
            "label_delay", "estimated_drop", "estimation_error", "drift_impact",
        )
    ),
    *({"name": f"{measure}_low", "measure": measure, "below": 0.01}
      for measure in ("performance", "volume", "label_coverage", "estimated_performance")),
]  # fmt: skip
"""A threshold for every measure, so that every panel has one to draw; two that fire."""
WINDOW, ROWS = timedelta(minutes=1), 200


class World:
    """A service whose predictions are right until its world turns: amounts rise, and the labels turn round."""

    def __init__(self, events: Path):
        self._events = events
        self._start = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(hours=3)
        self._dice = random.Random(7)
        self._sent = 0

    def windows(self, count: int, *, drifted: bool) -> None:
        """The next windows with their labels, and one record each that is no event."""
        predictions, labels = [], []
        for window in range(self._sent, self._sent + count):
            predictions.append("no event")
            for row in range(ROWS):
                at = self._start + window * WINDOW + row * WINDOW / ROWS
                name, amount = f"{window}-{row}", self._dice.gauss(4.0 if drifted else 0.0, 1.0)
                right = (amount < 4.0 if drifted else amount > 0.0) ^ (self._dice.random() < 0.05)
                predictions.append(self._prediction(name, at, amount))
                labels.append(json.dumps({
                    "prediction_id": name, "model": MODEL, "ts": (at + timedelta(seconds=9)).isoformat(),
                    "label": str(int(right)),
                }))  # fmt: skip
        self._write("predictions", predictions)
        self._write("labels", labels)
        self._sent += count

    def late(self) -> None:
        """Predictions of the first window, which has closed."""
        self._write("predictions", [self._prediction(f"late-{n}", self._start, 0.0) for n in range(10)])

    def _prediction(self, name: str, at: datetime, amount: float) -> str:
        return json.dumps({
            "prediction_id": name, "model": MODEL, "model_version": "1", "ts": at.isoformat(),
            "features": {"amount": amount, "age": self._dice.randint(18, 80), "country": self._dice.choice("df")},
            "prediction": str(int(amount > 0.0)), "score": min(1.0, max(0.0, 0.5 + amount / 8)), "latency_ms": 5.0,
            "segment": {"region": self._dice.choice(["eu", "us"])}, "of_no_schema": 1,
        })  # fmt: skip

    def _write(self, stream: str, lines: list[str]) -> None:
        path = self._events / stream / "all.ndjson"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as out:
            out.writelines(f"{line}\n" for line in lines)


def make(daemons: Daemons, grafana: Grafana) -> Daemon:
    return daemons.make(
        {"kind": "files"},
        grafana={"url": grafana.url, "token": {"env": "GRAFANA_TOKEN"}},
        environment={"GRAFANA_TOKEN": TOKEN},
        model={
            "segments": ["region"],
            "rules": RULES,
            "reference": {"warmup_windows": 2},
            "retrain": {
                "cooldown": "0s", "min_rows": 200, "holdout_min_rows": 100, "watch_rows": 0, "gates": {"margin": 0.1},
                "parameters": {"max_iter": 20},
            },
        },
    )  # fmt: skip


class Moment:
    """Prometheus at one moment: the same question later has the same answer."""

    def __init__(self, server: PrometheusServer, at: float):
        self._server = server
        self._at = at

    def has(self, expr: str) -> bool:
        return bool(self.labels(expr))

    def labels(self, expr: str) -> list[set[str]]:
        """The names of the labels of each series that an instant query gives."""
        return [set(s["metric"]) for s in self._get("query", query=expr, time=str(self._at))["result"]]

    def label_values(self, selector: str, label: str) -> list[str]:
        return list(self._get(f"label/{label}/values", **{"match[]": selector}))

    def _get(self, path: str, **options: str) -> Any:
        with urllib.request.urlopen(f"{self._server.url}/api/v1/{path}?{urlencode(options)}", timeout=30) as answer:
            return json.load(answer)["data"]


def moment(server: PrometheusServer, state: str, *expressions: str) -> Moment:
    """The first moment at which each expression gives something."""

    def look() -> Moment | None:
        found = Moment(server, time.time())
        return found if all(found.has(expr) for expr in expressions) else None

    seen = until(f"{state}: {', '.join(expressions)}", look, 30)
    assert seen is not None
    return seen


def live(daemon: Daemon, world: World, server: PrometheusServer) -> Iterator[tuple[str, Moment]]:
    until("a scrape before anything happens", lambda: server.query("driftd_leader == 1"))  # so that increases show
    world.windows(4, drifted=False)
    until("a reference", lambda: [line for line in daemon.logged("reference_frozen") if line["stage"] == "labelled"])
    world.windows(4, drifted=False)
    measured = 'driftd_windows_measured_total{kind="performance"}'
    everything = (
        f"{measured} >= 5", "driftd_performance_drop_score", "driftd_label_drift_score", f"rate({measured}[5m]) > 0",
        "rate(driftd_dead_letters_total[5m]) > 0",
    )  # fmt: skip
    yield "healthy", moment(server, "healthy", *everything)

    world.late()
    world.windows(4, drifted=True)
    yield "drifting", moment(
        server, "drifting", 'driftd_rule_phase{phase="firing"} == 1', "increase(driftd_annotations_total[5m]) > 0",
        'driftd_last_activity_timestamp_seconds{kind="rule_fired"} > 0',
    )  # fmt: skip
    under_way = 'driftd_jobs{state=~"snapshot|training|evaluating"} == 1'
    yield "retraining", moment(
        server, "retraining", under_way, "increase(driftd_retrain_requests_total[5m]) > 0",
        "increase(driftd_late_rows_total[5m]) > 0",
        'driftd_last_activity_timestamp_seconds{kind="retrain_requested"} > 0',
    )  # fmt: skip
    world.windows(1, drifted=True)  # breaches again: refused, since a job is under way
    yield "retrained", moment(server, "retrained", "driftd_champion_info", "driftd_last_job_duration_seconds",
                              'driftd_last_activity_timestamp_seconds{kind="promoted"} > 0', "driftd_gate_passed",
                              "increase(driftd_retrain_suppressed_total[5m]) > 0")  # fmt: skip

    # the stream is served by "1" all the while, so the breach goes on: once more, and now no challenger is better
    until("a rejected challenger", lambda: server.query('driftd_last_activity_timestamp_seconds{kind="rejected"} > 0'))

    daemon.config["models"][MODEL]["rules"][0]["above"] = "a lot"
    daemon.write_config()
    daemon.signal(signal.SIGHUP)
    (daemon.state / "events" / "labels" / "all.ndjson").write_text("replaced\n", encoding="utf-8")
    until("the replaced file", lambda: daemon.metric("driftd_source_errors_total", kind="replaced_file"))
    lake = daemon.state / "lake"
    lake.rename(daemon.state / "unmounted")
    lake.write_text("no folder")
    world.windows(1, drifted=True)
    yield "broken", moment(
        server, "broken", 'driftd_ready{component="lake"} == 0',
        'increase(driftd_config_reloads_total{outcome="failed"}[5m]) > 0',
        'increase(driftd_source_errors_total{kind="replaced_file"}[5m]) > 0',
        "driftd_config_last_reload_successful == 0",
    )  # fmt: skip


def queries() -> dict[str, Query]:
    """By place: of panels and annotations, with everything filled in."""
    boards = [load(path) for path in FILES]
    found = [query for board in boards for query in (*panel_queries(board), *annotation_queries(board))]
    assert len({query.place for query in found}) == len(found)
    return {query.place: replace(query, expr=substituted(query.expr, VALUES)) for query in found}


@pytest.mark.timeout(600)
def test_every_query_and_variable_gives_data_and_what_happened_is_sent_to_grafana(
    prometheus: Callable[[str], PrometheusServer], tmp_path: Path
) -> None:
    with Daemons(tmp_path) as daemons, Grafana() as grafana:
        daemon = make(daemons, grafana)
        world = World(daemon.state / "events")
        daemon.start()
        moments = dict(live(daemon, world, prometheus(daemon.url.removeprefix("http://"))))
        assert tuple(moments) == STATES
        wrong = [*wrong_queries(moments), *wrong_variables(moments["healthy"])]
    assert not wrong, "\n".join(wrong)
    sent = Counter(body["tags"][1] for body in grafana.got)
    assert sent.keys() >= {"rule_fired", "retrain_requested", "promoted", "rejected"}
    assert (sent["promoted"], len({str(body) for body in grafana.got})) == (1, len(grafana.got)), "each of them once"


def wrong_queries(moments: Mapping[str, Moment]) -> Iterator[str]:
    asked = queries()
    for place in sorted({*SOMETIMES, *NEVER} - asked.keys()):
        yield f"{place}: listed here, and on no dashboard"
    for place, query in asked.items():
        found = {state: moments[state].labels(query.expr) for state in STATES}
        there = [state for state, labels in found.items() if labels]
        shown = set(re.findall(r"{{(\w+)}}", query.legend))
        if any(shown - labels for series in found.values() for labels in series):
            yield f"{place}: the legend {query.legend} names a label that a series has not: {query.expr}"
        wanted = () if place in NEVER else SOMETIMES[place][0] if place in SOMETIMES else STATES
        if missing := [state for state in wanted if state not in there]:
            yield f"{place}: nothing while {', '.join(missing)}: {query.expr}"
        if place in NEVER and there:
            yield f"{place}: not empty while {', '.join(there)}: it no longer belongs into NEVER"
        if place in SOMETIMES and len(there) == len(STATES):
            yield f"{place}: always gives data: it no longer belongs into SOMETIMES"


def wrong_variables(healthy: Moment) -> Iterator[str]:
    for path in FILES:
        for place, selector, label in variable_queries(load(path)):
            found = healthy.label_values(substituted(selector, VALUES), label)
            if not found or (label == "segment" and found != ["region=eu", "region=us"]):
                yield f"{place}: {found}"
