"""deploy/compose/demo_service.py: it fits the model in the stack's configuration, and its ids are of one run."""

from __future__ import annotations

import importlib.util
import tomllib
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import orjson
import pytest

from monitor.config.loading import from_dict
from monitor.demo.customers import Customers, ScoringService
from monitor.demo.world import invented
from tests.deploy.test_compose import ROOT

FOLDER = ROOT / "deploy" / "compose"


@pytest.fixture(scope="module")
def service() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_service", FOLDER / "demo_service.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configured_model_is_the_demos(service: ModuleType) -> None:
    document = tomllib.loads((FOLDER / "config.toml").read_text())
    del document["http"]["token"]
    assert from_dict(document).schemas[service.MODEL] == invented().schema


def test_a_demo_has_windows_before_and_after_the_change(service: ModuleType) -> None:
    windows = tomllib.loads((FOLDER / "config.toml").read_text())["models"][service.MODEL]["windows"]
    assert windows["size"] == "30s"
    world = invented()
    rows = int(30 / service.STEP.total_seconds())
    assert rows >= windows["min_rows"]
    assert world.drift_at is not None
    assert (world.drift_at - service.FIRST_ROW) // rows == 8
    assert (world.frame.height - world.drift_at) // rows == 14


class Answering(ScoringService):
    """A service that answers everything alike."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def predict(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.asked += rows
        return [
            {"prediction_id": r["prediction_id"], "model_version": "1", "prediction": "0", "score": 0.1} for r in rows
        ]


class Recorder:
    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, events: list[bytes]) -> None:
        self.sent += [orjson.loads(event) for event in events]


def test_ids_of_two_runs_differ_and_labels_still_meet_their_predictions(service: ModuleType) -> None:
    world, scoring, labels = invented(200), Answering(), Recorder()
    for prefix in ("a-", "b-"):
        customers = Customers(
            world, scoring, labels, datetime.now(UTC), service.STEP, label_delay=10, first_row=100, prefix=prefix
        )
        assert customers.ask(100, 130) == "1"
        customers.finish(140)
        assert customers.sent == {"predictions": 30, "labels": 40}
    asked = [row["prediction_id"] for row in scoring.asked]
    assert len(set(asked)) == 60
    assert set(asked) < {label["prediction_id"] for label in labels.sent}
    assert {label["model"] for label in labels.sent} == {"fraud"}
