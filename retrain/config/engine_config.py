"""Where trainings run: an orchestrator's HTTP API, a Ray cluster, or this machine.

Invariant: frozen and complete, as `retrain.config.settings`; no secret, only where it is found (the edge refuses
literal ones: what has been stored with a job must be readable for ever).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from pydantic import Field, model_validator

from retrain.terms.fields import Duration, Secret, Section, Size, parse_duration


class CallConfig(Section):
    """One call of an HTTP API. `$key`, `$job`, `$model`, `$stage`, `$mlflow_run`, `$tracking_uri`, `$run`, .. are put
    into `url` (quoted) and `body` (JSON), into `headers` and `body` the orchestrator's `secrets` too."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    url: str = Field(pattern=r"^https?://[^@\s]+$")
    headers: dict[str, str] = Field(default_factory=dict)
    body: str | None = None


class OrchestratorConfig(Section):
    """Trainings by somebody else's HTTP API instead of on this machine: see docs/trainers.md."""

    submit: CallConfig = Field(description="starts a training; `$key` names it")
    already: tuple[int, ...] = Field((), strict=False, description="answers that mean: this key is taken, it runs")
    run: str | None = Field(
        None, description="where its answer holds the id (JMESPath), `$run` in what follows; absent: the key is the id"
    )
    find: CallConfig | None = Field(None, description="looks for what was started by a key")
    found: str | None = Field(None, description="where that answer holds the id (JMESPath, with `$key`)")
    status: CallConfig = Field(description="asks about `$run`")
    state: str = Field(description="where its answer holds the state (JMESPath)")
    succeeded: tuple[str, ...] = Field(strict=False, min_length=1, description="states of a good end")
    failed: tuple[str, ...] = Field(strict=False, min_length=1, description="states of a bad one")
    lost: tuple[str, ...] = Field((), strict=False, description="states in which it is worth another try")
    cancel: CallConfig | None = Field(None, description="ends one that has taken too long")
    every: Duration = Field(parse_duration("15s"), gt=timedelta(0), description="how often it is asked about")
    secrets: dict[str, Secret] = Field(default_factory=dict, description="by name, for headers and bodies")

    @model_validator(mode="after")
    def _readable(self) -> OrchestratorConfig:
        import jmespath

        for name in ("run", "found", "state"):
            try:
                jmespath.compile(getattr(self, name) or "a")
            except jmespath.exceptions.JMESPathError as exc:
                raise ValueError(f"{name}: is no JMESPath: {str(exc).splitlines()[0]}") from exc
        if (self.find is None) != (self.found is None):
            raise ValueError("find and found go together")
        return self


class RayConfig(Section):
    """A Ray cluster for trainings and measuring: see docs/ray.md."""

    address: str = Field(pattern=r"^https?://[^@\s]+$", description="the dashboard's: http://head:8265")
    cpus: float = Field(1, gt=0, description="processors of a training")
    memory: Size | None = Field(None, description="memory of a training that the cluster sets aside")
    runtime_env: dict[str, Any] = Field(
        default_factory=dict, description="Ray's runtime environment: pip, working_dir, .."
    )
    every: Duration = Field(parse_duration("2s"), gt=timedelta(0), description="how often a training is asked about")
    measure: str | None = Field(
        None, description="address of the cluster (`auto`, ray://head:10001) if windows are measured there too"
    )


class EngineConfig(Section):
    """Where trainings run, of all models that name no orchestrator."""

    kind: Literal["local", "ray"] = Field("local", description="ray needs the table below")
    ray: RayConfig | None = None

    @model_validator(mode="after")
    def _ray_present(self) -> EngineConfig:
        if self.kind == "ray" and self.ray is None:
            raise ValueError('kind = "ray" needs a table [engine.ray] with address = "http://head:8265"')
        return self
