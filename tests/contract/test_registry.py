"""What `retrain` asks of MLflow, on a local store and on a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from retrain.data.frame import features_frame, labels_array
from retrain.models import registry as module
from retrain.models.model_files import UnusableModel, load_model, save_model
from retrain.models.registry import Conflict, Promoted, Registry
from retrain.terms.errors import TransientError
from tests.mlflow_server import MlflowServer
from tests.retrain_data import BINARY, outcomes, trains_logistic

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from retrain.train.trainer import TrainContext

    rows = outcomes(200)
    frame = features_frame(rows, BINARY)
    folder = tmp_path_factory.mktemp("trained") / "model"
    model = trains_logistic(frame, pd.Series(labels_array(rows, BINARY)), TrainContext(BINARY, 0))
    save_model(model, folder, BINARY, frame.head(3), ())
    rows.write_parquet(folder.parent / "reference.parquet")
    return folder


class RegistryContract:
    def logged(self, registry: Registry, model_dir: Path, job: str) -> str:
        run_id = registry.open_run("fraud", job, {"driftd.reason": "it's drifting"})
        registry.log_files(run_id, model_dir, module.MODEL_PATH)
        registry.log_files(run_id, model_dir.parent / "reference.parquet", "reference")
        return run_id

    def test_runs_and_versions_of_a_job_are_found_again(self, registry: Registry, model_dir: Path) -> None:
        run_id = self.logged(registry, model_dir, "it's a job")
        assert registry.open_run("fraud", "it's a job", {}) == run_id
        for _ in range(2):
            registry.log(run_id, at_ms=1, params={"seed": 1}, metrics={"auc": 0.5, "f1": None}, tags={"a": "b"})
        name = "fraud-again"
        version = registry.register(name, run_id, {"driftd.job_id": "it's a job"})
        assert registry.register(name, run_id, {}) == version
        registry.tag_version(name, version, {"driftd.decision": "rejected"})
        registry.end_run(run_id)

    def test_aliases_move_and_vanish(self, registry: Registry, model_dir: Path) -> None:
        name = "fraud-alias"
        assert registry.resolve_alias(name, "champion") is None
        version = registry.register(name, self.logged(registry, model_dir, "alias"), {})
        assert registry.resolve_alias(name, "champion") is None
        registry.set_alias(name, "champion", version)
        assert module.resolve_alias(registry.tracking_uri, name) == version
        for _ in range(2):
            registry.set_alias(name, "champion", None)
        assert registry.resolve_alias(name, "champion") is None

    def test_promotion_stops_when_the_champion_was_moved(self, registry: Registry, model_dir: Path) -> None:
        name = "fraud-promotion"
        one, two, three = (registry.register(name, self.logged(registry, model_dir, f"p{i}"), {}) for i in range(3))
        assert registry.promote(name, one, None) == Promoted(one, None)
        registry.set_alias(name, "challenger", two)
        for _ in range(2):  # the second time as after a crash
            assert registry.promote(name, two, one) == Promoted(two, one)
        assert registry.resolve_alias(name, "previous") == one
        assert registry.resolve_alias(name, "challenger") is None
        assert registry.promote(name, three, one) == Conflict(one, two)
        assert registry.resolve_alias(name, "champion") == two

    def test_models_and_references_come_back(self, registry: Registry, model_dir: Path, tmp_path: Path) -> None:
        name = "fraud-fetch"
        version = registry.register(name, self.logged(registry, model_dir, "fetch"), {})
        for _ in range(2):  # the second time over what the first left
            model = load_model(registry.fetch_model(name, version, tmp_path / "a"))
        rows = outcomes(20)
        assert len(model.predictions(features_frame(rows, BINARY), BINARY).values) == 20
        reference = module.fetch_reference(registry.tracking_uri, name, version, tmp_path / "b")
        assert reference == tmp_path / "b" / f"{version}.parquet"
        assert reference.read_bytes() == (model_dir.parent / "reference.parquet").read_bytes()

    def test_a_version_without_reference_or_model(self, registry: Registry, model_dir: Path, tmp_path: Path) -> None:
        run_id = registry.open_run("fraud", "bare", {})
        registry.log_files(run_id, model_dir / "MLmodel", module.MODEL_PATH)
        version = registry.register("fraud-bare", run_id, {})
        assert registry.fetch_reference("fraud-bare", version, tmp_path) is None
        with pytest.raises(UnusableModel, match="its file is not in its directory"):
            load_model(registry.fetch_model("fraud-bare", version, tmp_path / "bare"))

    def test_a_version_that_is_not_there_any_more_cannot_be_used(
        self, registry: Registry, model_dir: Path, tmp_path: Path
    ) -> None:
        name, run = "fraud-gone", self.logged(registry, model_dir, "gone")
        version = registry.register(name, run, {})
        registry.delete_files(run, module.MODEL_PATH)
        for asked in (version, "99"):
            with pytest.raises(UnusableModel, match="is not in the registry any more: "):
                registry.fetch_model(name, asked, tmp_path / asked)


class TestLocalStore(RegistryContract):
    @pytest.fixture(scope="class")
    def registry(self, tmp_path_factory: pytest.TempPathFactory) -> Registry:
        return Registry(f"sqlite:///{tmp_path_factory.mktemp('local')}/mlflow.db")


class TestServer(RegistryContract):
    @pytest.fixture(scope="class")
    def server(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
        server = MlflowServer(tmp_path_factory.mktemp("server"))
        server.start()
        yield server
        server.stop()

    @pytest.fixture(scope="class")
    def registry(self, server: MlflowServer) -> Registry:
        return Registry(server.uri)

    def test_zz_a_server_that_is_away_is_transient(self, server: MlflowServer, registry: Registry) -> None:
        server.stop()
        with pytest.raises(TransientError):
            registry.resolve_alias("fraud", "champion")
        with pytest.raises(TransientError):
            registry.open_run("fraud", "away", {})
