"""What Alertmanager sends becomes causes: once for each alert that fires, and nothing for the others."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from monitor.jobs.alerts import Unusable, read_alerts
from monitor.rules.triggers import Cause, request_id
from retrain.terms.request import TriggerKind


def alert(**changes: Any) -> dict[str, Any]:
    return {
        "status": "firing",
        "labels": {"alertname": "FeedChanged", "model": "fraud", "team": "cards"},
        "annotations": {"summary": "the feed has new codes", "description": "long"},
        "startsAt": "2026-03-02T12:00:00Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "fingerprint": "c0ffee",
        **changes,
    }


def read(*alerts: dict[str, Any]) -> list[Cause | Unusable]:
    return read_alerts({"version": "4", "status": "firing", "alerts": list(alerts)}, ["churn", "fraud"])


def cause(**changes: Any) -> Cause:
    (found,) = read(alert(**changes))
    assert isinstance(found, Cause)
    return found


def test_firing_alert_is_a_cause_in_words() -> None:
    found = cause()
    assert (found.model, found.trigger) == ("fraud", TriggerKind.WEBHOOK)
    assert found.reason == "alert FeedChanged fires: the feed has new codes"
    assert found.evidence == {
        "alert": "FeedChanged", "labels": {"team": "cards"}, "starts_at": "2026-03-02T12:00:00Z"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("annotations", "reason"),
    [({}, "alert FeedChanged fires"), ({"description": "long"}, "alert FeedChanged fires: long")],
)
def test_reason_says_what_the_alert_says(annotations: dict[str, str], reason: str) -> None:
    assert cause(annotations=annotations).reason == reason


def test_an_alert_asks_once_each_time_it_begins_to_fire() -> None:
    first = request_id(cause())
    assert request_id(cause(annotations={})) == first
    assert request_id(cause(startsAt="2026-03-03T12:00:00Z")) != first
    assert request_id(cause(fingerprint="decaf")) != first


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"status": "resolved"}, "it is resolved"),
        ({"labels": {"alertname": "FeedChanged"}}, "its label `model` is ''; configured are churn, fraud"),
        ({"labels": {"model": "other"}}, "its label `model` is 'other'; configured are churn, fraud"),
    ],
)
def test_what_cannot_be_used_says_why_and_spoils_nothing(changes: dict[str, Any], detail: str) -> None:
    found = read(alert(**changes), alert())
    assert found[0] == Unusable(changes.get("labels", {}).get("alertname", found[0].alert), detail)  # type: ignore[union-attr]
    assert isinstance(found[1], Cause)


@pytest.mark.parametrize("body", [{}, {"alerts": {}}, {"alerts": [{"status": "firing"}]}])
def test_something_else_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        read_alerts(body, ["fraud"])
