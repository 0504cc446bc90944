"""Tables of a benchmark in its page of docs/, between two markers; everything else in the page stays."""

from __future__ import annotations

from pathlib import Path

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def rewrite(doc: Path, tables: str) -> None:
    """Raises ValueError when the page lacks its markers."""
    before, begin, rest = doc.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{doc}: the tables go between {BEGIN} and {END}, which are not there")
    doc.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}", encoding="utf-8")
