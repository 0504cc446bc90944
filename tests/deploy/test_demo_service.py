"""deploy/compose/demo_service.py: it fits the model in the stack's configuration, and its ids are of one run."""

from __future__ import annotations

import importlib.util
import tomllib
from types import ModuleType

import orjson
import pytest

from monitor.config import from_dict
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


class Recorder:
    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, object]]] = []

    def send(self, stream: str, events: list[bytes]) -> None:
        self.sent += [(stream, orjson.loads(event)) for event in events]


def test_ids_of_two_runs_differ_and_labels_still_meet_their_predictions(service: ModuleType) -> None:
    recorder = Recorder()
    for run in ("a", "b"):
        sink = service.OfThisRun(recorder, run)
        for stream in ("predictions", "labels"):
            sink.send(stream, [orjson.dumps({"prediction_id": "p-1", "model": "fraud"})])
    ids = [event["prediction_id"] for _, event in recorder.sent]
    assert ids == ["a-p-1", "a-p-1", "b-p-1", "b-p-1"]
    assert all(event["model"] == "fraud" for _, event in recorder.sent)
