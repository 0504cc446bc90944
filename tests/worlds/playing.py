"""Worlds played, each with a daemon of its own, and the table of how they came out."""

from __future__ import annotations

import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from tests.worlds.life import Seen, expectations, live
from tests.worlds.table import WORLDS, World
from tests.worlds.truth import Change

PAGE = Path(__file__).parents[2] / "docs" / "worlds.md"
BEGIN, END = "<!-- played: begin -->", "<!-- played: end -->"


@dataclass(frozen=True, slots=True)
class Played:
    """`wrong`: what did not come out as it must, the daemon's or the world's end by an exception included."""

    at: int
    seen: Seen
    wrong: list[str]
    seconds: float

    @property
    def world(self) -> World:
        return WORLDS[self.at]

    @property
    def surprising(self) -> bool:
        """Wrong, and nobody said that it would be; or the other way round."""
        return bool(self.wrong) != bool(self.world.not_yet)


def play(at: int) -> Played:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            seen = live(WORLDS[at], Path(folder) / "world")
            wrong = expectations(WORLDS[at], seen)
        except Exception:  # noqa: BLE001 - the others are played all the same
            seen, wrong = Seen(), [traceback.format_exc()[-1500:]]
    return Played(at, seen, wrong, time.monotonic() - began)


HEAD = [*WORLDS[0].circumstances, "asked after", "before", "after, as it was", "in the end", "to be had", ""]


def line(played: Played) -> str:
    """Of the page's table."""
    seen, world = played.seen, played.world
    asked = "-" if seen.asked_after is None else str(seen.asked_after)
    if world.change is Change.OUTAGE:
        asked = f"alarm after {seen.alarmed_after}"
    qualities = [f"{q:.3f}" for q in (seen.before, seen.at_once, seen.at_last, seen.best)]
    told = "; ".join(text.splitlines()[-1] for text in played.wrong) or "as it must"
    told += f" (not yet: {world.not_yet})" if world.not_yet else ""
    return row([*map(str, world.circumstances.values()), asked, *qualities, told])


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def lines_of(page: str) -> list[str]:
    """Those of the table, its head left out."""
    return [line for line in page.split(BEGIN)[1].split(END)[0].splitlines() if line.startswith("| ")][2:]


def with_lines(page: str, played: list[Played]) -> str:
    """The page with new lines for these worlds, where it has the others already."""
    lines = dict(enumerate(lines_of(page))) | {p.at: line(p) for p in played}
    if len(lines) < len(WORLDS):
        return page
    text = "\n".join([row(HEAD), row(["---"] * len(HEAD)), *(lines[at] for at in range(len(WORLDS)))])
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"
