"""Where a job's trainings run, by its configuration."""

from __future__ import annotations

from retrain.config.spec import JobSpec
from retrain.engines.protocol import Engine


def engine_of(spec: JobSpec) -> Engine | None:
    """None: here, by `retrain.train.trainer`. Imports what the chosen one needs."""
    if spec.config.orchestrator is not None:
        from retrain.engines.orchestrator import Orchestrator

        return Orchestrator(spec.config.orchestrator, spec)
    if spec.engine.kind == "ray" and spec.engine.ray is not None:
        from retrain.engines.ray_engine import RayJobs

        return RayJobs(spec.engine.ray)
    return None
