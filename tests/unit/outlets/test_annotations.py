"""What Grafana is told: by a real daemon's records, over HTTP, to a small server that answers as Grafana's API does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from monitor.base.errors import ConfigError
from monitor.base.kinds import ActivityKind
from monitor.config.loading import from_dict
from monitor.decide.ledger import Ledger, Round
from monitor.jobs.activity import Activity, activities
from monitor.metrics import Metrics
from monitor.outlets.annotations import (
    MAX_AGE,
    OVERLAP,
    ROUND,
    AnnotationRefused,
    Annotator,
    GrafanaAnnotations,
    SentLog,
    annotation,
    unsent,
)
from monitor.rules.phases import Phase, Transition
from monitor.rules.triggers import Cause, Suppressed, SuppressReason
from retrain.control.store import Store, open_store
from retrain.terms.request import RetrainRequest, TriggerKind
from retrain.terms.states import JobState
from tests.builders import HOUR, MINUTE, NOW
from tests.grafana_api import TOKEN, Grafana
from tests.retrain_data import spec

MODEL = "fraud"
LATER = NOW + 30 * timedelta(days=1)


@pytest.fixture
def grafana() -> Iterator[Grafana]:
    with Grafana() as server:
        yield server


@dataclass
class Control:
    """A control database and those who write into it, which outlive any annotator."""

    folder: Path
    store: Store
    ledger: Ledger
    recorded: int = -1

    def annotator(self, url: str, token: str = TOKEN, timeout: float = 5.0, **options: Any) -> Annotator:
        """What a fresh start of the daemon has."""
        self.metrics = Metrics()
        self.metrics.declare("1", {MODEL: []})
        feed = partial(activities, self.ledger, self.store)
        sink = GrafanaAnnotations(url, token, timeout)
        stop = options.pop("stop", threading.Event())
        return Annotator(sink, SentLog(self.store.engine), feed, self.metrics, stop, **options)

    def fires(self, at: datetime, reason: str = "0.2 > 0.1", rule: str = "drop") -> None:
        self._transition(at, Phase.PENDING, Phase.FIRING, reason, rule)

    def resolves(self, at: datetime) -> None:
        self._transition(at, Phase.FIRING, Phase.INACTIVE, "0.0", "drop")

    def _transition(self, at: datetime, before: Phase, after: Phase, reason: str, rule: str) -> None:
        moved = Transition(rule, before, after, at - HOUR, reason)
        self.ledger.record(Round(MODEL, self.recorded, self.recorded + 1, transitions=[("1", moved)]), at)
        self.recorded += 1

    def counted(self, outcome: str) -> float | None:
        return self.metrics.registry.get_sample_value("driftd_annotations_total", {"outcome": outcome})


@pytest.fixture
def control(tmp_path: Path) -> Control:
    store = open_store(f"sqlite:///{tmp_path}/control.db")
    return Control(tmp_path, store, Ledger(store.engine))


def started(control: Control, grafana: Grafana, **options: Any) -> Annotator:
    """An annotator on a control database that has seen its first round."""
    annotator = control.annotator(grafana.url, **options)
    annotator.send([MODEL], NOW)
    return annotator


def test_every_kind_of_activity_is_sent_once_in_order_and_a_refusal_to_retrain_is_not(
    control: Control, grafana: Grafana
) -> None:
    annotator = started(control, grafana)
    control.fires(NOW + MINUTE)
    cause = Cause(MODEL, TriggerKind.RULE, "w", "drop fires", {"rule": "drop"})
    control.ledger.decide(Suppressed(cause, SuppressReason.COOLDOWN, "until noon"), NOW + 2 * MINUTE)
    request = RetrainRequest("job-1", MODEL, TriggerKind.RULE, "drop fires", {"rule": "drop"}, NOW)
    control.ledger.decide(request, NOW + 3 * MINUTE)
    control.store.submit(spec(control.folder), NOW + 3 * MINUTE)
    for minute, state in enumerate((JobState.SNAPSHOT, JobState.TRAINING, JobState.EVALUATING, JobState.PROMOTED), 4):
        control.store.advance("job-1", control.store.get("job-1").state, state, "better", NOW + minute * MINUTE)
    control.store.advance("job-1", JobState.PROMOTED, JobState.ROLLED_BACK, "worse", NOW + 9 * MINUTE)
    control.resolves(NOW + 10 * MINUTE)

    annotator.send([MODEL], NOW + 11 * MINUTE)
    assert [body["tags"] for body in grafana.got] == [
        ["driftd", kind, "model:fraud"]
        for kind in ("rule_fired", "retrain_requested", "promoted", "rolled_back", "rule_resolved")
    ]
    assert grafana.got[0]["time"] == int((NOW + MINUTE).timestamp() * 1000)
    assert "dashboardUID" not in grafana.got[0], "an annotation of the organisation: every dashboard finds it by tag"
    assert grafana.texts[2] == "fraud: promoted: better"

    annotator.send([MODEL], NOW + 12 * MINUTE)
    assert len(grafana.got) == 5
    assert (control.counted("sent"), control.counted("failed")) == (5, 0)


def test_a_first_start_sends_nothing_old_and_counts_from_zero(control: Control, grafana: Grafana) -> None:
    control.fires(NOW - MINUTE)
    started(control, grafana).send([MODEL], NOW + MINUTE)
    assert grafana.asked == 0
    assert (control.counted("sent"), control.counted("failed")) == (0, 0)


def test_a_restart_sends_nothing_twice_and_what_happened_meanwhile(control: Control, grafana: Grafana) -> None:
    annotator = started(control, grafana)
    control.fires(NOW + MINUTE, "first")
    annotator.send([MODEL], NOW + MINUTE)
    control.fires(NOW + 2 * MINUTE, "while down")
    for restart in range(3):
        control.annotator(grafana.url).send([MODEL], NOW + 3 * MINUTE + restart * HOUR)
    assert grafana.texts == ["fraud: drop fires: first", "fraud: drop fires: while down"]


def test_what_was_remembered_is_forgotten_behind_the_cursor_and_still_not_sent_again(
    control: Control, grafana: Grafana
) -> None:
    annotator = started(control, grafana)
    control.fires(NOW + MINUTE)
    annotator.send([MODEL], NOW + MINUTE)
    annotator.send([MODEL], NOW + 5 * HOUR)
    log = SentLog(control.store.engine)
    assert log.since(NOW + 5 * HOUR) == NOW + 5 * HOUR - OVERLAP
    assert log.sent(NOW - MAX_AGE) == set()
    control.annotator(grafana.url).send([MODEL], NOW + 6 * HOUR)
    assert len(grafana.got) == 1


def test_an_outage_loses_nothing_and_is_asked_less_and_less_often(control: Control, grafana: Grafana) -> None:
    annotator = started(control, grafana)
    grafana.status, grafana.body = 503, {"message": "starting"}
    for minute in range(3):
        control.fires(NOW + minute * MINUTE, f"no {minute}")
    with capture_logs() as logs:
        for second in range(0, 600, 5):
            annotator.send([MODEL], NOW + 3 * MINUTE + timedelta(seconds=second))
        assert 5 <= grafana.asked <= 9, "once a round, after 5, 10, 20, .. up to 300 seconds"
        assert control.counted("failed") == grafana.asked
        grafana.status, grafana.body = 200, None
        annotator.send([MODEL], NOW + HOUR)
    assert [text.split()[-1] for text in grafana.texts] == ["0", "1", "2"]
    assert [line["event"] for line in logs] == ["annotations_failed", "annotations_recovered"]
    control.fires(NOW + 2 * HOUR, "after")
    annotator.send([MODEL], NOW + 2 * HOUR)
    assert len(grafana.got) == 4, "no wait is left over"


def test_an_outage_over_a_restart_loses_nothing(control: Control, grafana: Grafana) -> None:
    annotator = started(control, grafana)
    grafana.status, grafana.body = 500, {"message": "broken"}
    for second in range(250):
        control.fires(NOW + timedelta(seconds=second), f"no {second}", rule=f"rule_{second}")
    annotator.send([MODEL], NOW + HOUR)
    grafana.status, grafana.body = 200, None
    again = control.annotator(grafana.url)
    for step in range(3):
        again.send([MODEL], NOW + 6 * HOUR + step * MINUTE)
        assert len(grafana.got) == min(250, (step + 1) * ROUND), "a round is bounded"
    assert [text.split()[-1] for text in grafana.texts] == [str(n) for n in range(250)], "the oldest first"


def test_after_a_long_time_without_grafana_only_the_last_days_are_sent(control: Control, grafana: Grafana) -> None:
    started(control, grafana)
    control.fires(NOW + HOUR, "long ago")
    control.fires(LATER - HOUR, "just now")
    control.annotator(grafana.url).send([MODEL], LATER)
    assert grafana.texts == ["fraud: drop fires: just now"]


def test_one_annotation_that_grafana_refuses_keeps_no_other_back(control: Control, grafana: Grafana) -> None:
    annotator = started(control, grafana)
    grafana.refuse = "poison"
    for minute, reason in enumerate(("good", "poison", "fine")):
        control.fires(NOW + minute * MINUTE, reason)
    annotator.send([MODEL], NOW + HOUR)
    assert [text.split()[-1] for text in grafana.texts] == ["good", "fine"]
    assert control.counted("failed") == 1
    grafana.refuse = ""
    annotator.send([MODEL], NOW + 2 * HOUR)
    assert [text.split()[-1] for text in grafana.texts] == ["good", "fine", "poison"]


def test_a_replica_that_is_told_to_stop_sends_no_more(control: Control, grafana: Grafana) -> None:
    stop = threading.Event()
    annotator = started(control, grafana, stop=stop)
    control.fires(NOW + MINUTE)
    stop.set()
    annotator.send([MODEL], NOW + MINUTE)
    assert grafana.asked == 0


# -- what Grafana, or what stands in its place, may answer


def refused(sink: GrafanaAnnotations) -> AnnotationRefused:
    with pytest.raises(AnnotationRefused) as caught:
        sink.add({"time": 1, "tags": ["driftd"], "text": "x"})
    assert TOKEN not in str(caught.value)
    return caught.value


def test_a_wrong_token_is_named_with_the_fix(grafana: Grafana) -> None:
    problem = refused(GrafanaAnnotations(grafana.url, "wrong"))
    assert "grafana.token" in str(problem)
    assert not problem.content
    assert grafana.got == []


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (403, {"message": "Access denied"}, "Editor"),
        (404, {"message": "Dashboard not found"}, "grafana.dashboard"),
        (200, b"<html>a login page</html>", "not JSON"),
        (200, {"message": "hello"}, "not Grafana"),
        (301, b"", "redirected"),
        (502, b"a proxy's message", "not Grafana's"),
        (502, None, "not Grafana's"),
        (429, {"message": "slow down"}, "429"),
    ],
)
def test_what_is_not_grafana_is_said_and_retried(grafana: Grafana, status: int, body: Any, says: str) -> None:
    grafana.status, grafana.body = status, b"null" if body is None else body
    problem = refused(GrafanaAnnotations(grafana.url, TOKEN))
    assert says in str(problem)
    assert not problem.content


def test_a_server_that_hangs_is_given_up_after_the_timeout(control: Control, grafana: Grafana) -> None:
    annotator = started(control, grafana, timeout=0.2)
    control.fires(NOW + MINUTE, "one")
    control.fires(NOW + MINUTE, "two")
    grafana.delay = 4
    began = time.monotonic()
    annotator.send([MODEL], NOW + MINUTE)
    assert time.monotonic() - began < 3.8, "the first timeout ends the round"
    assert control.counted("failed") == 1


def test_nobody_listening_is_said(control: Control) -> None:
    assert "grafana.url" in str(refused(GrafanaAnnotations("http://127.0.0.1:9", TOKEN)))


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://grafana:3000", "http://grafana:3000/api"),
        ("https://example.org/", "https://example.org/api"),
        ("https://example.org/tools/grafana/", "https://example.org/tools/grafana/api"),
        ("http://[::1]:3000/g", "http://[::1]:3000/g/api"),
    ],
)
def test_the_address_is_taken_with_port_and_path(url: str, asked: str) -> None:
    assert GrafanaAnnotations(url, TOKEN)._api.url == asked


# -- pure


ACTIVITY = Activity("transition-1", NOW, MODEL, ActivityKind.RULE_FIRED, "drop fires: 1 < 2 & 3 > 2")


def test_text_is_escaped_for_grafana_and_cut() -> None:
    assert annotation(ACTIVITY)["text"] == "fraud: drop fires: 1 &lt; 2 &amp; 3 &gt; 2"
    assert len(annotation(replace(ACTIVITY, text="x" * 9000))["text"]) == 2000


def test_a_dashboard_is_annotated_by_its_uid() -> None:
    assert annotation(ACTIVITY, "driftd-model")["dashboardUID"] == "driftd-model"


def test_unsent_is_what_is_new_enough_wanted_and_not_sent() -> None:
    old = replace(ACTIVITY, id="a", at=NOW - MINUTE)
    done = replace(ACTIVITY, id="b")
    late = replace(ACTIVITY, id="c", at=NOW + MINUTE)
    no = replace(ACTIVITY, id="d", kind=ActivityKind.RETRAIN_SUPPRESSED)
    assert unsent([late, ACTIVITY, old, done, no], {"b"}, NOW) == [ACTIVITY, late]


def configured(**grafana: Any) -> Callable[[], object]:
    model = {"task": "regression", "features": {"x": "number"}}
    return lambda: from_dict({"models": {"price": model}, "grafana": grafana})


def test_the_section_takes_a_url_a_secret_and_a_uid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFANA_TOKEN", TOKEN)
    configured(url="https://example.org/grafana", token={"env": "GRAFANA_TOKEN"}, dashboard="driftd-model")()


@pytest.mark.parametrize(
    ("grafana", "says"),
    [
        ({"url": "grafana:3000", "token": {"env": "HOME"}}, "grafana.url"),
        ({"url": "http://user:pass@grafana:3000", "token": {"env": "HOME"}}, "grafana.url"),
        ({"url": "http://grafana:3000"}, "grafana.token"),
        ({"url": "http://grafana:3000", "token": {"env": "NO_SUCH_VARIABLE"}}, "NO_SUCH_VARIABLE"),
        ({"url": "http://grafana:3000", "token": {"env": "HOME"}, "tokn": 1}, "grafana.tokn"),
    ],
)
def test_a_mistake_in_the_section_is_named(grafana: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        configured(**grafana)()
