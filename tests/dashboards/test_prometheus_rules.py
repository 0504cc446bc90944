"""The shipped rules of Prometheus: they load, every alert is proven both ways, and they use only what driftd exports.

`promtool` runs the cases in dashboards/prometheus/tests. `pint` lints the rules, and its parser, which is Prometheus's
own, tells which metrics and labels an expression uses.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitor.metrics import Metrics
from monitor.rules.measurement import Measure
from monitor.rules.rules import Action, Rule, Severity
from tests.conftest import require

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "dashboards" / "prometheus"
ALERTMANAGER = ROOT / "dashboards" / "alertmanager" / "alertmanager.yml"
RUNBOOK = ROOT / "docs" / "runbook.md"
CASES = sorted((PROMETHEUS / "tests").glob("*.yml"))

TARGET_LABELS = {"job", "instance"}
"""What Prometheus adds to every sample."""
UP = {"up": TARGET_LABELS}
"""What Prometheus itself says of a target."""


@cache
def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules(kind: str) -> list[dict[str, Any]]:
    found = [r for f in sorted((PROMETHEUS / "rules").glob("*.yml")) for g in load(f)["groups"] for r in g["rules"]]
    return [r for r in found if kind in r]


ALERTS = {str(r["alert"]): r for r in rules("alert")}
RECORDED = rules("record")


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False, timeout=500)


def tool(service: str, name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(Path.home() / "go" / "bin"))
    require(service, [] if found else [name])
    assert found is not None
    return found


# -- what the tools say


def test_prometheus_accepts_its_configuration_and_the_rules() -> None:
    done = run(tool("Prometheus", "promtool"), "check", "config", "--lint-fatal", PROMETHEUS / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_alerts_fire_when_they_must_and_only_then(cases: Path, tmp_path: Path) -> None:
    """Each case is given the rules that its alerts are made of: with all of them promtool takes minutes."""
    document = yaml.load(cases.read_text(), Loader=yaml.BaseLoader)  # 0x10 stays a text
    by_rules: dict[frozenset[str], list[Any]] = {}
    for case in document["tests"]:
        needed = frozenset(needed_rules({t["alertname"] for t in case["alert_rule_test"]}))
        by_rules.setdefault(needed, []).append(case)
    for n, (needed, given) in enumerate(by_rules.items()):
        groups = []
        for group in (g for f in ("recording", "alerts") for g in load(PROMETHEUS / "rules" / f"{f}.yml")["groups"]):
            kept = [rule for rule in group["rules"] if rule.get("alert", rule.get("record")) in needed]
            groups += [{**group, "rules": kept}] if kept else []
        (tmp_path / f"rules{n}.yml").write_text(yaml.safe_dump({"groups": groups}))
        order = [group["name"] for group in groups]
        told = {**document, "rule_files": [f"rules{n}.yml"], "group_eval_order": order, "tests": given}
        (tmp_path / f"cases{n}.yml").write_text(yaml.safe_dump(told, width=10_000))
    done = run(tool("Prometheus", "promtool"), "test", "rules", *(f"cases{n}.yml" for n in range(n + 1)), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def needed_rules(names: set[str]) -> set[str]:
    """Alerts, the recorded series that they read, and what those read in turn."""
    recorded = {str(r["record"]): r for r in RECORDED}
    missing = list(names)
    found = set(names)
    while missing:
        rule = ALERTS.get(name := missing.pop()) or recorded[name]
        text = str(rule)
        read = {other for other in recorded if other in text} - found
        found |= read
        missing += read
    return found


def test_the_linter_finds_nothing() -> None:
    pint = tool("pint", "pint")
    everything = ["--min-severity", "info", "--fail-on", "info"]
    configured = [pint, "--no-color", "--offline", "--config", str(PROMETHEUS / "pint.hcl")]
    done = run(*configured, "lint", *everything, PROMETHEUS / "rules")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"entries={len(ALERTS) + len(RECORDED)}" in done.stderr, "it has read other rules than these"


# -- cases


def cases_of(alert: str) -> list[bool]:
    """For each case of the alert whether it must fire."""
    tests = [t for path in CASES for group in load(path)["tests"] for t in group["alert_rule_test"]]
    return [bool(t["exp_alerts"]) for t in tests if t["alertname"] == alert]


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_case_that_fires_and_one_that_does_not(alert: str) -> None:
    assert set(cases_of(alert)) == {True, False}


def test_every_case_is_about_an_alert_that_exists_and_groups_are_evaluated_in_order() -> None:
    groups = [g["name"] for f in ("recording", "alerts") for g in load(PROMETHEUS / "rules" / f"{f}.yml")["groups"]]
    for path in CASES:
        doc = load(path)
        assert doc["group_eval_order"] == groups, f"{path.name}: a missing group is evaluated at random"
        named = {t["alertname"] for group in doc["tests"] for t in group["alert_rule_test"]}
        assert named <= set(ALERTS), path.name


# -- metrics and labels


@dataclass(frozen=True)
class Use:
    """One selector of an expression."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...]
    """(label, operator, value)"""
    ranged: bool


@dataclass(frozen=True)
class Expression:
    text: str
    uses: tuple[Use, ...]
    grouped: frozenset[str]
    """Labels of its aggregations."""
    joined: frozenset[str]
    """Labels it matches vectors on, or takes over from the other side."""


@cache
def parse(text: str) -> Expression:
    """By pint: it prints one node of the tree a paragraph."""
    done = run(tool("pint", "pint"), "--no-color", "parse", text)
    assert done.returncode == 0, f"{text}: {done.stdout}{done.stderr}"
    tree = done.stdout
    lists = {
        key: frozenset(label for found in re.findall(rf"\* {key}: \[(.*)\]", tree) for label in found.split())
        for key in ("Grouping", "MatchingLabels", "Include")
    }
    uses = [
        Use(name, tuple(_matchers(matchers)), ranged=False)
        for name, matchers in re.findall(r"VectorSelector:\n(?: +\* .*\n)*? +\* Name: (\S+)\n"
                                         r"(?: +\* .*\n)*? +\* LabelMatchers: \[(.*)\]", tree)
    ]  # fmt: skip
    for selector in re.findall(r"MatrixSelector:\n(?: +\* .*\n)*? +\* VectorSelector: (.*)", tree):
        inner = parse(selector)
        uses += [Use(u.metric, u.matchers, ranged=True) for u in inner.uses]
    assert uses, f"no selector in {text}: has the output of `pint parse` changed?\n{tree}"
    return Expression(text, tuple(uses), lists["Grouping"], lists["MatchingLabels"] | lists["Include"])


def _matchers(text: str) -> Iterator[tuple[str, str, str]]:
    for label, operator, value in re.findall(r'(\w+)(=~|!~|!=|=)"((?:[^"\\]|\\.)*)"', text):
        if label != "__name__":
            yield label, operator, json.loads(f'"{value}"')


def expressions() -> dict[str, str]:
    """Rule -> expression, with the queries inside annotations."""
    found = {f"{r['record']} {r.get('labels', '')}": r["expr"] for r in RECORDED}
    for name, rule in ALERTS.items():
        found[name] = rule["expr"]
        for key, text in rule["annotations"].items():
            queries = re.findall(r'printf\s+"([^"%]*\{[^"]*)"', text)
            assert len(queries) == len(re.findall(r"\|\s+query\b", text)), f"{name}: a query that is not read here"
            for n, query in enumerate(queries):
                found[f"{name} {key} {n}"] = query.replace("='%s'", "=~'.+'")
    return found


@cache
def declared() -> Mapping[str, set[str]]:
    """Metric as a sample spells it -> its labels, from a registry that has never seen a daemon."""
    found: dict[str, set[str]] = {}
    registry = Metrics().registry
    for collector in list(registry._collector_to_names):
        for family in collector.collect():
            labels = set(getattr(collector, "_labelnames", None) or getattr(family, "_labelnames", None) or ())
            found[family.name + ("_total" if family.type == "counter" else "")] = labels | TARGET_LABELS
    for rule in RECORDED:
        labels = set(parse(rule["expr"]).grouped) | set(rule.get("labels", {}))
        found[rule["record"]] = found.get(rule["record"], set()) | labels
    return found | UP


@cache
def known_values() -> Mapping[str, set[str]]:
    """Label -> the values it has in an exposition with a rule of every kind."""
    every = [
        Rule(f"r_{m}_{s}_{a}", m, above=0.5, severity=s, action=a) for m in Measure for s in Severity for a in Action
    ]
    metrics = Metrics()
    metrics.declare("1", {"fraud": every})
    found: dict[str, set[str]] = {"job": {"driftd"}, "component": set(metrics.ready.problems())}
    for family in metrics.registry.collect():
        for sample in family.samples:
            for label, value in sample.labels.items():
                found.setdefault(label, set()).add(value)
    return found


@pytest.mark.parametrize("rule", expressions())
def test_a_rule_uses_only_metrics_labels_and_values_that_driftd_exports(rule: str) -> None:
    parsed = parse(expressions()[rule])
    assert {u.metric for u in parsed.uses} <= set(declared())
    for use in parsed.uses:
        for label, _operator, value in use.matchers:
            assert label in declared()[use.metric], f"{use.metric} has no label {label}"
            if value not in (".+", ""):
                assert set(value.split("|")) <= known_values()[label], f"{use.metric}: {label} is never {value}"
    around: set[str] = set().union(*(declared()[u.metric] for u in parsed.uses))
    assert parsed.grouped | parsed.joined <= around, "it groups by or joins on labels that nothing in it has"


def test_a_misspelt_metric_label_or_value_would_be_found() -> None:
    parsed = parse('sum by (modell) (rate(driftd_ticks_totall{outcom="okk"}[5m])) and on (jobb) up == 1')
    assert {u.metric for u in parsed.uses} - set(declared()) == {"driftd_ticks_totall"}
    assert parsed.grouped == {"modell"} and parsed.joined == {"jobb"}
    assert Use("driftd_ticks_totall", (("outcom", "=", "okk"),), ranged=True) in parsed.uses
    assert "okk" not in known_values()["outcome"]
    assert Use("up", (), ranged=False) in parsed.uses


@pytest.mark.parametrize("rule", expressions())
def test_a_counter_is_read_as_a_rate_or_an_increase(rule: str) -> None:
    raw = {u.metric for u in parse(expressions()[rule]).uses if u.metric.endswith("_total") and not u.ranged}
    young = {"driftd_source_records_lost_total"} if rule == "DriftdRecordsLost" else set()  # its comment says why
    assert raw <= young


def test_every_measure_that_a_rule_can_watch_has_one_alert_and_one_only() -> None:
    watched = [
        measure
        for alert in ALERTS
        for use in parse(ALERTS[alert]["expr"]).uses
        if use.metric == "model_rule:driftd_rule_firing:max"
        for label, _operator, value in use.matchers
        if label == "measure"
        for measure in value.split("|")
    ]
    assert sorted(watched) == sorted(m.value for m in Measure if m is not Measure.FAILED)


# -- what a person gets


def sections() -> dict[str, str]:
    """Anchor of a heading, as a Markdown page makes it -> heading and text."""
    parts = re.split(r"^(?=#+ )", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {}
    for part in parts[1:]:
        title = part.partition("\n")[0].lstrip("#").strip()
        found[re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")] = part
    return found


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_links_to_the_section_of_the_runbook_that_names_it(alert: str) -> None:
    page, _, anchor = ALERTS[alert]["annotations"]["runbook_url"].partition("#")
    assert page.endswith(f"/{RUNBOOK.relative_to(ROOT)}")
    assert f"`{alert}`" in sections()[anchor]


def test_the_runbook_names_no_alert_that_does_not_exist() -> None:
    assert set(re.findall(r"`(Driftd\w+)`", RUNBOOK.read_text(encoding="utf-8"))) <= set(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_opens_a_dashboard_that_is_shipped(alert: str) -> None:
    boards = (ROOT / "dashboards" / "grafana" / "dashboards").glob("*.json")
    uids = {load(board)["uid"] for board in boards}
    url = re.fullmatch(
        r"/d/([\w-]+)(\?var-model=\{\{ \$labels\.model \}\})?", ALERTS[alert]["annotations"]["dashboard_url"]
    )
    assert url is not None
    assert url[1] in uids
    about_a_model = all(
        "model" in expected["exp_labels"]
        for path in CASES
        for group in load(path)["tests"]
        for t in group["alert_rule_test"]
        if t["alertname"] == alert
        for expected in t["exp_alerts"]
    )
    assert about_a_model == bool(url[2])


# -- where alerts go


def test_alertmanager_accepts_its_configuration() -> None:
    done = run(tool("Alertmanager", "amtool"), "check-config", ALERTMANAGER)
    assert done.returncode == 0, done.stdout + done.stderr


RECEIVERS = {Severity.CRITICAL: "pager", Severity.WARNING: "chat", Severity.INFO: "archive"}


@pytest.mark.parametrize("severity", Severity)
def test_an_alert_goes_where_its_severity_says(severity: Severity) -> None:
    receiver = RECEIVERS[severity]
    labels = [f"severity={severity.value}", "alertname=DriftdModelDrift", "job=driftd", "model=fraud"]
    test = ["config", "routes", "test", f"--config.file={ALERTMANAGER}", f"--verify.receivers={receiver}"]
    done = run(tool("Alertmanager", "amtool"), *test, *labels)
    assert done.returncode == 0, done.stdout + done.stderr


def test_inhibition_speaks_of_alerts_and_areas_that_exist() -> None:
    known = {"alertname": set(ALERTS), "area": {str(a["labels"]["area"]) for a in ALERTS.values()}}
    for rule in load(ALERTMANAGER)["inhibit_rules"]:
        assert "job" in rule["equal"], "two deployments must not silence each other"
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            found = re.fullmatch(r'(\w+)=~?"(.*)"', matcher)
            assert found is not None
            assert set(found[2].split("|")) <= known[found[1]], matcher


def test_no_secret_and_no_address_of_a_real_machine_is_in_the_example() -> None:
    for receiver in load(ALERTMANAGER)["receivers"]:
        for hook in receiver["webhook_configs"]:
            assert re.match(r"https://\w+\.example\.org/", hook["url"])
            assert set(hook["http_config"]["authorization"]) == {"credentials_file"}
