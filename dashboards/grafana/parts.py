"""Panels, variables, links and annotations as all dashboards have them.

Invariant: a colour means the same everywhere (green good, yellow waiting, orange warning, red broken or lost, blue a
number without a verdict, grey and dashed its estimate, purple a retrain), and no panel comes without a title, a
description and a text for no data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, stat, statetimeline, statushistory, table, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphDrawStyle,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    LineInterpolation,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)

from dashboards.grafana.queries import DATASOURCE, Target

GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE, GREY = "green", "yellow", "orange", "red", "blue", "purple", "#8e8e8e"
Named = Mapping[int, tuple[str, str]]
"""Value -> its word and colour."""
SEVERITY: Named = {0: ("quiet", GREEN), 1: ("pending", YELLOW), 2: ("firing", ORANGE), 3: ("critical", RED)}
PHASE: Named = {0: ("inactive", GREEN), 1: ("pending", YELLOW), 2: ("firing", RED)}
YES_NO: Named = {0: ("no", GREEN), 1: ("yes", ORANGE)}
PASSED: Named = {0: ("failed", RED), 1: ("passed", GREEN)}
WORKS: Named = {0: ("not ready", RED), 1: ("ready", GREEN)}
JOB_COLOURS = {
    "promoted": GREEN, "watched": GREEN, "rejected": YELLOW, "failed": RED, "rolled_back": ORANGE,
    "awaiting_approval": YELLOW, "requested": BLUE, "snapshot": BLUE, "training": PURPLE, "evaluating": PURPLE,
    "shadow": PURPLE, "canary": ORANGE,
}  # fmt: skip


# -- small things


def value(name: str, given: object) -> DynamicConfigValue:
    return DynamicConfigValue(id_val=name, value=given)


def fixed(colour: str) -> DynamicConfigValue:
    return value("color", {"mode": "fixed", "fixedColor": colour})


def words(named: Named) -> list[Any]:
    options = {str(n): ValueMappingResult(text=text, color=colour) for n, (text, colour) in named.items()}
    return [ValueMap(options=options)]


def steps(colour: str, *more: tuple[float, str]) -> dashboard.ThresholdsConfig:
    """Colours of a value: `colour` from the bottom, another one from each value on."""
    levels = [Threshold(None, colour), *(Threshold(at, above) for at, above in more)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(levels)


def dashed() -> common.GraphThresholdsStyleConfig:
    """Draws the steps of a panel as dashed lines."""
    return common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)


def by_threshold() -> dashboard.FieldColor:
    return dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS)


def organize(order: Sequence[str], hidden: Sequence[str] = (), names: Mapping[str, str] | None = None) -> Any:
    """Columns in this order, under these names, without the hidden ones. `Time` is always hidden."""
    options = {
        "indexByName": {name: i for i, name in enumerate(order)},
        "excludeByName": dict.fromkeys(("Time", *hidden), True),
        "renameByName": dict(names or {}),
        "includeByName": {},
    }
    return DataTransformerConfig(id_val="organize", options=options)


def merge() -> Any:
    """One row for the rows of all queries that agree in their labels."""
    return DataTransformerConfig(id_val="merge", options={})


def link(title: str, url: str, *, new: bool = True) -> dashboard.DashboardLink:
    return dashboard.DashboardLink(title).type(DashboardLinkType.LINK).url(url).target_blank(new)


def cell_link(title: str, url: str, *, new: bool = True) -> DynamicConfigValue:
    return value("links", [{"title": title, "url": url, "targetBlank": new}])


def colour_text() -> DynamicConfigValue:
    return value("custom.cellOptions", {"type": "color-text"})


def colour_cell() -> DynamicConfigValue:
    return value("custom.cellOptions", {"type": "color-background", "mode": "basic"})


# -- panels


def lines(
    title: str,
    description: str,
    *targets: Target,
    unit: str = "short",
    w: int = 12,
    h: int = 8,
    low: float | None = None,
    high: float | None = None,
    no_value: str = "no data in this range",
) -> timeseries.Panel:
    """Lines over time. Series named `.. threshold` are dashed red lines: what a rule compares with."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .span(w)
        .height(h)
        .no_value(no_value)
        .datasource(DATASOURCE)
        .targets(_lettered(targets))
        .line_width(1)
        .fill_opacity(0)
        .show_points(VisibilityMode.AUTO)
        .line_interpolation(LineInterpolation.STEP_AFTER)  # a gauge of a window holds until the next window
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull"])
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .override_by_regexp(
            "/ threshold$/",
            [
                fixed(RED),
                value("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
                value("custom.lineWidth", 2),
                value("custom.showPoints", "never"),
            ],
        )
    )
    if low is not None:
        panel.min(low)
    if high is not None:
        panel.max(high)
    return panel


def bars(title: str, description: str, *targets: Target, **options: Any) -> timeseries.Panel:
    """Counts over time, stacked."""
    return (
        lines(title, description, *targets, **options)
        .draw_style(GraphDrawStyle.BARS)
        .interval("1m")  # so that a bar and the range it counts over are about the same
        .line_interpolation(LineInterpolation.LINEAR)
        .fill_opacity(70)
        .stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
        .decimals(0)
        .min(0)
    )


def number(
    title: str,
    description: str,
    query: Target,
    *,
    unit: str = "short",
    w: int = 4,
    h: int = 4,
    no_value: str = "-",
    colours: dashboard.ThresholdsConfig | None = None,
    named: Named | None = None,
) -> stat.Panel:
    """One number. Coloured only where a level is a verdict; blue otherwise."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .span(w)
        .height(h)
        .no_value(no_value)
        .datasource(DATASOURCE)
        .targets(_lettered([query]))
        .graph_mode(BigValueGraphMode.NONE)
        .color_mode(BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .thresholds(colours or steps(BLUE))
        .color_scheme(by_threshold())
    )
    return panel.mappings(words(named)) if named else panel


def timeline(
    title: str, description: str, *targets: Target, named: Named, w: int = 12, h: int = 8, no_value: str = "no data"
) -> statetimeline.Panel:
    """States over time, a row per series."""
    return (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .span(w)
        .height(h)
        .no_value(no_value)
        .datasource(DATASOURCE)
        .targets(_lettered(targets))
        .mappings(words(named))
        .thresholds(steps(GREY))
        .color_scheme(by_threshold())
        .merge_values(True)
        .show_value(VisibilityMode.NEVER)
        .fill_opacity(80)
        .line_width(0)
        .legend(_bottom_legend())
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.SINGLE))
    )


def history(
    title: str, description: str, *targets: Target, named: Named, w: int = 12, h: int = 8, no_value: str = "no data"
) -> statushistory.Panel:
    """States at regular points in time, a row per series: a heat map of words."""
    return (
        statushistory.Panel()
        .title(title)
        .description(description)
        .span(w)
        .height(h)
        .no_value(no_value)
        .datasource(DATASOURCE)
        .targets(_lettered(targets))
        .max_data_points(60)  # the panel refuses to draw more cells than fit
        .mappings(words(named))
        .thresholds(steps(GREY))
        .color_scheme(by_threshold())
        .show_value(VisibilityMode.NEVER)
        .fill_opacity(80)
        .line_width(1)
        .legend(_bottom_legend())
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.SINGLE))
    )


def listing(
    title: str,
    description: str,
    *targets: Target,
    sort: str,
    w: int = 24,
    h: int = 8,
    descending: bool = True,
    no_value: str = "nothing",
) -> table.Panel:
    """A table of the values at the end of the range, sorted by a column (its shown name)."""
    return (
        table.Panel()
        .title(title)
        .description(description)
        .span(w)
        .height(h)
        .no_value(no_value)
        .datasource(DATASOURCE)
        .targets(_lettered(targets))
        .unit("none")
        .filterable(True)
        .sort_by([common.TableSortByFieldState().display_name(sort).desc(descending)])
        .thresholds(steps(GREY))
        .color_scheme(by_threshold())
    )


def _bottom_legend() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
    )


def _lettered(targets: Sequence[Target]) -> list[Any]:
    return [query.ref_id(chr(ord("A") + i)) for i, query in enumerate(targets)]
