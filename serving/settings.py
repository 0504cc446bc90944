"""service.toml -> frozen settings, or every mistake at once.

Invariant: `driftd package` writes this file; every key may be changed by hand.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from retrain.base.redaction import secrets_in
from retrain.config.connection import KafkaConnection
from retrain.terms.aliases import CHAMPION
from retrain.terms.errors import ConfigError
from retrain.terms.fields import Duration, Secret, Section, Size, parse_duration, parse_size
from retrain.terms.schema import Feature, FeatureKind, ModelSchema, Task


class SchemaSection(Section):
    """What the model takes in and answers, as in driftd's configuration."""

    task: str
    features: dict[str, str] = Field(min_length=1)
    classes: tuple[str, ...] = Field((), strict=False)
    positive: str | None = None
    segments: tuple[str, ...] = Field((), strict=False)


class KafkaEvents(KafkaConnection):
    """Where prediction events go, and where news of the champion comes from."""

    topic: str = Field("predictions", description="topic that driftd reads predictions from")
    news: str | None = Field(None, description="topic of driftd's events (`events.topic` there); absent: only polled")


class ServiceSettings(Section):
    model: str = Field(description="the model's name in events")
    registered_model: str = Field(description="its name in the MLflow registry")
    tracking_uri: str = Field(description="the MLflow server")
    alias: str = Field(CHAMPION, description="the alias that is served")
    schema_: SchemaSection = Field(alias="schema")
    trusted: tuple[str, ...] = Field((), strict=False, description="types of the team's own that a model may hold")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="0 picks a free port")
    follow_every: Duration = Field(parse_duration("10s"), description="how often the registry is asked")
    max_rows: int = Field(10_000, ge=1, description="rows of one request, at most")
    max_size: Size = Field(parse_size("512MiB"), description="size of a model, unpacked, at most")
    baked: str | None = Field(None, description="folder with a model to serve while the registry is away at the start")
    reload_secret: Secret | None = Field(None, description="checks driftd's webhook; absent: /reload is refused")
    outbox: str = Field("outbox", description="folder where events wait for the broker")
    outbox_size: Size = Field(parse_size("1GiB"), description="more than this is not kept: counted as lost")
    kafka: KafkaEvents | None = Field(None, description="where events go")
    files: str | None = Field(None, description="or: the folder that driftd's file source reads")

    @model_validator(mode="after")
    def _one_way(self) -> ServiceSettings:
        if (self.kafka is None) == (self.files is None):
            raise ValueError("give [kafka] or files = FOLDER")
        return self

    @property
    def schema(self) -> ModelSchema:  # type: ignore[override]  # pydantic's old method of that name is not used
        found = self.schema_
        return ModelSchema(
            model=self.model,
            task=Task(found.task),
            features=tuple(Feature(name, FeatureKind(kind)) for name, kind in found.features.items()),
            classes=found.classes,
            positive=found.positive,
            segments=found.segments,
        )


def load(path: Path) -> ServiceSettings:
    """Raises ConfigError with one line per mistake."""
    try:
        return from_dict(tomllib.loads(path.read_text(encoding="utf-8")), path.name)
    except OSError as exc:
        raise ConfigError([f"{path}: {exc.strerror}"]) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError([f"{path.name}: not valid TOML: {exc}"]) from exc


def from_dict(data: dict[str, Any], name: str = "service.toml") -> ServiceSettings:
    try:
        settings = ServiceSettings.model_validate(data)
        settings.schema  # noqa: B018 - raises for a task or kind there is not
        if places := list(secrets_in(settings.model_dump(mode="json", by_alias=True))):
            raise ConfigError([f"{name}: {p}: holds a secret: give it by reference, or by a variable" for p in places])
    except ValidationError as exc:
        raise ConfigError([f"{name}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors()]) from exc
    except ValueError as exc:
        raise ConfigError([f"{name}: schema: {exc}"]) from exc
    return settings
