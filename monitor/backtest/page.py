"""A backtest's document as one HTML page that needs nothing else: no network, no files beside it.

Invariant: whatever a source, rule or reason is called, it cannot become markup, and only the two scripts of ours run.
Tables are in the HTML, so that they can be read without scripts; charts are drawn from the document inside the page.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from monitor.backtest.markup import (
    NONE,
    chart,
    comparison,
    duration,
    folded,
    is_number,
    legend,
    number,
    percent,
    sample,
    table,
    text,
    time,
    words,
)

_TIMES = "\N{MULTIPLICATION SIGN}"
_UNFOLDED_RUNS = 3
_LINKED_RUNS = 6
_HERE = Path(__file__).parent / "static"
_WEB = Path(__file__).parents[1] / "web" / "static"
_BETTER = {"higher": "higher is better", "lower": "lower is better", "near_zero": "best near zero"}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<!-- uPlot, which draws the charts:
{license}
-->
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header class="top"><span class="name">driftd</span><nav aria-label="On this page">{links}</nav></header>
<main id="main">
{body}
</main>
<script type="application/json" id="document">{document}</script>
<script>{library}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def render(doc: Mapping[str, Any]) -> str:
    """HTML of a document of format driftd-backtest/1. Any value in it may be None: undefined."""
    page = _Page(doc)
    library = _read(_WEB / "vendor" / "uPlot.iife.min.js")
    script = _read(_WEB / "dom.js") + _read(_HERE / "backtest.js")
    style = [_WEB / "vendor" / "uPlot.min.css", _WEB / "style.css", _HERE / "backtest.css"]
    policy = f"default-src 'none'; script-src {_hash(library)} {_hash(script)}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"  # noqa: E501
    return _PAGE.format(
        policy=policy,
        title=f"Backtest of {text(page.history.get('model'))} · driftd",
        license=_read(_WEB / "vendor" / "uPlot.LICENSE").strip(),
        style="\n".join(map(_read, style)),
        links=page.links(),
        body=page.body(),
        document=_json(doc),
        library=library,
        script=script,
    )


class _Page:
    def __init__(self, doc: Mapping[str, Any]):
        self.history: Mapping[str, Any] = doc.get("history") or {}
        self.runs: Sequence[Mapping[str, Any]] = doc.get("runs") or []
        self.closed: Mapping[str, Any] | None = doc.get("closed_loop")
        self.numbers = _window_numbers(self.runs, self.closed or {})
        self.metric = text(self.history.get("metric"))

    def links(self) -> str:
        runs = [(f"run-{n}", text(run.get("name"))) for n, run in enumerate(self.runs[:_LINKED_RUNS])]
        named = [("found", "Found"), *runs, ("closed", "Closed loop")]
        return " ".join(f'<a href="#{anchor}">{text}</a>' for anchor, text in named)

    def body(self) -> str:
        parts = [self._head(), self._found(), *(self._run(n, run) for n, run in enumerate(self.runs))]
        return "\n".join([*parts, self._closed_loop(self.closed) if self.closed else _NO_LOOP])

    # -- what was replayed

    def _head(self) -> str:
        h = self.history
        better = _BETTER.get(h.get("better") or "")
        facts = [
            ("source", text(h.get("source"))),
            ("model", text(h.get("model"))),
            ("task", text(h.get("task"))),
            ("rows", number(h.get("rows"))),
            ("labelled rows", number(h.get("labelled"))),
            ("features", number(h.get("features"))),
            ("window", duration(h.get("window_seconds"))),
            ("first row", time(h.get("first"))),
            ("last row", time(h.get("last"))),
            ("judged by", f"{self.metric} ({better})" if better else self.metric),
            ("true changes", ", ".join(map(time, h.get("changes") or [])) or "none given"),
        ]
        listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
        return (
            f'<h1>Backtest of {text(h.get("model"))}</h1>\n<dl class="facts">{listed}</dl>\n'
            '<p class="soft">Times are in UTC; those of a table begin on 2000-01-01 and are simulated. # is the number'
            f" of a window. {NONE} stands for what is not defined.</p>\n"
            '<noscript><p class="notice">The charts need scripts. All tables but those of every window are here'
            " without them.</p></noscript>"
        )

    def _found(self) -> str:
        if not self.runs:
            return '<section id="found"><p class="empty">Nothing was replayed.</p></section>'
        runs = self.runs
        groups = [("Windows", self._windows_rows())]
        if keys := _union(run.get("settings") for run in runs):
            rows = [(text(k), [text((run.get("settings") or {}).get(k)) for run in runs]) for k in keys]
            groups.insert(0, ("Settings", rows))
        groups += [(f"Rule {text(name)}", self._rule_rows(name)) for name in self._rule_names()]
        groups.append(("Retrains", self._retrain_rows()))
        for change in _union(_named(run.get("detection"), "change") for run in runs):
            about = f"Change at {self._moment(change)}: windows until the first alarm"
            groups.append((about, [(text(r), self._delays(change, r)) for r in self._rule_names()]))
        title = "What was found" if len(runs) == 1 else "What was found, side by side"
        return f'<section id="found"><h2>{title}</h2>{comparison([r.get("name") for r in runs], groups)}</section>'

    def _windows_rows(self) -> list[tuple[str, list[str]]]:
        windows = [run.get("windows") or {} for run in self.runs]
        return [
            (
                "measured <small>(a window counts once per version)</small>",
                [number(w.get("measured")) for w in windows],
            ),
            ("with final performance", [number(w.get("final")) for w in windows]),
        ]

    def _rule_names(self) -> list[str]:
        return _union(_named(run.get("rules"), "rule") for run in self.runs)

    def _rule_rows(self, name: str) -> list[tuple[str, list[str]]]:
        rules = [_named(run.get("rules"), "rule").get(name, {}) for run in self.runs]
        return [
            ("judges, severity, action", [", ".join(text(r.get(k)) for k in _RULE) if r else NONE for r in rules]),
            ("windows judged", [number(r.get("judged")) for r in rules]),
            ("fired", [number(r.get("fired")) for r in rules]),
            ("alarms per 1,000 judged windows", [number(r.get("alarms_per_1000_windows")) for r in rules]),
            ("first fired", [time(r.get("first_fired")) for r in rules]),
        ]

    def _retrain_rows(self) -> list[tuple[str, list[str]]]:
        retrains = [run.get("retrains") or {} for run in self.runs]
        reasons = sorted(_union(r.get("suppressed") for r in retrains))
        return [
            ("requested", [number(r.get("requested")) for r in retrains]),
            ("requested per 1,000 windows", [number(r.get("per_1000_windows")) for r in retrains]),
            *(
                (
                    f"suppressed: {words(reason)}",
                    [number((r.get("suppressed") or {}).get(reason, 0)) for r in retrains],
                )
                for reason in reasons
            ),
        ]

    def _delays(self, change: str, rule: str) -> list[str]:
        cells = []
        for run in self.runs:
            detected = _named(run.get("detection"), "change").get(change, {}).get("detected") or {}
            found = detected.get(rule)
            cells.append(number(found.get("windows")) if found else "no alarm" if rule in detected else NONE)
        return cells

    # -- one run

    def _run(self, n: int, run: Mapping[str, Any]) -> str:
        measured = run.get("measured") or []
        inside = "\n".join(
            [
                f"<h3>{self.metric} per window</h3>",
                legend(_RUN_KEY, self._rule_key(run)),
                chart(n, "performance", f"{self.metric} per window. {_summary(measured, 'performance', self.numbers)}"),
                "<h3>Share of features that drifted</h3>",
                chart(n, "drift", f"Drift share per window. {_summary(measured, 'drift_share', self.numbers)}"),
                f'<p class="readout numbers" data-run="{n}" aria-live="polite"></p>',
                f'<details class="fold" data-windows="{n}"><summary>Every window in numbers</summary></details>',
                self._decisions(run.get("decisions") or []),
                self._transitions(run.get("transitions") or []),
            ]
        )
        title = text(run.get("name"))
        if len(self.runs) <= _UNFOLDED_RUNS:
            return f'<section class="run" id="run-{n}"><h2>{title}</h2>{inside}</section>'
        is_open = " open" if n == 0 else ""
        return f'<details class="run" id="run-{n}"{is_open}><summary><h2>{title}</h2></summary>{inside}</details>'

    def _rule_key(self, run: Mapping[str, Any]) -> str:
        rules = [f"<span><b>{n}</b> {text(r.get('rule'))}</span>" for n, r in enumerate(run.get("rules") or [], 1)]
        return f"<span>Rules:</span>{''.join(rules)}" if rules else ""

    def _decisions(self, decisions: Sequence[Mapping[str, Any]]) -> str:
        rows = [
            [
                time(d.get("at")),
                "▲ requested" if d.get("outcome") == "requested" else f"{_TIMES} suppressed: {words(d.get('outcome'))}",
                words(d.get("trigger")),
                text(d.get("cause")),
                text(d.get("detail") or None),
            ]
            for d in decisions
        ]
        heads = ["decided at", "outcome", "asked by", "because", "detail"]
        title = "What would have been retrained, and what was suppressed and why"
        return f"<h3>{title}</h3>{folded(heads, rows, 'decision')}"

    def _transitions(self, transitions: Sequence[Mapping[str, Any]]) -> str:
        rows = [
            [
                time(t.get("at")),
                self._moment(t.get("window_end")),
                text(t.get("version")),
                text(t.get("rule")),
                f"{text(t.get('before'))} → {text(t.get('after'))}",
                text(t.get("reason") or None),
            ]
            for t in transitions
        ]
        heads = ["decided at", "window and its end", "version", "rule", "phase", "reason"]
        return f"<h3>Transitions of rules</h3>{folded(heads, rows, 'transition')}"

    # -- the loop closed

    def _closed_loop(self, closed: Mapping[str, Any]) -> str:
        policies = closed.get("policies") or []
        metric = text(closed.get("metric"))
        rows = [
            [
                f'<span class="policy">{sample(n)}{text(p.get("name"))}</span>',
                number(p.get("trainings")),
                number(p.get("promoted")),
                number(p.get("performance"), 4),
                percent(p.get("share_of_the_way")),
            ]
            for n, p in enumerate(policies)
        ]
        heads = [
            "policy",
            "#trainings",
            "#promoted",
            f"#{metric} over all rows",
            "#of the way from never to every window",
        ]
        key = "".join(f"<span>{sample(n)}{text(p.get('name'))}</span>" for n, p in enumerate(policies))
        jobs = "".join(self._jobs(p) for p in policies if p.get("jobs"))
        better = _BETTER.get(closed.get("better") or "", "")
        return f"""<section id="closed"><h2>Closed loop <small>each policy trains and its models answer what
came after; {better}</small></h2>
{legend(_LOOP_KEY, key)}
{chart(0, "policies", f"{metric} per window and policy; the table below has each policy's performance over all rows.")}
<p class="readout numbers" data-run="closed" aria-live="polite"></p>
<p class="soft">Drawn is the mean of a window and of up to four before it; the values of the window itself are shown
when it is pointed at, and in the table of every window.</p>
{table(heads, rows)}
<details class="fold" data-windows="closed"><summary>Every window in numbers</summary></details>
{jobs}</section>"""

    def _jobs(self, policy: Mapping[str, Any]) -> str:
        rows = [
            [time(j.get("at")), words(j.get("state")), text(j.get("version")), text(j.get("detail") or None)]
            for j in policy["jobs"]
        ]
        noun = f"job of policy {text(policy.get('name'))}", f"jobs of policy {text(policy.get('name'))}"
        return folded(["at", "became", "version", "why"], rows, *noun, shown=0)

    def _moment(self, iso: str | None) -> str:
        number = self.numbers.get(iso or "")
        return f"#{number} · {time(iso)}" if number else time(iso)


_RULE = ("measure", "severity", "action")
_NO_LOOP = (
    '<section id="closed"><h2>Closed loop</h2><p class="empty">It was not run: requests trained nothing.</p></section>'
)
_RUN_KEY = f"""<span><i style="border-color: var(--measured)"></i>measured</span>
<span><i class="band"></i>95 % interval</span>
<span><i class="dashed" style="border-color: var(--estimate)"></i>estimate, without labels</span>
<span><i class="upright" style="border-color: var(--ink)"></i>true change</span>
<span><i class="upright dotted" style="border-color: var(--soft)"></i>another version</span>
<span><b class="firing">▼</b> rule fired (line: while it fires)</span>
<span><b class="asked">▲</b> retrain requested</span> <span><b>{_TIMES}</b> suppressed</span>
<span>Marks stand at the time of the decision.</span>"""
_LOOP_KEY = f"<span><b>|</b> trained and promoted</span> <span><b>{_TIMES}</b> not promoted, or rolled back</span>"


def _window_numbers(runs: Sequence[Mapping[str, Any]], closed: Mapping[str, Any]) -> dict[str, int]:
    """By their end, from 1: all windows that any run or the closed loop knows."""
    ends = {w.get("window_end") for run in runs for w in run.get("measured") or []} | set(
        closed.get("window_ends") or []
    )
    return {end: n for n, end in enumerate(sorted(filter(None, ends), key=datetime.fromisoformat), 1)}


def _summary(measured: Sequence[Mapping[str, Any]], name: str, numbers: Mapping[str, int]) -> str:
    """What a chart says, for who does not see it."""
    known = [(w[name], numbers.get(w.get("window_end") or "")) for w in measured if is_number(w.get(name))]
    if not known:
        return f"None of {len(measured)} windows has a value."
    (low, first), (high, last) = min(known, key=lambda k: k[0]), max(known, key=lambda k: k[0])
    return (
        f"{len(known)} of {len(measured)} windows have a value: lowest {number(low)} in window {first or NONE},"
        f" highest {number(high)} in window {last or NONE}. The table of every window has all of them."
    )


def _named(entries: Iterable[Mapping[str, Any]] | None, key: str) -> dict[str, Mapping[str, Any]]:
    return {entry[key]: entry for entry in entries or [] if entry.get(key) is not None}


def _union(parts: Iterable[Mapping[str, Any] | None]) -> list[str]:
    return list(dict.fromkeys(key for part in parts for key in part or {}))


# -- what the page is made of


def _json(doc: Mapping[str, Any]) -> str:
    text = orjson.dumps(doc).decode()
    for mark, escaped in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(mark, escaped)
    return text


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


@cache
def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
