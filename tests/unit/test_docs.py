"""The reference pages are what the code says, and links in the docs lead somewhere."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrain.control import audit
from retrain.control.audit import AuditKind, Entry
from retrain.control.database import create_tables, open_engine
from retrain.data.frame import labels_array
from retrain.judge.evaluate import Side
from retrain.judge.safeguards import Match
from retrain.models.quality import Predictions
from tests.builders import NOW
from tests.retrain_data import BINARY, outcomes

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_generated_pages_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_exist(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
    missing = [t for t in targets if not (page.parent / t).exists()]
    assert missing == []


def test_shipped_configuration_is_good() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "monitor.cli", "check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_audit_page_names_every_kind_of_entry() -> None:
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "audit.md").read_text(), re.MULTILINE)
    assert set(AuditKind) <= set(re.findall(r"`(\w+)`", " ".join(rows)))


def test_script_of_the_audit_page_verifies_an_export(tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "audit.md").read_text(), re.DOTALL)
    engine = open_engine(f"sqlite:///{tmp_path / 'control.db'}")
    create_tables(engine)
    for subject in ("champion", "größte"):
        audit.note(engine, Entry(NOW, AuditKind.ALIAS_MOVED, "fraud", "ada", subject, "", {"share": 0.1, "to": [1.0]}))
    whole = [e.to_json() for e in audit.entries(engine)]
    changed = [{**whole[0], "actor": "eve"}, whole[1]]
    for entries, problem in ((whole, ""), (changed, "entry 1 is not what it was")):
        text = json.dumps(entries)
        done = subprocess.run([sys.executable, "-c", script], input=text, capture_output=True, text=True, check=False)
        assert problem in done.stderr
        assert (done.stdout.strip() == whole[-1]["digest"]) == (not problem)


def test_gate_function_of_the_gates_page_runs() -> None:
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "gates.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(script, "gates.md", "exec"), names)
    rows = outcomes(100)
    side = Side("one", "1", Predictions(np.array(["1"] * 4 + ["0"] * 96, dtype=object)))
    answer = names["few_refusals"](Match(side, side, rows, labels_array(rows, BINARY), BINARY, "accuracy"))
    assert answer == names["Answer"](True, "4.0% would be refused", 0.04, 0.05)
