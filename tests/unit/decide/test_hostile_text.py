"""Text that strangers choose, all the way: decoder, lake, evaluation, references, metrics, page, command line."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import pytest
import tomli_w
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from monitor.base.kinds import Stream
from monitor.cli import main
from monitor.config.loading import LoadedConfig, load
from monitor.config.plan import plans
from monitor.decide.evaluator import ModelEvaluator
from monitor.decide.ledger import Ledger
from monitor.decide.units import Units
from monitor.intake.ingest import IngestPolicy, Writer
from monitor.intake.sources import Records
from monitor.lake.lake import Lake, Table
from monitor.measure.worker import measure
from monitor.metrics import Metrics
from monitor.rules.triggers import JobHistory
from monitor.web.page import render
from monitor.web.views import Views
from retrain.control.store import open_store
from tests.builders import DAY, HOUR, NOW, stored

NAMED = [
    "", " ", ".", "..", "../../etc/passwd", "/", "\\", "a/b", "a_b", "con", "nul.txt", "-", "--", "~", "*", "unknown",
    "\x00", "a\x00", "\n", "a\nb", "\r\n", "\t", "\x1b[2J\x1b[H", "\x1b]0;title\x07", "\u202egnp.exe", "\u200b",
    "\ufeff", "\u2028", "\x85", "\ud800", "\udfff", "\U000e0001", "e\u0301", "\u00e9", "\u0663", "\u00b2", "\u0967",
    "1", "01", "+1", "1.0", "1e5", "0x10", "NaN", "inf", "null", "None", "true", "<script>alert(1)</script>", "\"'&<>",
    "{{", "%s", "$(id)", "`id`",
    "';--", "a" * 128, "a" * 129, "a" * 5000, "\U0001f600" * 200, "9" * 400, "x~" + "0" * 20, "date=2026", "a%2Fb",
]  # fmt: skip
hostile = st.one_of(
    st.sampled_from(NAMED),
    st.text(max_size=20),
    st.text(st.characters(categories=["Cc", "Cf", "Zs", "Nd", "Cs"]), max_size=6),
)
MODEL = {
    "task": "binary",
    "classes": ["no", "yes"],
    "features": {"x": "number", "c": "category"},
    "segments": ["s"],
    "windows": {"min_rows": 5, "idle_after": "1s", "lateness": "0s"},
    "reference": {"warmup_windows": 1},
    "rules": [{"name": "unseen", "measure": "unseen_share", "feature": "c", "above": 0.1, "for": "1 of 1"}],
}


@dataclass
class Pipeline:
    """All of driftd that handles text, in this process, on a folder of its own."""

    folder: Path
    offset: int = 0
    now: datetime = NOW
    loaded: LoadedConfig = field(init=False)

    def __post_init__(self) -> None:
        path = self.folder / "config.toml"
        document = {"daemon": {"state": str(self.folder / "state")}, "http": {"port": 0}, "models": {"m": MODEL}}
        path.write_text(tomli_w.dumps(document))
        self.loaded = load(path)
        self.loaded.config.state.mkdir()
        self.lake = Lake(self.loaded.config.lake_uri)
        self.metrics = Metrics()
        self.store = open_store(self.loaded.config.control_url)
        self.ledger = Ledger(self.store.engine)
        self.ledger.create()
        self.units = Units(self.store.engine, self.metrics)
        self.plan = plans(self.loaded)["m"]
        self.metrics.declare("1", {"m": self.plan.rules})
        policy = IngestPolicy(1000, timedelta(seconds=1), 400 * DAY, HOUR, 1 << 24)
        self.writer = Writer(self.lake.clone(), self.loaded.schemas, policy, self.metrics)
        self.evaluator = ModelEvaluator(
            self.plan, self.lake.clone(), self.ledger, lambda tasks: [measure(task) for task in tasks], self.metrics,
            lambda _model, _now: JobHistory(), lambda _rule, _key: None, self.units,
        )  # fmt: skip

    def send(self, stream: Stream, events: list[dict[str, Any]]) -> None:
        values = [json.dumps(event).encode() for event in events]
        end = self.offset + len(values)
        self.writer.write([Records(stream, f"{stream.value}:0", range(self.offset, end), values, end)], self.now)
        self.offset = end

    def evaluate(self) -> None:
        while self.evaluator.tick(self.now):
            pass

    def run(self, *arguments: str) -> str:
        done = CliRunner().invoke(main, ["--config", str(self.folder / "config.toml"), *arguments])
        assert done.exception is None, done.output
        assert done.exit_code == 0
        return str(done.output)


def events(texts: list[tuple[str, str, str, str]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Predictions and labels of some hours, hostile ones among plain ones that let windows close."""
    for hour in range(4):
        at = NOW - (5 - hour) * HOUR
        for n in range(8):
            yield made(at + timedelta(minutes=n), f"plain-{hour}-{n}", "7", "de", "a")
    for n, (name, version, segment, category) in enumerate(texts):
        yield made(NOW - 4 * HOUR + timedelta(minutes=n % 50), name, version, segment, category)


def made(at: datetime, name: str, version: str, segment: str, category: str) -> tuple[dict[str, Any], dict[str, Any]]:
    common = {"prediction_id": name, "model": "m", "ts": at.isoformat()}
    prediction = {"model_version": version, "features": {"x": 1.5, "c": category}, "prediction": "yes", "score": 0.7}
    return {**common, **prediction, "segment": {"s": segment}}, {**common, "label": category or "no"}


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from texts_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_in(inner)


def printable(text: str) -> bool:
    return all(c.isprintable() or c in "\n\t" for c in text)


def check_all(pipeline: Pipeline, sent: int) -> None:
    rows, letters = stored(pipeline.lake, Table.PREDICTIONS, "m"), stored(pipeline.lake, Table.DEAD_LETTERS, "")
    lost = letters.filter(letters["stream"] == "predictions").height if letters.height else 0
    assert rows.height + lost == sent, "every record is a row or a dead letter"
    assert all(f.unit.kind.value != "model" for f in pipeline.units.faults()), pipeline.units.faults()
    assert not pipeline.units.faults()
    assert stored(pipeline.lake, Table.MEASUREMENTS, "m")["window_start"].n_unique() >= 3

    state = pipeline.folder / "state"
    places = {p.relative_to(state).parts for p in state.rglob("*.parquet") if "lake" not in p.relative_to(state).parts}
    assert all(parts[:2] == ("references", "m") and len(parts) == 4 for parts in places), places
    assert {p.name for p in pipeline.folder.iterdir()} == {"config.toml", "state"}

    exposed = pipeline.metrics.exposition().decode()
    labels = [
        v for family in text_string_to_metric_families(exposed) for s in family.samples for v in s.labels.values()
    ]
    assert all(printable(v) and len(v) <= 128 for v in labels)

    views = Views(
        lambda: {"m": pipeline.plan}, pipeline.lake, pipeline.ledger, pipeline.store, state / "reports", "http://m"
    )
    page = views.model("m", 30, pipeline.now)
    first = [views.features("m", version, NOW - 3 * HOUR) for version in set(rows["model_version"].to_list()[-3:])]
    for name, data in (("fleet", views.fleet(pipeline.now)), ("model", page)):
        shown = render(name, data)
        told = shown.partition('id="first">')[2].partition("</script>")[0]
        assert not set(told) & set("<>&")
        assert orjson.loads(html.unescape(told))["page"] == name
    assert orjson.loads(orjson.dumps(first)) is not None

    for command in (("status",), ("status", "m", "--json"), ("dead-letters", "list"), ("check",), ("audit", "verify")):
        assert printable(pipeline.run(*command)), command


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(st.tuples(hostile, hostile, hostile, hostile), min_size=1, max_size=25))
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_hostile_text_gets_through_everything_as_text(texts: list[tuple[str, str, str, str]]) -> None:
    with TemporaryDirectory() as folder:
        go(Path(folder), texts)


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_so_does_what_is_known_to_be_bad(tmp_path: Path) -> None:
    go(tmp_path, [(text, text, text, text) for text in NAMED])


def go(folder: Path, texts: list[tuple[str, str, str, str]]) -> None:
    pipeline, pairs = Pipeline(folder), list(events(texts))
    pipeline.send(Stream.PREDICTIONS, [p for p, _ in pairs])
    pipeline.send(Stream.LABELS, [label for _, label in pairs])
    pipeline.evaluate()
    check_all(pipeline, len(pairs))
