"""Configuration -> the types of the core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from monitor.config.loading import from_dict
from monitor.config.plan import ModelPlan, job_environment, job_storage_options, plans
from monitor.config.sections import DEFAULT_METRICS
from monitor.measure.drift.methods import DriftMethod, default_method
from retrain.terms.schema import FeatureKind, Task


def plan(base: Path = Path(), **changes: Any) -> ModelPlan:
    model = {
        "task": "binary",
        "features": {"amount": "number", "age": "number", "country": "category", "new": "bool"},
    }
    return plans(from_dict({"models": {"fraud": model | changes}}, base=base))["fraud"]


def test_feature_has_its_own_method_or_its_kinds_or_the_default() -> None:
    drift = {
        "number": {"method": "ks"},
        "amount": {"method": "psi", "threshold": 0.3},
        "prediction": {"method": "psi"},
    }
    found = plan(drift=drift).methods
    assert found == {
        "amount": DriftMethod("psi", 0.3),
        "age": DriftMethod("ks", 0.05),
        "country": default_method(FeatureKind.CATEGORY),
        "new": default_method(FeatureKind.BOOL),
        "prediction": DriftMethod("psi", 0.1),
    }


@pytest.mark.parametrize(
    ("metrics", "named", "judged"),
    [
        ([], None, DEFAULT_METRICS[Task.BINARY][0]),
        (["f1", "roc_auc"], None, "f1"),
        (["f1", "roc_auc"], "roc_auc", "roc_auc"),
    ],
)
def test_rules_and_gates_judge_the_first_metric_unless_they_name_one(
    metrics: list[str], named: str | None, judged: str
) -> None:
    rule = {"name": "drop", "measure": "performance_drop", "above": 0.1, "metric": named}
    gates = {"gates": {"metric": named}} if named else {}
    found = plan(metrics=metrics, rules=[{k: v for k, v in rule.items() if v is not None}], retrain=gates)
    assert found.rules[0].metric == judged
    assert found.retrain.gates.metric == judged


def test_rules_on_other_measures_have_no_metric() -> None:
    assert plan(rules=[{"name": "drift", "measure": "drift_share", "above": 0.5}]).rules[0].metric is None


def test_no_rules_are_the_defaults_and_an_empty_list_is_none() -> None:
    assert len(plan().rules) == 2
    assert plan(rules=[]).rules == ()


def test_reference_is_relative_to_the_config_file(tmp_path: Path) -> None:
    (tmp_path / "reference.csv").write_text("amount,label\n1,0\n2,1\n")
    assert plan(tmp_path, reference={"path": "reference.csv"}).reference.path == str(tmp_path / "reference.csv")
    assert plan().reference.path is None


def test_jobs_get_secrets_by_the_name_of_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTD_TEST_TOKEN", "hunter2")
    (tmp_path / "secret").write_text("hunter3")
    options = {
        "region": "eu",
        "aws_secret_access_key": {"env": "DRIFTD_TEST_TOKEN"},
        "aws_session_token": {"file": str(tmp_path / "secret")},
    }
    document = {"models": {"m": {"task": "regression", "features": {"x": "number"}}}, "lake": {"options": options}}
    config = from_dict(document).config
    stored = job_storage_options(config)
    assert stored == {
        "region": "eu",
        "aws_secret_access_key": "env:DRIFTD_TEST_TOKEN",
        "aws_session_token": "env:DRIFTD_LAKE_AWS_SESSION_TOKEN",
    }
    assert job_environment(config) == {
        "DRIFTD_TEST_TOKEN": "hunter2", "DRIFTD_LAKE_AWS_SESSION_TOKEN": "hunter3",
    }  # fmt: skip
