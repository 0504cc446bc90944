"""Pieces of an HTML page, and values in words.

Invariant: what goes into a piece is HTML already, made by `text` and its kin, which escape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

import orjson

NONE = "\N{EN DASH}"
_LONG = 12
"""Rows a table may have to be shown unfolded."""
_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def chart(n: int, kind: str, about: str) -> str:
    return f'<div class="chart" data-run="{n}" data-chart="{kind}" role="img" tabindex="0" aria-label="{about}"></div>'


def legend(*keys: str) -> str:
    return "".join(f'<div class="legend">{key}</div>' for key in keys if key)


def sample(n: int) -> str:
    return f'<svg class="sample policy-{n % 12}" width="34" height="10" aria-hidden="true"><path d="M1 5H33"/></svg>'


def comparison(names: Sequence[Any], groups: Sequence[tuple[str, Sequence[tuple[str, Sequence[str]]]]]) -> str:
    heads = "".join(f'<th scope="col">{text(name)}</th>' for name in names)
    body = ""
    for title, rows in groups:
        if rows:
            body += f'<tbody><tr><th scope="rowgroup" colspan="{len(names) + 1}"><span>{title}</span></th></tr>'
            body += "".join(f'<tr><th scope="row">{name}</th>{_cells(cells)}</tr>' for name, cells in rows) + "</tbody>"
    return _box(f'<table class="plain compare"><thead><tr><td></td>{heads}</tr></thead>{body}</table>')


def _cells(cells: Iterable[str]) -> str:
    return "".join(f"<td>{cell}</td>" for cell in cells)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A head that begins with # is that of a column of numbers."""
    classes = [' class="number"' if head.startswith("#") else "" for head in heads]
    top = "".join(f'<th scope="col"{c}>{head.removeprefix("#")}</th>' for c, head in zip(classes, heads, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{c}>{cell}</td>' for c, cell in zip(classes, row, strict=True))}</tr>" for row in rows
    )
    return _box(f'<table class="plain"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>')


def _box(table: str) -> str:
    return f'<div class="table-box" tabindex="0">{table}</div>'


def folded(
    heads: Sequence[str], rows: Sequence[Sequence[str]], one: str, many: str | None = None, shown: int = _LONG
) -> str:
    many = many or f"{one}s"
    if not rows:
        return f'<p class="soft">No {one}.</p>'
    is_open = " open" if len(rows) <= shown else ""
    count = f"{len(rows):,} {one if len(rows) == 1 else many}"
    return f'<details class="fold"{is_open}><summary>{count}</summary>{table(heads, rows)}</details>'


# -- values in words, escaped


def text(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, float):
        return number(value, 6)
    return escape(value if isinstance(value, str) else orjson.dumps(value).decode())


def words(value: Any) -> str:
    return text(value).replace("_", " ")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def number(value: Any, digits: int = 3) -> str:
    if not is_number(value):
        return NONE
    size = abs(value)
    if isinstance(value, int) or size >= 10_000:
        return f"{value:,.0f}"
    if 0 < size < 0.001:
        return f"{value:.1e}"
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".")


def percent(value: Any) -> str:
    return f"{number(100 * value, 1)} %" if is_number(value) else NONE


def time(iso: str | None) -> str:
    """Minutes suffice, unless windows are shorter than one."""
    if iso is None:
        return NONE
    at = datetime.fromisoformat(iso).astimezone(UTC)
    return f"<time>{at:%Y-%m-%d %H:%M:%S}</time>" if at.second else f"<time>{at:%Y-%m-%d %H:%M}</time>"


def duration(seconds: Any) -> str:
    if not is_number(seconds) or seconds < 1:
        return NONE
    size, unit = next((s, u) for s, u in _UNITS if seconds >= s and (seconds % s == 0 or s == 1))
    return f"{number(seconds / size)} {unit}{'' if seconds == size else 's'}"
