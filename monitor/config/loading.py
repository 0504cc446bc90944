"""config.toml -> a frozen `Config`, or every mistake at once.

Invariant: whatever leaves `load` is complete and consistent; no later step checks or defaults anything again.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from monitor.base.errors import ConfigError
from monitor.config.explain import explain
from monitor.config.sections import RESERVED_NAMES, Config, ModelConfig, about_features
from retrain.base.redaction import redact, secrets_in
from retrain.terms.fields import Secret
from retrain.terms.schema import Feature, ModelSchema, Task


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A config together with the schemas that had to be looked up (reference files).

    `path` names it in messages; relative reference paths start at `base`.
    """

    config: Config
    schemas: Mapping[str, ModelSchema]
    path: str
    base: Path = Path()


def load(path: str | Path) -> LoadedConfig:
    """Read and check everything that can be checked without a network.

    Raises ConfigError with one line per mistake: `config.toml: models.fraud.rules[2].above: must be ..`.
    """
    name = Path(path).name
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ConfigError([f"{path}: no such file: copy config.toml or give --config"]) from exc
    except OSError as exc:
        raise ConfigError([f"{path}: {exc.strerror}"]) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError([f"{name}: not valid TOML: {exc}"]) from exc
    return from_dict(data, name=name, base=Path(path).parent)


def from_dict(data: Mapping[str, Any], *, name: str = "config.toml", base: Path = Path()) -> LoadedConfig:
    """As `load`, from a parsed document. Reference paths are relative to `base`."""
    try:
        config = Config.model_validate(data)
    except ValidationError as exc:
        raise ConfigError([f"{name}: {line}" for line in explain(exc, Config)]) from exc
    problems: list[str] = []
    schemas: dict[str, ModelSchema] = {}
    for model, section in config.models.items():
        if model in RESERVED_NAMES:
            problems.append(f"{name}: models.{model}: the lake uses this name itself: choose another")
        try:
            schemas[model] = _schema(model, section, base)
            if section.features is None:
                kinds = {f.name: f.kind for f in schemas[model].features}
                problems += [f"{name}: models.{model}.{at}: {text}" for at, text in about_features(section, kinds)]
        except ConfigError as exc:
            problems += [f"{name}: models.{model}.{line}" for line in exc.problems]
    problems += [
        f"{name}: {line}"
        for line in (*_missing_secrets(config), *_literal_secrets(config), *_unreachable(config), *_misplaced(config))
    ]
    if problems:
        raise ConfigError(problems)
    return LoadedConfig(config, schemas, name, base)


def _schema(model: str, section: ModelConfig, base: Path) -> ModelSchema:
    features, classes = section.features, section.classes
    if section.reference.path and (features is None or (section.task is not Task.REGRESSION and not classes)):
        from monitor.measure.reference import infer_features  # reads the file with polars: only where needed

        path = base / section.reference.path
        try:
            inferred, labels = infer_features(path)
        except (OSError, ValueError) as exc:
            raise ConfigError([f"reference.path: cannot read {path}: {exc}"]) from exc
        features = features or inferred
        classes = classes or labels
    if section.task is Task.REGRESSION:
        classes = ()
    elif section.task is Task.BINARY:
        classes = classes or ("0", "1")
        if len(classes) != 2:
            raise ConfigError([f"reference.path: a binary model has two classes, the file has {len(classes)}"])
        if section.positive and section.positive not in classes:
            raise ConfigError([f"positive: {section.positive!r} is not one of classes {list(classes)}"])
    elif len(classes) < 2:
        where = "classes" if section.classes else "reference.path"
        raise ConfigError([f"{where}: a multiclass model has two or more classes (got {len(classes)})"])
    positive = (section.positive or sorted(classes)[-1]) if section.task is Task.BINARY else None
    if not features:
        raise ConfigError(["features: at least one feature is needed"])
    return ModelSchema(
        model=model,
        task=section.task,
        features=tuple(Feature(n, k) for n, k in features.items()),
        classes=tuple(classes),
        positive=positive,
        segments=section.segments,
    )


_UNUSABLE = frozenset("#%=?[]\\^|")
"""Characters that a local Delta table cannot have in its path: deltalake reads them as parts of an address."""


def _misplaced(config: Config) -> Iterator[str]:
    if "://" in config.lake_uri:
        return
    if odd := sorted({c for c in config.lake_uri if c in _UNUSABLE or not c.isprintable()}):
        where = "lake.uri" if config.lake.uri else "daemon.state"
        names = " or ".join(map(repr, odd))
        yield f"{where}: the lake cannot lie in a folder with {names} in its path: {redact(config.lake_uri)}"


def _unreachable(config: Config) -> Iterator[str]:
    """What a training elsewhere could not reach: it gets rows and gives back models through MLflow."""
    local = config.tracking_uri.startswith(("sqlite:", "file:", "/"))
    for name, model in config.models.items():
        if local and model.retrain.orchestrator is not None:
            yield f"models.{name}.retrain.orchestrator: needs mlflow.tracking_uri to be a server's"
    if local and config.engine.kind == "ray":
        yield "engine.kind: ray needs mlflow.tracking_uri to be a server's"


def _missing_secrets(value: object, where: str = "") -> Iterator[str]:
    if isinstance(value, Secret):
        try:
            value.reveal()
        except ConfigError as exc:
            yield f"{where}: {exc.problems[0]}"
        return
    parts: Iterable[tuple[str, object]] = ()
    if isinstance(value, BaseModel | dict):
        parts = ((f"{where}.{name}".strip("."), part) for name, part in dict(value).items())
    elif isinstance(value, tuple):
        parts = ((f"{where}[{n}]", part) for n, part in enumerate(value))
    for place, part in parts:
        yield from _missing_secrets(part, place)


def _revealed(value: str | Secret) -> str:
    """The secret's value; an innocent address in place of one that cannot be had, which is said elsewhere."""
    try:
        return value.reveal() if isinstance(value, Secret) else value
    except ConfigError:
        return "http://localhost"


def _literal_secrets(config: Config) -> Iterator[str]:
    """What `retrain.config.spec` refuses to store with a job; here it is the operator's to mend, there a bug."""
    for place in secrets_in(config.to_json()):
        yield f"{place}: {_instead_of_secret(place)}"
    for hook in config.webhooks:
        if isinstance(hook.url, str) and any(map(_OPAQUE.fullmatch, urlsplit(hook.url).path.split("/"))):
            yield f"webhooks.{hook.name}.url: {_instead_of_secret('webhooks')}"
        told = urlsplit(_revealed(hook.url))
        if told.scheme not in ("http", "https") or not told.hostname:
            yield f"webhooks.{hook.name}.url: must begin with http:// or https:// and name a host"
        elif told.username or told.password:
            yield f"webhooks.{hook.name}.url: must hold no user and password: receivers check the signature"


_OPAQUE = re.compile(
    r"(?=\D*\d)(?=[^A-Za-z]*[A-Za-z])\w{16,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE
)
"""A part of a path that nobody can guess: whoever knows such an address may post to it."""


def _instead_of_secret(place: str) -> str:
    """What to write there."""
    match place.split(".")[0].split("[")[0], place:
        case "daemon", "daemon.control_url":
            return "holds a password: keep it in a service file (docs/operating.md, Scale)"
        case "lake" | "mlflow", "lake.uri" | "mlflow.tracking_uri":
            return "holds a password; pass it by environment variable instead"
        case "lake", _:
            return 'must be { env = "NAME" } or { file = "PATH" }, never the secret itself'
        case "webhooks", _:
            return 'is a secret: must be { env = "NAME" } or { file = "PATH" }'
        case "engine", _:
            return "holds a secret, and Ray shows it to everybody; set it on the nodes instead"
        case "models", _ if ".orchestrator." in place:
            return 'holds a secret: write "$NAME" for an entry of the table `secrets`'
        case "models", _ if ".retrain." in place:
            return "holds a secret: let the trainer read a variable, which retrain.environment names"
    return "holds a secret, which would be recorded and shown"
