"""A real Prometheus scrapes a running daemon; promtool reads what it exposes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.conftest import PrometheusServer
from tests.daemons import Daemons, until
from tests.fakes import STRETCH, FileSink, Traffic

EXPECTED = {
    "up": 1.0,
    'driftd_ready{component="lake"}': 1.0,
    "driftd_leader": 1.0,
    'driftd_events_total{stream="predictions"} > 0': None,
    'driftd_dead_letters_total{reason="not_json"} > 0': None,
    "driftd_outcomes_total > 0": None,
    'driftd_rule_phase{rule="ages_missing",phase="firing"}': 1.0,
    'driftd_rule_threshold{rule="ages_missing"}': 0.2,
    'driftd_rule_value{rule="ages_missing"} > 0.4': None,
    'driftd_missing_ratio{feature="age"} > 0.4': None,
    'driftd_feature_drift_score{feature="amount"} >= 0': None,
    'driftd_feature_drifted{feature="country"}': 0.0,
    "driftd_drift_share_ratio >= 0": None,
    'driftd_performance_score{metric="accuracy",segment=""} > 0': None,
    "driftd_label_coverage_ratio > 0.8": None,
    "driftd_window_rows > 250": None,
    "time() - driftd_tick_last_success_timestamp_seconds < 60": None,
    "histogram_quantile(0.9, driftd_ingest_batch_seconds_bucket) > 0": None,
}
"""Query -> its one value; None: any, but there must be one."""


def test_a_real_prometheus_finds_every_signal_of_a_running_daemon(
    prometheus: Callable[[str], PrometheusServer], tmp_path: Path
) -> None:
    with Daemons(tmp_path) as daemons:
        daemon = daemons.make({"kind": "files"})
        traffic = Traffic(FileSink(daemon.state / "events"))
        traffic.send(2 * STRETCH)  # five good windows (three become the reference), then five with ages missing
        daemon.start()
        server = prometheus(daemon.url.removeprefix("http://"))
        until("the rule to fire", lambda: daemon.metric("driftd_rule_phase", rule="ages_missing", phase="firing"), 120)
        missing = dict(EXPECTED)

        def all_there() -> bool:
            for query, wanted in list(missing.items()):
                found = list(server.query(query).values())
                if found and (wanted is None or found == [wanted]):
                    del missing[query]
            return not missing

        until("Prometheus to have scraped all", all_there, 60)
        assert server.query('driftd_rule_phase{phase="firing"} == 1').keys() == {
            "model=fraud,phase=firing,rule=ages_missing"
        }
        exposition = daemon.request("/metrics")[1]
        checked = subprocess.run(["promtool", "check", "metrics"], input=exposition, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert checked.stderr == "", "a warning of the linter"
