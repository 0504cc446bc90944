"""First contentful paint of the status page in a real browser: 20 models with 30 days of hourly windows each.

Invariant: the page is the daemon's own, the windows lie in its lake as it would have written them; the first look
after a start (nothing read yet) is counted apart from the later ones.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from bench.say import Say, quietly
from monitor.config.loading import from_dict
from tests import measured_world as made
from tests.daemons import Daemon, until

MODELS, WINDOWS, LOOKS = 20, 30 * 24, 7
SETTLE = 5.0
BUDGET, AIM = 300.0, 150.0


def run(say: Say = quietly) -> list[dict[str, Any]]:
    """Milliseconds from the request to the first paint with content."""
    with tempfile.TemporaryDirectory(prefix="driftd-bench-") as folder, sync_playwright() as playwright:
        daemon = _daemon(Path(folder), say)
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            _paint(browser, daemon.url + "/healthz")  # the browser's own start
            time.sleep(SETTLE)
            say("looking")
            first = _paint(browser, daemon.url)
            fleet = [_paint(browser, daemon.url) for _ in range(LOOKS)]
            model = [_paint(browser, f"{daemon.url}/models/model-3?days=30") for _ in range(LOOKS)]
        finally:
            browser.close()
            daemon.stop()
    what = f"first paint, {MODELS} models with 30 days of hourly windows"
    return [
        _row(f"{what}: fleet, first look {SETTLE:.0f} s after a start", [first]),
        _row(f"{what}: fleet", fleet),
        _row(f"{what}: one model", model),
    ]


def _row(what: str, taken: list[float]) -> dict[str, Any]:
    return {
        "what": what,
        "milliseconds": median(taken),
        "all_milliseconds": [round(t) for t in taken],
        "at_least": BUDGET,
        "aim": AIM,
        "less_is_better": True,
    }


def _daemon(folder: Path, say: Say) -> Daemon:
    from monitor.lake.lake import Lake

    os.environ["DRIFTD_TEST_TOKEN"] = "bench"
    names = [f"model-{n}" for n in range(MODELS)]
    document = made.configuration(folder, names)
    loaded = from_dict(document)
    lake = Lake(loaded.config.lake_uri)
    for n, name in enumerate(names):
        say(f"writing the windows of {name}")
        made.measure_windows(lake, name, WINDOWS, bad_since=6 if n < 3 else None)
    daemon = Daemon(folder, document, {"DRIFTD_TEST_TOKEN": "bench"}).start()
    say("judging")
    until("the rules to be judged", lambda: daemon.metric("driftd_ticks_total", outcome="ok") >= 1, within=300)
    daemon.stop()
    return daemon.start()


def _paint(browser: Browser, url: str) -> float:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(url)
    page.wait_for_load_state("networkidle")
    painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0")
    context.close()
    return float(painted)
