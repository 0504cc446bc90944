"""A lineage server that is told which rows became which model version, in the OpenLineage format.

Invariant: a retrain job is a run of the job `retrain.MODEL`; its id follows from the driftd job's, so telling the
server twice is telling it once. The classes and the JSON are those of the format's own client library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid5

import requests

from monitor.config.outside_events import OutsideEvent
from monitor.outlets.sender import NotTaken, Taken
from retrain.control.audit import Recorded
from retrain.control.records import Job

TIMEOUT = 5.0
PRODUCER = "https://github.com/driftd/driftd"
TYPES = {"number": "double", "category": "string", "bool": "boolean"}
STATES = {
    OutsideEvent.REQUESTED: "START",
    OutsideEvent.TRAINING: "RUNNING",
    OutsideEvent.PROMOTED: "COMPLETE",
    OutsideEvent.REJECTED: "COMPLETE",
    OutsideEvent.FAILED: "FAIL",
    OutsideEvent.ROLLED_BACK: "OTHER",
}
"""Of a run, by what happened to the job."""
_NEVER = frozenset({400, 413, 415, 422})


@dataclass(frozen=True, slots=True)
class OpenLineage:
    """`job_of` finds a job by its id. `url` is where events are posted, its path included."""

    url: str
    namespace: str
    api_key: str | None
    job_of: Callable[[str], Job | None]
    name: str = "openlineage"
    events: frozenset[OutsideEvent] = frozenset(STATES)

    def deliver(self, entry: Recorded, event: OutsideEvent) -> Taken:
        """See `monitor.outlets.sender.Outlet`."""
        if (job := self.job_of(entry.subject)) is None:
            return Taken.REFUSED
        headers = {"content-type": "application/json"}
        if self.api_key is not None:
            headers["authorization"] = f"Bearer {self.api_key}"
        body = run_event(job, entry, STATES[event], self.namespace).encode()
        try:
            answer = requests.post(self.url, data=body, headers=headers, timeout=TIMEOUT, allow_redirects=False)
        except requests.RequestException as exc:
            raise NotTaken(type(exc).__name__) from exc
        if answer.status_code in _NEVER:
            return Taken.REFUSED
        if answer.status_code >= 300:
            raise NotTaken(f"answer {answer.status_code}")
        return Taken.YES


def run_event(job: Job, entry: Recorded, state: str, namespace: str) -> str:
    """JSON of one event: https://openlineage.io/docs/spec/run-cycle"""
    from openlineage.client import event_v2 as ol
    from openlineage.client import facet_v2 as facets
    from openlineage.client.serde import Serde

    ol.set_producer(PRODUCER)
    result, request = job.result, job.spec.request
    of_run: dict[str, Any] = {
        "nominalTime": facets.nominal_time_run.NominalTimeRunFacet(request.requested_at.isoformat())
    }
    if state == "FAIL":
        of_run["errorMessage"] = facets.error_message_run.ErrorMessageRunFacet(job.error or entry.detail, "PYTHON")
    of_job: dict[str, Any] = {
        "jobType": facets.job_type_job.JobTypeJobFacet("BATCH", "DRIFTD", "JOB"),
        "documentation": facets.documentation_job.DocumentationJobFacet(
            f"Retrains the model {job.model}. This run: {request.reason}"
        ),
    }
    commit = str((result.get("snapshot") or {}).get("git_commit") or "")
    if commit:
        of_job["sourceCodeLocation"] = facets.source_code_location_job.SourceCodeLocationJobFacet(
            "git", f"git:{commit}", version=commit
        )
    event = ol.RunEvent(
        eventTime=entry.at.isoformat(),
        eventType=ol.RunState[state],
        run=ol.Run(str(uuid5(NAMESPACE_URL, f"driftd:{namespace}:{job.id}")), of_run),
        job=ol.Job(namespace, f"retrain.{job.model}", of_job),
        inputs=_inputs(job, result),
        outputs=_outputs(job, result) if entry.body.get("to_state") == "promoted" else [],
    )
    return str(Serde.to_json(event))


def _inputs(job: Job, result: Mapping[str, Any]) -> list[Any]:
    """The outcomes table at the snapshot's version."""
    from openlineage.client import event_v2 as ol
    from openlineage.client import facet_v2 as facets

    if (snapshot := result.get("snapshot")) is None:
        return []
    fields = [
        facets.schema_dataset.SchemaDatasetFacetFields(name=f.column, type=TYPES[f.kind.value])
        for f in job.spec.schema.features
    ]
    rows = snapshot["train"]["rows"] + snapshot["holdout"]["rows"]
    about: dict[str, Any] = {
        "version": facets.dataset_version_dataset.DatasetVersionDatasetFacet(str(snapshot["delta_version"])),
        "schema": facets.schema_dataset.SchemaDatasetFacet(fields=fields),
    }
    counted = facets.input_statistics_input_dataset.InputStatisticsInputDatasetFacet(rowCount=rows)
    read: dict[str, Any] = {"inputStatistics": counted}
    return [ol.InputDataset(*_named(snapshot["outcomes"]), facets=about, inputFacets=read)]


def _outputs(job: Job, result: Mapping[str, Any]) -> list[Any]:
    """The version in the registry."""
    from openlineage.client import event_v2 as ol
    from openlineage.client import facet_v2 as facets

    version = str(result["version"])
    about: dict[str, Any] = {"version": facets.dataset_version_dataset.DatasetVersionDatasetFacet(version)}
    namespace, _ = _named(job.spec.tracking_uri)
    return [ol.OutputDataset(namespace, f"models/{job.spec.registered_model}", facets=about)]


def _named(uri: str) -> tuple[str, str]:
    """(namespace, name) by the format's naming rules: scheme and authority, then the path."""
    parts = urlsplit(uri)
    if parts.scheme in ("", "file", "sqlite"):
        return "file", parts.path
    return f"{parts.scheme}://{parts.netloc}", parts.path.strip("/") or "/"
