"""Writes the dashboards' JSON: `python -m dashboards.grafana.build [--check]`.

`--check` writes nothing and fails when a file is not what the source says.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.grafana import daemon, fleet, model, retraining

FOLDER = Path(__file__).parent / "dashboards"


def dashboards() -> Mapping[str, Dashboard]:
    """File name -> dashboard."""
    built = [fleet.build(), model.build(), retraining.build(), daemon.build()]
    return {f"{d.uid}.json": d for d in built}


def text(dashboard: Dashboard) -> str:
    """Its JSON as committed."""
    return json.dumps(dashboard, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    wanted = {name: text(dashboard) for name, dashboard in dashboards().items()}
    found = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    stale = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if "--check" in arguments:
        if stale:
            sys.stderr.write(f"stale: {', '.join(stale)}: run `python -m dashboards.grafana.build`\n")
        return 1 if stale else 0
    FOLDER.mkdir(exist_ok=True)
    for name in stale:
        if name in wanted:
            (FOLDER / name).write_text(wanted[name], encoding="utf-8")
        else:
            (FOLDER / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
