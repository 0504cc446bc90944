"""The scoring service as a process: it follows champions and canaries under load, and every answer becomes an event."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pytest
import tomli_w
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from retrain.data.frame import features_frame, labels_array
from retrain.models.model_files import save_model
from retrain.models.registry import MODEL_PATH, Registry
from retrain.terms.aliases import CHAMPION, TRAFFIC_TAG
from retrain.train.trainer import TrainContext
from tests.conftest import KafkaCluster
from tests.daemons import until
from tests.mlflow_server import MlflowServer
from tests.retrain_data import BINARY, mlflow_store, outcomes, trains_logistic
from tests.scoring import SCHEMA, Crowd, Scoring

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)


HOUSE = '''
from sklearn.base import BaseEstimator, ClassifierMixin

class Doubtful(ClassifierMixin, BaseEstimator):
    """A type of the team's own."""
    def fit(self, frame, labels):
        self.classes_ = ["ok", "fraud"]
        return self
    def predict(self, frame):
        return ["fraud"] * len(frame)
    def predict_proba(self, frame):
        return [[0.5, 0.5]] * len(frame)

def train(frame, labels, context):
    return Doubtful().fit(frame, labels)
'''


def register(registry: Registry, folder: Path, count: int, estimator: Any = None) -> None:
    """Versions 1, 2, .. of a model; the first is champion."""
    rows = outcomes(200)
    frame = features_frame(rows, BINARY)
    labels, context = pd.Series(labels_array(rows, BINARY)), TrainContext(BINARY, 0)
    model = trains_logistic(frame, labels, context) if estimator is None else estimator.fit(frame, labels)
    save_model(model, folder / "trained", BINARY, frame.head(3), ("house.",))
    for n in range(count):
        run_id = registry.open_run("fraud", f"job-{n}", {})
        registry.log_files(run_id, folder / "trained", MODEL_PATH)
        registry.register("fraud", run_id, {})
    registry.set_alias("fraud", CHAMPION, "1")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    found = Registry(mlflow_store(tmp_path))
    register(found, tmp_path, 2)
    return found


@pytest.fixture
def scoring(tmp_path: Path, registry: Registry) -> Iterator[Callable[..., Scoring]]:
    made: list[Scoring] = []

    def make(**settings: Any) -> Scoring:
        made.append(Scoring(tmp_path / "scoring", tracking_uri=registry.tracking_uri, **settings))
        return made[-1]

    yield make
    for each in made:
        each.kill()


def events(cluster: KafkaCluster, topic: str) -> Counter[str]:
    """How often each prediction is in the topic by now."""
    consumer = KafkaConsumer(bootstrap_servers=cluster.bootstrap, auto_offset_reset="earliest")
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    end, found = consumer.end_offsets([partition])[partition], Counter[str]()
    while consumer.position(partition) < end:
        for batch in consumer.poll(timeout_ms=2000).values():
            found.update(orjson.loads(r.value)["prediction_id"] for r in batch)
    consumer.close()
    return found


def test_a_promotion_and_a_canary_drop_no_request_and_every_answer_becomes_one_event(
    kafka_broker: KafkaCluster, registry: Registry, scoring: Callable[..., Scoring]
) -> None:
    topic, news = kafka_broker.create_topic(), kafka_broker.create_topic()
    kafka = {"bootstrap": [kafka_broker.bootstrap], "topic": topic, "news": news}
    service = scoring(kafka=kafka, follow_every="1h").start()  # only the news tell it
    teller = KafkaProducer(bootstrap_servers=kafka_broker.bootstrap)

    def tell(event: str) -> None:
        teller.send(news, orjson.dumps({"event": event, "model": "fraud"})).get(30)

    time.sleep(2)  # the news are heard from now on
    with Crowd(service) as crowd:
        crowd.wait_for(50)
        split = {"champion": "1", "challenger": "2", "share": 0.3}
        registry.set_tag("fraud", TRAFFIC_TAG, json.dumps(split))
        tell("traffic_changed")
        until("the canary", lambda: service.model() == {"model": "fraud", **split})
        before = dict(crowd.answered)
        crowd.wait_for(200)
        during = [v for i, v in crowd.answered.items() if i not in before]
        assert 0.1 < during.count("2") / len(during) < 0.5
        registry.set_alias("fraud", CHAMPION, "2")
        registry.set_tag("fraud", TRAFFIC_TAG, None)
        tell("champion_moved")
        until("the promotion", lambda: service.model()["champion"] == "2")
        crowd.wait_for(50)
    teller.close()
    assert crowd.failed == []
    assert service.stop() == 0
    assert events(kafka_broker, topic) == Counter(crowd.answered.keys())


def test_a_broker_that_is_away_and_a_kill_lose_no_event(
    own_kafka: Callable[[], KafkaCluster], scoring: Callable[..., Scoring]
) -> None:
    cluster = own_kafka()
    topic = cluster.create_topic()
    service = scoring(kafka={"bootstrap": [cluster.bootstrap], "topic": topic}).start()
    with Crowd(service) as crowd:
        crowd.wait_for(50)
        cluster.own_broker().kill()
        crowd.wait_for(200)
        assert crowd.failed == []
        service.kill()
    again = service.start()  # the broker is still away
    status, _ = again.predict("after-the-kill")
    assert status == 200
    cluster.own_broker().start()
    wanted = {*crowd.answered, "after-the-kill"}
    until("every event", lambda: wanted <= set(events(cluster, topic)), every=0.5)
    assert again.stop() == 0
    assert not list((service.folder / "outbox").glob("*.ndjson"))


def test_a_service_without_registry_or_champion_says_so_and_goes_on_once_there_is_one(
    tmp_path: Path, scoring: Callable[..., Scoring], registry: Registry
) -> None:
    registry.set_alias("fraud", CHAMPION, None)
    service = scoring(files=str(tmp_path / "events")).start(ready=503)
    assert service.get("/readyz")[0] == 503
    assert service.predict("x")[0] == 503
    registry.set_alias("fraud", CHAMPION, "1")
    until("a model", lambda: service.get("/readyz")[0] == 200)
    assert service.predict("x")[0] == 200
    (path,) = (tmp_path / "events" / "predictions").iterdir()
    assert orjson.loads(path.read_bytes())["prediction_id"] == "x"


def test_a_packaged_service_needs_nothing_but_its_folder(
    kafka_broker: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its Dockerfile does, in a fresh environment; some seconds when the packages are cached."""
    (tmp_path / "teams").mkdir()
    (tmp_path / "teams" / "house.py").write_text(HOUSE)
    monkeypatch.syspath_prepend(str(tmp_path / "teams"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "teams"))
    server = MlflowServer(tmp_path / "server")
    server.start()
    try:
        registry = Registry(server.uri)
        register(registry, tmp_path, 1, importlib.import_module("house").Doubtful())
        topic = kafka_broker.create_topic()
        config = {
            "daemon": {"state": str(tmp_path / "state")},
            "mlflow": {"tracking_uri": server.uri},
            "source": {"kind": "kafka", "kafka": {"bootstrap": [kafka_broker.bootstrap], "predictions": [topic]}},
            "models": {"fraud": {**SCHEMA, "retrain": {"trainer": "house:train"}}},
        }
        (tmp_path / "config.toml").write_text(tomli_w.dumps(config))
        context = tmp_path / "context"
        made = driftd(tmp_path, "package", "fraud", "--output", str(context))
        assert made.returncode == 0, made.stderr
        assert made.stdout == f"{context}: version 1 of fraud; docker build --tag scoring-fraud {context}\n"
        again = driftd(tmp_path, "package", "fraud", "--output", str(context))
        assert (again.returncode, again.stderr) == (1, f"driftd: {context} is not empty: choose another --output\n")
        monkeypatch.delenv("PYTHONPATH")
        python = environment_of(context, tmp_path / "venv")
        service = Scoring(tmp_path / "scoring", python, cwd=tmp_path / "scoring")
        clean = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{context}:{context / 'code'}", "HOME": str(tmp_path)}
        try:
            service.start(clean, context / "service.toml")
            status, (answer,) = service.predict("p")
            assert (status, answer["model_version"], answer["score"]) == (200, "1", 0.5)
            until("the event", lambda: events(kafka_broker, topic) == Counter(["p"]), every=0.5)
        finally:
            service.kill()
    finally:
        server.stop()


def test_what_no_container_could_reach_is_said(tmp_path: Path) -> None:
    config = {
        "daemon": {"state": str(tmp_path / "state")},
        "models": {"fraud": SCHEMA},
    }
    (tmp_path / "config.toml").write_text(tomli_w.dumps(config))
    made = driftd(tmp_path, "package", "fraud", "--output", str(tmp_path / "context"))
    assert made.returncode == 2
    assert "config.toml: mlflow.tracking_uri: no container can reach sqlite:///" in made.stderr
    assert "config.toml: source.kind: no container can reach" in made.stderr
    assert not (tmp_path / "context").exists()


def driftd(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monitor.cli", "--config", str(folder / "config.toml"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def environment_of(context: Path, target: Path) -> str:
    """A fresh one with the locked packages, and nothing of this one's."""
    uv, python = str(Path(sys.executable).parent / "uv"), str(target / "bin" / "python")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(target)], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", python, "--no-deps", "--no-build", "--require-hashes"]
    subprocess.run([*install, "--requirements", str(context / "requirements.lock")], check=True)
    return python
