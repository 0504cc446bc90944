"""Models of strangers are opened apart: what they hold cannot act, and what they do stays in their process."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from retrain.base.retry import Stopped
from retrain.data.frame import features_frame, labels_array
from retrain.isolation.forkserver import ForkServer
from retrain.models import model_files
from retrain.models.model_files import UnusableModel, load_model, own_types, save_model, unpacked_bytes
from retrain.scorer import Limits, Scorers, Trust
from retrain.terms.schema import Task
from serving.models import open_here
from serving.settings import ServiceSettings, from_dict
from tests import crafted
from tests.crafted import Crafted
from tests.daemons import until
from tests.retrain_data import BINARY, MULTICLASS, REGRESSION, ModelSchema, outcomes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
ROWS = outcomes(400)
FRAME = features_frame(ROWS, BINARY)
OWN = ("tests.crafted.",)


def settings(**more: Any) -> ServiceSettings:
    schema = {k: v for k, v in BINARY.to_json().items() if k != "model"}
    return from_dict(
        {"model": "fraud", "registered_model": "fraud", "tracking_uri": "u", "schema": schema, "files": "f", **more}
    )


def saved(folder: Path, estimator: object, schema: ModelSchema = BINARY, own: tuple[str, ...] = ()) -> Path:
    save_model(estimator, folder, schema, features_frame(outcomes(5, schema=schema), schema), own)
    return folder


def encoder() -> Any:
    from sklearn.compose import make_column_transformer
    from sklearn.preprocessing import OneHotEncoder

    return make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["kind"]), ("passthrough", ["amount"]))


@pytest.fixture(scope="module")
def scorers() -> Iterator[Scorers]:
    with ForkServer(os.environ) as server, Scorers(server, Trust(OWN)) as found:
        yield found


# -- what a stranger's file holds cannot act


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Crafted], Path]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    folder = tmp_path_factory.mktemp("crafted")
    valid = saved(
        folder / "valid", make_pipeline(encoder(), LogisticRegression()).fit(FRAME, labels_array(ROWS, BINARY))
    )
    assert load_model(valid).predictions(FRAME, BINARY).scores is not None
    return crafted.craft(folder, valid, folder / "marker"), folder / "marker"


def test_the_corpus_acts_where_names_are_trusted(corpus: tuple[list[Crafted], Path]) -> None:
    """Or refusing it would show nothing."""
    found, marker = corpus
    assert len(found) >= 60
    assert sum(each.acts for each in found) >= 20
    import skops.io  # noqa: F401 - the children have it then

    fork = multiprocessing.get_context("fork")
    for each in found:
        if each.acts:
            child = fork.Process(target=crafted.as_skops_would, args=(each.model,))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Python, about forks and threads
                child.start()
            child.join(60)
            assert marker.exists(), each.name
            marker.unlink()


def test_no_crafted_file_acts_or_is_opened_through_any_door(
    corpus: tuple[list[Crafted], Path], scorers: Scorers
) -> None:
    found, marker = corpus
    doors = {
        "in this process": lambda model: load_model(model, OWN),
        "job, trial, reproduction, package": lambda model: scorers.open(model, BINARY),
        "scoring service": lambda model: open_here(settings(trusted=OWN), model, scorers),
    }
    for each in found:
        for door, opening in doors.items():
            with pytest.raises(UnusableModel):
                opening(each.model)
                pytest.fail(f"{each.name} was opened: {door}")
            assert not marker.exists(), (each.name, door)


def test_a_refusal_names_what_is_not_trusted(corpus: tuple[list[Crafted], Path]) -> None:
    by_name = {each.name: each.model for each in corpus[0]}
    for name, told in {
        "constructor: a shell": r"not trusted: os\.system \(ConstructorFromReduceNode\)",
        "function: a shell": r"not trusted: os\.system$",
        "directory: more than is allowed, once it is unpacked": r"unpacks to 629,\d+,\d+ bytes; 536,870,912 are",
        "directory: a pickle": "stored as cloudpickle; nothing is unpickled here",
        "directory: a description that calls": "no MLflow model: ConstructorError",
    }.items():
        with pytest.raises(UnusableModel, match=told):
            load_model(by_name[name])


# -- what teams use can be opened


def ordinary() -> dict[str, Any]:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.compose import make_column_selector, make_column_transformer
    from sklearn.ensemble import (
        AdaBoostClassifier,
        BaggingClassifier,
        ExtraTreesClassifier,
        GradientBoostingClassifier,
        HistGradientBoostingClassifier,
        RandomForestClassifier,
        StackingClassifier,
        VotingClassifier,
    )
    from sklearn.feature_selection import SelectKBest, f_classif, mutual_info_classif
    from sklearn.impute import KNNImputer, SimpleImputer
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, SGDClassifier
    from sklearn.model_selection import GridSearchCV, TimeSeriesSplit, TunedThresholdClassifierCV
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import (
        FunctionTransformer,
        KBinsDiscretizer,
        MinMaxScaler,
        OneHotEncoder,
        OrdinalEncoder,
        PolynomialFeatures,
        PowerTransformer,
        QuantileTransformer,
        RobustScaler,
        SplineTransformer,
        StandardScaler,
        TargetEncoder,
    )
    from sklearn.svm import SVC
    from sklearn.tree import DecisionTreeClassifier

    def with_number(*steps: Any, last: Any = None) -> Any:
        table = make_column_transformer(
            (make_pipeline(*steps), ["amount"]), (OneHotEncoder(handle_unknown="ignore"), ["kind"]), sparse_threshold=0
        )
        return make_pipeline(table, LogisticRegression() if last is None else last)

    logistic = with_number(SimpleImputer(), StandardScaler())
    found = {type(step).__name__: with_number(step) for step in (
        SimpleImputer(), KNNImputer(), StandardScaler(), MinMaxScaler(), RobustScaler(), PowerTransformer(),
        QuantileTransformer(n_quantiles=50), KBinsDiscretizer(quantile_method="averaged_inverted_cdf"),
        SplineTransformer(), PolynomialFeatures(), FunctionTransformer(np.abs),
    )}  # fmt: skip
    found |= {type(last).__name__: with_number(SimpleImputer(), last=last) for last in (
        LogisticRegressionCV(cv=3), SGDClassifier(), KNeighborsClassifier(), GaussianNB(), DecisionTreeClassifier(),
        RandomForestClassifier(5, n_jobs=2), ExtraTreesClassifier(5), GradientBoostingClassifier(n_estimators=5),
        HistGradientBoostingClassifier(max_iter=5), AdaBoostClassifier(n_estimators=3),
        BaggingClassifier(n_estimators=3), MLPClassifier((5,), max_iter=20), SVC(),
        CalibratedClassifierCV(SVC(), cv=2),
        CalibratedClassifierCV(LogisticRegression(), method="isotonic", cv=2),
    )}  # fmt: skip
    return found | {
        "OrdinalEncoder": make_pipeline(
            make_column_transformer((OrdinalEncoder(), make_column_selector("kind")), ("passthrough", ["amount"])),
            HistGradientBoostingClassifier(max_iter=5, categorical_features=[0]),
        ),
        "TargetEncoder": make_pipeline(make_column_transformer((TargetEncoder(), ["kind"])), LogisticRegression()),
        "SelectKBest": make_pipeline(logistic[0], SelectKBest(f_classif, k=2), LogisticRegression()),
        "SelectKBest, mutual information": make_pipeline(
            logistic[0], SelectKBest(mutual_info_classif, k=2), LogisticRegression()
        ),
        "GridSearchCV": GridSearchCV(logistic, {"logisticregression__C": [0.1, 1]}, cv=2, scoring="roc_auc"),
        "GridSearchCV by time": GridSearchCV(logistic, {"logisticregression__C": [0.1, 1]}, cv=TimeSeriesSplit(2)),
        "TunedThresholdClassifierCV": TunedThresholdClassifierCV(logistic, cv=2),
        "VotingClassifier": VotingClassifier([("a", logistic), ("b", with_number(SimpleImputer()))], voting="soft"),
        "StackingClassifier": StackingClassifier([("a", logistic)], LogisticRegression(), cv=2),
    }


def test_ordinary_pipelines_are_opened_and_answer_as_where_they_were_made(tmp_path: Path, scorers: Scorers) -> None:
    labels = labels_array(ROWS, BINARY)
    models = ordinary()
    assert len(models) >= 30
    for at, (name, model) in enumerate(models.items()):
        fitted = model.fit(FRAME, labels)
        with scorers.open(saved(tmp_path / str(at), fitted), BINARY) as scorer:
            found = scorer.predictions(FRAME, BINARY)
            assert scorer.inputs == {"amount": "number", "kind": "category", "new": "bool"}
        assert np.array_equal(found.values, fitted.predict(FRAME)), name
        if hasattr(fitted, "predict_proba"):
            assert found.scores == pytest.approx(fitted.predict_proba(FRAME)[:, list(fitted.classes_).index("fraud")])


@pytest.mark.parametrize("schema", [MULTICLASS, REGRESSION])
def test_classes_and_numbers_come_back_as_they_are(tmp_path: Path, scorers: Scorers, schema: ModelSchema) -> None:
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import make_pipeline

    rows = outcomes(300, schema=schema)
    frame = features_frame(rows, schema)
    last = LinearRegression() if schema.task is Task.REGRESSION else LogisticRegression()
    model = make_pipeline(encoder(), last).fit(frame, labels_array(rows, schema))
    with scorers.open(saved(tmp_path / "model", model, schema), schema) as scorer:
        found = scorer.predictions(frame, schema)
    assert np.array_equal(found.values, model.predict(frame))
    if schema.task is Task.MULTICLASS:
        order = [list(last.classes_).index(c) for c in schema.classes]
        assert found.scores == pytest.approx(model.predict_proba(frame)[:, order])


def test_every_public_estimator_of_the_installed_version_was_reviewed() -> None:
    """One that a new version brings is looked at first: what do its `__setstate__` and `predict` do with any state?"""
    from sklearn.utils import all_estimators

    from retrain.models.trusted_types import CLASSES

    unsupported = {"sklearn.cluster._birch.Birch"}  # skops cannot store it
    public = {f"{c.__module__}.{c.__name__}" for _, c in all_estimators() if c.__module__.startswith("sklearn.")}
    assert public - CLASSES == unsupported & public


def test_every_trusted_name_is_what_it_says() -> None:
    import importlib

    from retrain.models import trusted_types

    for name in trusted_types.CLASSES:
        module, _, own = name.rpartition(".")
        found = getattr(importlib.import_module(module), own)
        assert isinstance(found, type)
        assert (found.__module__, found.__qualname__) == (module, own)
    for name in trusted_types.FUNCTIONS:
        module, _, own = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), own)), name


def test_frames_arrive_as_they_were_made() -> None:
    from retrain.scorer import wire

    rows = outcomes(50)
    frame = features_frame(rows, BINARY)
    frame.loc[3, "amount"] = np.nan
    frame.loc[4, "amount"] = np.inf
    holes = frame.assign(kind=np.full(50, None, dtype=object), new=np.array([None, True] * 25, dtype=object))
    odd = frame.assign(kind=np.array(["", "ü\x00\U0001f600", "NaN", None, "a\nb"] * 10, dtype=object))
    for given in (frame, holes, odd):
        pd.testing.assert_frame_equal(wire.unpack_frame(*wire.pack_frame(given)), given)


# -- what a model does when it is asked stays there


class Acting:
    """A model of the team's that does something when it is asked; what it tried goes into its answers."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.classes_ = np.array(BINARY.classes, dtype=object)

    def predict(self, frame: Any) -> Any:
        import ctypes
        import subprocess

        match self.how:
            case "crash":
                ctypes.string_at(0)
            case "exit":
                os._exit(3)
            case "raise":
                raise RuntimeError("not on these rows")
            case "hang":
                time.sleep(600)
            case "memory":
                np.ones(2**30)
            case "fork":
                os.fork()
            case "program":
                subprocess.run(["true"], check=False)
            case "network":
                socket.create_connection(("127.0.0.1", 9), timeout=1)
            case "file":
                Path("/tmp/driftd-was-here").write_text("x")
            case "remove":
                Path("/etc/hostname").unlink()
            case "signal":
                os.kill(os.getppid(), 15)
            case "environ":
                raise RuntimeError(
                    " ".join(sorted(n for n in os.environ if "SECRET" in n or n.startswith("AWS"))) or "-"
                )
            case "home":
                raise RuntimeError(f"{os.environ['HOME']} {Path.cwd()}")
            case "print":
                print("x" * 100_000_000)
        return np.where(frame["amount"] > 0, "fraud", "ok").astype(object)


@pytest.fixture(scope="module")
def watched() -> Iterator[Scorers]:
    environ = {**os.environ, "DRIFTD_SECRET": "s3cret", "AWS_REGION": "here"}
    trust, limits = Trust(("tests.contract.",)), Limits(memory=2**30, seconds=10.0)
    with ForkServer(environ) as server, Scorers(server, trust, limits) as found:
        yield found


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("crash", r"took its process down \(SIGSEGV\): "),
        ("exit", "ended its process: "),
        ("raise", "raised RuntimeError: not on these rows"),
        ("hang", "had not answered after 10 s"),
        ("memory", "ran out of memory: "),
        ("fork", "raised PermissionError"),
        ("program", "raised PermissionError"),
        ("network", "raised PermissionError"),
        ("file", "raised PermissionError"),
        ("remove", "raised PermissionError"),
        ("signal", "raised PermissionError"),
        ("environ", "raised RuntimeError: -$"),
        ("home", r"raised RuntimeError: (\S+driftd-fork-\S+) \1/"),
        ("print", r"raised OSError: \[Errno 27\] File too large"),
    ],
)
def test_whatever_it_does_the_caller_hears_what_happened(tmp_path: Path, watched: Scorers, how: str, told: str) -> None:
    model = saved(tmp_path / "model", Acting(how), own=("tests.contract.",))
    good = saved(tmp_path / "good", Acting(""), own=("tests.contract.",))
    with watched.open(model, BINARY) as scorer, watched.open(good, BINARY) as other:
        with pytest.raises(UnusableModel, match=told):
            scorer.predictions(FRAME, BINARY)
        assert len(other.predictions(FRAME, BINARY).values) == len(FRAME), "nobody else is harmed"


def test_one_that_is_told_to_stop_does_not_wait_for_its_answer(tmp_path: Path) -> None:
    stopping = threading.Event()
    model = saved(tmp_path / "model", Acting("hang"), own=("tests.contract.",))
    trust = Trust(("tests.contract.",))
    with ForkServer(os.environ) as server, Scorers(server, trust, stopping=stopping) as mine:
        scorer = mine.open(model, BINARY)
        threading.Timer(0.5, stopping.set).start()
        with pytest.raises(Stopped):
            scorer.predictions(FRAME, BINARY)


def test_one_whose_fork_server_has_ended_gets_another(tmp_path: Path) -> None:
    """And what that had made is gone with it."""
    model = saved(tmp_path / "model", Acting(""), own=("tests.contract.",))
    with ForkServer(os.environ) as server, Scorers(server, Trust(("tests.contract.",))) as mine:
        first = mine.open(model, BINARY)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        with mine.open(model, BINARY) as second:
            assert len(second.predictions(FRAME, BINARY).values) == len(FRAME)
        with pytest.raises(UnusableModel, match="took its process down"):
            first.predictions(FRAME, BINARY)


def test_nothing_is_left_of_scorers(tmp_path: Path) -> None:
    def processes(group: int) -> int:
        """How many are in it; other tests have scorers of their own."""
        found = 0
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                found += entry.read_text().rpartition(")")[2].split()[2] == str(group)
        return found

    model = saved(tmp_path / "model", Acting("hang"), own=("tests.contract.",))
    with ForkServer(os.environ) as server:
        with Scorers(server, Trust(("tests.contract.",))) as mine:
            for _ in range(3):
                mine.open(model, BINARY)
            folder, group = server.folder, server.pid
            assert group is not None
            assert processes(group) == 4
        assert processes(group) == 1
        assert not list(folder.glob("scorer-*"))
        Scorers(server, Trust(("tests.contract.",))).open(model, BINARY)
    until("the end of those that were open", lambda: processes(group) == 0)
    assert not folder.exists()


def test_the_size_that_counts_is_the_unpacked_one(tmp_path: Path, scorers: Scorers) -> None:
    import zipfile

    from sklearn.dummy import DummyClassifier

    model = saved(tmp_path / "model", DummyClassifier().fit(FRAME, labels_array(ROWS, BINARY)))
    small = unpacked_bytes(model)
    with zipfile.ZipFile(model / "model.skops", "a", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("zeros", bytes(2**24))
    assert sum(f.stat().st_size for f in model.rglob("*") if f.is_file()) < 2**20
    assert unpacked_bytes(model) > 2**24 > small
    with scorers.open(model, BINARY) as scorer:
        assert scorer.size == unpacked_bytes(model)
    with pytest.raises(UnusableModel, match="are allowed"):
        load_model(model, max_bytes=2**24)


def test_a_teams_own_types_come_from_its_trainers_module_read_in_a_scorer(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "our_trainers.py").write_text(
        "import os\nTRUSTED_TYPES = ['tests.contract.test_scorer.Acting', os.environ.get('DRIFTD_SECRET', 'none')]\n"
    )
    model = saved(tmp_path / "model", Acting(""), own=("tests.contract.",))
    with (
        ForkServer(os.environ) as server,
        Scorers(server, Trust()) as mine,
        pytest.raises(UnusableModel, match=r"not trusted: tests\.contract"),
    ):
        mine.open(model, BINARY)
    trust = Trust(trainer="our_trainers:train", code=str(tmp_path / "code"))
    with ForkServer({**os.environ, "DRIFTD_SECRET": "s3cret"}) as server, Scorers(server, trust) as mine:
        assert mine.own_types() == ("our_trainers.", "tests.contract.test_scorer.Acting", "none")
        assert len(mine.open(model, BINARY).predictions(FRAME, BINARY).values) == len(FRAME)
    assert own_types(crafted) == ("tests.",)
    assert own_types(model_files) == ()


@pytest.mark.parametrize(
    "described",
    [
        "", "[]", "a text", "42", "null", "flavors:", "flavors: []", "flavors: sklearn", "flavors: {}", "{",
        "flavors: {sklearn: }", "flavors: {sklearn: 3}", "flavors: {sklearn: []}", "flavors: {pyfunc: {}}",
        "flavors: {sklearn: {serialization_format: skops}}", "flavors: {sklearn: {serialization_format: [skops]}}",
        "flavors: {sklearn: {serialization_format: skops, pickled_model: 3}}",
        "flavors: {sklearn: {serialization_format: skops, pickled_model: absent}}",
        "flavors: {sklearn: {serialization_format: skops, pickled_model: /etc/passwd}}",
        "flavors: {sklearn: {serialization_format: skops, pickled_model: .}}",
        "flavors: {sklearn: {serialization_format: skops, pickled_model: MLmodel}}",
        "flavors: {sklearn: {serialization_format: skops, pickled_model: model.skops}}\nsignature: text",
        "flavors: {sklearn: {serialization_format: skops, pickled_model: model.skops}}\nsignature: {inputs: 'x'}",
        "flavors: {sklearn: {serialization_format: skops, pickled_model: model.skops}}\nsignature: {inputs: '3'}",
        "flavors: {sklearn: {serialization_format: skops, pickled_model: model.skops}}\nsignature: {inputs: [1]}",
        "a: &a [x, x]\nb: &b [*a, *a]\nflavors: *b", "\x00", "\ufeffflavors", "flavors: \ud83d", "? [a]\n: b",
        "- " * 5000,
    ],
)  # fmt: skip
def test_a_description_that_makes_no_sense_is_refused(tmp_path: Path, described: str) -> None:
    (tmp_path / "MLmodel").write_bytes(described.encode("utf-8", "surrogatepass"))
    with pytest.raises(UnusableModel):
        load_model(tmp_path)


def test_a_signature_without_names_is_none(tmp_path: Path) -> None:
    from sklearn.dummy import DummyClassifier

    model = saved(tmp_path / "model", DummyClassifier().fit(FRAME, labels_array(ROWS, BINARY)))
    described = yaml.safe_load((model / "MLmodel").read_text())
    for inputs in ('[{"type": "tensor"}]', '[{"type": {"a": 1}, "name": "x"}]', "[]", "null"):
        described["signature"]["inputs"] = inputs
        (model / "MLmodel").write_text(yaml.safe_dump(described))
        assert load_model(model).inputs is None
