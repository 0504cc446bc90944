"""driftd's configuration -> the settings of a scoring service, and the folder its image is built from.

Invariant: secrets stay references; what a container could not reach is said instead of written.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from monitor.config.loading import LoadedConfig
from monitor.config.plan import ModelPlan, plans
from retrain.config.settings import RetrainConfig
from retrain.config.spec import limits_of, trust_of
from retrain.isolation.forkserver import ForkServer
from retrain.models.model_files import UnusableModel
from retrain.models.registry import Registry
from retrain.scorer import Scorers
from retrain.terms.aliases import CHAMPION
from retrain.terms.errors import ConfigError, Refused
from retrain.terms.fields import format_duration
from serving.container import write_context


def service_settings(loaded: LoadedConfig, model: str) -> dict[str, Any]:
    """The document of service.toml: the model's schema, where its versions are, where events go."""
    config, plan = loaded.config, plans(loaded)[model]
    schema = plan.schema.to_json()
    found: dict[str, Any] = {
        "model": model,
        "registered_model": plan.registered_model,
        "tracking_uri": config.tracking_uri,
        "follow_every": format_duration(config.daemon.tick * 2),
        "trusted": list(own_types(loaded, plan)),
        "schema": {k: v for k, v in schema.items() if k != "model" and v is not None},
    }
    if config.source.kind == "files":
        found["files"] = str(config.events_path.absolute())
        return found
    kafka = config.source.kafka
    assert kafka is not None
    connection = kafka.model_dump(mode="json", exclude_none=True)
    for reader in ("group", "labels", "session_timeout", "max_poll_interval"):
        del connection[reader]
    connection["topic"] = connection.pop("predictions")[0]
    if config.events is not None:
        connection["news"] = config.events.topic
    found["kafka"] = connection
    return found


def package(loaded: LoadedConfig, model: str, output: Path, version: str | None, requirements: Path | None) -> str:
    """Writes the container context of `version`, or of the champion, and answers the version. Raises Refused."""
    plan = plans(loaded)[model]
    if problems := _unreachable(loaded):
        raise ConfigError(problems)
    registry = Registry(loaded.config.tracking_uri)
    version = version or registry.resolve_alias(plan.registered_model, CHAMPION)
    if version is None:
        raise Refused(f"{model}: {plan.registered_model} has no champion yet: give --version")
    settings = service_settings(loaded, model)
    trainer = plan.retrain.trainer.partition(".")[0].partition(":")[0]
    code = None if plan.retrain.command is not None or trainer == "retrain" else trainer
    with tempfile.TemporaryDirectory() as scratch:
        try:
            downloaded = registry.fetch_model(plan.registered_model, version, Path(scratch) / "model")
            with ForkServer(os.environ) as server:
                _scorers(server, loaded, plan).open(downloaded, plan.schema)
        except UnusableModel as exc:
            raise Refused(f"{model}: version {version} {exc}") from exc
        try:
            write_context(
                output, settings, version, downloaded, code=code, beside=loaded.base, requirements=requirements
            )
        except (FileExistsError, ModuleNotFoundError) as exc:
            raise Refused(str(exc)) from exc
    return version


def own_types(loaded: LoadedConfig, plan: ModelPlan) -> tuple[str, ...]:
    """What a model's trainer lets it hold besides `retrain.models.trusted_types`."""
    if plan.retrain.command is not None or plan.retrain.trainer == RetrainConfig().trainer:
        return ()
    with ForkServer(os.environ) as server:
        return _scorers(server, loaded, plan).own_types()


def _scorers(server: ForkServer, loaded: LoadedConfig, plan: ModelPlan) -> Scorers:
    return Scorers(server, trust_of(plan.retrain, str(loaded.base.absolute())), limits_of(plan.retrain))


def _unreachable(loaded: LoadedConfig) -> list[str]:
    """What lies on this machine only."""
    config, found = loaded.config, []
    if config.tracking_uri.startswith(("sqlite:", "file:", "/")):
        found.append(f"{loaded.path}: mlflow.tracking_uri: no container can reach {config.tracking_uri}: use a server")
    if config.source.kind == "files":
        found.append(f'{loaded.path}: source.kind: no container can reach {config.events_path}: use "kafka"')
    return found
