"""One world from its first hour to its last: a service that follows the alias, labels that come when they come.

Invariant: an hour begins when the daemon has done what it could about the one before; event time is simulated, the rest
is as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd

from retrain.models.model_files import load_model
from tests.daemons import Daemon, until
from tests.retrain_data import mlflow_store
from tests.worlds.table import Champion, Version, World
from tests.worlds.truth import FEATURES, Change, pipeline, quality

MODEL = "payments"
LEARNT_FROM = 6000
"""Rows of the time before that the team's model has learnt from."""
PARKED = ("awaiting_approval", "shadow", "canary", "promoted")
"""States of a job that waits for a person or for rows."""
AT_WORK = ("requested", "snapshot", "training", "evaluating", *PARKED)
LAST_HOURS = 4
"""How good the service is in the end is what it was in so many hours."""


@dataclass
class Seen:
    """What became of a world, as seen from outside. Qualities are of what was answered; `best`: of a model that has
    learnt from as many rows as it likes of the time after the change."""

    asked_before: int = 0
    """Jobs of the time when nothing had changed yet."""
    asked_after: int | None = None
    """Windows from the first label of the time after the change to the first request of a job."""
    alarmed_after: int | None = None
    """Windows of the time after the change that had closed when the first rule fired."""
    promoted: int = 0
    before: float = 0.0
    at_once: float = 0.0
    """Of the champion of before, all the time after the change."""
    at_last: float = 0.0
    best: float = 0.0
    ended: int | None = None
    """Exit code of the daemon, once it was told to stop."""
    told: list[str] = field(default_factory=list)
    """What each job said."""

    @property
    def recovered(self) -> float | None:
        """Share of what there was to win back; None where next to nothing was lost."""
        lost = self.best - self.at_once
        return (self.at_last - self.at_once) / lost if lost > 0.03 else None


@dataclass
class Service:
    """Answers with whatever the alias `champion` names, and follows the tag `driftd.traffic`."""

    world: World
    uri: str
    folder: Path
    own: dict[str, Any]
    """Models by version that the team has made itself."""
    rng: np.random.Generator
    loaded: dict[str, Any] = field(default_factory=dict)

    def answer(self, frame: pd.DataFrame) -> pd.DataFrame:
        """`positive`, `score`, and the `version` of the registry's that answered (None: none)."""
        champion, challenger, share = self._wanted()
        other = self.rng.random(len(frame)) < share
        found = pd.DataFrame({"score": 0.5, "version": None}, index=frame.index)
        for version, rows in ((champion, ~other), (challenger, other)):
            if rows.any():
                found.loc[rows, "score"] = self._scores(version, frame[rows])
                found.loc[rows, "version"] = version
        return found.assign(positive=found["score"] >= 0.5)

    def _wanted(self) -> tuple[str | None, str | None, float]:
        client = mlflow.MlflowClient(self.uri)
        try:
            champion = str(client.get_model_version_by_alias(MODEL, "champion").version)
        except mlflow.MlflowException:
            return None, None, 0.0
        tag = client.get_registered_model(MODEL).tags.get("driftd.traffic")
        split = json.loads(tag) if tag else {"champion": champion, "challenger": None, "share": 0.0}
        return champion, split["challenger"], split["share"] if split["champion"] == champion else 0.0

    def _scores(self, version: str | None, frame: pd.DataFrame) -> Any:
        if version is None:  # what was there before any model
            return 1 / (1 + np.exp(-frame["amount"].fillna(0.0) * 3))
        model = self.own.get(version) or self.loaded.get(version)
        if model is None:
            source = mlflow.MlflowClient(self.uri).get_model_version(MODEL, version).source
            into = self.folder / f"version-{version}"
            into.mkdir(parents=True)
            path = mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(into), tracking_uri=self.uri)
            model = self.loaded[version] = load_model(Path(path)).estimator
        positive = [name in (self.world.spelt(True), self.world.classes[1]) for name in model.classes_]
        return model.predict_proba(frame)[:, positive.index(True)]


@dataclass
class Life:
    """Plays a world in a folder, with one daemon."""

    world: World
    folder: Path
    daemon: Daemon
    service: Service
    start: datetime
    rng: np.random.Generator
    sent: dict[str, int] = field(default_factory=lambda: {"predictions": 0, "labels": 0})
    owed: list[tuple[int, list[dict[str, Any]]]] = field(default_factory=list)
    """(hour from which they are known, labels)."""
    answered: dict[int, tuple[pd.DataFrame, np.ndarray[Any, Any], pd.DataFrame]] = field(default_factory=dict)

    def play(self) -> Seen:
        world, seen = self.world, Seen()
        if not world.backlog:
            self.daemon.start()
        for hour in world.hours:
            if hour == 0 and world.backlog:
                self.daemon.start()
            self._emit(hour)
            if self.daemon.starts:
                self._settle()
                self._look(seen, hour)
        self._judge(seen)
        self.daemon.must_run()
        seen.ended = self.daemon.stop()[0]
        return seen

    # -- an hour

    def _emit(self, hour: int) -> None:
        world, at = self.world, self.start + timedelta(hours=hour - self.world.hours.start)
        frame, came_true = world.truth.hour(self.rng, world.rows, hour)
        said = self.service.answer(frame)
        self.answered[hour] = (frame, came_true, said)
        times = [at + timedelta(hours=float(t)) for t in np.sort(self.rng.random(world.rows)) * 0.98]
        predictions, labels = [], {delay: [] for delay in {world.delay(True), world.delay(False)}}
        for n, (row, true, answer, ts) in enumerate(
            zip(frame.to_dict("records"), came_true, said.to_dict("records"), times, strict=True)
        ):
            common = {"prediction_id": f"{hour}-{n}", "model": MODEL}
            features = {k: None if v != v else v for k, v in row.items()}
            predictions.append(
                {
                    **common, **self._version(answer["version"]), "ts": ts.isoformat(), "features": features,
                    "prediction": world.spelt(bool(answer["positive"])), "score": float(answer["score"]),
                }
            )  # fmt: skip
            delay = world.delay(bool(true))
            label_ts = ts + timedelta(hours=delay)
            labels[delay].append({**common, "ts": label_ts.isoformat(), "label": world.spelt(bool(true))})
        self.owed += [(hour + delay, events) for delay, events in labels.items()]
        self._write("predictions", predictions)
        due = [event for known, events in self.owed if known <= hour for event in events]
        self.owed = [(known, events) for known, events in self.owed if known > hour]
        self._write("labels", due)

    def _version(self, answered_by: str | None) -> dict[str, str]:
        match self.world.version:
            case Version.REPORTED:
                return {} if answered_by is None else {"model_version": answered_by}
            case Version.OMITTED:
                return {}
            case Version.OWN:
                return {"model_version": f"build-{100 + int(answered_by or 0)}"}

    def _write(self, stream: str, events: list[dict[str, Any]]) -> None:
        folder = self.daemon.state / "events" / stream
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "service.ndjson").open("a") as file:
            file.writelines(json.dumps(event) + "\n" for event in events)
        self.sent[stream] += len(events)

    def _settle(self) -> None:
        """Until the daemon has taken in what was sent, and what there was to do about it is done."""

        def taken_in() -> bool:
            found = {stream: self.daemon.metric("driftd_events_total", stream=stream) for stream in self.sent}
            return found == self.sent

        until("the daemon to take in what was sent", taken_in, within=60)
        ticks, before = self.daemon.metric("driftd_ticks_total"), None

        def done() -> bool:
            nonlocal ticks, before
            if any(job["state"] in AT_WORK and not self._is_parked(job) for job in self._jobs()):
                ticks, before = self.daemon.metric("driftd_ticks_total"), None
                return False
            found = self.daemon.metrics()
            ran = sum(v for k, v in found.items() if k.startswith("driftd_ticks_total"))
            work = {k: v for k, v in found.items() if k.startswith(("driftd_windows_measured", "driftd_outcomes"))}
            if work != before:
                ticks, before = ran, work
            return ran >= ticks + 2

        until("the daemon to have nothing to do", done, within=200, every=0.4)

    @staticmethod
    def _is_parked(job: Mapping[str, Any]) -> bool:
        return job["state"] in PARKED and bool(job["waiting"] or job["state"] == "awaiting_approval")

    def _status(self) -> dict[str, Any]:
        return dict(json.loads(self.daemon.request("/api/v1/status")[1])["models"][MODEL])

    def _jobs(self) -> list[dict[str, Any]]:
        return list(self._status()["jobs"])

    def _look(self, seen: Seen, hour: int) -> None:
        jobs = len(self._jobs())
        firing = any(rule["phase"] == "firing" for rule in self._status()["rules"])
        if hour >= 0 and seen.alarmed_after is None and firing:
            seen.alarmed_after = hour
        if hour < 0:
            seen.asked_before = jobs
        elif seen.asked_after is None and jobs > seen.asked_before:
            seen.asked_after = hour - max(self.world.delay(True), self.world.delay(False)) + 1

    # -- how it went

    def _judge(self, seen: Seen) -> None:
        world = self.world
        jobs = self._jobs()
        seen.promoted = sum(j["state"] in ("promoted", "watched") for j in jobs)
        seen.told = [f"{j['state']}: {j['reason']}: {_why(j)}"[:400] for j in reversed(jobs)]
        seen.before = self._served(range(world.hours.start, 0))
        seen.at_last = self._served(world.hours[-LAST_HOURS:])
        rng = np.random.default_rng(99)
        late, truths = world.truth.hour(rng, 20_000, world.hours.stop)
        best = pipeline("linear").fit(*world.truth.hour(rng, 40_000, world.hours.stop))
        seen.best = quality(world.positives, truths, _said(best.predict_proba(late)[:, 1]))
        first = Service(world, self.service.uri, self.folder / "first", self.service.own, rng)
        old = first._scores(next(iter(self.service.own), None), late)
        seen.at_once = quality(world.positives, truths, _said(old))

    def _served(self, hours: range) -> float:
        parts = [self.answered[hour] for hour in hours]
        truths, said = np.concatenate([p[1] for p in parts]), pd.concat([p[2] for p in parts], ignore_index=True)
        return quality(self.world.positives, truths, said)


def _said(scores: Any) -> pd.DataFrame:
    return pd.DataFrame({"score": scores}).assign(positive=lambda f: f["score"] >= 0.5)


def _why(job: Mapping[str, Any]) -> str:
    result = job["result"]
    failed = [f"{g['name']}: {g['detail']}" for g in result.get("gates", []) if not g["passed"]]
    trial = (result.get("canary") or {}).get("detail") or ""
    return job["error"] or "; ".join(failed) or trial or str(job["waiting"] or "")


def live(world: World, folder: Path) -> Seen:
    """The whole of it."""
    life = begin(world, folder)
    try:
        return life.play()
    finally:
        life.daemon.kill()


def begin(world: World, folder: Path) -> Life:
    """The team's model in the registry, its configuration, nothing started."""
    folder.mkdir(parents=True, exist_ok=True)
    uri, rng = mlflow_store(folder), np.random.default_rng(world.seed)
    own = {}
    if world.champion is not Champion.NONE:
        frame, came_true = world.truth.hour(rng, LEARNT_FROM, -1)
        labels = np.array([world.spelt(bool(t)) for t in came_true])
        model = pipeline("boosted" if world.champion is Champion.BOOSTED else "linear").fit(frame, labels)
        own[_register(uri, folder, model, frame, world.champion)] = model
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    settings: dict[str, Any] = {
        "task": "binary", "features": FEATURES, "classes": list(world.classes), "positive": world.classes[1],
        "windows": {"size": "1h"}, "retrain": {"cooldown": "0s"},
    }  # fmt: skip
    if world.canary:
        settings["retrain"]["canary"] = {"rows": 100}
    config = {
        "daemon": {"state": str(folder / "state"), "tick": "500ms", "log_format": "json"},
        "http": {"port": 0},
        "source": {"kind": "files", "batch_wait": "100ms"},
        "mlflow": {"tracking_uri": uri},
        "models": {MODEL: settings},
    }
    daemon = Daemon(folder, config)
    service = Service(world, uri, folder / "service", own, np.random.default_rng(world.seed + 1))
    start = hour - timedelta(hours=len(world.hours))
    return Life(world, folder, daemon, service, start, rng)


def _register(uri: str, folder: Path, model: Any, frame: pd.DataFrame, champion: Champion) -> str:
    """As a team does it; answers the version."""
    mlflow.set_tracking_uri(uri)
    experiment = mlflow.create_experiment(f"{MODEL} of the team", (folder / "artifacts").as_uri())
    how: dict[str, Any] = {"serialization_format": "cloudpickle"}
    if champion is not Champion.PICKLED:
        how = {
            "serialization_format": "skops",
            "skops_trusted_types": ["numpy.dtype", "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"],
            "signature": mlflow.models.infer_signature(frame, model.predict(frame)),
            "pip_requirements": ["scikit-learn"],
        }
    with mlflow.start_run(experiment_id=experiment):
        logged = mlflow.sklearn.log_model(model, name="model", registered_model_name=MODEL, **how)
    version = str(logged.registered_model_version)
    mlflow.MlflowClient(uri).set_registered_model_alias(MODEL, "champion", version)
    return version


def expectations(world: World, seen: Seen) -> list[str]:
    """What is not as it must be."""
    wrong = [] if seen.ended == 0 else [f"the daemon ended with {seen.ended}"]
    if world.change in (Change.NOTHING, Change.OUTAGE):
        if seen.promoted:
            wrong.append(f"{seen.promoted} promoted, and there was nothing to learn")
        if world.change is Change.OUTAGE and (seen.alarmed_after is None or seen.alarmed_after > world.ask_within):
            wrong.append(f"alarm after {seen.alarmed_after} windows, {world.ask_within} are allowed")
        return wrong
    if seen.asked_after is None:
        wrong.append("nobody asked")
    elif seen.asked_after > world.ask_within:
        wrong.append(f"asked after {seen.asked_after} windows, {world.ask_within} are allowed")
    if seen.recovered is not None and seen.recovered < 0.8:
        wrong.append(f"{seen.recovered:.0%} of the loss recovered")
    return wrong
