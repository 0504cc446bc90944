"""The status page in a real browser, served by a real daemon: what a person sees, clicks and types."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from monitor.config.loading import LoadedConfig, from_dict
from monitor.lake.lake import Lake
from retrain.control.store import open_store
from retrain.terms.states import JobState
from tests import measured_world as made
from tests.browser import Opened
from tests.daemons import Daemon, until

TOKEN = "open-sesame"
_PASSED = (JobState.SNAPSHOT, JobState.TRAINING, JobState.EVALUATING)
_GATES = [
    {
        "name": "quality",
        "passed": True,
        "value": 0.1,
        "limit": 0.0,
        "detail": "better by 0.1",
        "interval": [0.05, 0.15],
    },
    {"name": "latency", "passed": False, "value": 4.0, "limit": 3.0, "detail": "too slow", "interval": None},
]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("page")
    document = made.configuration(folder, ["calm", "empty", "hurt", "asked", "late"])
    document["models"]["late"] = {k: v for k, v in document["models"]["late"].items() if k != "rules"}
    os.environ["DRIFTD_TEST_TOKEN"] = TOKEN
    loaded = from_dict(document)
    _prepare(loaded)
    running = Daemon(folder, document, {"DRIFTD_TEST_TOKEN": TOKEN})
    running.start()
    until("the rules to be judged", lambda: running.metric("driftd_rule_phase", model="hurt", phase="firing"))
    yield running
    running.stop()


def _prepare(loaded: LoadedConfig) -> None:
    loaded.config.state.mkdir(parents=True)
    lake, store = Lake(loaded.config.lake_uri), open_store(loaded.config.control_url)
    made.measure_windows(lake, "calm", 40)
    made.measure_windows(lake, "hurt", 40, bad_since=5)
    made.predictions(lake, "calm")
    made.predictions(lake, "hurt")
    made.measure_windows(lake, "late", 40, bad_since=8, unlabelled=4)
    made.champion(store, "hurt", "0")
    made.champion(store, "hurt", "1")
    checks = [{"name": "leakage", "level": "odd", "detail": "AUC 0.99", "subject": "amount"}]
    made.job(store, loaded, "hurt", "job-slow", *_PASSED, JobState.REJECTED, gates=_GATES, run_id="r1", version=None,
             validation=checks)  # fmt: skip
    shadow = {"rows": 300, "gates": _GATES[:1], "passed": True, "detail": "shadow on 300"}
    steps = [{"share": 0.05, "rows": 210, "gates": _GATES[:1]}]
    snapshot = {"holdout": {"last": f"{made.newest_end()}"}}
    made.job(
        store, loaded, "calm", "job-try", *_PASSED, JobState.SHADOW, JobState.CANARY, gates=_GATES[:1], version="2",
        decision="promote", compared_with="1", snapshot=snapshot, shadow=shadow,
        canary={"step": 1, "share": 0.25, "rows": 40, "needed": 200, "steps": steps,
                "look": {"rows": 60, "at": "2999-01-01T00:00:00+00:00"}},
    )  # fmt: skip
    made.job(store, loaded, "asked", "job-wait", *_PASSED, JobState.AWAITING_APPROVAL, gates=_GATES[:1], version="2")
    reports = loaded.config.state / "reports" / "hurt"
    reports.mkdir(parents=True)
    (reports / f"1-{made.newest_end():%Y%m%dT%H%M%S}.html").write_text("<h1>report</h1>")
    store.engine.dispose()


@pytest.fixture
def opened(browser: Browser, daemon: Daemon) -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = Opened(context.new_page(), daemon.url)
    yield opened
    context.close()
    assert not opened.unexpected()


def test_fleet_is_worst_first_and_leads_to_the_model(opened: Opened) -> None:
    page = opened.go("/")
    rows = page.locator(".fleet tbody tr")
    expect(rows).to_have_count(5)
    expect(rows.first).to_contain_text("hurt")
    expect(rows.first.locator(".pill")).to_have_text("firing")
    expect(rows.first).to_contain_text("performance_drop")
    expect(page.locator(".fleet tbody tr", has_text="empty")).to_contain_text("no window has closed yet")
    rows.first.locator("td.why").click()
    expect(page).to_have_url(f"{opened.url}/models/hurt")
    expect(page.locator("h1")).to_contain_text("hurt")


def test_model_shows_charts_features_rules_jobs_and_links(opened: Opened) -> None:
    page = opened.go("/models/hurt")
    expect(page.locator(".chart canvas")).to_have_count(4)
    expect(page.locator("svg.shares rect.window").first).to_be_attached()
    expect(page.get_by_role("link", name="Evidently report of this window")).to_be_visible()
    expect(page.locator("table.plain tr", has_text="performance_drop").first).to_contain_text("firing")
    expect(page.locator("ol.log")).to_contain_text("performance_drop fires")
    job = page.locator("details.job")
    expect(job).to_contain_text("job-slow")
    expect(job.locator("tr", has_text="latency").first).to_contain_text("failed")
    expect(job.locator("tr", has_text="leakage")).to_contain_text("odd")
    assert page.evaluate("window.shift") < 0.1


def test_trials_are_shown_with_their_gates_and_can_be_ended(opened: Opened) -> None:
    page = opened.go("/models/calm")
    expect(page.locator("p.words.pending")).to_have_text(
        "Version 2 should answer 25 % of the requests, version 1 the others."
    )
    job = page.locator("details.job")
    expect(job.locator("h3", has_text="Shadow")).to_contain_text("shadow on 300")
    expect(job.locator("h3", has_text="Canary")).to_contain_text("share 25 %, 40 of 200 labelled rows")
    expect(job).to_contain_text("share 5 %, 210 labelled rows")
    expect(page.get_by_role("button", name="Approve…")).to_have_count(0)
    page.get_by_role("button", name="Reject…").click()
    expect(page.locator("dialog")).to_contain_text("Do not promote version 2, and give it no more traffic.")


def test_estimates_go_on_without_labels_and_chance_decides_instead_of_a_number(opened: Opened) -> None:
    page = opened.go("/models/late")
    readout = page.locator(".chart .u-legend").first
    expect(readout.locator("tr", has_text="balanced_accuracy")).not_to_contain_text("0.")
    estimate = readout.locator("tr", has_text="estimate, without labels")
    expect(estimate).to_have_text(re.compile(r"0\.\d+ \(0\.\d+ to 0\.\d+\)$"))
    expect(readout.locator("tr", has_text="limit")).to_have_count(0)
    expect(page.locator(".estimation")).to_contain_text("outside the estimate's interval, what inputs mean may have")
    rule = page.locator("table.plain tr", has_text="performance_drop").first
    expect(rule).to_contain_text("above auto")
    expect(rule).to_contain_text("< 1 in a million")
    gone = page.locator("table.plain tr", has_text="number_3").first
    expect(gone).to_contain_text("drifted: missing in 35% of the rows, 1% in the reference")
    expect(page.locator("table.plain tbody tr").first).to_contain_text("number_4")
    opened.expected = ("404",)  # no rows are kept of this model


def test_a_click_on_a_chart_and_the_buttons_choose_the_window(opened: Opened) -> None:
    page = opened.go("/models/hurt")
    heading = page.locator("h2", has_text="window that ended")
    newest = f"{made.newest_end():%Y-%m-%d %H:%M}"
    expect(heading).to_contain_text(f"{newest}, version 1 (newest)")
    page.locator(".chart .u-over").first.click(position={"x": 100, "y": 60})
    expect(heading).not_to_contain_text("newest")
    expect(page.locator("[role=status]", has_text="no rows of version")).to_be_visible()
    page.get_by_role("button", name="Later window").click()
    while page.get_by_role("button", name="Later window").is_enabled():
        page.get_by_role("button", name="Later window").click()
    expect(heading).to_contain_text(f"{newest}, version 1 (newest)")
    opened.expected = ("404",)  # the browser reports the answer, so do we


def test_days_are_chosen(opened: Opened) -> None:
    page = opened.go("/models/calm")
    page.get_by_role("button", name="1 day").click()
    expect(page.get_by_role("button", name="1 day")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="1 day")).to_be_focused()
    opened.expected = ("404",)  # no rows are kept of this model


def test_model_without_windows_says_what_it_waits_for(opened: Opened) -> None:
    page = opened.go("/models/empty")
    expect(page.locator("h1 .pill")).to_have_text("waiting")
    expect(page.locator(".empty").first).to_contain_text("No window of the last 7 day(s) has been measured")
    expect(page.locator("main")).to_contain_text("No job yet.")


def test_a_retrain_needs_the_token_and_answers_in_words(opened: Opened) -> None:
    page = opened.go("/models/empty")
    page.get_by_role("button", name="Retrain…").click()
    dialog = page.locator("dialog")
    dialog.get_by_label("Token").fill("wrong")
    dialog.get_by_role("button", name="Retrain").click()
    expect(dialog.get_by_role("status")).to_contain_text("Authorization")
    dialog.get_by_label("Token").fill(TOKEN)
    dialog.get_by_label("Who").fill("ada")
    dialog.get_by_label("Reason").fill("to see")
    dialog.get_by_label("Reason").press("Enter")
    expect(dialog.get_by_role("status")).to_contain_text("retrain requested, job")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(page.locator("ol.log")).to_contain_text("retrain requested: asked for by ada: to see")
    expect(page.locator("details.job")).to_contain_text("rejected", timeout=120_000)  # there is nothing to learn from
    opened.expected = ("401",)


def test_a_waiting_challenger_is_approved_by_name(opened: Opened, daemon: Daemon) -> None:
    page = opened.go("/models/asked")
    expect(page.locator("details.job")).to_contain_text("awaiting approval")
    page.get_by_role("button", name="Approve…").click()
    dialog = page.locator("dialog")
    dialog.get_by_label("Token").fill(TOKEN)
    dialog.get_by_label("Who").fill("grace")
    dialog.get_by_role("button", name="Approve").click()
    expect(dialog.get_by_role("status")).to_have_text("Done.")
    store = open_store(f"sqlite:///{daemon.state / 'control.db'}")
    assert store.get("job-wait").approved_by == "grace"
    ended = (JobState.FAILED, JobState.REJECTED, JobState.PROMOTED)  # it has no model: what counts is that it goes on
    until("the job to go on", lambda: store.get("job-wait").state in ended, within=120)
    store.engine.dispose()


def test_a_model_is_paused_for_a_time(opened: Opened) -> None:
    page = opened.go("/models/calm")
    page.get_by_role("button", name="Pause…").click()
    dialog = page.locator("dialog")
    dialog.get_by_label("For", exact=True).fill("two hours")
    dialog.get_by_label("Who").fill("ada")
    dialog.get_by_label("Token").fill(TOKEN)
    dialog.get_by_role("button", name="Pause").click()
    expect(dialog.get_by_role("status")).to_contain_text("for: ")
    dialog.get_by_label("For", exact=True).fill("2h")
    dialog.get_by_role("button", name="Pause").click()
    expect(dialog.get_by_role("status")).to_contain_text(re.compile(r"paused by ada until \d{4}-"))
    page.keyboard.press("Escape")
    expect(page.locator("p.notice")).to_contain_text("Held: paused by ada until ")
    opened.expected = ("400", "404")


def test_a_rollback_is_to_any_version_that_was_champion(opened: Opened) -> None:
    page = opened.go("/models/hurt")
    page.get_by_role("button", name="Roll back…").click()
    assert page.locator("dialog select option").all_inner_texts() == ["the version before", "version 0"]


def test_the_audit_log_is_read_to_its_beginning(opened: Opened) -> None:
    page = opened.go("/models/hurt")
    page.locator("summary", has_text="Every decision and every action").click()
    rows = page.locator("section:last-of-type tbody tr")
    expect(rows.filter(has_text="alias moved").last).to_contain_text("the first model")
    ask = opened.page.request.get
    entries = ask(f"{opened.url}/api/v1/audit?model=hurt").json()["entries"]
    assert [e["number"] for e in entries] == sorted((e["number"] for e in entries), reverse=True)
    expect(rows).to_have_count(len(entries))
    expect(page.get_by_role("button", name="Older entries")).to_have_count(0)
    page_after = ask(f"{opened.url}/api/v1/audit?model=hurt&limit=2&before={entries[2]['number']}").json()["entries"]
    assert page_after == entries[3:5]
    bad = ask(f"{opened.url}/api/v1/audit?limit=1001")
    assert (bad.status, bad.json()["error"]) == (400, "limit= is a whole number from 1 to 1000 (got '1001')")


def test_everything_is_reached_by_keyboard(opened: Opened) -> None:
    page = opened.go("/")
    for _ in range(8):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "hurt":
            break
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{opened.url}/models/hurt")
    page.wait_for_load_state("networkidle")
    page.get_by_role("button", name="Roll back…").focus()
    page.keyboard.press("Enter")
    expect(page.locator("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)


@pytest.mark.parametrize("path", ["/", "/models/hurt", "/models/empty"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_screens_do_not_scroll_sideways(browser: Browser, daemon: Daemon, path: str, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)  # type: ignore[arg-type]
    opened = Opened(context.new_page(), daemon.url)
    page = opened.go(path)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    assert not opened.complaints
    context.close()


def test_a_report_cannot_act_as_the_page(opened: Opened, daemon: Daemon) -> None:
    name = next((Path(daemon.state) / "reports" / "hurt").glob("*.html")).name
    answer = opened.page.request.get(f"{opened.url}/reports/hurt/{name}")
    assert answer.headers["content-security-policy"].startswith("sandbox")
    assert "default-src 'self'" in opened.page.request.get(opened.url).headers["content-security-policy"]
