from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import threading
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import retrain.trainers
from retrain.config.recipe import Recipe
from retrain.data.provenance import source_of
from retrain.isolation.apart import LOG_BYTES
from retrain.isolation.forkserver import ForkServer
from retrain.models.model_files import UnusableModel, load_model
from retrain.train.trainer import FailureKind, Trained, TrainingFailed, run_trainer
from tests.daemons import until
from tests.retrain_data import outcomes, spec

ENVIRONMENT = dict(os.environ) | {"SECRET": "hush", "ALLOWED": "yes"}


@cache
def server() -> ForkServer:
    found = ForkServer(ENVIRONMENT)
    atexit.register(found.close)
    return found


def run_in_a_job(recipe: Recipe, rows: Path, folder: Path) -> None:
    run_trainer(recipe, rows, folder, ForkServer(os.environ))


def run(folder: Path, trainer: str, **config: Any) -> Trained | TrainingFailed:
    wanted = spec(folder, trainer=f"tests.retrain_data:{trainer}", environment=("ALLOWED",), **config)
    wanted.job_dir.mkdir(parents=True)
    outcomes(300).write_parquet(wanted.job_dir / "train.parquet")
    return run_trainer(wanted.recipe, wanted.job_dir / "train.parquet", wanted.job_dir, server())


@pytest.mark.parametrize(
    ("trainer", "kind", "message"),
    [
        ("raises", FailureKind.RAISED, "the trainer raised ValueError: no such luck"),
        ("absent", FailureKind.RAISED, "has no attribute 'absent'"),
        ("crashes", FailureKind.CRASHED, "the trainer crashed: ended by SIGSEGV"),
        ("returns_none", FailureKind.NONSENSE, "NoneType has no predict"),
        ("predicts_unknown_class", FailureKind.NONSENSE, "unknown class 'martian'; known: ok, fraud"),
        ("predicts_wrong_shape", FailureKind.NONSENSE, "predict gives shape (3,) for 300 rows"),
        ("reads_secret", FailureKind.RAISED, "RuntimeError: None yes False"),
    ],
)
def test_each_failure_has_its_own_message(tmp_path: Path, trainer: str, kind: FailureKind, message: str) -> None:
    failed = run(tmp_path, trainer)
    assert isinstance(failed, TrainingFailed)
    assert failed.kind is kind
    assert message in failed.message


def test_memory_is_limited(tmp_path: Path) -> None:
    failed = run(tmp_path, "eats_memory", memory_limit=300 * 2**20)
    assert isinstance(failed, TrainingFailed)
    assert failed.kind is FailureKind.OUT_OF_MEMORY
    assert "ran out of its 300 MiB" in failed.message


def test_a_trainer_that_hangs_is_stopped(tmp_path: Path) -> None:
    started = time.monotonic()
    failed = run(tmp_path, "hangs", time_limit="3s")
    assert failed == TrainingFailed(FailureKind.TIMED_OUT, "training timed out: stopped after 0:00:03")
    assert time.monotonic() - started < 10


def test_a_job_told_to_end_stops_its_trainer_and_the_trainers_children(tmp_path: Path) -> None:
    pid_file = tmp_path / "child.pid"
    wanted = spec(tmp_path, trainer="tests.retrain_data:hangs_with_children", parameters={"pids": str(pid_file)})
    wanted.job_dir.mkdir(parents=True)
    outcomes(300).write_parquet(wanted.job_dir / "train.parquet")
    stopping = threading.Event()

    def stop_when_running() -> None:
        while not pid_file.exists() or len(pid_file.read_text().split()) < 2:
            time.sleep(0.05)
        stopping.set()

    threading.Thread(target=stop_when_running, daemon=True).start()
    failed = run_trainer(wanted.recipe, wanted.job_dir / "train.parquet", wanted.job_dir, server(), stopping)
    assert isinstance(failed, TrainingFailed)
    assert failed.kind is FailureKind.STOPPED
    assert not [pid for pid in pid_file.read_text().split() if Path(f"/proc/{pid}").exists()]


def test_a_trainer_finds_its_rows_and_no_others_wherever_it_looks(tmp_path: Path) -> None:
    """The holdout lies with the job, and what a trainer can read by looking around it may learn from."""
    wanted = spec(tmp_path, trainer="tests.retrain_data:looks_around")
    wanted.job_dir.mkdir(parents=True)
    for name in ("train", "holdout", "reference"):
        outcomes(300).write_parquet(wanted.job_dir / f"{name}.parquet")
    rows, apart = wanted.job_dir / "train.parquet", tmp_path / "other" / "disk"
    failed = run_trainer(wanted.recipe, rows, wanted.job_dir, server(), scratch=str(apart))
    assert isinstance(failed, TrainingFailed)
    assert failed.message == "the trainer raised RuntimeError: found: train.parquet"
    assert not list(apart.iterdir()), "nothing is left of it"


def test_what_a_trainer_leaves_running_is_ended_with_it(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    trained = run(tmp_path, "leaves_one_behind", parameters={"pids": str(pids)})
    assert isinstance(trained, Trained), trained
    assert not Path(f"/proc/{pids.read_text()}").exists()


@pytest.mark.parametrize(
    ("trainer", "kind", "told"),
    [
        ("starts_too_many", FailureKind.CRASHED, "more than 256 processes at once"),
        ("writes_without_end", FailureKind.RAISED, "File too large"),
        ("links_out", FailureKind.NONSENSE, "its model's folder holds links"),
    ],
)
def test_a_trainer_that_takes_too_much_is_ended(tmp_path: Path, trainer: str, kind: FailureKind, told: str) -> None:
    failed = run(tmp_path, trainer, memory_limit=2**30)
    assert isinstance(failed, TrainingFailed)
    assert (failed.kind, told in failed.message) == (kind, True), failed


def test_a_trainers_module_is_found_beside_the_configuration_and_replaces_none(tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "structlog.py").write_text("raise SystemExit('not the real one')\n")
    (code / "our_trainers.py").write_text("from tests.retrain_data import trains_logistic as train\n")
    wanted = replace(spec(tmp_path, trainer="our_trainers:train"), code=str(code))
    wanted.job_dir.mkdir(parents=True)
    outcomes(300).write_parquet(wanted.job_dir / "train.parquet")
    trained = run_trainer(wanted.recipe, wanted.job_dir / "train.parquet", wanted.job_dir, server())
    assert isinstance(trained, Trained), trained
    assert source_of("our_trainers:train", str(code)) == code / "our_trainers.py"
    assert source_of("retrain.trainers.default:train") == Path(retrain.trainers.__file__).parent / "default.py"
    assert source_of("absent.module:train", str(code)) is None
    assert "our_trainers" not in sys.modules


def test_output_is_kept_up_to_a_bound(tmp_path: Path) -> None:
    run(tmp_path, "prints_without_end")
    log = next(tmp_path.glob("jobs/*/trainer.log"))
    assert LOG_BYTES <= log.stat().st_size < LOG_BYTES + 100


def test_a_model_is_saved_with_its_signature_and_not_pickled(tmp_path: Path) -> None:
    trained = run(tmp_path, "trains_logistic")
    assert isinstance(trained, Trained)
    assert not list(trained.model_dir.rglob("*.pkl"))
    model = load_model(trained.model_dir)
    assert model.inputs == {"amount": "number", "kind": "category", "new": "bool"}
    assert (trained.model_dir / "input_example.json").exists()


def test_a_command_trains_and_is_told_where(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import json, os, mlflow.sklearn, pandas as pd\n"
        "from sklearn.linear_model import LogisticRegression\n"
        "rows = pd.read_parquet(os.environ['DRIFTD_TRAIN'])\n"
        "assert list(rows) == ['ts', 'label', 'amount', 'kind', 'new']\n"
        "assert json.loads(os.environ['DRIFTD_PARAMETERS'])['C'] == 2\n"
        "model = LogisticRegression(C=2).fit(rows[['amount']], rows['label'])\n"
        "mlflow.sklearn.save_model(model, os.environ['DRIFTD_MODEL_OUT'], serialization_format='skops',\n"
        "    pip_requirements=['scikit-learn'], input_example=rows[['amount']].head())\n"
    )
    trained = run(tmp_path, "", command=[sys.executable, str(script)], parameters={"C": 2})
    assert isinstance(trained, Trained), trained
    assert load_model(trained.model_dir).inputs == {"amount": "number"}


def test_a_command_ends_with_the_job_that_is_killed(tmp_path: Path) -> None:
    pid, rows = tmp_path / "pid", tmp_path / "train.parquet"
    script = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    recipe = spec(tmp_path, command=[sys.executable, "-c", script]).recipe
    outcomes(300).write_parquet(rows)
    job = multiprocessing.get_context("spawn").Process(target=run_in_a_job, args=(recipe, rows, tmp_path))
    job.start()
    try:
        running = int(until("the command", lambda: pid.exists() and pid.read_text()))
    finally:
        job.kill()
        job.join()
    until("its end", lambda: not Path(f"/proc/{running}").exists(), within=10)


def test_a_command_that_fails_says_so_with_its_last_line(tmp_path: Path) -> None:
    failed = run(tmp_path, "", command=[sys.executable, "-c", "raise SystemExit('no data')"])
    assert failed == TrainingFailed(FailureKind.CRASHED, "the command exited with code 1 and left no model: no data")


def test_a_pickled_model_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("flavors: {sklearn: {pickled_model: model.pkl}}")
    with pytest.raises(UnusableModel, match="nothing is unpickled"):
        load_model(tmp_path)


def test_a_model_of_foreign_types_is_not_loaded_whatever_it_says_itself(tmp_path: Path) -> None:
    import skops.io
    import yaml
    from sklearn.preprocessing import FunctionTransformer

    skops.io.dump(FunctionTransformer(os.system), tmp_path / "model.skops")
    flavour = {
        "pickled_model": "model.skops",
        "serialization_format": "skops",
        "skops_trusted_types": ["posix.system"],
    }
    (tmp_path / "MLmodel").write_text(yaml.safe_dump({"flavors": {"sklearn": flavour}}))
    with pytest.raises(UnusableModel, match=r"not trusted: posix\.system"):
        load_model(tmp_path)
