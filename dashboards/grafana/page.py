"""What every dashboard has around its panels: variables, links to the others and to driftd, annotations.

Invariant: uids are fixed, since links, provisioning and annotations name them; panel ids are unique within a dashboard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.dashboard import (
    AnnotationQuery,
    AnnotationTarget,
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from dashboards.grafana.parts import BLUE, GREEN, PURPLE, RED, YELLOW, link
from dashboards.grafana.queries import DATASOURCE, series

FLEET, MODEL, RETRAINING, DAEMON = "driftd-fleet", "driftd-model", "driftd-retraining", "driftd-daemon"
ACTIVITY = "driftd_last_activity_timestamp_seconds"
KEEP = "${datasource:queryparam}&${job:queryparam}&${__url_time_range}"
"""What a link to another dashboard carries over."""
GRAFANA = DataSourceRef(type_val="grafana", uid="-- Grafana --")
HAPPENED = (
    ("trouble", RED, ("rule_fired", "failed", "rolled_back")),
    ("retrain wanted", PURPLE, ("retrain_requested", "shadow", "awaiting_approval", "canary")),
    ("not promoted", YELLOW, ("rejected",)),
    ("good news", GREEN, ("rule_resolved", "promoted")),
)
"""What is worth a line on every graph, by colour: what `monitor.outlets.annotations` sends, and what waits for a
person."""


def page(
    uid: str,
    title: str,
    description: str,
    variables: Sequence[Builder[models.VariableModel]],
    annotations: Sequence[AnnotationQuery],
    links: Sequence[Builder[models.DashboardLink]] = (),
) -> dashboard.Dashboard:
    """A dashboard without panels."""
    others = (
        dashboard.DashboardLink("driftd")
        .type(DashboardLinkType.DASHBOARDS)
        .tags(["driftd"])
        .as_dropdown(True)
        .include_vars(True)
        .keep_time(True)
    )
    status, mlflow = link("Status page", "${driftd_url}/"), link("MLflow", "${mlflow_url}/")
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["driftd"])
        .timezone("browser")
        .readonly()  # provisioned: a change belongs into the Python source
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-24h", "now")
        .refresh("1m")
        .variables([*_everywhere(), *variables, *_addresses()])
        .links([others, *links, status, mlflow, runbook("Runbook", "")])
        .annotations([_As(a) for a in (_builtin(), *annotations)])
    )


def runbook(title: str, section: str) -> dashboard.DashboardLink:
    """A link to a section of docs/runbook.md, by its anchor."""
    return link(title, "${runbook_url}" + (f"#{section}" if section else ""))


# -- variables


def label_values(
    name: str, label: str, metric: str, of: str, *, many: bool = False, every: str | None = None, text: str = ""
) -> dashboard.QueryVariable:
    """A variable whose values are those of a label of a selector. `many`: several or all; `every`: what all means."""
    query = f"label_values({metric}, {of})"
    variable = (
        dashboard.QueryVariable(name)
        .label(label)
        .description(text)
        .datasource(DATASOURCE)
        .query({"query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery", "qryType": 1})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(many)
        .include_all(many)
    )
    if many:
        variable.current(VariableOption(selected=True, text="All", value="$__all"))
        variable.all_value(every or ".*")
    return variable


def _everywhere() -> list[Builder[models.VariableModel]]:
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    source.current(VariableOption(selected=True, text="driftd Prometheus", value="driftd-prometheus"))
    job = label_values("job", "Job", "driftd_build_info", "job", text="One deployment of driftd: its scrape job")
    return [source, job]


def _addresses() -> list[Builder[models.VariableModel]]:
    texts = (
        ("driftd_url", "driftd", "http://localhost:9464", "Where the browser reaches driftd's HTTP port"),
        ("mlflow_url", "MLflow", "http://localhost:5000", "Where the browser reaches MLflow"),
        (
            "runbook_url",
            "Runbook",
            "https://github.com/driftd/driftd/blob/main/docs/runbook.md",
            "Where docs/runbook.md can be read",
        ),
    )
    return [
        dashboard.TextBoxVariable(name)
        .label(label)
        .description(text)
        .default_value(address)
        .current(VariableOption(selected=True, text=address, value=address))
        for name, label, address, text in texts
    ]


# -- annotations


class _As(Builder[models.AnnotationQuery]):
    """The SDK's builder of annotations knows none of the fields that the Prometheus data source reads."""

    def __init__(self, built: AnnotationQuery):
        self._built = built

    def build(self) -> models.AnnotationQuery:
        return self._built


class PrometheusAnnotation(AnnotationQuery):
    """An annotation from a query, at the time that the series' value tells (milliseconds)."""

    def __init__(self, name: str, expr: str, title: str, text: str, tags: str, colour: str):
        super().__init__(name=name, datasource=DATASOURCE, enable=True, hide=False, icon_color=colour, expr=expr)
        self.words = {"titleFormat": title, "textFormat": text, "tagKeys": tags, "useValueForTime": "on"}

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), **self.words, "step": "60s"}


def _builtin() -> AnnotationQuery:
    return AnnotationQuery(
        name="Annotations & Alerts", datasource=GRAFANA, enable=True, hide=True, icon_color=BLUE, type_val="dashboard",
        built_in=1,
    )  # fmt: skip


def sent(*tags: str) -> AnnotationQuery:
    """What `monitor.outlets.annotations` sent through Grafana's API, with the reason in words."""
    target = AnnotationTarget(limit=200, match_any=False, tags=["driftd", *tags], type_val="tags")
    return AnnotationQuery(
        name="What happened (sent by driftd)", datasource=GRAFANA, enable=True, icon_color=BLUE, target=target,
        type_val="tags",
    )  # fmt: skip


def scraped(*matchers: str) -> list[AnnotationQuery]:
    """The last of each kind, from the metric: for where no `[grafana]` is configured. With it, one of the two says
    again what the other says, at the same time; each has its switch at the top of the dashboard."""
    return [
        PrometheusAnnotation(
            f"Last {name} (scraped)",
            f"1000 * max by (model, kind) ({series(ACTIVITY, _one_of(kinds), *matchers)} > 0)",
            "{{model}}: {{kind}}",
            "The last one of its kind; the reason is on the status page and in `driftd status {{model}}`.",
            "model,kind",
            colour,
        )
        for name, colour, kinds in HAPPENED
    ]


def _one_of(kinds: Sequence[str]) -> str:
    return f'kind=~"{"|".join(kinds)}"'


# -- panels


def fill(builder: dashboard.Dashboard, rows: Sequence[tuple[str, Sequence[Any]]]) -> models.Dashboard:
    """Rows of panels, in reading order."""
    for title, panels in rows:
        builder.with_row(dashboard.Row(title))
        for panel in panels:
            builder.with_panel(panel)
    built = builder.build()
    for number, panel in enumerate(built.panels or [], 1):
        panel.id_val = number
    return built
