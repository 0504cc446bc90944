"""The whole way, from a produced event to a moved alias: the demo on its default world."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest


@pytest.mark.timeout(900)
def test_a_drifted_world_is_retrained_promoted_and_recovers(tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    done = subprocess.run(
        [sys.executable, "-m", "monitor.cli", "demo", "--json", str(summary), "--folder", str(tmp_path / "demo")],
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
