"""The page of a real backtest in a real browser, opened from its file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from playwright.sync_api import Browser, expect

from tests.browser import Opened

ROWS, CHANGE, WINDOW = 3000, 1500, 100


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backtest")
    rng = np.random.default_rng(7)
    x, turned = rng.normal(size=ROWS), np.arange(ROWS) >= CHANGE
    label = (rng.random(ROWS) < 1 / (1 + np.exp(np.where(turned, 3, -3) * x))).astype(int)
    table, page = folder / "rows.csv", folder / "page.html"
    pl.DataFrame({"x": x, "noise": rng.normal(size=ROWS), "label": label}).write_csv(table)
    command = ["backtest", "--stream", str(table), "--target", "label", "--window-rows", str(WINDOW), "--closed-loop"]
    done = subprocess.run(
        [sys.executable, "-m", "monitor.cli", *command, "--changes", str(CHANGE), "--html", str(page)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return page


@pytest.fixture
def opened(browser: Browser, page_file: Path) -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    opened = Opened(context.new_page(), page_file.as_uri())
    opened.go("")
    yield opened
    context.close()
    assert not opened.complaints


def test_charts_are_drawn_without_a_network(opened: Opened) -> None:
    charts = opened.page.locator(".chart canvas")
    expect(charts).to_have_count(3)
    drawn = """canvas => {
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        return pixels.filter((value, i) => i % 4 === 3 && value > 0).length;
    }"""
    assert all(canvas.evaluate(drawn) > 1000 for canvas in charts.all())


def test_a_window_is_read_with_the_arrow_keys(opened: Opened) -> None:
    readout = opened.page.locator('.readout[data-run="0"]')
    expect(readout).to_contain_text("Point at a chart")
    opened.page.locator('.chart[data-chart="performance"]').focus()
    for _ in range(3):
        opened.page.keyboard.press("ArrowRight")
    expect(readout).to_contain_text("window #3")
    expect(readout).to_contain_text("measured 0.")


def test_every_window_is_there_in_numbers_when_asked_for(opened: Opened) -> None:
    fold = opened.page.locator('details[data-windows="closed"]')
    fold.locator("summary").click()
    expect(fold.locator("thead th")).to_have_count(2 + 4)  # driftd, never, every k windows, every window
    expect(fold.locator("tbody tr")).to_have_count((ROWS - ROWS // 10) // WINDOW)
