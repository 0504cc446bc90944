"""One daemon, and what strangers send it: each trouble stays with its model, is named, and the others are watched."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.daemons import Daemon, Daemons, until
from tests.odd_mlflow import PAGE, OddAnswer, OddMlflow

HOURS, A_WINDOW = 12, 60
NOW = datetime.now(UTC)
FIRST = (NOW - timedelta(hours=HOURS + 1)).replace(minute=0, second=0, microsecond=0)
WINDOWS = {"min_rows": 40, "idle_after": "1s", "lateness": "0s"}
GONE = OddAnswer(404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "not found"}', "application/json")
VERSIONS = [
    "999", "20241105", "\u0663", "\u00b2", "9" * 100, "x" * 300, "a\x00b", "a/b", "a_b", "..", "../../up", "\u202ever",
    "", " ", "1.0", "01", "-1",
]  # fmt: skip
REQUEST_IDS = [f"request-{n:04}" for n in range(300)]


@dataclass
class Sent:
    """Events of a model, spread evenly over its hours."""

    folder: Path
    model: str

    def predictions(self, events: Iterable[dict[str, Any]], *, name: str = "a", labels: bool = False) -> None:
        given = list(events)
        step = timedelta(hours=HOURS) / len(given)
        for stream in ("predictions", "labels"):
            (self.folder / stream).mkdir(parents=True, exist_ok=True)
        with (
            (self.folder / "predictions" / f".{self.model}-{name}").open("w") as out,
            (self.folder / "labels" / f"{self.model}-{name}.ndjson").open("w") as truths,
        ):
            for n, event in enumerate(given):
                label = event.pop("label", event["prediction"])
                ts = event.pop("ts", None) or (FIRST + n * step).isoformat()
                common = {"prediction_id": f"{self.model}-{name}-{n}", "model": self.model}
                print(json.dumps({**common, "model_version": "v1", "ts": ts, **event}), file=out)
                if labels:
                    print(json.dumps({**common, "ts": ts, "label": label}), file=truths)
        Path(out.name).rename(self.folder / "predictions" / f"{self.model}-{name}.ndjson")


def classified(n: int = HOURS * A_WINDOW, **features: Any) -> Iterator[dict[str, Any]]:
    rng = random.Random(n)
    for _ in range(n):
        amount = rng.random()
        yield {"features": {"amount": amount, **features}, "prediction": str(int(amount > 0.6)), "score": amount}


def priced(n: int = HOURS * A_WINDOW) -> Iterator[dict[str, Any]]:
    rng = random.Random(1)
    for at in range(n):
        amount = rng.random()
        odd = {40: {"prediction": 1.8e308}, 41: {"label": 1e155}, 42: {"label": -1e308}}.get(at, {})
        yield {"features": {"amount": amount}, "prediction": amount * 2, "label": amount, **odd}


MODELS: dict[str, dict[str, Any]] = {
    "healthy": {},
    "bools": {"features": {"amount": "number", "is_new": "bool"}},
    "never_filled": {"features": {"amount": "number", "age_days": "number"}},
    "odd_scores": {"reference": {"path": "nan.parquet"}},
    "late_type": {"reference": {"path": "late.csv"}},
    "no_parquet": {"reference": {"path": "broken.parquet"}},
    "backlog": {"windows": {**WINDOWS, "size": "1d"}},
    "versions": {"windows": {**WINDOWS, "max_versions": 5}, "rules": []},
    "priced": {"task": "regression"},
    "smoke": {},
    "registered": {},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, OddMlflow]]:
    folder = tmp_path_factory.mktemp("the strangers")  # a space in the path is no trouble either
    mlflow = OddMlflow()
    mlflow.answer = OddAnswer(401, PAGE)
    rng = random.Random(7)
    rows = [(rng.random(), n) for n in range(600)]
    pl.DataFrame(
        {
            "amount": [a for a, _ in rows],
            "prediction": [str(int(a > 0.6)) for a, _ in rows],
            "label": [str(int(a > 0.5)) for a, _ in rows],
            "score": [float("nan") if n % 10 == 0 else a for a, n in rows],
        }
    ).write_parquet(folder / "nan.parquet")
    late = "".join(f"{n if n < 300 else n / 7},{n % 2},{n % 2}\n" for n in range(500))
    (folder / "late.csv").write_text("amount,prediction,label\n" + late)
    (folder / "broken.parquet").write_bytes(b"PAR1 this is none PAR1")
    with Daemons(folder) as daemons:
        daemon = daemons.make({"kind": "files", "max_age": "400d"}, name="d", mlflow={"tracking_uri": mlflow.uri})
        basic = {"task": "binary", "features": {"amount": "number"}, "windows": WINDOWS}
        daemon.config["models"] = {
            name: {**({} if "task" in more else {"classes": ["0", "1"]}), **basic, **more}
            for name, more in MODELS.items()
        }
        for name in ("odd_scores", "late_type", "no_parquet"):
            reference = daemon.config["models"][name]["reference"]
            reference["path"] = str(folder / reference["path"])
        daemon.write_config()
        send_all(daemon.state / "events")
        daemon.start()
        yield daemon, mlflow
    mlflow.close()


def send_all(folder: Path) -> None:
    Sent(folder, "registered").predictions({**event, "model_version": "7"} for event in classified())
    for name in ("healthy", "odd_scores", "late_type", "no_parquet"):
        Sent(folder, name).predictions(classified(), labels=True)
    Sent(folder, "bools").predictions(
        {**e, "features": {**e["features"], "is_new": n % 2}} for n, e in enumerate(classified())
    )
    Sent(folder, "never_filled").predictions(classified(ageDays=3))
    Sent(folder, "priced").predictions(priced(), labels=True)
    days = [NOW.replace(hour=0, minute=0) - timedelta(days=40 - day) for day in range(40)]
    doubled = [
        {**event, "features": {"amount": event["features"]["amount"] * (2 if day >= 20 else 1)},
         "ts": (days[day] + timedelta(seconds=430 * n)).isoformat()}
        for day in range(40) for n, event in enumerate(classified(200))
    ]  # fmt: skip
    Sent(folder, "backlog").predictions(doubled)
    smoke = [{**event, "ts": (FIRST - timedelta(hours=9 - n)).isoformat()} for n, event in enumerate(classified(3))]
    Sent(folder, "smoke").predictions(smoke)
    Sent(folder, "smoke").predictions(classified(), name="b")
    versions = ["v1"] * 400 + VERSIONS * 5 + REQUEST_IDS
    random.Random(2).shuffle(versions)
    Sent(folder, "versions").predictions(
        {**event, "model_version": version} for version, event in zip(versions, classified(len(versions)), strict=True)
    )


World = tuple[Daemon, OddMlflow]


def measured(daemon: Daemon, model: str, kind: str = "drift") -> dict[str, list[str]]:
    """The references that windows were compared with, by version, in the order of the windows."""
    found: dict[str, list[str]] = {}
    lines = [line for line in daemon.logged("window_measured") if line["model"] == model and line["kind"] == kind]
    for line in sorted(lines, key=lambda line: line["window_end"]):
        found.setdefault(line["version"], []).append(line["reference"])
    return found


@pytest.mark.parametrize("model", ["healthy", "bools", "never_filled", "odd_scores", "late_type", "priced", "smoke"])
def test_every_model_is_measured_against_its_reference(world: World, model: str) -> None:
    daemon, _ = world
    found = until(
        f"the windows of {model}",
        lambda: (seen := measured(daemon, model)) and len(seen.get("v1", ())) >= HOURS - 1 and seen,
    )
    references = found["v1"][-5:]
    kept = {"odd_scores": "file:nan.parquet", "late_type": "file:late.csv"}.get(model, "warmup:v1")
    assert set(references) <= {kept, "labelled:v1"}, references


def test_a_boolean_sent_as_a_number_is_one(world: World) -> None:
    daemon, _ = world
    until("the rows", lambda: daemon.rows("predictions", "bools").height == HOURS * A_WINDOW)
    rows = daemon.rows("predictions", "bools")
    assert rows["feature_is_new"].null_count() == 0
    assert rows["invalid_features"].null_count() == rows.height


def test_numbers_that_nothing_can_be_computed_from_are_dead_letters(world: World) -> None:
    daemon, _ = world
    until("them", lambda: daemon.rows("dead_letters", "").height >= 3)
    assert sorted(daemon.rows("dead_letters", "")["reason"].to_list()) == ["no_label", "no_label", "no_prediction"]
    until("its performance", lambda: measured(daemon, "priced", "performance"))


def test_a_registry_that_refuses_makes_one_version_wait_and_nothing_else(world: World) -> None:
    daemon, mlflow = world

    def named() -> list[str]:
        return [text for text in daemon.faults() if text.startswith("registered window 7 ")]

    told = until("the fault", named)
    assert "401" in told[0]
    assert measured(daemon, "registered") == {}
    mlflow.answer = GONE
    until("its windows", lambda: len(measured(daemon, "registered").get("7", ())) >= HOURS - 1)
    until("the end of the fault", lambda: not named())


def test_a_few_rows_of_a_smoke_test_are_no_reference(world: World) -> None:
    daemon, _ = world
    frozen = until("a reference", lambda: [x for x in daemon.logged("reference_frozen") if x["model"] == "smoke"])
    assert frozen[0]["windows"] == 3
    (path,) = (daemon.state / "references" / "smoke" / "v1").glob("warmup.parquet")
    assert pl.read_parquet(path).height >= 3 * (A_WINDOW - 1)


def test_a_backlog_gives_the_verdicts_that_the_events_would_have_given_live(world: World) -> None:
    daemon, _ = world
    found = until("the days", lambda: (seen := measured(daemon, "backlog")) and len(seen["v1"]) >= 38 and seen)
    assert found["v1"][:3] == ["none"] * 3
    assert set(found["v1"][3:]) == {"warmup:v1"}
    fired = until("the rule", lambda: [x for x in daemon.logged("rule_fired") if x["model"] == "backlog"])
    changed = NOW.replace(hour=0, minute=0) - timedelta(days=20)
    assert timedelta(0) < datetime.fromisoformat(fired[0]["window_end"]) - changed <= timedelta(days=4)


def test_a_reference_that_cannot_be_read_is_a_fault_of_one_model(world: World) -> None:
    daemon, _ = world
    told = until(
        "the fault", lambda: [f for f in json.loads(daemon.request("/readyz")[1])["faults"] if "no_parquet" in f]
    )
    assert "broken.parquet" in told[0]
    assert daemon.ready()[1]["lake"] == "ok"
    assert daemon.metric("driftd_faults", model="no_parquet", state="waiting") == 1
    assert set(measured(daemon, "no_parquet")["v1"]) == {"none"}
    (line,) = json.loads(daemon.request("/api/v1/models/no_parquet/timeline?days=7")[1])["faults"]
    assert line == told[0]


def test_versions_that_are_none_stop_nothing_and_what_serves_comes_first(world: World) -> None:
    daemon, _ = world
    until("version v1", lambda: len(measured(daemon, "versions").get("v1", ())) >= HOURS - 1)
    live = measured(daemon, "versions")
    assert len(live) <= 5 + 2, sorted(live)  # two more may have been live for a while
    assert not [v for v in live if v.startswith("request-")]
    others = daemon.metric("driftd_other_versions", model="versions")
    assert others >= 50
    stored = set(daemon.rows("predictions", "versions")["model_version"].to_list())
    assert stored >= set(REQUEST_IDS), "nothing is lost"
    assert len(stored) == len(REQUEST_IDS) + len(VERSIONS) + 1
    assert all(v.isprintable() and 0 < len(v) <= 128 for v in stored)
    places = [p for p in (daemon.state / "references").rglob("*") if p.is_file()]
    assert all(len(p.relative_to(daemon.state / "references").parts) == 3 for p in places), places
    assert not (daemon.state / "up").exists()


def test_the_whole_is_shown_and_nobody_was_stopped(world: World) -> None:
    daemon, _ = world
    daemon.must_run()
    assert daemon.starts == 1
    fleet = json.loads(daemon.request("/api/v1/fleet")[1])["models"]
    assert {m["model"] for m in fleet} == set(MODELS)
    assert [m["model"] for m in fleet if m["faults"]] == ["no_parquet"]
    for model in MODELS:
        assert daemon.request(f"/models/{model}")[0] == 200
    assert daemon.metric("driftd_ticks_total", outcome="ok") > 0
    assert daemon.stop()[0] == 0
    assert all({"event", "level", "timestamp"} <= set(line) for line in daemon.lines()), "a line is a record"
    assert daemon.state.stat().st_mode & 0o777 == 0o750
    readable = [
        p for p in daemon.state.rglob("*") if p.is_file() and "events" not in p.parts and p.stat().st_mode & 0o7
    ]
    assert readable == []
    for path in sorted((daemon.state / "events").rglob("*.ndjson")):
        path.unlink()
    daemon.start()
    until("a tick after the restart", lambda: daemon.metric("driftd_ticks_total", outcome="ok") > 0)
