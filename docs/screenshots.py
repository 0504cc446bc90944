"""Takes the pictures of the status page that the docs show: `python docs/screenshots.py DEMO_FOLDER`.

`DEMO_FOLDER` is what `driftd demo --folder DEMO_FOLDER` left behind. Needs Chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
WIDTH, MODEL_HEIGHT, FLEET_HEIGHT = 1180, 1500, 260


@contextmanager
def daemon(folder: Path) -> Iterator[str]:
    """The address of a daemon that runs on what the demo left behind."""
    state = Path(tomllib.loads((folder / "config.toml").read_text())["daemon"]["state"])
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "monitor.cli", "--config", str(folder / "config.toml"), "run"],
            stdout=log,
            stderr=log,
        )
    try:
        for _ in range(120):
            if (state / "url").exists():
                break
            time.sleep(0.5)
        yield (state / "url").read_text()
    finally:
        process.terminate()
        process.wait(20)


def main() -> None:
    folder = Path(sys.argv[1])
    IMAGES.mkdir(exist_ok=True)
    with daemon(folder) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport={"width": WIDTH, "height": FLEET_HEIGHT}, color_scheme=scheme)
            page = context.new_page()
            page.goto(url)
            page.wait_for_load_state("networkidle")
            page.screenshot(path=IMAGES / f"fleet-{scheme}.png")
            page.locator(".fleet tbody a").first.click()
            page.set_viewport_size({"width": WIDTH, "height": MODEL_HEIGHT})
            page.wait_for_load_state("networkidle")
            page.wait_for_selector("svg.shares rect.window")
            page.screenshot(path=IMAGES / f"model-{scheme}.png")
            context.close()
        browser.close()


if __name__ == "__main__":
    main()
