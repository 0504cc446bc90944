"""Pauses and maintenance windows: what holds a model, until when, and what is on record."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine

from retrain.config.settings import MaintenanceConfig, RetrainConfig
from retrain.control import audit
from retrain.control.holds import (
    ALL,
    Pause,
    maintenance_of,
    maintenance_until,
    own_pause,
    pause,
    paused,
    resume,
    told_to_job,
    why_held,
)
from tests.builders import HOUR, NOW

FRIDAY_NIGHT = MaintenanceConfig(cron="0 22 * * fri", duration=timedelta(hours=8))
NIGHTLY_IN_BERLIN = MaintenanceConfig(cron="30 1 * * *", duration=timedelta(hours=1), timezone="Europe/Berlin")


def test_pause_holds_until_its_time_is_over(engine: Engine) -> None:
    pause(engine, Pause("fraud", NOW, NOW + HOUR, "ada", "the feed is broken"))
    assert paused(engine, "churn", NOW) is None
    assert why_held(engine, "fraud", (), NOW) == "paused by ada until 2026-03-02 13:00 UTC: the feed is broken"
    assert why_held(engine, "fraud", (), NOW + HOUR) == ""


def test_pause_without_end_holds_until_somebody_resumes(engine: Engine) -> None:
    pause(engine, Pause("fraud", NOW, None, "ada", ""))
    assert why_held(engine, "fraud", (), NOW + 1000 * HOUR) == "paused by ada until `driftd resume`"
    assert resume(engine, "fraud", "bob", "mended", NOW + HOUR)
    assert why_held(engine, "fraud", (), NOW + HOUR) == ""
    assert not resume(engine, "fraud", "bob", "again", NOW + HOUR)


def test_a_second_pause_replaces_the_first(engine: Engine) -> None:
    pause(engine, Pause("fraud", NOW, None, "ada", ""))
    pause(engine, Pause("fraud", NOW, NOW + HOUR, "bob", ""))
    found = paused(engine, "fraud", NOW)
    assert found is not None
    assert (found.actor, found.until) == ("bob", NOW + HOUR)


def test_pause_of_all_models_outlasts_the_resuming_of_one(engine: Engine) -> None:
    pause(engine, Pause(ALL, NOW, None, "ada", "freeze"))
    pause(engine, Pause("fraud", NOW, None, "bob", ""))
    assert resume(engine, "fraud", "bob", "", NOW)
    text = "all models are paused by ada until `driftd resume`: freeze"
    assert why_held(engine, "fraud", (), NOW) == why_held(engine, "churn", (), NOW) == text
    assert resume(engine, ALL, "ada", "", NOW)
    assert why_held(engine, "fraud", (), NOW) == ""


def test_pauses_and_their_ends_are_on_record(engine: Engine) -> None:
    pause(engine, Pause("fraud", NOW, NOW + HOUR, "ada", "why"))
    resume(engine, "fraud", "bob", "enough", NOW)
    resume(engine, "fraud", "bob", "nothing to end", NOW)
    assert [(e.kind, e.model, e.actor, e.detail) for e in audit.entries(engine)] == [
        ("paused", "fraud", "ada", "why"),
        ("resumed", "fraud", "bob", "enough"),
    ]


@pytest.mark.parametrize(
    ("now", "until"),
    [
        (datetime(2026, 3, 6, 21, 59, 59, tzinfo=UTC), None),
        (datetime(2026, 3, 6, 22, 0, tzinfo=UTC), datetime(2026, 3, 7, 6, 0, tzinfo=UTC)),
        (datetime(2026, 3, 7, 5, 59, tzinfo=UTC), datetime(2026, 3, 7, 6, 0, tzinfo=UTC)),
        (datetime(2026, 3, 7, 6, 0, tzinfo=UTC), None),
        (datetime(2026, 3, 8, 23, 0, tzinfo=UTC), None),
    ],
)
def test_maintenance_begins_by_the_clock_and_lasts(now: datetime, until: datetime | None) -> None:
    assert maintenance_until([FRIDAY_NIGHT], now) == until


@pytest.mark.parametrize(("month", "hour"), [(1, 0), (7, 23)])
def test_maintenance_follows_its_own_time_zone(month: int, hour: int) -> None:
    begins = datetime(2026, month, 10, hour, 30, tzinfo=UTC)  # half past one in Berlin, in winter and in summer
    assert maintenance_until([NIGHTLY_IN_BERLIN], begins) == begins + HOUR
    assert maintenance_until([NIGHTLY_IN_BERLIN], begins - timedelta(seconds=1)) is None


@pytest.mark.parametrize(("month", "day", "offset"), [(3, 28, 1), (10, 24, 2)])
def test_maintenance_lasts_as_long_when_clocks_change_meanwhile(month: int, day: int, offset: int) -> None:
    saturday = MaintenanceConfig(cron="0 22 * * sat", duration=timedelta(hours=8), timezone="Europe/Berlin")
    begins = datetime(2026, month, day, 22 - offset, tzinfo=UTC)
    for at in (begins, begins + 8 * HOUR - timedelta(seconds=1)):
        assert maintenance_until([saturday], at) == begins + 8 * HOUR
    assert maintenance_until([saturday], begins + 8 * HOUR) is None


def test_a_time_that_a_change_of_the_clock_leaves_out_does_not_begin() -> None:
    night = MaintenanceConfig(cron="30 2 * * *", duration=HOUR, timezone="Europe/Berlin")
    spring = datetime(2026, 3, 29, 1, 0, tzinfo=UTC)  # two o'clock in Berlin becomes three
    assert all(maintenance_until([night], spring + n * timedelta(minutes=15)) is None for n in range(-4, 12))
    assert maintenance_until([night], spring + timedelta(days=1)) == spring + timedelta(hours=24, minutes=30)


def test_two_who_pause_at_once_leave_one_pause(engine: Engine) -> None:
    def work(name: str) -> None:
        for _ in range(5):
            pause(engine, Pause("fraud", NOW, None, name, ""))

    failed: list[BaseException] = []
    threads = [threading.Thread(target=work, args=[name]) for name in "abcd"]
    before, threading.excepthook = threading.excepthook, lambda args: failed.append(args.exc_value)  # type: ignore[arg-type,return-value]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = before
    assert failed == []
    assert audit.verify(engine, {}).number == 20


def test_own_pause_is_told_from_that_of_all(engine: Engine) -> None:
    pause(engine, Pause(ALL, NOW, None, "ada", ""))
    assert own_pause(engine, "fraud", NOW) is None
    pause(engine, Pause("fraud", NOW, None, "bob", ""))
    found, holds = own_pause(engine, "fraud", NOW), paused(engine, "fraud", NOW)
    assert (found is not None and found.actor, holds is not None and holds.actor) == ("bob", "ada")


def test_job_goes_by_the_windows_that_it_is_told() -> None:
    config = RetrainConfig.model_validate({"maintenance": [FRIDAY_NIGHT.model_dump()]})
    assert maintenance_of(config, {}) == (FRIDAY_NIGHT,)
    assert maintenance_of(config, told_to_job([NIGHTLY_IN_BERLIN])) == (NIGHTLY_IN_BERLIN,)
    assert maintenance_of(config, told_to_job([])) == ()


def test_of_several_the_last_to_end_counts_and_one_that_begins_meanwhile_prolongs_it() -> None:
    every_hour = MaintenanceConfig(cron="0 * * * *", duration=timedelta(minutes=90))
    at = datetime(2026, 3, 6, 22, 40, tzinfo=UTC)
    assert maintenance_until([every_hour], at) == datetime(2026, 3, 6, 23, 30, tzinfo=UTC)
    assert maintenance_until([every_hour, FRIDAY_NIGHT], at) == datetime(2026, 3, 7, 6, 0, tzinfo=UTC)


def test_maintenance_in_words_and_a_pause_before_it(engine: Engine) -> None:
    at = datetime(2026, 3, 6, 22, 0, tzinfo=UTC)
    assert why_held(engine, "fraud", [FRIDAY_NIGHT], at) == "maintenance until 2026-03-07 06:00 UTC"
    pause(engine, Pause("fraud", at, None, "ada", ""))
    assert why_held(engine, "fraud", [FRIDAY_NIGHT], at).startswith("paused by ada")
