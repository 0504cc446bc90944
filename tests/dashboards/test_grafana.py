"""The Grafana dashboards are what their source says, ask only for what driftd exports, and link to what exists.

Metrics and labels are read by a small scanner of our own: Debian's Prometheus is too old for `/api/v1/parse_query`. It
fails on anything in an expression that it does not know; that expressions are PromQL at all, a real Prometheus says.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from monitor.metrics import Metrics
from tests.conftest import PrometheusServer, require
from tests.grafana_queries import (
    FILES,
    FOLDER,
    annotation_queries,
    load,
    panel_queries,
    panels,
    substituted,
    variable_queries,
)

ROOT = FOLDER.parents[1]
UIDS = {"driftd-fleet", "driftd-model", "driftd-retraining", "driftd-daemon"}
BOARDS = {path.name: load(path) for path in FILES}
each_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS.keys())
Board = Mapping[str, Any]
BUILT_IN = {"__rate_interval", "__range", "__url_time_range", "__value", "__data"}
"""Variables that Grafana has of itself."""
FUNCTIONS = {
    "sum", "min", "max", "count", "topk", "rate", "increase", "round", "time", "histogram_quantile", "label_replace",
}  # fmt: skip
GROUPING = ("by", "without", "on", "ignoring", "group_left", "group_right")


def walk(node: Any) -> Any:
    """Every object in it."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from walk(child)


# -- the files


def test_the_files_are_what_the_source_says() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dashboards.grafana.build", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_there_is_one_file_for_each_uid() -> None:
    assert {board["uid"] for board in BOARDS.values()} == UIDS
    assert {f"{uid}.json" for uid in UIDS} == set(BOARDS)
    assert len({board["title"] for board in BOARDS.values()}) == len(UIDS)


ONLY_IN_PROMETHEUS = ("titleFormat", "textFormat", "tagKeys", "useValueForTime", "step")
"""Fields of annotations that Grafana's Prometheus data source reads and the SDK's type has no place for."""


@each_board
def test_it_loads_into_the_types_of_the_sdk_and_loses_nothing(board: Board) -> None:
    register_default_plugins()
    again = json.loads(json.dumps(Dashboard.from_json(dict(board)), cls=JSONEncoder))
    wanted = json.loads(json.dumps(board))
    for annotation in wanted["annotations"]["list"]:
        for name in ONLY_IN_PROMETHEUS:
            annotation.pop(name, None)
    assert again == wanted


@each_board
def test_panels_have_ids_titles_and_places_of_their_own(board: Board) -> None:
    every = list(board["panels"])
    assert len({panel["id"] for panel in every}) == len(every)
    titles = [panel["title"] for panel in panels(board)]
    assert len(set(titles)) == len(titles), "a panel is named by its title: in tests, in talk"
    taken: set[tuple[int, int]] = set()
    for panel in every:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
    for y in {y for _, y in taken}:
        assert {x for x, row in taken if row == y} == set(range(24)), f"a hole in row {y}"


@each_board
def test_every_panel_says_what_it_is_and_what_no_data_means(board: Board) -> None:
    for panel in panels(board):
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["fieldConfig"]["defaults"].get("noValue"), panel["title"]
        if panel["type"] in ("stat", "timeseries", "table"):
            assert panel["fieldConfig"]["defaults"].get("unit"), panel["title"]


@each_board
def test_everything_asks_the_chosen_data_source(board: Board) -> None:
    wanted = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels(board):
        assert panel["datasource"] == wanted, panel["title"]
        assert [t["datasource"] for t in panel["targets"]] == [wanted] * len(panel["targets"]), panel["title"]
        letters = [t["refId"] for t in panel["targets"]]
        assert letters == [chr(ord("A") + i) for i in range(len(letters))]
    for annotation in board["annotations"]["list"]:
        own = annotation["datasource"] == {"type": "grafana", "uid": "-- Grafana --"}
        assert own or (annotation["datasource"] == wanted and annotation["expr"]), annotation["name"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            assert variable["datasource"] == wanted, variable["name"]


@each_board
def test_columns_that_a_table_renames_or_orders_come_from_its_queries(board: Board) -> None:
    for panel in panels(board):
        for transformation in panel.get("transformations", []):
            if transformation["id"] != "organize":
                continue
            options = transformation["options"]
            letters = [t["refId"] for t in panel["targets"]]
            columns = {"Time", *(["Value"] if len(letters) == 1 else [f"Value #{letter}" for letter in letters])}
            for target in panel["targets"]:
                columns |= labels_given(target["expr"])
            named = {*options["indexByName"], *options["excludeByName"], *options["renameByName"]}
            assert named <= columns, panel["title"]
            shown = {options["renameByName"].get(c, c) for c in columns if not options["excludeByName"].get(c)}
            assert {s["displayName"] for s in panel["options"]["sortBy"]} <= shown, panel["title"]
            for override in panel["fieldConfig"]["overrides"]:
                if override["matcher"]["id"] == "byName":
                    assert override["matcher"]["options"] in shown, panel["title"]


def labels_given(expr: str) -> set[str]:
    return {name for group in re.findall(r"(?:by|group_right|group_left) \(([\w, ]*)\)", expr)
            for name in re.split(r",\s*", group) if name}  # fmt: skip


# -- queries


def declared() -> dict[str, set[str]]:
    """Sample name -> its labels, of all that `monitor.metrics` and Prometheus itself give."""
    found: dict[str, set[str]] = {}
    registry = Metrics().registry
    for collector in list(registry._collector_to_names):
        own = getattr(collector, "_labelnames", None)
        for family in collector.collect():
            labels = {*(own if own is not None else getattr(family, "_labelnames", ())), "job", "instance"}
            match family.type:
                case "counter":
                    found[f"{family.name}_total"] = labels
                case "histogram":
                    found |= {f"{family.name}_{part}": labels for part in ("sum", "count")}
                    found[f"{family.name}_bucket"] = {*labels, "le"}
                case _:
                    found[family.name] = labels
    return found


DECLARED = declared()


def problems(expr: str) -> list[str]:
    """What is wrong with the metrics and labels of an expression."""
    wrong, known = [], {"le"}

    def selector(match: re.Match[str]) -> str:
        name, matchers = match[1], re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"[^"]*"', match[2])
        if name not in DECLARED:
            wrong.append(f"no metric {name}")
            return ""
        wrong.extend(f"{name} has no label {label}" for label in matchers if label not in DECLARED[name])
        if 'job=~"$job"' not in match[2]:
            wrong.append(f"{name} of any deployment")
        known.update(DECLARED[name])
        return " "

    rest = re.sub(r"([a-zA-Z_:][\w:]*)\{([^{}]*)\}", selector, expr)
    known.update(re.findall(r'label_replace\(.*?, "(\w+)", ', rest))
    rest = re.sub(r'"[^"]*"', " ", rest)
    rest = re.sub(r"\[(?:\$__rate_interval|\$__range)\]", " ", rest)

    def grouping(match: re.Match[str]) -> str:
        labels = [label for label in re.split(r",\s*", match[2]) if label]
        wrong.extend(f"no metric here has a label {label}" for label in labels if label not in known)
        return " "

    rest = re.sub(rf"\b({'|'.join(GROUPING)}) \(([^()]*)\)", grouping, rest)
    left = set(re.findall(r"[$a-zA-Z_][\w:$]*", rest)) - FUNCTIONS - {"and", "or", "unless"}
    return [*wrong, *(f"{word} is neither a selector nor known" for word in sorted(left))]


@pytest.mark.parametrize(
    ("expr", "says"),
    [
        ('driftd_jobz{job=~"$job"}', "no metric driftd_jobz"),
        ('driftd_jobs{job=~"$job", colour="red"}', "no label colour"),
        ('sum by (colour) (driftd_jobs{job=~"$job"})', "a label colour"),
        ('driftd_jobs{state="failed"}', "any deployment"),
        ("sum(driftd_jobs)", "driftd_jobs is neither"),
        ('rate(driftd_events_total{job=~"$job"}[5m])', "m is neither"),
        ('driftd_events{job=~"$job"}', "no metric driftd_events"),
        ('nonsense(driftd_jobs{job=~"$job"})', "nonsense is neither"),
    ],
)
def test_the_scanner_sees_mistakes(expr: str, says: str) -> None:
    assert any(says in problem for problem in problems(expr)), problems(expr)


@each_board
def test_queries_use_only_metrics_and_labels_that_are_declared(board: Board) -> None:
    found = [*panel_queries(board), *annotation_queries(board)]
    assert len(found) > 10
    wrong = {query.place: problems(query.expr) for query in found}
    for place, selector, label in variable_queries(board):
        name = selector.partition("{")[0]
        wrong[place] = problems(selector if "{" in selector else f'{selector}{{job=~"$job"}}')
        if name not in DECLARED or label not in DECLARED[name]:
            wrong[place].append(f"{name} has no label {label}")
    assert {place: text for place, text in wrong.items() if text} == {}


@each_board
def test_legends_use_labels_that_the_query_keeps(board: Board) -> None:
    for query in panel_queries(board):
        kept = labels_given(query.expr)
        assert set(re.findall(r"{{(\w+)}}", query.legend)) <= kept, query.place


def test_a_real_prometheus_parses_every_expression(prometheus: Callable[[str], PrometheusServer]) -> None:
    server = prometheus("127.0.0.1:9")  # its parser is asked, nothing is scraped
    values = dict.fromkeys(("job", "instance", "model", "version", "segment"), "x")
    values |= {"__rate_interval": "1m", "__range": "1h"}
    wrong = {}
    for board in BOARDS.values():
        for query in (*panel_queries(board), *annotation_queries(board)):
            asked = urlencode({"query": substituted(query.expr, values)})
            try:
                urllib.request.urlopen(f"{server.url}/api/v1/format_query?{asked}", timeout=10).close()
            except urllib.error.HTTPError as error:
                with error:
                    wrong[query.place] = error.read().decode()
    assert wrong == {}


# -- variables and links


@each_board
def test_every_variable_that_is_used_exists(board: Board) -> None:
    known = {variable["name"] for variable in board["templating"]["list"]} | BUILT_IN
    text = json.dumps({k: v for k, v in board.items() if k != "templating"}) + json.dumps(
        [v.get("query") for v in board["templating"]["list"]]
    )
    used = {a or b for a, b in re.findall(r"\$(?:\{(\w+)[^}]*\}|([a-z_]\w*))", text)}
    assert used <= known, used - known
    unused = known - used - BUILT_IN
    assert not unused, f"asked of the reader and used nowhere: {unused}"


@each_board
def test_variables_come_after_those_they_depend_on(board: Board) -> None:
    seen: set[str] = set()
    for variable in board["templating"]["list"]:
        needs = set(re.findall(r"\$(\w+)", json.dumps(variable.get("query", ""))))
        assert needs <= seen, variable["name"]
        seen.add(variable["name"])
        if variable["type"] == "query":
            assert variable["refresh"] == 2, "values follow the time range"


def urls(board: Board) -> list[str]:
    return [node["url"] for node in walk(board) if isinstance(node.get("url"), str) and node["url"]]


@each_board
def test_links_lead_to_dashboards_sections_and_pages_that_exist(board: Board) -> None:
    anchors = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).strip().replace(" ", "-")
        for line in (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    }
    targets = {load(FOLDER / "dashboards" / f"{uid}.json")["uid"]: load(FOLDER / "dashboards" / f"{uid}.json")
               for uid in UIDS}  # fmt: skip
    pages = ("/", "/readyz", "/models/${model}")
    found = urls(board)
    assert found
    for url in found:
        if match := re.match(r"/d/([\w-]+)\?", url):
            assert match[1] in UIDS, url
            there = {v["name"] for v in targets[match[1]]["templating"]["list"]}
            assert set(re.findall(r"var-(\w+)=", url)) <= there, url
        elif url.startswith("${runbook_url}"):
            section = url.removeprefix("${runbook_url}").lstrip("#")
            assert not section or section in anchors, f"{url}: no such heading in docs/runbook.md"
        elif url.startswith("${driftd_url}"):
            assert url.removeprefix("${driftd_url}") in pages, url
        else:
            assert url.startswith("${mlflow_url}/"), url


def test_pages_that_are_linked_are_routes() -> None:
    app = (ROOT / "monitor" / "web" / "app.py").read_text(encoding="utf-8")
    for route in ("/", "/readyz", "/models/{model}"):
        assert f'Route("{route}"' in app, route


@each_board
def test_it_shows_what_driftd_sent_and_where_nothing_is_sent_what_was_scraped(board: Board) -> None:
    annotations = board["annotations"]["list"]
    sent = [a for a in annotations if "driftd" in a.get("target", {}).get("tags", [])]
    assert len(sent) == 1
    assert [a for a in annotations if a.get("useValueForTime") == "on" and a["expr"].startswith("1000 * ")]


# -- provisioning


def provisioned(kind: str) -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / "provisioning" / kind / "driftd.yml").read_text(encoding="utf-8")))


def test_provisioning_fits_the_dashboards() -> None:
    (source,) = provisioned("datasources")["datasources"]
    assert (source["uid"], source["type"], source["url"]) == (
        "driftd-prometheus",
        "prometheus",
        "http://prometheus:9090",
    )
    for board in BOARDS.values():
        chosen = next(v for v in board["templating"]["list"] if v["type"] == "datasource")
        assert (chosen["name"], chosen["query"]) == ("datasource", "prometheus")
        assert chosen["current"]["value"] == source["uid"]
        assert not board["editable"], "Grafana would lose the change at the next start"
    (provider,) = provisioned("dashboards")["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    scraping = yaml.safe_load((ROOT / "dashboards/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    assert source["jsonData"]["timeInterval"] == scraping["global"]["scrape_interval"]


# -- Grafana's own linter


def test_every_exclusion_from_the_linter_has_a_reason() -> None:
    rules = yaml.safe_load((FOLDER / "dashboards" / ".lint").read_text(encoding="utf-8"))
    titles = {panel["title"] for board in BOARDS.values() for panel in panels(board)}
    for rule in rules["exclusions"].values():
        assert len(rule["reason"]) > 20
        assert {entry["panel"] for entry in rule.get("entries", [])} <= titles


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_the_linter_of_grafana_finds_nothing(path: Path) -> None:
    linter = shutil.which("dashboard-linter", path=os.pathsep.join((os.environ["PATH"], str(Path.home() / "go/bin"))))
    require("Grafana's dashboard-linter", [] if linter else ["dashboard-linter"])
    assert linter is not None
    done = subprocess.run([linter, "lint", "--strict", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
