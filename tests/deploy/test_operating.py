"""docs/operating.md: its table of alerts is current, its links lead to sections, and the keys it names exist."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from monitor.config.sections import DaemonConfig, HttpConfig, KafkaConfig, LakeConfig, WindowConfig
from retrain.config.settings import RetrainConfig
from tests.deploy.test_kubernetes import generator

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operating.md").read_text()


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    return generator()


def test_the_table_of_alerts_is_current(generate: ModuleType) -> None:
    assert generate.page_with_alerts(PAGE) == PAGE, "run deploy/generate.py"


def test_a_changed_alert_changes_the_table(generate: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(
        "groups: [{name: g, rules: [{alert: New, expr: up, labels: {severity: '{{ $labels.severity }}'}, annotations: "
        "{summary: '{{ $labels.model }} and {{ $value | humanize }}', runbook_url: 'x/runbook.md#two-words'}}]}]"
    )
    row = "| `New` | its rule's | *model* and *value* | [two words](runbook.md#two-words) |"
    assert row in generate.page_with_alerts(PAGE, tmp_path)


def test_links_into_the_runbook_lead_to_sections() -> None:
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / "runbook.md").read_text(), re.M)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"runbook\.md#([\w-]+)", PAGE)) - anchors == set()


def test_keys_that_the_page_names_exist() -> None:
    sections = {
        "daemon": DaemonConfig,
        "http": HttpConfig,
        "lake": LakeConfig,
        "source.kafka": KafkaConfig,
        "windows": WindowConfig,
        "retrain": RetrainConfig,
    }
    found = re.findall(r"`(daemon|http|lake|source\.kafka|windows|retrain)\.([a-z_]+)", PAGE)
    assert {section for section, _ in found} == set(sections)
    for section, key in found:
        assert key in sections[section].model_fields, f"{section}.{key}"


def test_files_that_the_page_names_exist() -> None:
    named = set(re.findall(r"(?<![\w/.])((?:deploy|dashboards)/[\w./-]+\w)", PAGE)) - {"deploy/compose/secrets"}
    assert "deploy/compose/make-secrets.sh" in named
    assert {path for path in named if not (ROOT / path).exists()} == set()
