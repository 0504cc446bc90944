"""Rows, specs and trainers for the tests of `retrain`. The trainers are run by its trainer process, by name."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from retrain.config.settings import RetrainConfig
from retrain.config.spec import JobSpec
from retrain.judge.safeguards import Answer, Match
from retrain.terms.request import RetrainRequest, TriggerKind
from retrain.terms.schema import Feature, FeatureKind, ModelSchema, Task

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 2, 1, 12, 0, tzinfo=UTC)
FEATURES = (
    Feature("amount", FeatureKind.NUMBER),
    Feature("kind", FeatureKind.CATEGORY),
    Feature("new", FeatureKind.BOOL),
)
BINARY = ModelSchema("fraud", Task.BINARY, FEATURES, ("ok", "fraud"), "fraud", ("country",))
MULTICLASS = ModelSchema("fraud", Task.MULTICLASS, FEATURES, ("low", "mid", "high"), None, ("country",))
REGRESSION = ModelSchema("fraud", Task.REGRESSION, FEATURES, segments=("country",))


def outcomes(
    n: int = 1200,
    *,
    schema: ModelSchema = BINARY,
    days: int = 4,
    seed: int = 0,
    version: str = "1",
    skill: float = 0.2,
    start: datetime = START,
    flipped: bool = False,
) -> pl.DataFrame:
    """Labelled rows as they lie in the lake. `skill`: how good the served predictions were. `flipped` turns what
    the labels depend on upside down."""
    rng = np.random.default_rng(seed)
    amount, kind, new = rng.normal(size=n), rng.integers(0, 5, n), rng.random(n) > 0.5
    signal = (2 * amount + (kind - 2) * 0.8 + new) * (-1 if flipped else 1)
    chance = 1 / (1 + np.exp(-signal))
    score = np.clip(skill * chance + (1 - skill) * rng.random(n), 0, 1)
    seconds = np.sort(rng.random(n)) * 86400 * days
    columns: dict[str, Any] = {
        "prediction_id": [f"{version}-{seed}-{i}" for i in range(n)],
        "model_version": [version] * n,
        "ts": pl.Series([start + timedelta(seconds=float(s)) for s in seconds]).cast(pl.Datetime("us", "UTC")),
        "latency_ms": rng.random(n),
        "segment_country": ["de" if i % 2 else "fr" for i in range(n)],
        "feature_amount": amount,
        "feature_kind": [f"k{k}" for k in kind],
        "feature_new": new,
    }
    match schema.task:
        case Task.BINARY:
            columns |= {"label": np.where(rng.random(n) < chance, "fraud", "ok"), "score": score}
            columns["prediction"] = np.where(score > 0.5, "fraud", "ok")
        case Task.MULTICLASS:
            names = np.array(schema.classes)
            columns["label"] = names[np.digitize(signal + rng.normal(size=n) / 2, [-1, 1])]
            columns["prediction"] = names[rng.integers(0, 3, n)]
            columns |= {f"score_{c}": np.full(n, 1 / 3) for c in schema.classes}
        case Task.REGRESSION:
            columns |= {"label": signal + rng.normal(size=n) / 4, "prediction": np.zeros(n)}
    return pl.DataFrame(columns).with_columns(
        date=pl.col("ts").dt.strftime("%Y-%m-%d"),
        label_ts=pl.col("ts") + timedelta(hours=1),
        invalid_features=pl.lit(None, pl.String),
    )


def write(folder: Path, rows: pl.DataFrame) -> str:
    from deltalake import write_deltalake

    write_deltalake(str(folder), rows.to_arrow(), partition_by=["date"], mode="append")
    return str(folder)


@cache
def _mlflow_template() -> Path:
    """An MLflow store without anything in it: making one takes seconds, a copy does not."""
    from retrain.models.registry import Registry

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Registry(f"sqlite:///{folder}/mlflow.db").resolve_alias("nobody", "champion")
    return folder / "mlflow.db"


def mlflow_store(folder: Path) -> str:
    """The URI of the store in `folder`, which is made if it is not there."""
    path = folder / "mlflow.db"
    if not path.exists():
        shutil.copyfile(_mlflow_template(), path)
    return f"sqlite:///{path}"


def spec(
    folder: Path,
    *,
    id: str = "job-1",
    schema: ModelSchema = BINARY,
    tracking_uri: str = "",
    **config: Any,
) -> JobSpec:
    """A spec whose outcomes lie in `folder/outcomes`; MLflow in `folder/mlflow.db` unless told otherwise. One
    training a job, without a refit."""
    settings = {"min_rows": 200, "holdout_min_rows": 100, "parameters": {"max_iter": 20}, "watch_rows": 0}
    settings |= {"refit": False, **config}
    return JobSpec(
        request=RetrainRequest(id, "fraud", TriggerKind.RULE, "drift of amount", {"share": 0.6}, NOW),
        schema=schema,
        outcomes_uri=str(folder / "outcomes"),
        tracking_uri=tracking_uri or mlflow_store(folder),
        registered_model="fraud",
        work_dir=str(folder / "jobs"),
        predictions_uri=str(folder / "predictions"),
        config=RetrainConfig.model_validate(settings),
    )


# -- trainers


def raises(frame: Any, labels: Any, context: Any) -> Any:
    raise ValueError("no such luck")


def hangs(frame: Any, labels: Any, context: Any) -> Any:
    time.sleep(600)


def hangs_with_children(frame: Any, labels: Any, context: Any) -> Any:
    """One that stays, and one that goes into a session of its own."""
    import subprocess

    children = [subprocess.Popen(["sleep", "600"], start_new_session=apart) for apart in (False, True)]
    Path(context.parameters["pids"]).write_text(" ".join(str(child.pid) for child in children))
    children[0].wait()


def eats_memory(frame: Any, labels: Any, context: Any) -> Any:
    return [np.ones(10_000_000) for _ in range(100)]


def crashes(frame: Any, labels: Any, context: Any) -> Any:
    os.kill(os.getpid(), 11)


def returns_none(frame: Any, labels: Any, context: Any) -> Any:
    return None


class _Constant:
    def __init__(self, value: Any, rows: int | None = None) -> None:
        self.value, self.rows = value, rows

    def predict(self, frame: Any) -> Any:
        return np.full(len(frame) if self.rows is None else self.rows, self.value, dtype=object)


def predicts_unknown_class(frame: Any, labels: Any, context: Any) -> Any:
    return _Constant("martian")


def predicts_wrong_shape(frame: Any, labels: Any, context: Any) -> Any:
    return _Constant("ok", 3)


def reads_secret(frame: Any, labels: Any, context: Any) -> Any:
    raise RuntimeError(
        f"{os.environ.get('SECRET')} {os.environ.get('ALLOWED')} {'AWS_SECRET_ACCESS_KEY' in os.environ}"
    )


def prints_without_end(frame: Any, labels: Any, context: Any) -> Any:
    for _ in range(300):
        print("x" * 10_000)
    raise RuntimeError("enough")


def trains_logistic(frame: Any, labels: Any, context: Any) -> Any:
    """Fast, and worse than the shipped trainer: looks at one feature only."""
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    time.sleep(float(context.parameters.get("sleep", 0)))
    return make_pipeline(ColumnTransformer([("amount", "passthrough", ["amount"])]), LogisticRegression()).fit(
        frame, labels
    )


def few_refusals(match: Match) -> Answer:
    """A gate function of a team's."""
    share = float((match.challenger.predictions.values == "fraud").mean())
    return Answer(share <= 0.9, f"{share:.0%} are refused", share, 0.9)


def looks_around(frame: Any, labels: Any, context: Any) -> Any:
    """Every Parquet file within two folders of what it is given, or of where it is."""
    places = {context.work_dir, Path.cwd(), *map(Path, sys.argv[1:])}
    roots = {above for place in places for above in list(place.absolute().parents)[:2]} - {Path("/"), Path("/tmp")}
    found = sorted({str(path) for root in roots for path in root.rglob("*.parquet")})
    raise RuntimeError(" ".join(["found:", *(Path(path).name for path in found)]))


def reads_the_lake(frame: Any, labels: Any, context: Any) -> Any:
    """Learns by heart what it was not given."""
    from deltalake import DeltaTable
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import make_pipeline
    from sklearn.tree import DecisionTreeClassifier

    rows = pl.from_arrow(DeltaTable(context.parameters["lake"]).to_pyarrow_table())
    assert isinstance(rows, pl.DataFrame)
    by_heart = make_pipeline(ColumnTransformer([("amount", "passthrough", ["amount"])]), DecisionTreeClassifier())
    return by_heart.fit(rows.select(amount="feature_amount").to_pandas(), rows["label"].to_list())


def starts_too_many(frame: Any, labels: Any, context: Any) -> Any:
    import subprocess

    for _ in range(400):
        subprocess.Popen(["sleep", "600"])
    time.sleep(600)


def writes_without_end(frame: Any, labels: Any, context: Any) -> Any:
    with (context.work_dir / "large").open("wb") as file:
        for _ in range(2000):
            file.write(bytes(2**20))


def leaves_one_behind(frame: Any, labels: Any, context: Any) -> Any:
    """A child of a child, in a session of its own, that has nothing of its parent's environment."""
    import subprocess

    pids = context.parameters["pids"]
    apart = "import os, time; os.setsid(); os.fork() and os._exit(0); "
    code = f"{apart}open({pids!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    subprocess.run([sys.executable, "-c", code], env={}, check=True)
    while not Path(pids).exists() or not Path(pids).read_text():
        time.sleep(0.01)
    return trains_logistic(frame, labels, context)


def links_out(frame: Any, labels: Any, context: Any) -> Any:
    """Its model's folder will hold a link."""
    import retrain.models.model_files

    save = retrain.models.model_files.save_model

    def linking(estimator: Any, folder: Path, *more: Any) -> None:
        save(estimator, folder, *more)
        (folder / "passwords").symlink_to("/etc/passwd")

    retrain.models.model_files.save_model = linking
    return trains_logistic(frame, labels, context)
