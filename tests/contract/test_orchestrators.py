"""Each orchestrator's example in docs/trainers.md, against a stand-in of its API; and whole jobs that train by one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from sklearn.tree import DecisionTreeClassifier

from monitor.base.errors import ConfigError
from monitor.config.loading import from_dict
from retrain.config.engine_config import OrchestratorConfig
from retrain.config.spec import JobSpec
from retrain.data.frame import features_frame
from retrain.engines.handover import Stage, hand_over, take_back
from retrain.engines.orchestrator import LISTED_AFTER, Orchestrator
from retrain.engines.protocol import Order, Phase, Refused
from retrain.job.elsewhere import MOST_REFUSALS
from retrain.models.model_files import save_model
from retrain.models.registry import Registry
from retrain.scorer import Scorers
from retrain.terms.errors import TransientError
from retrain.terms.states import JobState
from retrain.train.trainer import FailureKind, Trained, TrainingFailed
from tests.jobs import LOGISTIC, drive, fork_server, kill_at, submit
from tests.mlflow_server import MlflowServer
from tests.orchestrators import TOKEN, Airflow, StandIn, stand_ins
from tests.retrain_data import BINARY, outcomes, spec, write

PAGE = (Path(__file__).parents[2] / "docs" / "trainers.md").read_text()
ORDER = Order(
    "driftd-fraud-challenge-0a1b2c3d4e5f", "job-1", "fraud", Stage.CHALLENGE, "run7", "http://mlflow:5000", None
)
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


def test_a_start_that_was_cut_off_is_found_again(engine: Orchestrator, stand_in: StandIn, tmp_path: Path) -> None:
    started = engine.start(ORDER)
    stand_in.hidden = True  # as long as a list does not show it yet
    if engine._config.find is not None and engine._config.run == "workflow_run_id":
        other = replace(ORDER, key="driftd-fraud-challenge-ffff")
        patient = engine._config.model_copy(update={"every": timedelta(seconds=30)})
        for process in (Orchestrator(patient, spec(tmp_path)), Orchestrator(patient, spec(tmp_path))):
            for _ in range(2):
                with pytest.raises(TransientError, match="cannot be found yet"):
                    process.start(other)
            other = replace(other, asked=time.time() - 2)  # the next process knows that it may have been submitted
        assert len(stand_in.submitted) == 2
        late = replace(other, asked=time.time() - LISTED_AFTER * 30 - 1)
        with pytest.raises(TransientError, match="cannot be found yet"):
            Orchestrator(patient, spec(tmp_path)).start(late)
        assert len(stand_in.submitted) == 3, "by now it must have been lost"
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


def test_a_job_trains_by_an_orchestrator_and_is_killed_meanwhile(
    mlflow: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_TOKEN", TOKEN)
    write(tmp_path / "outcomes", outcomes(1200))
    airflow = Trains()
    try:
        store = submit(tmp_path, wanted(tmp_path, mlflow, airflow, trainer=LOGISTIC, refit=True))
        for checkpoint in ("handed_over", "started_elsewhere"):
            assert kill_at(tmp_path, checkpoint)

        def troubled(reached: str) -> None:
            if reached == "started_elsewhere":
                airflow.fails_with = [401, 404, 503]  # a token that is renewed, a list that is late

        assert drive(tmp_path, checkpoint=troubled) is JobState.WATCHED
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


def test_a_training_that_nobody_will_speak_of_is_cancelled(
    mlflow: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_TOKEN", TOKEN)
    write(tmp_path / "outcomes", outcomes(300))
    airflow = Airflow("https://airflow.internal", "running")

    def locked_out(reached: str) -> None:
        if reached == "started_elsewhere":
            airflow.fails_with = [401] * MOST_REFUSALS

    try:
        store = submit(tmp_path, wanted(tmp_path, mlflow, airflow, trainer=LOGISTIC))
        assert drive(tmp_path, checkpoint=locked_out) is JobState.FAILED
    finally:
        airflow.close()
    assert "answer 401" in str(store.get("job-1").error)
    assert airflow.cancelled == [airflow.submitted[0].key]
    run = runs_of(mlflow, tmp_path)
    left = Registry(mlflow.uri).download(run, "handover/challenge", tmp_path / "seen")
    assert left is not None
    assert [p.name for p in left.iterdir()] == ["request.json"], "no rows are left"


def runs_of(mlflow: MlflowServer, folder: Path) -> str:
    client = Registry(mlflow.uri)._client
    (run,) = client.search_runs([client.get_experiment_by_name(folder.name).experiment_id])
    return str(run.info.run_id)


def test_a_trainer_that_says_it_was_stopped_has_failed(mlflow: MlflowServer, scorers: Scorers, tmp_path: Path) -> None:
    registry, made = Registry(mlflow.uri), spec(tmp_path, tracking_uri=mlflow.uri)
    run = registry.open_run("fraud", "stopped", {})
    (tmp_path / "result.json").write_text(json.dumps({"status": "stopped", "message": "by its own hand"}))
    registry.log_files(run, tmp_path / "result.json", "handover/challenge")
    found = take_back(registry, scorers, run, made, tmp_path / "rows", Stage.CHALLENGE, tmp_path, 1.0)
    assert found == TrainingFailed(FailureKind.CRASHED, "by its own hand")


@pytest.fixture
def scorers() -> Iterator[Scorers]:
    with Scorers(fork_server()) as found:
        yield found


def test_a_model_that_takes_some_columns_in_its_own_order_comes_back(
    mlflow: MlflowServer, scorers: Scorers, tmp_path: Path
) -> None:
    registry, made, rows = Registry(mlflow.uri), spec(tmp_path, tracking_uri=mlflow.uri), outcomes(300)
    rows.write_parquet(tmp_path / "train.parquet")
    schema = replace(BINARY, features=(BINARY.features[2], BINARY.features[0]))
    frame = features_frame(rows, schema)
    model = DecisionTreeClassifier(max_depth=2).fit(frame, rows["label"].to_list())
    save_model(model, tmp_path / "made", schema, frame.head(5), ())
    run = registry.open_run("fraud", "columns", {})
    registry.log_files(run, tmp_path / "made", "handover/challenge/model")
    found = take_back(registry, scorers, run, made, tmp_path / "train.parquet", Stage.CHALLENGE, tmp_path, 1.0)
    assert isinstance(found, Trained), found


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
