"""Each orchestrator's example in docs/trainers.md, against a stand-in of its API; and whole jobs that train by one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from monitor.config import from_dict
from monitor.errors import ConfigError
from retrain.elsewhere import Order, Phase, Refused
from retrain.engine_config import OrchestratorConfig
from retrain.errors import TransientError
from retrain.handover import Stage, hand_over
from retrain.orchestrator import Orchestrator
from retrain.registry import Registry
from retrain.spec import JobSpec
from retrain.states import JobState
from tests.jobs import LOGISTIC, drive, kill_at, submit
from tests.mlflow_server import MlflowServer
from tests.orchestrators import TOKEN, Airflow, StandIn, stand_ins
from tests.retrain_data import outcomes, spec, write

PAGE = (Path(__file__).parents[2] / "docs" / "trainers.md").read_text()
ORDER = Order("driftd-fraud-challenge-0a1b2c3d4e5f", "job-1", "fraud", Stage.CHALLENGE, "run7", "http://mlflow:5000")
GOOD, BAD = {"succeeded": "succeeded"}, {"failed": "failed"}
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)


def example(heading: str) -> dict[str, Any]:
    """The configuration below a heading of the page."""
    text = PAGE.split(f"### {heading}\n")[1].split("```toml\n")[1].split("```")[0]
    return dict(tomllib.loads(text)["models"]["fraud"]["retrain"]["orchestrator"])


def configured(heading: str, stand_in: StandIn) -> OrchestratorConfig:
    text = PAGE.split(f"### {heading}\n")[1].split("```toml\n")[1].split("```")[0]
    found = tomllib.loads(stand_in.configured(text))["models"]["fraud"]["retrain"]["orchestrator"]
    return OrchestratorConfig.model_validate({**found, "every": "100ms"})


@pytest.fixture(params=stand_ins())
def heading(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stand_in(heading: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    for name in re.findall(r'env = "([A-Z_]+_TOKEN)"', PAGE):
        monkeypatch.setenv(name, TOKEN)
    made = stand_ins()[heading]()
    yield made
    made.close()


@pytest.fixture
def engine(heading: str, stand_in: StandIn, tmp_path: Path) -> Orchestrator:
    return Orchestrator(configured(heading, stand_in), spec(tmp_path, tracking_uri="http://mlflow:5000"))


def test_the_example_is_a_valid_configuration(heading: str) -> None:
    models = {
        "fraud": {"task": "regression", "features": {"a": "number"}, "retrain": {"orchestrator": example(heading)}}
    }
    names = {s["env"]: "x" for s in example(heading)["secrets"].values()}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        assert from_dict({"models": models, "mlflow": {"tracking_uri": "http://mlflow:5000"}}).config.models["fraud"]
        with pytest.raises(ConfigError, match=r"needs mlflow.tracking_uri to be a server's"):
            from_dict({"models": models})


def test_a_training_is_started_once_whatever_is_repeated_and_knows_its_rows(
    engine: Orchestrator, stand_in: StandIn
) -> None:
    started = engine.start(ORDER)
    assert engine.start(ORDER) == started
    (training,) = stand_in.submitted
    wanted = {"run": "run7", "stage": "challenge", "tracking_uri": "http://mlflow:5000"}
    assert wanted.items() <= training.about.items()
    assert engine.look(ORDER, started).phase is Phase.RUNNING


def test_the_end_is_seen_good_or_bad(engine: Orchestrator, stand_in: StandIn, heading: str) -> None:
    started = engine.start(ORDER)
    found = example(heading)
    for states, phase in ((found["succeeded"], Phase.ENDED), (found["failed"], Phase.FAILED)):
        for state in states:
            stand_in.submitted[0].state = state
            assert engine.look(ORDER, started).phase is phase, state
    for state in found.get("lost", []):
        stand_in.submitted[0].state = state
        assert engine.look(ORDER, started).phase is Phase.LOST
    engine.cancel(ORDER, started)
    assert stand_in.cancelled == [stand_in.submitted[0].id]


def test_a_start_that_was_cut_off_is_found_again(engine: Orchestrator, stand_in: StandIn) -> None:
    started = engine.start(ORDER)
    stand_in.hidden = True  # as long as a list does not show it yet
    if engine._config.find is not None and engine._config.run == "workflow_run_id":
        other = Order(**{**{f: getattr(ORDER, f) for f in Order.__slots__}, "key": "driftd-fraud-challenge-ffff"})
        with pytest.raises(TransientError, match="cannot be found yet"):
            engine.start(other)
    stand_in.hidden = False
    assert engine.start(ORDER) == started


def test_trouble_is_waited_out_and_a_refusal_is_not_and_no_secret_is_told(
    engine: Orchestrator, stand_in: StandIn
) -> None:
    for status in (500, 503, 429):
        stand_in.fails_with = [status]
        with pytest.raises(TransientError, match=f"answer {status}"):
            engine.start(ORDER)
    stand_in.fails_with = [403]
    with pytest.raises(Refused, match="answer 403") as refused:
        engine.start(ORDER)
    assert TOKEN not in str(refused.value)
    assert "***" in str(refused.value)
    stand_in.close()
    with pytest.raises(TransientError, match="ConnectionError"):
        engine.start(ORDER)


def test_a_secret_that_is_not_there_is_said(
    engine: Orchestrator, heading: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = {s["env"] for s in example(heading)["secrets"].values()}
    monkeypatch.delenv(name)
    with pytest.raises(Refused, match=f"environment variable {name} is not set"):
        engine.start(ORDER)


# -- whole jobs, each with a registered model of its own on one tracking server


def wanted(folder: Path, mlflow: MlflowServer, stand_in: StandIn, **config: Any) -> JobSpec:
    orchestrator = {**configured("Airflow", stand_in).model_dump(mode="json"), "lost": ["lost"]}
    made = spec(folder, tracking_uri=mlflow.uri, orchestrator=orchestrator, **config)
    return replace(made, registered_model=folder.name)


class Trains(Airflow):
    """An Airflow whose DAG is what docs/trainers.md says: `python -m retrain.remote`."""

    def __init__(self) -> None:
        super().__init__("https://airflow.internal", "running", on_submit=self._run)
        self.codes: list[int] = []

    def _run(self, training: Any) -> None:
        def work() -> None:
            about = training.about
            command = ["-m", "retrain.remote", "--tracking-uri", about["tracking_uri"], "--run", about["run"]]
            done = subprocess.run(
                [sys.executable, *command, "--stage", about["stage"]], check=False, capture_output=True
            )
            self.codes.append(done.returncode)
            training.state = "success" if done.returncode == 0 else "failed"

        threading.Thread(target=work, daemon=True).start()


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()


def test_a_job_trains_by_an_orchestrator_and_is_killed_meanwhile(
    mlflow: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_TOKEN", TOKEN)
    write(tmp_path / "outcomes", outcomes(1200))
    airflow = Trains()
    try:
        store = submit(tmp_path, wanted(tmp_path, mlflow, airflow, trainer=LOGISTIC))
        for checkpoint in ("handed_over", "started_elsewhere"):
            assert kill_at(tmp_path, checkpoint)
        assert drive(tmp_path) is JobState.WATCHED
    finally:
        airflow.close()
    assert [t.about["stage"] for t in airflow.submitted] == ["challenge", "refit"]
    assert airflow.codes == [0, 0]
    job = store.get("job-1")
    assert job.result["elsewhere"]["challenge"]["id"] == airflow.submitted[0].key
    assert job.result["refit"] is True
    registry = Registry(mlflow.uri)
    assert registry.resolve_alias(tmp_path.name, "champion") == "1"
    back = registry.download(job.result["run_id"], "handover/challenge", tmp_path / "seen")
    assert back is not None
    assert {p.name for p in back.iterdir()} == {"request.json", "result.json", "trainer.log", "model"}, (
        "no rows are left"
    )


def test_a_trainer_that_fails_elsewhere_fails_the_job_with_its_own_words(
    mlflow: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_TOKEN", TOKEN)
    write(tmp_path / "outcomes", outcomes(300))
    airflow = Trains()
    try:
        store = submit(tmp_path, wanted(tmp_path, mlflow, airflow, trainer="tests.retrain_data:raises"))
        assert drive(tmp_path) is JobState.FAILED
    finally:
        airflow.close()
    assert store.get("job-1").error == "the trainer raised ValueError: no such luck"
    assert len(airflow.submitted) == 1


@pytest.mark.parametrize(
    ("state", "error", "starts"),
    [
        ("failed", "orchestrator: training driftd-fraud-challenge-", 1),
        ("lost", "orchestrator lost it 3 times: lost", 3),
        ("running", "training timed out: stopped after 0:00:01", 1),
        ("success", "the model that came back: ", 1),
    ],
)
def test_what_comes_to_nothing_is_told_as_what_it_was(
    mlflow: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, error: str, starts: int
) -> None:
    monkeypatch.setenv("AIRFLOW_TOKEN", TOKEN)
    write(tmp_path / "outcomes", outcomes(300))
    airflow = Airflow("https://airflow.internal", state)
    if state == "success":
        airflow.on_submit = lambda training: leave_nonsense(mlflow.uri, training.about["run"], tmp_path)
    try:
        limit = "1s" if state == "running" else "1m"
        store = submit(tmp_path, wanted(tmp_path, mlflow, airflow, trainer=LOGISTIC, time_limit=limit))
        assert drive(tmp_path) is JobState.FAILED
    finally:
        airflow.close()
    assert str(store.get("job-1").error).startswith(error)
    assert len({t.key for t in airflow.submitted}) == starts
    assert airflow.cancelled == ([airflow.submitted[0].key] if state == "running" else [])


def leave_nonsense(uri: str, run: str, folder: Path) -> None:
    (folder / "nonsense").mkdir()
    (folder / "nonsense" / "MLmodel").write_text("flavors: {python_function: {}}")
    Registry(uri).log_files(run, folder / "nonsense", "handover/challenge/model")


def test_rows_go_over_with_their_own_names(mlflow: MlflowServer, tmp_path: Path) -> None:
    rows = outcomes(50)
    rows.write_parquet(tmp_path / "train.parquet")
    registry = Registry(mlflow.uri)
    run = registry.open_run("fraud", "handover", {})
    made, train = spec(tmp_path, tracking_uri=mlflow.uri), tmp_path / "train.parquet"
    hand_over(registry, run, made.request, made.recipe, train, Stage.CHALLENGE, tmp_path / "folder")
    back = registry.download(run, "handover/challenge", tmp_path / "seen")
    assert back is not None
    given = pl.read_parquet(back / "train.parquet")
    assert given.columns == ["ts", "label", "amount", "kind", "new"]
    assert given["amount"].equals(rows["feature_amount"], check_names=False)
    assert json.loads((back / "request.json").read_text())["parameters"] == {"max_iter": 20}
