"""The HTML around the status page: the first answer travels inside it, so that it can be drawn at once.

Invariant: whatever a model, rule or reason is called, it cannot become markup.
"""

from __future__ import annotations

from typing import Any

import orjson

CONTENT_SECURITY_POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"  # noqa: E501
"""Inline styles are bar widths; scripts come from here only."""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>driftd</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="/static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/static/vendor/uPlot.min.css">
<link rel="stylesheet" href="/static/style.css">
<link rel="modulepreload" href="/static/dom.js">
<script src="/static/vendor/uPlot.iife.min.js" defer></script>
<script type="module" src="/static/main.js"></script>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header class="top"><a class="name" href="/">driftd</a><nav aria-label="More"><a href="/readyz">readiness</a>
<a href="/metrics">metrics</a> <a href="/api/v1/status">status as JSON</a></nav></header>
<main id="main"><noscript><p class="notice">This page needs scripts (they come from driftd itself). Without them:
<a href="/api/v1/status">the status as JSON</a>, or <code>driftd status</code>.</p></noscript></main>
<script type="application/json" id="first">%s</script>
</body>
</html>
"""


def render(page: str, data: dict[str, Any]) -> str:
    """HTML of a `page` ("fleet" or "model") with its first data."""
    text = orjson.dumps({"page": page, "data": data}).decode()
    for mark, escaped in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(mark, escaped)
    return _PAGE.replace("%s", text)
