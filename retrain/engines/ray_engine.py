"""Trainings as jobs of a Ray cluster, by its jobs API.

Invariant: no secret is passed: Ray shows a job's environment to everybody. A training is known to the cluster by its
key, so a job that is killed finds it again. A cluster that lost the training's node is asked again; a trainer that
failed has put that into the run, where `retrain.engines.handover` reads it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from retrain.config.engine_config import RayConfig
from retrain.engines.protocol import Order, Phase, Refused, Seen
from retrain.terms.errors import TransientError


class RayJobs:
    """See `retrain.job.elsewhere.Engine`."""

    name = "ray"

    def __init__(self, config: RayConfig) -> None:
        self._config = config

    @property
    def poll_every(self) -> float:
        return self._config.every.total_seconds()

    def start(self, order: Order) -> str:
        arguments = ["--tracking-uri", order.tracking_uri, "--run", order.run_id, "--stage", order.stage.value]
        with self._talking() as client:
            if order.key in {job.submission_id for job in client.list_jobs()}:
                return order.key
            client.submit_job(
                entrypoint=shlex.join(["python", "-m", "retrain.remote", *arguments]),
                submission_id=order.key,
                runtime_env=dict(self._config.runtime_env),
                metadata={"driftd_job": order.job, "driftd_model": order.model, "driftd_stage": order.stage.value},
                entrypoint_num_cpus=self._config.cpus,  # with a demand it may run on any node, not the head only
                entrypoint_memory=self._config.memory,
            )
            return order.key

    def look(self, order: Order, started: str) -> Seen:
        from ray.job_submission import JobStatus

        with self._talking() as client:
            try:
                info = client.get_job_info(started)
            except RuntimeError as exc:
                if "status code 404" not in str(exc):
                    raise
                return Seen(Phase.LOST, "the cluster does not know it any more: was its head started anew?")
            match info.status:
                case JobStatus.SUCCEEDED:
                    return Seen(Phase.ENDED)
                case JobStatus.STOPPED:
                    return Seen(Phase.FAILED, "somebody has stopped it")
                case JobStatus.FAILED:  # a trainer that failed ends well, with a result: so this is the machine
                    return Seen(Phase.LOST, _told(info.message))
                case _:
                    return Seen(Phase.RUNNING, "waits for resources" if info.status == JobStatus.PENDING else "")

    def cancel(self, order: Order, started: str) -> None:
        with self._talking() as client:
            client.stop_job(started)

    def log_tail(self, order: Order, started: str) -> str:
        with self._talking() as client:
            return str(client.get_job_logs(started))[-4000:]

    @contextmanager
    def _talking(self) -> Iterator[Any]:
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError as exc:
            raise Refused("the package is not installed: pip install driftd[ray]") from exc
        import requests

        try:
            yield JobSubmissionClient(self._config.address)
        except (ConnectionError, requests.RequestException) as exc:
            raise TransientError(f"Ray at {self._config.address}: {exc}"[:300]) from exc
        except RuntimeError as exc:  # what the client makes of any answer that is no success
            if "status code 5" in str(exc):
                raise TransientError(f"Ray at {self._config.address}: {exc}"[:300]) from exc
            raise Refused(str(exc)[:300]) from exc


def _told(message: str | None) -> str:
    """Of Ray's message, which may hold the end of a log: the line that says most."""
    lines = [line.strip() for line in (message or "it failed").splitlines() if line.strip()]
    died = [line for line in lines if "node" in line and "died" in line]
    return (died or lines[-1:])[0][:300]
