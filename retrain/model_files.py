"""Model directories: MLflow layout, scikit-learn flavour, skops format.

Invariant: nothing is ever unpickled, and which types a file may hold is decided here, not by the file: MLflow itself
trusts the list that lies beside the model.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from retrain.config import RetrainConfig
from retrain.quality import Predictions
from retrain.schema import FeatureKind, ModelSchema, Task

if TYPE_CHECKING:
    import pandas as pd

TRUSTED = ("sklearn.", "scipy.", "functools.partial")
"""Trusted type names, or prefixes of them when they end in a dot, besides those skops trusts itself."""
_TYPES = {FeatureKind.NUMBER: "double", FeatureKind.CATEGORY: "string", FeatureKind.BOOL: "boolean"}
_KINDS = {"string": "category", "boolean": "bool"} | dict.fromkeys(("double", "float", "long", "integer"), "number")


class UnusableModel(Exception):
    """The directory holds no model that may be loaded here; the text says why."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """`inputs`: feature name -> kind by the model's signature, None without one."""

    estimator: Any
    inputs: Mapping[str, str] | None

    def wanted(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Of a frame of bare feature names the columns that the signature names, in its order."""
        if self.inputs is not None and set(self.inputs) <= set(frame.columns):
            return frame[list(self.inputs)]
        return frame

    def predictions(self, frame: pd.DataFrame, schema: ModelSchema) -> Predictions:
        """Predicts a frame of bare feature names; one with other columns gets those the signature names."""
        frame = self.wanted(frame)
        values = np.asarray(self.estimator.predict(frame))
        if schema.task is Task.REGRESSION:
            return Predictions(values.astype(float))
        values = np.array([str(v) for v in values], dtype=object)
        if not callable(getattr(self.estimator, "predict_proba", None)):
            return Predictions(values)
        found = np.asarray(self.estimator.predict_proba(frame), dtype=float)
        scores = np.zeros((len(frame), len(schema.classes)))
        for at, name in enumerate(self.estimator.classes_):
            scores[:, schema.classes.index(str(name))] = found[:, at]
        if schema.task is Task.BINARY:
            return Predictions(values, scores[:, schema.classes.index(str(schema.positive))])
        return Predictions(values, scores)

    def processor_seconds(self, frame: pd.DataFrame, schema: ModelSchema) -> float:
        """What one call of `predictions` takes, of all threads of this process together."""
        started = time.process_time()
        self.predictions(frame, schema)
        return time.process_time() - started


def trusted_of(module: ModuleType) -> tuple[str, ...]:
    """What a trainer's model may be made of: its own top-level package, and its module's TRUSTED_TYPES."""
    package = module.__name__.partition(".")[0]
    own = () if package == __name__.partition(".")[0] else (package + ".",)
    return (*own, *getattr(module, "TRUSTED_TYPES", ()))


def trusted_for(config: RetrainConfig) -> tuple[str, ...]:
    """The same for a configured trainer, which is imported for it; a command's model gets no more than TRUSTED."""
    if config.command is not None:
        return ()
    try:
        return trusted_of(importlib.import_module(config.trainer.partition(":")[0]))
    except ImportError:
        return ()


def save_model(
    estimator: Any, folder: Path, schema: ModelSchema, example: pd.DataFrame, trusted: Sequence[str]
) -> None:
    """Writes the directory in one piece. Raises TypeError naming the types that may not be stored."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of third parties, about each other
        import mlflow.sklearn
        import skops.io
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, Schema

        types = skops.io.get_untrusted_types(data=skops.io.dumps(estimator))
        if refused := [t for t in types if not _is_trusted(t, trusted)]:
            raise TypeError(f"the model holds {', '.join(refused)}; list them in TRUSTED_TYPES of the trainer's module")
        inputs = [ColSpec(_TYPES[f.kind], f.name, required=False) for f in schema.features]
        output = ColSpec("double" if schema.task is Task.REGRESSION else "string", "prediction")
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        mlflow.sklearn.save_model(
            estimator,
            str(partial),
            serialization_format="skops",
            skops_trusted_types=types,
            signature=ModelSignature(Schema(inputs), Schema([output])),
            input_example=example,
            pip_requirements=[
                f"{name}=={importlib.metadata.version(name)}"
                for name in ("mlflow", "numpy", "pandas", "scikit-learn", "skops")
            ],
        )
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def load_model(folder: Path, trusted: Sequence[str] = ()) -> LoadedModel:
    """Loads a directory. Raises UnusableModel when it is pickled, of another flavour, or holds other types."""
    import skops.io
    import yaml  # type: ignore[import-untyped]

    try:
        described = yaml.safe_load((folder / "MLmodel").read_text())
        flavour = described["flavors"].get("sklearn")
    except (OSError, KeyError, AttributeError, yaml.YAMLError) as exc:
        raise UnusableModel(f"no MLflow model: {exc}") from exc
    if flavour is None:
        raise UnusableModel(f"flavours {', '.join(described['flavors'])}; only scikit-learn in skops format is loaded")
    if flavour.get("serialization_format") != "skops":
        raise UnusableModel(f"stored as {flavour.get('serialization_format', 'pickle')}; nothing is unpickled here")
    path = (folder / flavour["pickled_model"]).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UnusableModel("its file lies outside its directory")
    try:
        types = skops.io.get_untrusted_types(file=path)
        refused = [t for t in types if not _is_trusted(t, trusted)]
        estimator = None if refused else skops.io.load(path, trusted=types)
    except Exception as exc:
        raise UnusableModel(f"cannot be loaded: {type(exc).__name__}: {exc}") from exc
    if refused:
        raise UnusableModel(f"holds types that are not trusted: {', '.join(refused)}")
    return LoadedModel(estimator, _inputs(described))


def _is_trusted(name: str, more: Sequence[str]) -> bool:
    return any(name == t or (t.endswith(".") and name.startswith(t)) for t in (*TRUSTED, *more))


def stored_bytes(folder: Path) -> int:
    """Size of a model's directory."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def signature_inputs(path: Path) -> dict[str, str] | None:
    """Feature name -> kind, as an MLmodel file's signature has them; None without one."""
    import yaml

    return _inputs(yaml.safe_load(path.read_text(encoding="utf-8")))


def _inputs(described: Mapping[str, Any]) -> dict[str, str] | None:
    signature = described.get("signature")
    if not signature or not signature.get("inputs"):
        return None
    columns = json.loads(signature["inputs"])
    if not all("name" in c for c in columns):
        return None
    return {c["name"]: _KINDS.get(c["type"], c["type"]) for c in columns}
