"""Measuring tasks -> results of a Ray cluster: runs in a measuring process, which is the cluster's client.

Invariant: whichever node measures gives the answer that this machine would: a task takes its reference with it, and
the window is read from the lake. A task whose node is lost is given to another by Ray.
"""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monitor.base.errors import TransientError
from monitor.base.faults import Failed
from monitor.measure.worker import (
    MeasureResult,
    MeasureTask,
    ReferenceSource,
    measure,
    obtain_reference,
    version_folder,
)

TIMEOUT = 540.0
"""Seconds for all tasks of a batch; less than a measuring process is given."""
CACHE = "driftd-references"
"""Folder for references below a node's temporary folder."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Tasks for the cluster at `address`; its nodes have driftd, or get it by `runtime_env`."""

    address: str
    runtime_env: Mapping[str, Any]
    tasks: tuple[MeasureTask, ...]


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference file as it travels. `found`: driftd has found or made it for the version; else it is configured."""

    found: bool
    digest: str
    name: str
    mtime_ns: int
    content: bytes


def measure_on_cluster(batch: Batch) -> list[MeasureResult | Failed]:
    """Results in order, and for tasks that gave none why not. Raises TransientError when the cluster is away."""
    import ray

    _connect(batch)
    remote = ray.remote(num_cpus=1, max_retries=3)(_measure_on_node)
    shipped: dict[Path, Any] = {}
    running: list[Any] = []
    try:
        for task in batch.tasks:
            try:
                path = obtain_reference(task.reference, task.key.version)
                if path is not None and path not in shipped:
                    shipped[path] = ray.put(_packed(path, task))
                running.append(remote.remote(task, None if path is None else shipped[path]))
            except (TransientError, OSError) as exc:
                running.append(Failed.of(exc))
        started = [r for r in running if not isinstance(r, Failed)]
        ray.wait(started, num_returns=len(started), timeout=TIMEOUT) if started else None
        return [r if isinstance(r, Failed) else _result(r) for r in running]
    except (ray.exceptions.RayError, ConnectionError) as exc:
        ray.shutdown()
        raise TransientError(f"Ray at {batch.address}: {type(exc).__name__}: {exc}"[:300]) from exc


def _result(running: Any) -> MeasureResult | Failed:
    import ray

    try:
        found: MeasureResult = ray.get(running, timeout=0)
    except ray.exceptions.RayTaskError as exc:
        return Failed.of(exc.cause if isinstance(exc.cause, Exception) else exc)
    except ray.exceptions.GetTimeoutError:
        return Failed(f"had not come to an end after {TIMEOUT:g} s")
    return found


def _connect(batch: Batch) -> None:
    import ray

    if ray.is_initialized():
        return
    host, _, port = batch.address.rpartition("://")[2].rpartition(":")
    try:
        if host:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(batch.address, runtime_env=dict(batch.runtime_env), log_to_driver=False, logging_level="warning")
    except Exception as exc:  # whatever Ray says of a cluster that is not there
        ray.shutdown()
        raise TransientError(f"Ray at {batch.address}: {type(exc).__name__}: {exc}"[:300]) from exc


def _packed(path: Path, task: MeasureTask) -> Reference:
    content, found = path.read_bytes(), path.parent == version_folder(task.reference, task.key.version)
    return Reference(found, hashlib.sha256(content).hexdigest()[:16], path.name, path.stat().st_mtime_ns, content)


def _measure_on_node(task: MeasureTask, reference: Reference | None) -> MeasureResult:
    return measure(replace(task, reference=_unpacked(task, reference)))


def _unpacked(task: MeasureTask, reference: Reference | None) -> ReferenceSource:
    """The task's source of references as it is on this node: the file that came along, or none."""
    folder = Path(tempfile.gettempdir()) / CACHE / ("none" if reference is None else reference.digest)
    here = replace(task.reference, folder=str(folder), path=None, tracking_uri=None)
    if reference is None:
        return here
    target = (version_folder(here, task.key.version) if reference.found else folder) / reference.name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        partial.write_bytes(reference.content)
        os.utime(partial, ns=(reference.mtime_ns, reference.mtime_ns))
        partial.replace(target)
    return here if reference.found else replace(here, path=str(target))
