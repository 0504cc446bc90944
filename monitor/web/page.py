"""The status page: every model, its rules, decisions and jobs as plain tables.

Invariant: self-contained HTML without scripts; everything shown is escaped.
"""

from __future__ import annotations

from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #8884; vertical-align: top; }
.firing, .breach, .failed { color: #c0392b; font-weight: 600; }
.pending { color: #b9770e; }
h2 small { font-weight: normal; opacity: .7; }
"""


def render(status: dict[str, Any]) -> str:
    """HTML of a status as `monitor.status` gives it."""
    models = "".join(_model(m) for m in status["models"].values()) or "<p>No model is configured.</p>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>driftd</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="refresh" content="10"><style>{_STYLE}</style></head><body><h1>driftd</h1>'
        f'<p><a href="/metrics">metrics</a> · <a href="/readyz">readiness</a> · '
        f'<a href="/api/v1/status">status as JSON</a></p>{models}</body></html>'
    )


def _model(model: dict[str, Any]) -> str:
    champion = f"version {escape(model['champion'])}" if model["champion"] else "no recorded champion"
    rules = _table(
        ("version", "rule", "phase", "last verdict"),
        [(r["version"], r["rule"], r["phase"], r["reason"]) for r in model["rules"]],
    )
    decisions = _table(("at", "decision"), [(d["at"][:16], d["words"]) for d in model["decisions"]])
    jobs = _table(
        ("job", "state", "reason", "error"),
        [(j["id"], j["state"], j["reason"], j["error"] or "") for j in model["jobs"]],
    )
    return (
        f"<h2>{escape(model['model'])} <small>{champion}</small></h2><p>{escape(model['summary'])}</p>"
        f"<h3>Rules</h3>{rules}<h3>Decisions</h3>{decisions}<h3>Jobs</h3>{jobs}"
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return "<p>None yet.</p>"
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join(
        "<tr>" + "".join(f'<td class="{escape(str(c))[:20]}">{escape(str(c))}</td>' for c in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"
