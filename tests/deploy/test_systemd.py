"""deploy/systemd/driftd.service: systemd accepts it, it is shut in, and it fits how the daemon stops."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from monitor.running.daemon import EXIT_WITHIN
from retrain.terms.fields import parse_duration
from tests.conftest import require

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "driftd.service"
PROGRAM = "/opt/driftd/bin/driftd"
EXPOSURE = 1.5
"""Of 10, as `systemd-analyze security` counts; above it something was opened."""


def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^([A-Za-z]+)=(.*)$", UNIT.read_text(), re.M):
        found.setdefault(key, []).append(value)
    return found


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists: driftd is not installed where systemd would find it."""
    require("the systemd unit", [] if shutil.which("systemd-analyze") else ["systemd-analyze"])
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text().replace(PROGRAM, "/bin/true"))
    return path


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_systemd_accepts_the_unit(unit: Path) -> None:
    done = analyze("verify", "--man=no", str(unit))
    assert done.returncode == 0, done.stderr
    assert str(unit) not in done.stderr, "a warning about this unit"
    unit.write_text(unit.read_text().replace("KillMode=mixed", "KillMode=mixd"))
    assert "mixd" in analyze("verify", "--man=no", str(unit)).stderr


def test_the_service_is_shut_in(unit: Path) -> None:
    threshold = f"--threshold={round(EXPOSURE * 10)}"
    assert analyze("security", "--offline=yes", threshold, str(unit)).returncode == 0
    opened = re.sub(r"^(PrivateUsers|ProtectSystem|SystemCallFilter)=.*$", "", unit.read_text(), flags=re.M)
    unit.write_text(opened)
    assert analyze("security", "--offline=yes", threshold, str(unit)).returncode != 0


def test_a_stop_is_given_the_time_it_takes() -> None:
    assert parse_duration(settings()["TimeoutStopSec"][0]).total_seconds() > EXIT_WITHIN
    assert settings()["KillMode"] == ["mixed"]


def test_a_reload_is_a_hangup_and_a_refused_configuration_is_not_tried_again() -> None:
    assert settings()["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert settings()["RestartPreventExitStatus"] == ["2"]
    assert {command.split()[0] for command in settings()["ExecStart"]} == {PROGRAM}


def test_secrets_are_credentials() -> None:
    assert settings()["LoadCredential"] == ["token:/etc/driftd/token"]
    assert not re.search(r"(TOKEN|PASSWORD|SECRET)=", UNIT.read_text())
    assert f"/run/credentials/{UNIT.name}/token" in UNIT.read_text()


def test_what_the_daemon_needs_is_allowed() -> None:
    """The unit's comments say why; without /proc/meminfo polars ends the daemon with its first window."""
    found = settings()
    assert "ProcSubset" not in found
    assert "MemoryDenyWriteExecute" not in found
    assert not any("@resources" in value for value in found["SystemCallFilter"])
    assert found["StateDirectory"] == ["driftd"]
