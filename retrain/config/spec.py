"""JobSpec: everything one retrain job needs to know, as stored with the job.

Invariant: immutable and free of secrets. A secret storage option is written `env:NAME` and is looked up in the job
process's environment; a literal one, or a password inside a URI, is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from retrain.base.redaction import secrets_in
from retrain.config.engine_config import EngineConfig
from retrain.config.recipe import Recipe
from retrain.config.settings import RetrainConfig
from retrain.models.model_files import MAX_BYTES
from retrain.scorer import Limits, Trust
from retrain.terms.request import RetrainRequest
from retrain.terms.schema import ModelSchema

_OPERATIONAL = {
    "enabled",
    "time_limit",
    "memory_limit",
    "approval",
    "approval_timeout",
    "close_call",
    "cooldown",
    "maintenance",
    "max_per_day",
    "pace",
    "follow_up",
    "stop_after_rejected",
    "watch_rows",
    "validation",
    "card",
    "orchestrator",
    "environment",
    "shadow",
    "canary",
}
_LOCAL = EngineConfig.model_validate({})


@dataclass(frozen=True, slots=True)
class JobSpec:
    """`work_dir` is the folder all jobs share; `job_dir` is this job's own. `reports` is the folder with the HTML
    reports of the model's windows, "" if there is none. `predictions_uri` is the table of all predictions. `code`: a
    folder with modules of the team's, "" for none; `scratch`: where trainings happen, "" for the system's place."""

    request: RetrainRequest
    schema: ModelSchema
    outcomes_uri: str
    tracking_uri: str
    registered_model: str
    work_dir: str
    config: RetrainConfig
    storage_options: tuple[tuple[str, str], ...] = ()
    reports: str = ""
    predictions_uri: str = ""
    engine: EngineConfig = _LOCAL
    code: str = ""
    scratch: str = ""

    @property
    def job_dir(self) -> Path:
        readable = re.sub(r"[^A-Za-z0-9_.-]", "-", self.request.id)[:60].strip(".") or "job"
        return Path(self.work_dir) / f"{readable}-{hashlib.sha256(self.request.id.encode()).hexdigest()[:8]}"

    @property
    def recipe(self) -> Recipe:
        return recipe_of(self.config, self.schema, self.code)

    @property
    def trust(self) -> Trust:
        return trust_of(self.config, self.code)

    @property
    def scorer_limits(self) -> Limits:
        return limits_of(self.config)

    @property
    def config_digest(self) -> str:
        """Digest of what changes the outcome of training or of the decision, not of what governs when it runs."""
        dumped = self.config.model_dump(mode="json", exclude=_OPERATIONAL)
        return hashlib.sha256(repr((sorted(dumped.items()), self.schema.to_json())).encode()).hexdigest()

    def open_storage_options(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Storage options with `env:NAME` looked up. Raises KeyError naming the variable that is not set."""
        return {
            name: environ[value.removeprefix("env:")] if value.startswith("env:") else value
            for name, value in self.storage_options
        }

    def refuse_secrets(self) -> None:
        """Raises ValueError where one would be stored with the job: the configuration refuses them before."""
        told = {k: v for k, v in self.to_json().items() if k not in ("request", "schema")}
        if places := list(secrets_in(told)):
            raise ValueError(f"{', '.join(places)}: secrets are not stored with a job")

    def to_json(self) -> dict[str, Any]:
        return {
            "request": self.request.to_json(),
            "schema": self.schema.to_json(),
            "outcomes_uri": self.outcomes_uri,
            "tracking_uri": self.tracking_uri,
            "registered_model": self.registered_model,
            "work_dir": self.work_dir,
            "config": self.config.model_dump(mode="json"),
            "storage_options": dict(self.storage_options),
            "reports": self.reports,
            "predictions_uri": self.predictions_uri,
            "engine": self.engine.model_dump(mode="json"),
            "code": self.code,
            "scratch": self.scratch,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> JobSpec:
        return cls(
            request=RetrainRequest.from_json(data["request"]),
            schema=ModelSchema.from_json(data["schema"]),
            outcomes_uri=data["outcomes_uri"],
            tracking_uri=data["tracking_uri"],
            registered_model=data["registered_model"],
            work_dir=data["work_dir"],
            config=RetrainConfig.model_validate(_known(RetrainConfig, data["config"])),
            storage_options=tuple(sorted(data["storage_options"].items())),
            reports=data.get("reports", ""),
            predictions_uri=data.get("predictions_uri", ""),
            engine=EngineConfig.model_validate(_known(EngineConfig, data.get("engine", {}))),
            code=data.get("code", ""),
            scratch=data.get("scratch", ""),
        )


def trust_of(config: RetrainConfig, code: str) -> Trust:
    """What a trainer's models may hold; a command's may hold nothing of its own."""
    return Trust() if config.command is not None else Trust(trainer=config.trainer, code=code or None)


def limits_of(config: RetrainConfig) -> Limits:
    """Of the scorers of a model's versions. `gates.max_size` raises what may be opened and never lowers it: a
    challenger that is too large for its gate is judged like any other."""
    return Limits(config.memory_limit, max(config.gates.max_size, MAX_BYTES))


def recipe_of(config: RetrainConfig, schema: ModelSchema, code: str = "") -> Recipe:
    return Recipe(
        schema,
        config.trainer,
        config.command,
        config.parameters,
        config.seed,
        config.time_limit.total_seconds(),
        config.memory_limit,
        config.environment,
        code=code,
    )


def _known(section: type[BaseModel], data: Mapping[str, Any]) -> dict[str, Any]:
    """What this version knows of a stored section: during an upgrade a newer replica may have written more, and an
    older one nothing (null) where there is always something now."""
    kinds = {field.alias or name: field.annotation for name, field in section.model_fields.items()}
    return {
        name: _known_value(kinds[name], value)
        for name, value in data.items()
        if name in kinds and (value is not None or type(None) in get_args(kinds[name]))
    }


def _known_value(kind: Any, value: Any) -> Any:
    """`kind` is a field's annotation: a section, `Section | None`, `dict[str, Section]`, `tuple[Section, ...]`, or
    something that is not looked into."""
    inner = next((k for k in (kind, *get_args(kind)) if isinstance(k, type) and issubclass(k, BaseModel)), None)
    if inner is None:
        return value
    if get_origin(kind) is dict and isinstance(value, Mapping):
        return {name: _known(inner, v) for name, v in value.items()}
    if isinstance(value, Mapping):
        return _known(inner, value)
    if isinstance(value, list | tuple):
        return [_known(inner, v) for v in value]
    return value
