"""Pages of a real browser."""

from __future__ import annotations

from playwright.sync_api import Page


class Opened:
    """A page that remembers what it complained about."""

    def __init__(self, page: Page, url: str):
        self.page, self.url = page, url
        self.complaints: list[str] = []
        self.expected: tuple[str, ...] = ()
        page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: self.complaints.append(str(e)))
        page.add_init_script(
            "window.shift = 0; new PerformanceObserver(l => l.getEntries().forEach(e => { if (!e.hadRecentInput) "
            "window.shift += e.value })).observe({type: 'layout-shift', buffered: true})"
        )

    def unexpected(self) -> list[str]:
        """Complaints that hold no word of `expected`; the page asks again by itself, so they may come late."""
        return [c for c in self.complaints if not any(word in c for word in self.expected)]

    def go(self, path: str) -> Page:
        self.page.goto(self.url + path)
        self.page.wait_for_load_state("networkidle")
        return self.page
