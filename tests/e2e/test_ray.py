"""Trainings, search and measuring on a real Ray cluster of two nodes, one of which is killed in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from monitor.base.errors import TransientError
from monitor.base.faults import Failed
from monitor.base.workers import Workers
from monitor.lake.lake import Lake, Table
from monitor.measure.cluster import Batch, measure_on_cluster
from monitor.measure.worker import MeasureTask, measure
from retrain.config.engine_config import EngineConfig, RayConfig
from retrain.config.spec import JobSpec
from retrain.engines.handover import Stage
from retrain.engines.protocol import Order, Phase
from retrain.engines.ray_engine import RayJobs
from retrain.models.registry import Registry
from retrain.terms.errors import TransientError as JobTrouble
from retrain.terms.states import JobState
from tests.builders import HOUR
from tests.daemons import Daemons, until
from tests.fakes import FileSink, Traffic
from tests.jobs import LOGISTIC, drive, submit
from tests.mlflow_server import MlflowServer
from tests.ray_cluster import RayCluster
from tests.retrain_data import outcomes, spec, write
from tests.windows import START, rows, task

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    cluster = RayCluster()
    cluster.add_node(3)
    yield cluster
    cluster.stop()


def on_ray(folder: Path, cluster: RayCluster, mlflow: MlflowServer, **config: Any) -> JobSpec:
    engine = EngineConfig.model_validate({"kind": "ray", "ray": {"address": cluster.dashboard, "every": "200ms"}})
    made = spec(folder, tracking_uri=mlflow.uri, **config)
    return replace(made, registered_model=folder.name, engine=engine)


# -- trainings


def test_a_job_trains_and_searches_on_the_cluster(cluster: RayCluster, mlflow: MlflowServer, tmp_path: Path) -> None:
    write(tmp_path / "outcomes", outcomes(1200))
    parameters = {"max_iter": 20, "learning_rate": 0.001, "search": 2}
    store = submit(tmp_path, on_ray(tmp_path, cluster, mlflow, parameters=parameters, refit=True))
    assert drive(tmp_path) is JobState.WATCHED
    job = store.get("job-1")
    assert job.result["search"]["candidates"] == 2, job.result["search"]
    assert job.result["search"]["workers"] == 2, "of three processors one is the training's own"
    assert job.result["search"]["parameters"]
    assert set(job.result["elsewhere"]) == {"challenge", "refit"}
    back = Registry(mlflow.uri).download(job.result["run_id"], "handover/refit", tmp_path / "seen")
    assert back is not None
    assert not (back / "search.json").exists(), "what was found is not searched for again"
    assert Registry(mlflow.uri).resolve_alias(tmp_path.name, "champion") == "1"


def test_a_job_whose_node_is_lost_is_trained_on_another(
    cluster: RayCluster, mlflow: MlflowServer, tmp_path: Path
) -> None:
    write(tmp_path / "outcomes", outcomes(1200))
    wanted = on_ray(tmp_path, cluster, mlflow, trainer=LOGISTIC, parameters={"sleep": 8})
    store = submit(tmp_path, wanted)
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(drive, tmp_path)
        until("the training to run", lambda: (store.get("job-1").waiting or "").endswith(" runs"))
        cluster.kill_node()
        until("the job to notice", lambda: "waits for resources" in (store.get("job-1").waiting or ""))
        cluster.add_node(3)
        assert ended.result(120) is JobState.WATCHED
    job = store.get("job-1")
    assert job.result["elsewhere"]["challenge"]["start"] == 2
    assert job.waiting is None


def test_a_trainer_that_fails_there_is_not_tried_again(
    cluster: RayCluster, mlflow: MlflowServer, tmp_path: Path
) -> None:
    write(tmp_path / "outcomes", outcomes(300))
    store = submit(tmp_path, on_ray(tmp_path, cluster, mlflow, trainer="tests.retrain_data:raises"))
    assert drive(tmp_path) is JobState.FAILED
    job = store.get("job-1")
    assert job.error == "the trainer raised ValueError: no such luck"
    assert job.result["elsewhere"]["challenge"]["start"] == 1
    assert "no such luck" in next(tmp_path.rglob("trainer.log")).read_text()


def test_a_job_the_cluster_cannot_run_is_told_with_its_last_words(cluster: RayCluster) -> None:
    engine = RayJobs(RayConfig.model_validate({"address": cluster.dashboard}))
    order = Order("driftd-none", "job-1", "fraud", Stage.CHALLENGE, "no-run", "http://127.0.0.1:9", 0.0)
    started = engine.start(order)
    assert engine.start(order) == started
    seen = until("its end", lambda: s if (s := engine.look(order, started)).phase is not Phase.RUNNING else None)
    assert seen is not None
    assert seen.phase is Phase.LOST
    assert seen.detail
    assert engine.log_tail(order, started)


def test_a_cluster_that_is_away_is_waited_for(cluster: RayCluster) -> None:
    order = Order("driftd-none", "job-1", "fraud", Stage.CHALLENGE, "no-run", "http://127.0.0.1:9", 0.0)
    with pytest.raises(JobTrouble, match=r"Ray at http://127.0.0.1:9: "):
        RayJobs(RayConfig.model_validate({"address": "http://127.0.0.1:9"})).start(order)
    seen = RayJobs(RayConfig.model_validate({"address": cluster.dashboard})).look(order, "driftd-unknown")
    assert seen.phase is Phase.LOST


# -- measuring


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers(1)
    yield workers
    workers.end()


def windows(folder: Path, count: int) -> list[MeasureTask]:
    lake = Lake(str(folder / "lake"))
    for n in range(count):
        lake.append(Table.PREDICTIONS, rows(300, START + n * HOUR, float(n), n, 300 * n), "m")
    return [task(folder, None, START + n * HOUR) for n in range(count)]


def test_windows_measured_there_are_what_they_are_here(cluster: RayCluster, workers: Workers, tmp_path: Path) -> None:
    unknown, *known = windows(tmp_path, 3)
    unknown = replace(unknown, key=replace(unknown.key, version="2"))
    found = tmp_path / "references" / "m" / "1" / "warmup.parquet"
    found.parent.mkdir(parents=True)
    rows(600, START, 0.0, 999).write_parquet(found)
    file = tmp_path / "rows.parquet"
    rows(600, START, 1.0, 998).write_parquet(file)
    configured = replace(unknown, reference=replace(unknown.reference, path=str(file)))
    tasks = (unknown, *known, configured)
    (there,) = workers.map(measure_on_cluster, [Batch(cluster.address, {}, tasks)])
    assert there == [measure(t) for t in tasks]
    assert [r.reference for r in there] == ["", "warmup:1", "warmup:1", "file:rows.parquet"]


def test_a_measurement_whose_node_is_lost_is_made_on_another(
    cluster: RayCluster, workers: Workers, tmp_path: Path
) -> None:
    tasks = tuple(windows(tmp_path, 12))
    running = workers.submit(measure_on_cluster, Batch(cluster.address, {}, tasks))
    until("tasks to run", lambda: not running.done() and cluster.busy())
    cluster.kill_node()
    cluster.add_node(3)
    assert [r.key for r in running.result(120)] == [t.key for t in tasks]


def test_trouble_with_the_cluster_is_transient_and_one_of_the_lake_is_told_as_such(
    cluster: RayCluster, workers: Workers, tmp_path: Path
) -> None:
    (one,) = windows(tmp_path, 1)
    with pytest.raises(TransientError, match=r"Ray at 127\.0\.0\.1:9: "):
        workers.map(measure_on_cluster, [Batch("127.0.0.1:9", {}, (one,))])
    for file in (tmp_path / "lake").rglob("*.parquet"):
        file.unlink()
    ((lost,),) = workers.map(measure_on_cluster, [Batch(cluster.address, {}, (one,))])
    assert isinstance(lost, Failed)
    assert lost.passing
    assert "No such file" in lost.error


def test_a_daemon_measures_there(cluster: RayCluster, tmp_path: Path) -> None:
    engine = {"ray": {"address": cluster.dashboard, "measure": cluster.address}}
    with Daemons(tmp_path) as daemons:
        daemon = daemons.make({"kind": "files"}, engine=engine).start()
        traffic = Traffic(FileSink(daemon.state / "events"), rate=200).begin()
        try:
            until("a window", lambda: daemon.started() and daemon.logged("window_measured"), within=60)
            until("the cluster to tell of it", lambda: cluster.measured() > 0)
        finally:
            traffic.end()
        assert daemon.stop()[0] == 0
