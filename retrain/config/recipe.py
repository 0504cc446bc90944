"""Recipe: how a model is made of rows, wherever that happens.

Invariant: complete and free of secrets; the same rows and the same recipe give the same model, as far as the trainer
keeps to its seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retrain.terms.schema import ModelSchema


@dataclass(frozen=True, slots=True)
class Recipe:
    """`command`, if there is one, is run instead of `trainer`. `time_limit` in seconds, `memory_limit` in bytes.
    `environment` holds NAMES of variables that the trainer may see besides the harmless ones. `found`: what a
    search has found before (`retrain.trainers.search`), None if there was none. `code`: a folder on the job's machine
    where modules are looked for last, "" for none."""

    schema: ModelSchema
    trainer: str
    command: tuple[str, ...] | None
    parameters: Mapping[str, str | int | float | bool]
    seed: int
    time_limit: float
    memory_limit: int
    environment: tuple[str, ...] = ()
    found: Mapping[str, Any] | None = None
    code: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": self.schema.to_json(),
            "trainer": self.trainer,
            "command": None if self.command is None else list(self.command),
            "parameters": dict(self.parameters),
            "seed": self.seed,
            "time_limit": self.time_limit,
            "memory_limit": self.memory_limit,
            "environment": list(self.environment),
            "found": None if self.found is None else dict(self.found),
            "code": self.code,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        return cls(
            ModelSchema.from_json(data["schema"]),
            data["trainer"],
            None if data["command"] is None else tuple(data["command"]),
            data["parameters"],
            data["seed"],
            data["time_limit"],
            data["memory_limit"],
            tuple(data["environment"]),
            data["found"],
            data.get("code", ""),
        )
