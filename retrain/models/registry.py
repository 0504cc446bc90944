"""Runs, versions and aliases in MLflow; with `model_files`, the only module that imports it.

Invariant: every call can be repeated after a crash: runs and versions are found again by the job's tag; of those made
twice because an answer was lost (MLflow's client asks again by itself) the first is kept. Trouble
with the connection, and answers of 5xx, leave as `TransientError`; MLflow's own retries are cut short so that one
back-off, ours, governs. So does an answer that is not MLflow's (a proxy's page, a login, an expired token): only what
MLflow itself says is not there is not there. MLflow has no compare-and-set for aliases: `promote` re-reads before it
writes, and what happens in between (milliseconds) is last-write-wins.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import structlog

from retrain.models.model_files import UnusableModel, read_description
from retrain.terms.aliases import CHALLENGER, CHAMPION, PREVIOUS
from retrain.terms.errors import TransientError

log = structlog.get_logger()
JOB_TAG, KEY_TAG = "driftd.job_id", "driftd.job_key"
MODEL_PATH = "model"
REFERENCE_PATH = "reference/reference.parquet"
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0.1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


_GONE = re.compile(r"404 Client Error|\(404\)|NoSuchKey|BlobNotFound")
_STORE_ERRORS = (
    ("requests", "RequestException"),
    ("urllib3.exceptions", "HTTPError"),
    ("sqlalchemy.exc", "OperationalError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("boto3.exceptions", "S3UploadFailedError"),
    ("azure.core.exceptions", "AzureError"),
    ("google.api_core.exceptions", "GoogleAPICallError"),
    ("google.protobuf.json_format", "ParseError"),  # JSON, but not MLflow's
    ("json", "JSONDecodeError"),
)
_REFUSED = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED", "ENDPOINT_NOT_FOUND")
"""A person has to act, and then it goes on."""


class NotThere(Exception):
    """The registry has no such model, version or file, now or later."""


@dataclass(frozen=True, slots=True)
class Promoted:
    version: str
    previous: str | None


@dataclass(frozen=True, slots=True)
class Conflict:
    """The champion is not the version the challenger was compared with; nothing was moved."""

    expected: str | None
    found: str | None


class Registry:
    """One MLflow tracking server or local store (`sqlite:///path`), which is its registry too."""

    def __init__(self, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri

    @cached_property
    def _client(self) -> Any:
        mlflow = import_mlflow()
        return mlflow.MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)

    # -- runs

    def open_run(self, experiment: str, job_id: str, tags: Mapping[str, str]) -> str:
        """Id of the job's run, created when there is none yet."""
        with self._talking() as client:
            experiment_id = self._experiment(client, experiment)
            key = hashlib.sha256(job_id.encode()).hexdigest()  # MLflow's filters know no escape for quotes

            def runs() -> list[Any]:
                found = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'")
                return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))

            if not (found := runs()):
                everything = {JOB_TAG: job_id, KEY_TAG: key, **{k: v[:5000] for k, v in tags.items()}}
                client.create_run(experiment_id, tags=everything, run_name=job_id[:200])
                found = runs()
            if not found:
                raise TransientError("a run was made and is not found: is that an MLflow?")
            for twin in found[1:]:
                client.delete_run(twin.info.run_id)
            return str(found[0].info.run_id)

    def log(
        self,
        run_id: str,
        *,
        at_ms: int,
        params: Mapping[str, object] = {},
        metrics: Mapping[str, float | None] = {},
        tags: Mapping[str, str] = {},
    ) -> None:
        """Logs what is given; the same again, with the same `at_ms`, changes nothing."""
        from mlflow.entities import Metric, Param, RunTag

        with self._talking() as client:
            client.log_batch(
                run_id,
                [Metric(k, float(v), at_ms, 0) for k, v in metrics.items() if v is not None],
                [Param(k, str(v)[:5000]) for k, v in params.items()],
                [RunTag(k, v[:5000]) for k, v in tags.items()],
            )

    def log_files(self, run_id: str, path: Path, artifact_path: str | None = None) -> None:
        """A file, or everything in a folder. Written again, it replaces what was there."""
        with self._talking() as client:
            if path.is_dir():
                client.log_artifacts(run_id, str(path), artifact_path)
            else:
                client.log_artifact(run_id, str(path), artifact_path)

    def download(self, run_id: str, path: str, folder: Path) -> Path | None:
        """A folder of the run's artifacts; None when there is nothing there."""
        with self._talking() as client:
            if not client.list_artifacts(run_id, path):
                return None
            return self._download(f"{client.get_run(run_id).info.artifact_uri}/{path}", folder)

    def delete_files(self, run_id: str, path: str) -> None:
        """A file or a folder of the run's artifacts, if the store can do that."""
        with self._talking() as client:
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            uri = client.get_run(run_id).info.artifact_uri
            try:
                get_artifact_repository(uri, tracking_uri=self.tracking_uri).delete_artifacts(path)
            except NotImplementedError:
                log.warning("artifact_kept", run=run_id, path=path)

    def end_run(self, run_id: str, status: str = "FINISHED") -> None:
        with self._talking() as client:
            client.set_terminated(run_id, status)

    # -- versions

    def register(self, name: str, run_id: str, tags: Mapping[str, str]) -> str:
        """The version made of the run's logged model; the one already registered when there is one."""
        from mlflow.exceptions import MlflowException

        with self._talking() as client:
            try:
                client.create_registered_model(name)
            except MlflowException as exc:
                if exc.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            if _registered(client, name) is None:
                raise TransientError(f"the registered model {name!r} was made and is not found: is that an MLflow?")

            def versions() -> list[str]:
                found = client.search_model_versions(f"run_id = '{run_id}'")
                return sorted((str(v.version) for v in found if v.name == name), key=int)

            if not (made := versions()):
                source = f"{client.get_run(run_id).info.artifact_uri}/{MODEL_PATH}"
                client.create_model_version(
                    name, source, run_id, tags={k: v[:5000] for k, v in tags.items()}, await_creation_for=60
                )
                made = versions()
            if not made:
                raise TransientError("a version was made and is not found: is that an MLflow?")
            for twin in made[1:]:
                client.delete_model_version(name, twin)
            return made[0]

    def tag_version(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        with self._talking() as client:
            for key, value in tags.items():
                client.set_model_version_tag(name, version, key, value[:5000])

    def set_tag(self, name: str, key: str, value: str | None) -> None:
        """A tag of the registered model; None removes it."""
        with self._talking() as client:
            model = _registered(client, name)
            if model is None and value is None:
                return
            found = None if model is None else model.tags.get(key)
            if value is None and found is not None:
                client.delete_registered_model_tag(name, key)
            elif value is not None and found != value:
                client.set_registered_model_tag(name, key, value)

    def pointers(self, name: str) -> tuple[dict[str, str], dict[str, str]]:
        """Aliases -> versions, and tags, of a registered model; both empty without one."""
        with self._talking() as client:
            if (model := _registered(client, name)) is None:
                return {}, {}
            return {alias: str(version) for alias, version in model.aliases.items()}, dict(model.tags)

    def resolve_alias(self, name: str, alias: str) -> str | None:
        """The version an alias points at; None without the alias or the model."""
        with self._talking() as client:
            return _alias(client, name, alias)

    def set_alias(self, name: str, alias: str, version: str | None) -> None:
        """None removes the alias."""
        with self._talking() as client:
            if version is not None:
                client.set_registered_model_alias(name, alias, version)
            elif _alias(client, name, alias) is not None:
                client.delete_registered_model_alias(name, alias)

    def promote(self, name: str, version: str, compared_with: str | None) -> Promoted | Conflict:
        """Moves `champion` to `version` and `previous` to what it was, if that still is `compared_with`. Done
        already (a crash after the move): completed and answered the same."""
        with self._talking() as client:
            found = _alias(client, name, CHAMPION)
            if found not in (compared_with, version):
                return Conflict(compared_with, found)
            if compared_with is not None and compared_with != version:
                client.set_registered_model_alias(name, PREVIOUS, compared_with)
            client.set_registered_model_alias(name, CHAMPION, version)
            if _alias(client, name, CHALLENGER) == version:
                client.delete_registered_model_alias(name, CHALLENGER)
            return Promoted(version, compared_with)

    def fetch_model(self, name: str, version: str, folder: Path) -> Path:
        """Downloads a version's directory into `folder`, which is emptied first, and opens nothing of it. Raises
        model_files.UnusableModel when the registry or its store has it no more."""
        shutil.rmtree(folder, ignore_errors=True)
        try:
            with self._talking() as client:
                return self._download(_source(client, name, version), folder)
        except NotThere as exc:
            raise UnusableModel(f"is not in the registry any more: {exc}"[:500]) from exc

    def fetch_inputs(self, name: str, version: str, folder: Path) -> dict[str, str] | None:
        """Feature name -> kind (or MLflow's type where it is none) by the version's signature; None without one.
        Raises model_files.UnusableModel when no model is stored."""
        from mlflow.exceptions import MlflowException

        with self._talking() as client:
            source = _source(client, name, version)
            try:
                path = self._download(f"{source}/MLmodel", folder)
            except MlflowException as exc:
                raise UnusableModel(f"no MLmodel file could be had: {str(exc).splitlines()[-1]}") from exc
        return read_description(path.parent).inputs

    def fetch_reference(self, name: str, version: str, folder: Path) -> Path | None:
        """Downloads the reference logged with a version; None when its run has none."""
        with self._talking() as client:
            run_id = _version(client, name, version).run_id
        return self.fetch_run_reference(run_id, folder) if run_id else None

    def fetch_run_reference(self, run_id: str, folder: Path) -> Path | None:
        """The same of a run, whether or not a version was made of it."""
        with self._talking() as client:
            if not client.list_artifacts(run_id, str(Path(REFERENCE_PATH).parent)):
                return None
            source = f"{client.get_run(run_id).info.artifact_uri}/{REFERENCE_PATH}"
            return self._download(source, folder)

    # -- inside

    def _download(self, source: str, folder: Path) -> Path:
        import_mlflow()
        from mlflow.artifacts import download_artifacts

        folder.mkdir(parents=True, exist_ok=True)
        found = download_artifacts(artifact_uri=source, dst_path=str(folder), tracking_uri=self.tracking_uri)
        return Path(found)

    def _experiment(self, client: Any, name: str) -> str:
        from mlflow.exceptions import MlflowException

        if (found := client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        location = None
        if self.tracking_uri.startswith("sqlite:///"):  # beside the database, not in whatever folder runs the job
            database = Path(self.tracking_uri.removeprefix("sqlite:///")).absolute()
            location = (database.parent / "artifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as exc:
            if exc.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(client.get_experiment_by_name(name).experiment_id)

    @contextmanager
    def _talking(self) -> Iterator[Any]:
        import_mlflow()
        from mlflow.exceptions import MlflowException

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of MLflow, about itself
                yield self._client
        except _away() as exc:
            if _GONE.search(str(exc)):
                raise NotThere(f"{type(exc).__name__}: {_words(exc)}") from exc
            raise TransientError(f"{type(exc).__name__}: {_words(exc)}") from exc
        except MlflowException as exc:
            if exc.error_code == "RESOURCE_DOES_NOT_EXIST" or _GONE.search(str(exc)):
                raise NotThere(_words(exc)) from exc
            status = exc.get_http_status_code()
            if status >= 500 or status == 429 or exc.error_code in _REFUSED or _ANSWER.search(str(exc)):
                raise TransientError(_words(exc)) from exc
            raise


_ANSWER = re.compile(r"^API request to endpoint .* failed with error code \d")
"""What MLflow's client says of an answer that is no JSON object: somebody else has answered."""


def _words(exc: Exception) -> str:
    """On one line, and of somebody's whole page no more than how it begins and ends."""
    text = " ".join(str(exc).split())
    return text if len(text) <= 400 else f"{text[:200]} .. {text[-200:]}"


def _away() -> tuple[type[Exception], ...]:
    """What a server's connection, a database or an object store raises; of the libraries that are loaded."""
    loaded = ((sys.modules.get(module), name) for module, name in _STORE_ERRORS)
    return (ConnectionError, *(getattr(module, name) for module, name in loaded if module is not None))


def import_mlflow() -> Any:
    """MLflow, quiet: no telemetry, no progress bars, no migration log, retries of its own cut short."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow


def resolve_alias(tracking_uri: str, name: str, alias: str = CHAMPION) -> str | None:
    """Version behind an alias, None without one. Raises TransientError. Imports MLflow when called."""
    return Registry(tracking_uri).resolve_alias(name, alias)


def fetch_reference(tracking_uri: str, name: str, version: str, folder: Path) -> Path | None:
    """The version's reference as a parquet file of lake columns, moved to `folder/<version>.parquet`; None without
    one. Raises TransientError."""
    found = Registry(tracking_uri).fetch_reference(name, version, folder / f"{version}.partial")
    if found is None:
        return None
    target = folder / f"{version}.parquet"
    found.replace(target)
    shutil.rmtree(folder / f"{version}.partial", ignore_errors=True)
    return target


def _alias(client: Any, name: str, alias: str) -> str | None:
    model = _registered(client, name)
    version = None if model is None else model.aliases.get(alias)
    return None if version is None else str(version)


def _version(client: Any, name: str, version: str) -> Any:
    found = client.get_model_version(name, version)
    if (found.name, str(found.version)) != (name, version):
        raise TransientError(f"asked for version {version} of {name!r}, something else answered: is that an MLflow?")
    return found


def _source(client: Any, name: str, version: str) -> str:
    """Where a version's directory is."""
    _version(client, name, version)
    if not (source := client.get_model_version_download_uri(name, version)):
        raise TransientError(f"no place is told for version {version} of {name!r}: is that an MLflow?")
    return str(source)


def _registered(client: Any, name: str) -> Any:
    """None when MLflow says that there is no such model. Raises TransientError when it is another's answer: without
    the check any JSON object would be a model without aliases."""
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
    except MlflowException as exc:
        if exc.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    if model.name != name:
        raise TransientError(f"asked for the registered model {name!r}, something else answered: is that an MLflow?")
    return model
