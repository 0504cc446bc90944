"""The page of a backtest: everything in it, nothing outside it, and no name can do anything."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
from collections.abc import Iterator
from functools import reduce
from html.parser import HTMLParser
from typing import Any

import pytest

from monitor.backtest.page import render

HOSTILE = """</script></style><img src=x onerror="alert(1)"><!--<script>'"&amp;{0}%s"""
_TAGS = """html head meta title style body a header span nav main h1 h2 h3 dl div dt dd p noscript section
details summary table thead tbody tr th td small b i time svg path script"""


_UNDEFINED_IN_WORDS = re.compile(r"\b(None|NaN|nan|null)\b")
Path = tuple[str | int, ...]


def hour(n: int) -> str:
    return f"2000-01-01T{n:02d}:00:00+00:00"


def run(name: str = "as configured", decisions: int = 2, **more: Any) -> dict[str, Any]:
    measured = [
        {"window_end": hour(n), "version": "1", "rows": 50, "labelled": 45, "performance": 0.9 - n / 100, "lower": 0.8}
        | {"upper": 0.95, "drop": 0.0125, "estimated": 0.85, "drift_share": 0.25}
        for n in (1, 2, 4)
    ]
    rule = {"rule": "drop", "measure": "performance_drop", "severity": "critical", "action": "retrain", "judged": 3}
    asked = {"trigger": "rule", "cause": "rule drop fires", "detail": "until 04:00", "words": "retrain requested"}
    moved = {"at": hour(3), "window_end": hour(2), "version": "1", "rule": "drop", "before": "pending"}
    return {
        "name": name,
        "settings": {"retrain.cooldown": "6h", "for": 2},
        "windows": {"measured": 3, "final": 2},
        "rules": [rule | {"fired": 1, "alarms_per_1000_windows": 333.33, "first_fired": hour(3)}],
        "retrains": {"requested": 1, "per_1000_windows": 333.33, "suppressed": {"too_many_rejected": 1}},
        "detection": [{"change": hour(2), "detected": {"drop": {"at": hour(3), "windows": 1.25}}}],
        "transitions": [moved | {"after": "firing", "reason": "0.0125 above 0.01"}],
        "decisions": [
            asked | {"at": hour(3), "outcome": "requested" if n == 0 else "too_many_rejected"} for n in range(decisions)
        ],
        "measured": measured,
        **more,
    }


def doc(*runs: dict[str, Any], closed: bool = True) -> dict[str, Any]:
    jobs = [{"at": hour(3), "state": "rolled_back", "detail": "worse by 0.1", "version": "2"}]
    policy = {"trainings": 1, "promoted": 0, "performance": 0.8125, "windows": [0.9, None, 0.7], "versions": ["1"] * 3}
    policies = [
        policy | {"name": "never", "jobs": [], "share_of_the_way": 0.0},
        policy | {"name": "driftd", "jobs": jobs, "share_of_the_way": 0.625},
    ]
    loop = {"metric": "accuracy", "better": "higher", "window_ends": [hour(1), hour(2), hour(4)], "policies": policies}
    history = {"source": "fraud.csv", "model": "fraud", "task": "binary", "features": 7, "rows": 12345}
    history |= {"labelled": 12000, "first": hour(0), "last": "2000-01-01T05:59:30+02:00", "window_seconds": 3600.0}
    history |= {"metric": "accuracy", "better": "higher", "changes": [hour(2)]}
    return {
        "format": "driftd-backtest/1",
        "history": history,
        "runs": list(runs) or [run()],
        "closed_loop": loop if closed else None,
    }


class Parsed(HTMLParser):
    """What a browser would make of it: elements, their attributes, and the text outside scripts and style."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.text = ""
        self.rows: list[list[str]] = []
        self._inside, self._cell = "", False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in self.raw else ""
        if tag in self.raw:
            self.raw[tag].append("")
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside in self.raw:
            self.raw[self._inside][-1] += data
            return
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data

    def row(self, head: str) -> list[str]:
        return next(row[1:] for row in self.rows if row and row[0] == head)

    def document(self) -> Any:
        return json.loads(self.raw["script"][0])


def walk(value: Any, path: Path = ()) -> Iterator[Path]:
    """Where values stand that may be undefined: all but the entries of lists of objects."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in entries:
        if not (isinstance(value, list) and isinstance(part, dict)):
            yield (*path, key)
        yield from walk(part, (*path, key))


def at(value: Any, path: Path) -> Any:
    return reduce(lambda part, key: part[key], path, value)


def put(value: Any, path: Path, new: Any) -> Any:
    value = copy.deepcopy(value)
    at(value, path[:-1])[path[-1]] = new
    return value


def hostile(value: Any) -> Any:
    if isinstance(value, dict):
        return {hostile(k) if k in ("drop", "for", "too_many_rejected") else k: hostile(v) for k, v in value.items()}
    if isinstance(value, list):
        return [hostile(v) for v in value]
    return value + HOSTILE if isinstance(value, str) and not value.startswith("2000-") else value


def test_names_and_reasons_cannot_become_markup() -> None:
    bad = hostile(doc(run(), run("b")))
    page = Parsed(render(bad))
    assert {tag for tag, _ in page.tags} <= set(_TAGS.split())
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    for name in ("fraud.csv", "drop", "until 04:00", "0.0125 above 0.01", "driftd", "worse by 0.1"):
        assert name + HOSTILE in page.text
    assert page.document() == bad


def test_only_the_scripts_of_the_page_may_run_and_nothing_may_be_loaded() -> None:
    page = Parsed(render(hostile(doc())))
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'; ")
    digests = [hashlib.sha256(script.encode()).digest() for script in page.raw["script"][1:]]
    assert re.findall(r"'sha256-([^']+)'", policy) == [base64.b64encode(digest).decode() for digest in digests]


def test_nothing_outside_the_page_is_referred_to() -> None:
    html = render(doc())
    page = Parsed(html)
    assert all("src" not in a and (a.get("href") or "#").startswith("#") for _, a in page.tags)
    assert not re.search(r"url\(|@import", page.raw["style"][0])
    assert not re.search(r"\bimport\b\s*[\"'({]", "".join(page.raw["script"]))
    named = set(re.findall(r"https?://[^\s\"'<]+", html))
    assert named == {"http://www.w3.org/2000/svg", "https://github.com/leeoniya/uPlot"}, "a namespace and a credit"


UNDEFINED: list[tuple[Path, float | None]] = [(path, None) for path in walk(doc())]
UNDEFINED += [(path, float("nan")) for path in walk(doc()) if isinstance(at(doc(), path), float)]


@pytest.mark.parametrize(("path", "nothing"), UNDEFINED, ids=str)
def test_any_value_may_be_undefined(path: Path, nothing: float | None) -> None:
    assert not _UNDEFINED_IN_WORDS.search(Parsed(render(put(doc(), path, nothing))).text)


def test_undefined_values_are_dashes() -> None:
    everything = doc()
    for path in walk(doc()):
        if not isinstance(at(everything, path), dict | list):
            everything = put(everything, path, None)
    page = Parsed(render(everything))
    assert page.row("requested") == ["–"]  # noqa: RUF001
    assert not _UNDEFINED_IN_WORDS.search(page.text)


def test_without_a_closed_loop_the_page_says_so() -> None:
    page = Parsed(render(doc(closed=False)))
    assert "It was not run" in page.text
    assert not [a for _, a in page.tags if a.get("data-chart") == "policies"]


def test_nothing_replayed_is_said() -> None:
    assert "Nothing was replayed." in Parsed(render(doc() | {"runs": []})).text


def test_runs_are_compared_side_by_side() -> None:
    quiet = run("quiet", rules=[], settings={}, detection=[{"change": hour(2), "detected": {"drop": None}}])
    quiet["retrains"] = {"requested": 0, "per_1000_windows": 0.0, "suppressed": {"cooldown": 4}}
    page = Parsed(render(doc(run(), quiet)))
    assert ["", "as configured", "quiet"] in page.rows
    assert page.row("retrain.cooldown") == ["6h", "–"]  # noqa: RUF001
    assert page.row("fired") == ["1", "–"]  # noqa: RUF001
    assert page.row("alarms per 1,000 judged windows") == ["333.33", "–"]  # noqa: RUF001
    assert page.row("requested") == ["1", "0"]
    assert page.row("suppressed: cooldown") == ["0", "4"]
    assert page.row("suppressed: too many rejected") == ["1", "0"]
    assert page.row("drop") == ["1.25", "no alarm"]


def test_of_many_runs_the_first_is_unfolded() -> None:
    page = Parsed(render(doc(*(run(f"run {n}") for n in range(5)))))
    folds = [a for tag, a in page.tags if tag == "details" and a.get("class") == "run"]
    assert ["open" in a for a in folds] == [True, False, False, False, False]


@pytest.mark.parametrize(("decisions", "is_open"), [(12, True), (40, False)])
def test_long_tables_are_folded_but_whole(decisions: int, is_open: bool) -> None:
    html = render(doc(run(decisions=decisions)))
    fold = re.search(
        rf'<details class="fold"( open)?><summary>{decisions} decisions</summary>.*?</details>', html, re.S
    )
    assert fold is not None
    assert bool(fold[1]) is is_open
    assert fold[0].count("<tr>") == 1 + decisions


def test_times_are_in_utc_and_windows_are_numbered_over_all_runs() -> None:
    page = Parsed(render(doc()))
    assert "2000-01-01 03:59:30" in page.text, "the last row came at 05:59:30+02:00"
    later = run("b", measured=[{"window_end": hour(5), "version": "1"}])
    later["transitions"][0] |= {"window_end": hour(5)}
    assert "#4 · 2000-01-01 05:00" in Parsed(render(doc(run(), later))).text, (
        "after those that end at 1, 2 and 4 o'clock"
    )


def test_policies_show_how_much_of_the_way_they_went() -> None:
    page = Parsed(render(doc()))
    assert page.row("driftd") == ["1", "0", "0.8125", "62.5 %"]
    assert "1 job of policy driftd" in page.text
    assert "rolled back" in page.text


def test_charts_have_a_text_alternative() -> None:
    labels = {a["data-chart"]: a["aria-label"] for _, a in Parsed(render(doc())).tags if "data-chart" in a}
    assert set(labels) == {"performance", "drift", "policies"}
    assert "3 of 3 windows have a value: lowest 0.86 in window 3, highest 0.89 in window 1" in (
        labels["performance"] or ""
    )
