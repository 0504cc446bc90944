"""Documents for people: Markdown made from values, and a page of it.

Invariant: pure; what comes from outside (reasons, names, events) can neither break a table nor become markup of the
page.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #8884;padding:.3rem .6rem;text-align:left;"
    "vertical-align:top;overflow-wrap:anywhere}code{font-size:.9em}"
)


def plain(value: object) -> str:
    """A value as text in which nothing is markup, on one line."""
    text = re.sub(r"\s+", " ", str(value))
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", text)


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a table, an empty one behind it; nothing without rows."""
    if not rows:
        return []
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join("" if cell is None else plain(cell) for cell in row) + " |" for row in rows]
    return [*lines, ""]


def to_html(markdown: str, title: str) -> str:
    """A page that loads nothing; markup inside the Markdown is shown, not taken for markup."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>{body}</body></html>"
    )
