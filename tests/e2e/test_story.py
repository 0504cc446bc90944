"""The whole way, from a produced event to a moved alias: the demo on half of its default world."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from monitor.demo.world import invented


@pytest.mark.timeout(900)
def test_a_drifted_world_is_retrained_promoted_and_recovers(tmp_path: Path) -> None:
    summary, stream = tmp_path / "summary.json", tmp_path / "payments.csv"
    frame = invented(5400, drift_at=3300).frame.drop("segment_country")
    frame.rename(lambda name: name.removeprefix("feature_")).write_csv(stream)
    wanted = {"stream": stream, "target": "label", "train-share": 0.45, "window-rows": 300, "json": summary}
    options = [text for key, value in wanted.items() for text in (f"--{key}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "monitor.cli", "demo", *options, "--folder", str(tmp_path / "demo")],
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = json.loads(summary.read_text())

    promoted = [r for r in told["retrains"] if r["state"] in ("promoted", "watched")]
    assert promoted, told["retrains"]
    assert "performance_drop" in promoted[0]["reason"]
    assert "(concept drift)" in promoted[0]["reason"]
    performance = told["performance"]
    assert performance["after"] > performance["drifted"] + 0.05, performance

    windows = told["windows"]
    assert all(a["window_end"] < b["window_end"] for a, b in pairwise(windows))
    versions = [int(w["version"]) for w in windows]
    assert versions == sorted(versions), "a version serves from its promotion on"
    assert {str(r["version"]) for r in promoted} & {w["version"] for w in windows}
    measured = [w for w in windows if w["measured"] is not None]
    assert len(measured) >= len(windows) - 2
    assert all(abs(w["measured"] - w["performance"]) < 0.02 for w in measured if w["performance"] is not None)
