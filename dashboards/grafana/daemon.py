"""The driftd dashboard: whether driftd itself is well, replica by replica."""

from __future__ import annotations

from typing import Any

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.grafana import page, parts
from dashboards.grafana.parts import GREEN, ORANGE, RED, fixed, steps, value
from dashboards.grafana.queries import increase, led, now, quantile, rate, rows, series, target

I = 'instance=~"$instance"'  # noqa: E741 - a matcher, as M and V are
LEADS = {0: ("follows", parts.GREY), 1: ("leads", GREEN)}
PAUSED = {0: ("reads", GREEN), 1: ("waits for the lake", ORANGE)}


def build() -> Dashboard:
    about = "driftd itself: does it keep up, is it ready and if not why, does it lose anything, what does it need."
    variables = [
        page.label_values(
            "instance",
            "Replica",
            'driftd_build_info{job=~"$job"}',
            "instance",
            many=True,
            text="As Prometheus scrapes it",
        )
    ]
    started = page.PrometheusAnnotation(
        "Process started",
        f"1000 * max by (instance) ({series('process_start_time_seconds', I)})",
        "driftd started",
        "{{instance}}",
        "instance",
        parts.BLUE,
    )
    links = [page.runbook("Not ready", "not-ready"), page.runbook("Stopping", "stopping")]
    builder = page.page(page.DAEMON, "driftd / driftd", about, variables, [page.sent(), started], links)
    return page.fill(
        builder.time("now-6h", "now"),
        [
            ("Now", _numbers()),
            ("Health", _health()),
            ("Reading events", _reading()),
            ("What is no event", _dead_letters()),
            ("Evaluating", _evaluating()),
            ("Process", _process()),
        ],
    )


def _numbers() -> list[Any]:
    return [
        parts.number("Ready", "Whether every component of every replica works.",
                     now(f"min({series('driftd_ready', I)})"),
                     named=parts.WORKS, no_value="not scraped").links([page.runbook("Not ready", "not-ready")]),
        parts.number("Leaders", "Replicas that evaluate: one, and none for up to 30 s after a replica was lost.",
                     now(f"sum({series('driftd_leader')})"), colours=steps(RED, (1, GREEN), (2, RED)),
                     no_value="not scraped"),
        parts.number("Lag", "Records (Kafka) or bytes (files) that wait to be read.",
                     now(f"sum({series('driftd_source_lag', I)}) or 0 * sum({series('driftd_leader', I)})"),
                     no_value="not scraped")
        .links([page.runbook("Lag grows", "lag-grows")]),
        parts.number("Records lost", "Records that the broker deleted before they were read, in this range.",
                     now(f"sum(increase({series('driftd_source_records_lost_total', I)}[$__range]))"),
                     colours=steps(GREEN, (1, RED))).decimals(0).links([page.runbook("Lag grows", "lag-grows")]),
        parts.number("Last good tick", "When the leader last evaluated.",
                     now(f"1000 * max({series('driftd_tick_last_success_timestamp_seconds', I)} > 0)"),
                     unit="dateTimeFromNow", no_value="none yet"),
        parts.number("Configuration", "Whether the last reload was taken. A refused one changes nothing.",
                     now(f"min({series('driftd_config_last_reload_successful', I)})"),
                     named={0: ("refused", RED), 1: ("in force", GREEN)}, no_value="not scraped")
        .links([page.runbook("Configuration refused", "configuration-refused")]),
    ]  # fmt: skip


def _health() -> list[Any]:
    versions = parts.listing(
        "Replicas",
        "Versions and configuration of each replica: they should agree.",
        rows(f"max by (instance, version, python) ({series('driftd_build_info', I)})"),
        rows(f"max by (instance, digest) ({series('driftd_config_info', I)})"),
        rows(f"1000 * max by (instance) ({series('process_start_time_seconds', I)})"),
        sort="Replica",
        descending=False,
        w=8,
        no_value="-",
    )
    names = {"instance": "Replica", "version": "driftd", "python": "Python", "digest": "Configuration",
             "Value #C": "Started"}  # fmt: skip
    order = ("instance", "version", "python", "digest", "Value #C")
    versions.transformations([parts.merge(), parts.organize(order, ["Value #A", "Value #B"], names)])
    versions.override_by_name("Started", [value("unit", "dateTimeFromNow")])
    reloads = increase("driftd_config_reloads_total", "outcome", I, over="$__rate_interval")
    return [
        parts.timeline(
            "Ready, by component",
            "`source`: events can be read. `lake`: they can be stored. `control`: the control database answers. "
            "`evaluation`: the last tick was good. `/readyz` says in words what is wrong.",
            target(f"min by (instance, component) ({series('driftd_ready', I)})", "{{component}} · {{instance}}"),
            named=parts.WORKS,
            no_value="not scraped",
            w=8,
        ).links([parts.link("/readyz", "${driftd_url}/readyz"), page.runbook("Not ready", "not-ready")]),
        parts.timeline(
            "Leader",
            "One replica evaluates; all of them read events.",
            target(f"max by (instance) ({series('driftd_leader', I)})", "{{instance}}"),
            named=LEADS,
            no_value="not scraped",
            w=8,
        ),
        versions,
        parts.bars(
            "Configuration reloads",
            "SIGHUP reloads the file; one with mistakes is refused as a whole.",
            target(reloads, "{{outcome}}"),
            w=12,
            h=6,
            no_value="no reload in this range",
        ).override_by_name("failed", [fixed(RED)]).override_by_name("ok", [fixed(GREEN)])
        .links([page.runbook("Configuration refused", "configuration-refused")]),
        parts.bars(
            "Annotations sent to Grafana",
            "By outcome; a failed one is tried again. Nothing is sent without the section `[grafana]`.",
            target(increase("driftd_annotations_total", "outcome", I, over="$__rate_interval"), "{{outcome}}"),
            w=12,
            h=6,
            no_value="nothing was sent in this range",
        ).override_by_name("failed", [fixed(RED)]).override_by_name("sent", [fixed(GREEN)]),
    ]  # fmt: skip


def _reading() -> list[Any]:
    return [
        parts.lines(
            "Lag by partition",
            "Records (Kafka) or bytes (files) that wait to be read: the 20 partitions furthest behind.",
            target(f"topk(20, sum by (partition) ({series('driftd_source_lag', I)}))", "{{partition}}"),
            low=0,
            no_value="nothing waits",
        ).links([page.runbook("Lag grows", "lag-grows")]),
        parts.lines(
            "Events stored",
            "Events per second that reached the lake.",
            target(rate("driftd_events_total", "model, stream", I), "{{model}} · {{stream}}"),
            unit="cps",
            low=0,
        ),
        parts.lines(
            "Time to decode and append a batch",
            "Median and 95th percentile. When the source is paused, this is where to look.",
            target(quantile(0.5, "driftd_ingest_batch_seconds", I), "p50"),
            target(quantile(0.95, "driftd_ingest_batch_seconds", I), "p95"),
            unit="s",
            low=0,
            w=8,
            no_value="no batch in this range",
        ),
        parts.lines(
            "Batches",
            "Batches per second by outcome. A failed one is tried again; nothing is committed before it succeeds.",
            target(rate("driftd_ingest_batches_total", "outcome", I), "{{outcome}}"),
            unit="cps",
            low=0,
            w=8,
        ).override_by_name("failed", [fixed(RED)]).override_by_name("ok", [fixed(GREEN)]),
        parts.timeline(
            "Source paused",
            "The source waits while the lake is behind.",
            target(f"max by (instance) ({series('driftd_source_paused', I)})", "{{instance}}"),
            named=PAUSED,
            w=8,
        ).links([page.runbook("Lag grows", "lag-grows")]),
        parts.bars(
            "Trouble with the source",
            "Failures by kind, and topics that do not exist.",
            target(increase("driftd_source_errors_total", "kind", I, over="$__rate_interval"), "{{kind}}"),
            target(f"max({series('driftd_source_missing_topics', I)}) > 0", "missing topics"),
            no_value="no trouble in this range",
        ).links([page.runbook("Not ready", "not-ready")]),
        parts.bars(
            "Rebalances",
            "Partitions assigned to and taken from replicas (Kafka). `lost`: a replica was silent for too long.",
            target(increase("driftd_source_rebalances_total", "kind", I, over="$__rate_interval"), "{{kind}}"),
            no_value="no rebalance in this range",
        ).override_by_name("lost", [fixed(RED)]),
    ]  # fmt: skip


def _dead_letters() -> list[Any]:
    letters = rate("driftd_dead_letters_total", "stream", I)
    events = rate("driftd_events_total", "stream", I)
    runbook = page.runbook("Dead letters", "dead-letters")
    return [
        parts.bars(
            "Dead letters by reason",
            "Records that are no events. `driftd dead-letters list` shows them with their origin.",
            target(
                increase("driftd_dead_letters_total", "stream, reason", I, over="$__rate_interval"),
                "{{stream}} · {{reason}}",
            ),
            no_value="every record was an event",
        ).links([runbook]),
        parts.lines(
            "Share of dead letters",
            "Dead letters over all records read.",
            target(f"{letters} / ({letters} + {events})", "{{stream}}"),
            unit="percentunit",
            low=0,
            no_value="nothing was read",
        ).links([runbook]),
    ]


def _evaluating() -> list[Any]:
    age = led(f"(time() - ({series('driftd_watermark_timestamp_seconds')} > 0))", "model")
    return [
        parts.lines(
            "Age of the watermark",
            "Event time is complete up to this long ago: no window later than that can close. Grows while no event "
            "comes, or while one partition is far behind.",
            target(age, "{{model}}"),
            unit="s",
            low=0,
            no_value="no event yet",
        ).links([page.runbook("Windows late", "windows-late")]),
        parts.lines(
            "Windows measured",
            "Windows per second, for drift at once and for performance as labels come.",
            target(rate("driftd_windows_measured_total", "model, kind", I), "{{model}} · {{kind}}"),
            unit="cps",
            low=0,
        ),
        parts.lines(
            "Time of a tick",
            "Median and 95th percentile of one evaluation of all models.",
            target(quantile(0.5, "driftd_tick_seconds", I), "p50"),
            target(quantile(0.95, "driftd_tick_seconds", I), "p95"),
            unit="s",
            low=0,
            w=8,
        ),
        parts.lines(
            "Ticks",
            "Evaluations per second by outcome, and runs of the lake's upkeep that failed.",
            target(rate("driftd_ticks_total", "outcome", I), "{{outcome}}"),
            target(rate("driftd_lake_maintenance_total", "outcome", I, 'outcome="failed"'), "upkeep failed"),
            unit="cps",
            low=0,
            w=8,
        ).override_by_regexp("/failed/", [fixed(RED)]).override_by_name("ok", [fixed(GREEN)]),
        parts.lines(
            "Time to measure a window",
            "Median and 95th percentile of what Evidently needs for one window.",
            target(quantile(0.5, "driftd_window_measure_seconds", I), "p50"),
            target(quantile(0.95, "driftd_window_measure_seconds", I), "p95"),
            unit="s",
            low=0,
            w=8,
            no_value="no window in this range",
        ),
        parts.lines(
            "Labels that wait for their prediction",
            "Labels joined to no prediction yet; given up after `windows.max_delay`.",
            target(led(series("driftd_labels_pending"), "model"), "{{model}}"),
            low=0,
        ),
        parts.bars(
            "Left out",
            "Series above the budget, rows that came after their window closed, fields no schema names (sampled).",
            target(increase("driftd_series_dropped_total", "model", I, over="$__rate_interval"),
                   "{{model}} · series dropped"),
            target(increase("driftd_late_rows_total", "model", I, over="$__rate_interval"), "{{model}} · late rows"),
            target(increase("driftd_unknown_fields_sampled_total", "model", I, over="$__rate_interval"),
                   "{{model}} · unknown fields"),
            no_value="nothing was left out in this range",
        ).links([page.runbook("Windows late", "windows-late")]),
    ]  # fmt: skip


def _process() -> list[Any]:
    return [
        parts.lines(
            "Memory",
            "Resident memory of the daemon itself; measuring and job processes are not in it.",
            target(f"max by (instance) ({series('process_resident_memory_bytes', I)})", "{{instance}}"),
            unit="bytes",
            low=0,
            w=8,
        ),
        parts.lines(
            "Processor",
            "Cores that the daemon itself keeps busy.",
            target(rate("process_cpu_seconds_total", "instance", I), "{{instance}}"),
            unit="none",
            low=0,
            w=8,
        ),
        parts.lines(
            "Open files",
            "Open file descriptors over those it may open.",
            target(
                f"max by (instance) ({series('process_open_fds', I)} / {series('process_max_fds', I)})", "{{instance}}"
            ),
            unit="percentunit",
            low=0,
            w=8,
        )
        .thresholds(steps(GREEN, (0.8, RED)))
        .thresholds_style(parts.dashed()),
    ]
