"""One line is one record, whoever writes it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import logging, os, sys, threading, time, warnings
from pathlib import Path
from retrain.base.logs import configure_logs
configure_logs("json", Path(sys.argv[1]))
import structlog
structlog.get_logger().info("own", text="two\\nlines \\x1b[2J")
try:
    {}["a"]
except KeyError:
    logging.getLogger("uvicorn.error").exception("a library's")
    structlog.get_logger().exception("own_failure")
logging.getLogger("kafka").warning("not wanted")
warnings.warn("a warning\\nof two lines")
os.write(2, b"thread main panicked\\nstack backtrace:\\n  0: rust\\n")
os.system("echo from a child >&2")
threading.Thread(target=lambda: 1 / 0, name="worker").start()
class Odd:
    def __del__(self): raise ValueError("ignored")
Odd()
for n in range(200):
    threading.Thread(target=lambda n=n: structlog.get_logger().info("many", n=n)).start()
    logging.getLogger("others").warning("line %d", n)
time.sleep(0.5)
if sys.argv[2] == "raise":
    raise RuntimeError("uncaught")
os.abort()
"""


def run(crash: Path, how: str) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(crash), how], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == ""
    assert done.returncode != 0
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_line_is_a_record_and_a_crash_is_told_at_the_next_start(tmp_path: Path) -> None:
    lines = run(tmp_path / "crash", "raise")
    assert all({"event", "level", "timestamp"} <= set(line) for line in lines)
    events = [str(line["event"]) for line in lines]
    assert events.count("many") == 200
    assert sum(event.startswith("line ") for event in events) == 200
    assert [line["line"] for line in lines if line["event"] == "stderr"] == [
        "thread main panicked", "stack backtrace:", "0: rust", "from a child",
    ]  # fmt: skip
    assert "not wanted" not in events
    assert any("a warning" in event for event in events)
    for event, error in (
        ("a library's", "KeyError"),
        ("own_failure", "KeyError"),
        ("exception_ignored", "ignored"),
        ("uncaught_exception", "ZeroDivisionError"),
    ):
        (line,) = [line for line in lines if line["event"] == event and error in str(line.get("exception"))]
        assert "Traceback" in str(line["exception"])
    assert "RuntimeError: uncaught" in str(lines[-1]["exception"])

    run(tmp_path / "crash", "abort")
    first, *_ = run(tmp_path / "crash", "raise")
    assert (first["event"], "Fatal Python error: Aborted" in str(first["trace"])) == ("process_had_crashed", True)
