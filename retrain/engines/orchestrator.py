"""Trainings by an orchestrator's HTTP API: Airflow, Argo Workflows, Kubeflow Pipelines, CI systems, others.

Invariant: what to call is configuration, not code. A secret is put into a header or a body just before the call; it is
in no log, no message, and not on record with the job.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from string import Template
from typing import Any
from urllib.parse import quote

import requests

from retrain.config.engine_config import CallConfig, OrchestratorConfig
from retrain.config.spec import JobSpec
from retrain.engines.protocol import Order, Phase, Refused, Seen
from retrain.terms.errors import ConfigError, TransientError

TIMEOUT = 20.0
"""Seconds for the orchestrator to connect, and again to answer."""
LISTED_AFTER = 4
"""So many polls after a submission it is taken for lost, if the list does not have it."""
_AGAIN = frozenset({408, 425, 429})


class Orchestrator:
    """See `retrain.job.elsewhere.Engine`."""

    name = "orchestrator"

    def __init__(self, config: OrchestratorConfig, spec: JobSpec) -> None:
        self._config = config
        self._submitted: dict[str, float] = {}
        self._about = {
            "seed": str(spec.config.seed),
            "parameters": json.dumps(dict(spec.config.parameters)),
            "git_ref": str(spec.request.evidence.get("git_ref") or ""),
            "reason": spec.request.reason,
        }

    @property
    def poll_every(self) -> float:
        return self._config.every.total_seconds()

    def start(self, order: Order) -> str:
        if (found := self._find(order)) is not None:  # started before this process was killed
            return found
        if self._config.find is not None and not self._may_submit(order):
            raise TransientError(f"what may have been submitted as {order.key} cannot be found yet")
        self._submitted[order.key] = time.time()
        answer = self._call(self._config.submit, order, allowed=self._config.already)
        if self._config.run is None:
            return order.key
        if (told := _at(self._config.run, answer)) not in (None, ""):
            return str(told)
        if (found := self._find(order)) is not None:
            return found
        if self._config.find is None:
            raise Refused(f"its answer to the submission has nothing at {self._config.run!r}")
        raise TransientError(f"what was submitted as {order.key} cannot be found yet")

    def _may_submit(self, order: Order) -> bool:
        """Not while what was submitted may only be missing from the list yet: by this process, or by one before it."""
        last = self._submitted.get(order.key, order.asked)
        return last is None or time.time() - last > LISTED_AFTER * self.poll_every

    def look(self, order: Order, started: str) -> Seen:
        state = _at(self._config.state, self._call(self._config.status, order, started))
        if state in self._config.succeeded:
            return Seen(Phase.ENDED, str(state))
        if state in self._config.lost:
            return Seen(Phase.LOST, str(state))
        if state in self._config.failed:
            return Seen(Phase.FAILED, str(state))
        return Seen(Phase.RUNNING, str(state or ""))

    def cancel(self, order: Order, started: str) -> None:
        if self._config.cancel is not None:
            self._call(self._config.cancel, order, started)

    def log_tail(self, order: Order, started: str) -> str:
        return ""

    def _find(self, order: Order) -> str | None:
        """What was started by this key, where the orchestrator lets one search for it."""
        if self._config.find is None or self._config.found is None:
            return None
        fields = {**self._about, **_fields(order)}
        found = _at(Template(self._config.found).safe_substitute(fields), self._call(self._config.find, order))
        return None if found in (None, "") else str(found)

    def _call(self, call: CallConfig, order: Order, started: str = "", allowed: tuple[int, ...] = ()) -> Any:
        """The answer's JSON, None without a body. Raises TransientError, Refused."""
        fields = {**self._about, **_fields(order), "run": started}
        secrets = {}
        for name, secret in self._config.secrets.items():
            try:
                secrets[name] = secret.reveal()
            except ConfigError as exc:
                raise Refused(str(exc)) from exc
        url = Template(call.url).safe_substitute({k: quote(v, safe="") for k, v in fields.items()})
        headers = {k: Template(v).safe_substitute({**fields, **secrets}) for k, v in call.headers.items()}
        body = None
        if call.body is not None:
            escaped = {k: json.dumps(v, ensure_ascii=False)[1:-1] for k, v in {**fields, **secrets}.items()}
            body = Template(call.body).safe_substitute(escaped).encode()
            headers.setdefault("content-type", "application/json")
        try:
            answer = requests.request(
                call.method, url, data=body, headers=headers, timeout=TIMEOUT, allow_redirects=False
            )
        except requests.RequestException as exc:
            raise TransientError(f"{call.method} {url}: {type(exc).__name__}") from exc
        if answer.status_code >= 500 or answer.status_code in _AGAIN:
            raise TransientError(f"{call.method} {url}: answer {answer.status_code}")
        if answer.status_code >= 300 and answer.status_code not in allowed:
            raise Refused(f"{call.method} {url}: answer {answer.status_code}: {_shown(answer.text, secrets)}")
        try:
            return answer.json() if answer.content else None
        except requests.JSONDecodeError:
            return None


def _fields(order: Order) -> dict[str, str]:
    return {
        "key": order.key,
        "job": order.job,
        "model": order.model,
        "stage": order.stage.value,
        "mlflow_run": order.run_id,
        "tracking_uri": order.tracking_uri,
    }


def _at(path: str, answer: Any) -> Any:
    import jmespath

    return jmespath.search(path, answer)


def _shown(text: str, secrets: Mapping[str, str]) -> str:
    for secret in secrets.values():
        text = text.replace(secret, "***")
    return text[:200]
