"""Model directories: MLflow layout, scikit-learn flavour, skops format.

Invariant: nothing is ever unpickled, and which types a file may hold is decided by `retrain.models.trusted_types`, not
by the file: MLflow itself trusts the list that lies beside the model. Whatever lies in a directory, what cannot be used
is an UnusableModel with the reason.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from pydantic import BaseModel, Json, ValidationError

from retrain.models.quality import Predictions
from retrain.models.trusted_types import refused
from retrain.terms.schema import FeatureKind, ModelSchema, Task

if TYPE_CHECKING:
    import pandas as pd

MAX_BYTES = 512 * 2**20
"""A model that unpacks to more is not opened, unless more is allowed."""
_DESCRIPTION_BYTES = 2**20
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


def own_types(module: ModuleType) -> tuple[str, ...]:
    """What a trainer's model may hold besides `retrain.models.trusted_types`: classes of its own top-level package, and
    what its module lists in TRUSTED_TYPES."""
    package = module.__name__.partition(".")[0]
    own = () if package == __name__.partition(".")[0] else (package + ".",)
    return (*own, *map(str, getattr(module, "TRUSTED_TYPES", ())))


def save_model(estimator: Any, folder: Path, schema: ModelSchema, example: pd.DataFrame, own: Sequence[str]) -> None:
    """Writes the directory in one piece. Raises TypeError naming the types that may not be stored."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of third parties, about each other
        import mlflow.sklearn
        import skops.io
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, Schema

        dumped = skops.io.dumps(estimator)
        with ZipFile(io.BytesIO(dumped)) as packed:
            wrong = refused(json.loads(packed.read("schema.json")), own)
        if wrong:
            raise TypeError(f"the model holds {', '.join(wrong)}; list them in TRUSTED_TYPES of the trainer's module")
        inputs = [ColSpec(_TYPES[f.kind], f.name, required=False) for f in schema.features]
        output = ColSpec("double" if schema.task is Task.REGRESSION else "string", "prediction")
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        mlflow.sklearn.save_model(
            estimator,
            str(partial),
            serialization_format="skops",
            skops_trusted_types=skops.io.get_untrusted_types(data=dumped),
            signature=ModelSignature(Schema(inputs), Schema([output])),
            input_example=example,
            pip_requirements=[
                f"{name}=={importlib.metadata.version(name)}"
                for name in ("mlflow", "numpy", "pandas", "scikit-learn", "skops")
            ],
        )
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def load_model(folder: Path, own: Sequence[str] = (), max_bytes: int = MAX_BYTES) -> LoadedModel:
    """Loads a directory. Raises UnusableModel when it is pickled, of another flavour, larger than `max_bytes` once
    unpacked, or holds types other than those of `retrain.models.trusted_types` and `own`."""
    import skops.io

    description = read_description(folder)
    path = description.skops_file(folder)
    try:
        with ZipFile(path) as packed:
            if (size := sum(member.file_size for member in packed.infolist())) > max_bytes:
                raise UnusableModel(f"unpacks to {size:,} bytes; {max_bytes:,} are allowed (gates.max_size)")
            wrong = refused(json.loads(packed.read("schema.json")), own)
        if wrong:
            raise UnusableModel(f"holds types that are not trusted: {', '.join(wrong)}"[:500])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scikit-learn, about its own versions
            estimator = skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))
    except UnusableModel:
        raise
    except Exception as exc:
        raise UnusableModel(f"cannot be loaded: {type(exc).__name__}: {exc}"[:500]) from exc
    return LoadedModel(estimator, description.inputs)


class Description(BaseModel):
    """What is read of an MLmodel file; it may say more."""

    class SklearnFlavour(BaseModel):
        pickled_model: str = ""
        serialization_format: str = "pickle"

    class Signature(BaseModel):
        inputs: Json[list[dict[str, Any]] | None] | None = None

    flavors: dict[str, Any]
    signature: Signature | None = None

    @property
    def inputs(self) -> dict[str, str] | None:
        """Feature name -> kind, or MLflow's type where it is none; None without a signature by names."""
        columns = self.signature.inputs if self.signature else None
        if not columns or not all(isinstance(c.get("name"), str) and isinstance(c.get("type"), str) for c in columns):
            return None
        return {c["name"]: _KINDS.get(c["type"], c["type"]) for c in columns}

    def skops_file(self, folder: Path) -> Path:
        """Raises UnusableModel when that is not what the model is stored as."""
        if "sklearn" not in self.flavors:
            raise UnusableModel(
                f"flavours {', '.join(self.flavors)}; only scikit-learn in skops format is loaded"[:500]
            )
        try:
            flavour = Description.SklearnFlavour.model_validate(self.flavors["sklearn"])
        except ValidationError as exc:
            raise UnusableModel(f"no MLflow model: {_first(exc)}") from exc
        if flavour.serialization_format != "skops":
            raise UnusableModel(f"stored as {flavour.serialization_format}; nothing is unpickled here"[:500])
        path = (folder / flavour.pickled_model).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            raise UnusableModel("its file is not in its directory")
        return path


def read_description(folder: Path) -> Description:
    """Of a model's directory. Raises UnusableModel."""
    import yaml  # type: ignore[import-untyped]

    path = folder / "MLmodel"
    try:
        if path.stat().st_size > _DESCRIPTION_BYTES:
            raise UnusableModel(f"no MLflow model: its MLmodel file is larger than {_DESCRIPTION_BYTES:,} bytes")
        return Description.model_validate(yaml.safe_load(path.read_bytes()))
    except ValidationError as exc:
        raise UnusableModel(f"no MLflow model: {_first(exc)}") from exc
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as exc:
        raise UnusableModel(f"no MLflow model: {type(exc).__name__}: {exc}"[:500]) from exc


def _first(exc: ValidationError) -> str:
    error = exc.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, error['loc'])) or 'MLmodel'}: {error['msg']}"[:300]


def unpacked_bytes(folder: Path) -> int:
    """Size of a model's directory with its archives unpacked, as far as they say: what it takes to load it."""
    total = 0
    for file in folder.rglob("*"):
        if file.is_file():
            size = file.stat().st_size
            with suppress(OSError, ValueError, BadZipFile), ZipFile(file) as packed:
                size = max(size, sum(member.file_size for member in packed.infolist()))
            total += size
    return total
