"""Makes what is taken from dashboards/: deploy/kubernetes/monitoring and the table of alerts in docs/operating.md.

kustomize reads no file above its own folder, so dashboards are copied and rules are wrapped. Run it after a change
below dashboards/; `--check` only says whether that was done, and a test does so.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
RULES = ROOT / "dashboards" / "prometheus" / "rules"
DASHBOARDS = ROOT / "dashboards" / "grafana" / "dashboards"
MONITORING = ROOT / "deploy" / "kubernetes" / "monitoring"
PAGE = ROOT / "docs" / "operating.md"
BEGIN, END = "<!-- alerts: made by deploy/generate.py -->\n", "<!-- end of alerts -->\n"
NOTE = "# Made by deploy/generate.py; do not edit.\n"


def wanted(rules: Path = RULES, dashboards: Path = DASHBOARDS) -> dict[Path, str]:
    """File below `monitoring/` -> its text."""
    boards = sorted(dashboards.rglob("*.json"))
    files = {Path("prometheusrule.yaml"): NOTE + _dump(_rule(rules)), Path("dashboards/kustomization.yaml"): ""}
    for board in boards:
        files[Path("dashboards") / board.name] = board.read_text(encoding="utf-8")
    files[Path("dashboards/kustomization.yaml")] = NOTE + _dump(_component([b.name for b in boards]))
    return files


def _groups(folder: Path) -> list[dict[str, Any]]:
    documents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.y*ml"))]
    return [group for document in documents if "groups" in document for group in document["groups"]]


def _rule(folder: Path) -> Mapping[str, object]:
    groups = _groups(folder)
    names = [group["name"] for group in groups]
    if doubled := {n for n in names if names.count(n) > 1}:
        sys.exit(f"rule groups with the same name: {', '.join(sorted(doubled))}")
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "driftd"},
        "spec": {"groups": groups},
    }


def _component(boards: list[str]) -> Mapping[str, object]:
    """One ConfigMap per dashboard: together they might pass the limit of 1 MiB. The sidecar finds them by label."""
    maps = [{"name": f"driftd-dashboard-{name.removesuffix('.json')}", "files": [name]} for name in boards]
    return {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "configMapGenerator": [m | {"options": {"labels": {"grafana_dashboard": "1"}}} for m in maps],
        "generatorOptions": {"disableNameSuffixHash": True},
    }


def _dump(document: Mapping[str, object]) -> str:
    return str(yaml.safe_dump(document, sort_keys=False, width=110, allow_unicode=True))


def page_with_alerts(page: str, rules: Path = RULES) -> str:
    """`page` with the table between its marks as the rules have it now."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        sys.exit(f"the page has lost its marks {BEGIN.strip()} and {END.strip()}")
    return before + BEGIN + "\n".join(["", *_alert_rows(rules), "", ""]) + END + after


def _alert_rows(rules: Path) -> Iterator[str]:
    yield "| alert | severity | it says | what to do |"
    yield "|---|---|---|---|"
    alerts = (rule for group in _groups(rules) for rule in group["rules"] if "alert" in rule)
    for rule in alerts:
        severity = rule["labels"]["severity"]
        summary = re.sub(r"\{\{ *\$(?:labels\.)?(\w+).*?\}\}", r"*\1*", rule["annotations"]["summary"])
        place = rule["annotations"]["runbook_url"].rpartition("/")[2]
        words = place.partition("#")[2].replace("-", " ")
        severity = "its rule's" if "{{" in severity else severity
        yield f"| `{rule['alert']}` | {severity} | {summary} | [{words}]({place}) |"


def stale(files: Mapping[Path, str], folder: Path = MONITORING) -> list[str]:
    """What is missing, different or left over, as sentences."""
    found = []
    for path, text in files.items():
        if not (folder / path).exists():
            found.append(f"{path} is missing")
        elif (folder / path).read_text(encoding="utf-8") != text:
            found.append(f"{path} is not current")
    left = {p.relative_to(folder) for p in (folder / "dashboards").glob("*")} - set(files)
    return found + [f"{path} is left over" for path in sorted(left)]


def write(files: Mapping[Path, str], folder: Path = MONITORING) -> None:
    """Make `folder` hold exactly these generated files."""
    (folder / "dashboards").mkdir(parents=True, exist_ok=True)
    for path in (folder / "dashboards").glob("*"):
        path.unlink()
    for path, text in files.items():
        (folder / path).write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Make deploy/kubernetes/monitoring from dashboards/.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if something is not current")
    page = PAGE.read_text(encoding="utf-8")
    if not parser.parse_args().check:
        write(wanted())
        PAGE.write_text(page_with_alerts(page), encoding="utf-8")
        return 0
    problems = stale(wanted())
    if page_with_alerts(page) != page:
        problems.append("the alerts of docs/operating.md are not current")
    if problems:
        sys.stderr.write("\n".join([*problems, "run deploy/generate.py", ""]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
