from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from retrain.isolation import LOG_BYTES
from retrain.model_files import UnusableModel, load_model, trusted_for
from retrain.trainer import FailureKind, Trained, TrainingFailed, run_trainer
from tests.daemons import until
from tests.retrain_data import outcomes, spec

ENVIRONMENT = dict(os.environ) | {"SECRET": "hush", "ALLOWED": "yes"}


def run(folder: Path, trainer: str, **config: Any) -> Trained | TrainingFailed:
    wanted = spec(folder, trainer=f"tests.retrain_data:{trainer}", environment=("ALLOWED",), **config)
    wanted.job_dir.mkdir(parents=True)
    outcomes(300).write_parquet(wanted.job_dir / "train.parquet")
    return run_trainer(wanted.recipe, wanted.job_dir / "train.parquet", wanted.job_dir, ENVIRONMENT)


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
    wanted = spec(tmp_path, trainer="tests.retrain_data:hangs_with_children")
    wanted.job_dir.mkdir(parents=True)
    outcomes(300).write_parquet(wanted.job_dir / "train.parquet")
    stopping, pid_file = threading.Event(), wanted.job_dir / "child.pid"

    def stop_when_running() -> None:
        while not pid_file.exists() or not pid_file.read_text():
            time.sleep(0.05)
        stopping.set()

    threading.Thread(target=stop_when_running, daemon=True).start()
    failed = run_trainer(wanted.recipe, wanted.job_dir / "train.parquet", wanted.job_dir, ENVIRONMENT, stopping)
    assert isinstance(failed, TrainingFailed)
    assert failed.kind is FailureKind.STOPPED
    status = Path(f"/proc/{pid_file.read_text()}/status")
    assert not status.exists() or "Z (zombie)" in status.read_text()


def test_output_is_kept_up_to_a_bound(tmp_path: Path) -> None:
    run(tmp_path, "prints_without_end")
    log = next(tmp_path.glob("jobs/*/trainer.log"))
    assert LOG_BYTES <= log.stat().st_size < LOG_BYTES + 100


def test_a_model_is_saved_with_its_signature_and_not_pickled(tmp_path: Path) -> None:
    trained = run(tmp_path, "trains_logistic")
    assert isinstance(trained, Trained)
    assert not list(trained.model_dir.rglob("*.pkl"))
    model = load_model(trained.model_dir, trusted_for(spec(tmp_path).config))
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
    arguments = (recipe, rows, tmp_path, dict(os.environ))
    job = multiprocessing.get_context("spawn").Process(target=run_trainer, args=arguments)
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
