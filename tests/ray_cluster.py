"""A real Ray cluster on this machine: a head that only manages, and nodes that can be killed; no pytest in here.

Invariant: what is started here ends with `RayCluster.stop`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STORE = 100 * 2**20
"""Bytes of a node's object store, in shared memory."""


class RayCluster:
    """`address` is the cluster's, `dashboard` that of its jobs API."""

    def __init__(self) -> None:
        self._before = dict(os.environ)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        os.environ.update(PATH=path, PYTHONPATH=str(ROOT), RAY_USAGE_STATS_ENABLED="0")  # for its processes
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0, "object_store_memory": STORE}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = str(self._cluster.address)
        self.dashboard = f"http://{self._cluster.head_node.webui_url}"
        self._nodes: list[Any] = []

    def add_node(self, cpus: int) -> None:
        self._nodes.append(self._cluster.add_node(num_cpus=cpus, object_store_memory=STORE))

    def kill_node(self) -> None:
        """The one that came first."""
        self._cluster.remove_node(self._nodes.pop(0), allow_graceful=False)

    def busy(self) -> bool:
        """Whether a window is being measured."""
        return any(found.state == "RUNNING" for found in self._measurements())

    def measured(self) -> int:
        return sum(found.state == "FINISHED" for found in self._measurements())

    def _measurements(self) -> list[Any]:
        from ray.util.state import list_tasks

        return list(list_tasks(self.dashboard, filters=[("name", "=", "_measure_on_node")]))

    def stop(self) -> None:
        self._cluster.shutdown()
        os.environ.clear()
        os.environ.update(self._before)
