"""Makes state_0_1_0.tar.gz, with driftd 0.1.0 on the path: `python make_state_0_1_0.py OUTPUT`.

A daemon's state as that release left it: a lake with predictions, labels, outcomes, measurements and dead letters of
two models, references that were warmed up (of a version with `/` in its name; of three windows with a row each), rules
that fire, a pause, and two retrain jobs, one that was promoted and one that was rejected.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path("/tmp/driftd-0.1.0")
CONFIG = """
[daemon]
state = "state"
tick = "300ms"
[http]
port = 0
[source]
batch_wait = "100ms"
max_age = "36500d"
[lake]
retention = "36500d"
[models.fraud]
task = "binary"
classes = ["ok", "fraud"]
positive = "fraud"
segments = ["country"]
features = { amount = "number", is_new = "bool", kind = "category" }
[models.fraud.windows]
min_rows = 30
lateness = "0s"
idle_after = "1s"
[models.fraud.retrain]
cooldown = "0s"
watch_rows = 50
parameters = { max_iter = 10, spans = 1 }
[models.fraud.retrain.gates]
max_latency_ratio = 1000.0
[models.price]
task = "regression"
features = { amount = "number" }
[models.price.windows]
min_rows = 30
lateness = "0s"
idle_after = "1s"
"""
DRIFTD = [sys.executable, "-m", "monitor.cli"]
START = (datetime.now(UTC) - timedelta(hours=30)).replace(minute=0, second=0, microsecond=0)


def driftd(*arguments: str) -> str:
    done = subprocess.run([*DRIFTD, *arguments], capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, file=sys.stderr)
    return done.stdout


def status(model: str) -> dict[str, Any]:
    return dict(json.loads(driftd("status", model, "--json"))["models"][model])


def wait(what: str, look: Callable[[], Any]) -> None:
    for _ in range(600):
        if look():
            return
        time.sleep(0.5)
    raise SystemExit(f"waited in vain for {what}")


def write(hours: range, version: str, turned: bool, rows: int = 40) -> None:
    rng = random.Random(hours.start)
    name = f"{hours.start}-{version.replace('/', '_')}"
    folder = Path("state/events")
    for stream in ("predictions", "labels"):
        (folder / stream).mkdir(parents=True, exist_ok=True)
    with (
        (folder / "predictions" / f"{name}.ndjson").open("w") as out,
        (folder / "labels" / f"{name}.ndjson").open("w") as truths,
    ):
        for hour in hours:
            for n in range(rows):
                at = (START + timedelta(hours=hour, seconds=n * 3600 // rows)).isoformat()
                amount, kind = rng.random(), rng.choice("abc")
                answer = "fraud" if amount > 0.5 else "ok"
                wrong = rng.random() < 0.1
                truth = ("ok" if answer == "fraud" else "fraud") if turned != wrong else answer
                features = {"amount": amount, "is_new": n % 3 == 0, "kind": kind}
                common = {"prediction_id": f"{version}-{hour}-{n}", "model": "fraud", "ts": at}
                segment = {"country": rng.choice(["de", "fr"])}
                print(json.dumps({**common, "model_version": version, "features": features, "prediction": answer,
                                  "score": amount, "latency_ms": 3.0, "segment": segment}), file=out)  # fmt: skip
                print(json.dumps({**common, "label": truth}), file=truths)
                other = {**common, "model": "price", "model_version": "v9"}
                print(json.dumps({**other, "features": {"amount": amount}, "prediction": amount * 2}), file=out)
                print(json.dumps({**common, "model": "price", "label": amount * 2 + rng.random() / 10}), file=truths)
        print("no event", file=out)


def main(output: str) -> None:
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir()
    os.chdir(ROOT)
    Path("config.toml").write_text(CONFIG)
    write(range(-9, -6), "b/2", turned=False)
    write(range(-5, -2), "smoke", turned=False, rows=1)
    write(range(6), "a", turned=False)
    write(range(6, 12), "a", turned=True)
    with Path("log").open("w") as log:
        daemon = subprocess.Popen([*DRIFTD, "run"], stdout=log, stderr=subprocess.STDOUT)
    wait("windows", lambda: Path("log").read_text().count("window_measured") > 30)
    driftd("retrain", "fraud", "--actor", "ann", "--reason", "the first one")
    wait("a champion", lambda: status("fraud")["champion"] == "1")
    write(range(12, 20), "1", turned=False)
    write(range(20, 24), "1", turned=True)
    wait("its windows", lambda: [r for r in status("fraud")["rules"] if r["version"] == "1" and r["phase"] == "firing"])
    wait("more jobs", lambda: (jobs := status("fraud")["jobs"])[1:] and jobs[0]["state"] not in ("queued", "training"))
    time.sleep(10)
    driftd("pause", "price", "--actor", "ann", "--reason", "a fair")
    daemon.send_signal(signal.SIGTERM)
    daemon.wait(30)
    driftd("status")
    with tarfile.open(output, "w:gz") as archive:
        for place in ("config.toml", "state"):
            archive.add(place, filter=lambda info: None if info.name.endswith(".html") else info)


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).absolute()))
