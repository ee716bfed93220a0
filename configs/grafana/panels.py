"""Panels as both dashboards have them: a title, expressions of Prometheus, and what they mean.

Grafana's own builders check at build time that each option exists where it is set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_options
from grafana_foundation_sdk.models import prometheus as queries

__all__ = (
    "DATASOURCE",
    "Column",
    "Query",
    "Row",
    "chart",
    "dashboard",
    "figure",
    "heat",
    "row",
    "rows",
    "thresholds",
    "word",
)

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT = 8
GREEN, YELLOW, RED = "green", "yellow", "red"


@dataclass(frozen=True, slots=True)
class Query:
    """An expression, and the name of each series that it gives."""

    expr: str
    legend: str = "__auto"


@dataclass(frozen=True, slots=True)
class Column:
    """One figure for each row of a table."""

    title: str
    expr: str
    unit: str = "short"


@dataclass(frozen=True, slots=True)
class Row:
    """Panels side by side, under a heading if they have one."""

    title: str
    panels: tuple[Builder[models.Panel], ...]


def row(title: str, *panels: Builder[models.Panel]) -> Row:
    """Panels under a heading, or under none."""
    return Row(title, panels)


def dashboard(
    uid: str, title: str, text: str, parts: Sequence[Row], *, one_guest: bool
) -> builders.Dashboard:
    """A dashboard with the variables ``datasource`` and ``guest``."""
    page = _empty(uid, title, text, one_guest=one_guest)
    for part in parts:
        if part.title:
            page = page.with_row(builders.Row(part.title))
        for panel in part.panels:
            page = page.with_panel(panel)
    return page


def _empty(uid: str, title: str, text: str, *, one_guest: bool) -> builders.Dashboard:
    guest = (
        builders.QueryVariable("guest")
        .label("Guest")
        .datasource(DATASOURCE)
        .query("label_values(optpolined_up, guest)")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(not one_guest)
        .include_all(not one_guest)
    )
    if not one_guest:
        guest = guest.all_value(".*").current(
            models.VariableOption(selected=True, text="All", value="$__all")
        )
    return (
        builders.Dashboard(title)
        .uid(uid)
        .description(text)
        .tags(["optpolined"])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            builders.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
        .with_variable(guest)
        .annotation(
            builders.AnnotationQuery()
            .name("Alerts")
            .datasource(DATASOURCE)
            .enable(enable=True)
            .icon_color(RED)
            .expr('ALERTS{alertname=~"Optpolined.*",alertstate="firing",guest=~"$guest"}')
        )
    )


def chart(
    title: str,
    text: str,
    *series: Query,
    unit: str = "short",
    width: int = 12,
    stacked: bool = False,
    most: float | None = None,
) -> timeseries.Panel:
    """Lines over time from 0 on; ``most`` is the highest value there can be."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(text)
        .datasource(DATASOURCE)
        .span(width)
        .height(HEIGHT)
        .unit(unit)
        .min(0)
        .line_width(1)
        .fill_opacity(30 if stacked else 10)
        .show_points(options.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .show_legend(show_legend=True)
            .display_mode(options.LegendDisplayMode.LIST)
            .placement(options.LegendPlacement.BOTTOM)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(options.TooltipDisplayMode.MULTI)
            .sort(options.SortOrder.DESCENDING)
        )
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL))
    if most is not None:
        panel = panel.max(most)
    for query, name in zip(series, "ABCDEFGH", strict=False):
        panel = panel.with_target(_target(query, name).range())
    return panel


def figure(
    title: str,
    text: str,
    expr: str,
    *,
    unit: str = "short",
    width: int = 4,
    steps: builders.ThresholdsConfig | None = None,
) -> stat.Panel:
    """One number as it is now, over its course."""
    return (
        _stat(title, text, Query(expr), width)
        .unit(unit)
        .graph_mode(options.BigValueGraphMode.AREA)
        .thresholds(steps or thresholds())
    )


def word(title: str, text: str, query: Query, *, width: int = 4) -> stat.Panel:
    """What a label says now: the query's legend."""
    return (
        _stat(title, text, query, width)
        .text_mode(options.BigValueTextMode.NAME)
        .graph_mode(options.BigValueGraphMode.NONE)
        .thresholds(thresholds())
    )


def _stat(title: str, text: str, query: Query, width: int) -> stat.Panel:
    return (
        stat.Panel()
        .title(title)
        .description(text)
        .datasource(DATASOURCE)
        .span(width)
        .height(4)
        .color_mode(options.BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_target(query, "A").range())
    )


def heat(title: str, text: str, expr: str, *, width: int = 12) -> heatmap.Panel:
    """A histogram over time; ``expr`` gives buckets by ``le``, in seconds."""
    return (
        heatmap.Panel()
        .title(title)
        .description(text)
        .datasource(DATASOURCE)
        .span(width)
        .height(HEIGHT)
        .calculate(calculate=False)
        .y_axis(heatmap.YAxisConfig().unit("s"))
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_options.HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .steps(64)
        )
        .with_target(
            _target(Query(expr, "{{le}}"), "A").range().format(queries.PromQueryFormat.HEATMAP)
        )
    )


def rows(
    title: str,
    text: str,
    key: str,
    columns: Sequence[Column],
    *,
    width: int = 24,
    link: tuple[str, str] | None = None,
) -> table.Panel:
    """A table of what is so now: a row for each value of the label ``key``.

    :param link: title and address of where a click on the key leads to.
    """
    names = [chr(ord("A") + place) for place in range(len(columns))]
    titles = {
        f"Value #{name}": column.title for name, column in zip(names, columns, strict=True)
    } | {key: key.capitalize()}
    panel = (
        table.Panel()
        .title(title)
        .description(text)
        .datasource(DATASOURCE)
        .span(width)
        .height(HEIGHT + 2)
        .with_transformation(models.DataTransformerConfig("merge", options={}))
        .with_transformation(_only((key, *(f"Value #{name}" for name in names))))
        .with_transformation(
            models.DataTransformerConfig("organize", options={"renameByName": titles})
        )
    )
    for name, column in zip(names, columns, strict=True):
        panel = panel.with_target(
            _target(Query(column.expr), name).instant().format(queries.PromQueryFormat.TABLE)
        ).override_by_name(column.title, [models.DynamicConfigValue("unit", column.unit)])
    if link is not None:
        links = [{"title": link[0], "url": link[1]}]
        panel = panel.override_by_name(
            key.capitalize(), [models.DynamicConfigValue("links", links)]
        )
    return panel


def _only(fields: Sequence[str]) -> models.DataTransformerConfig:
    pattern = "|".join(fields)
    return models.DataTransformerConfig(
        "filterFieldsByName", options={"include": {"pattern": f"^({pattern})$"}}
    )


def thresholds(steps: Mapping[float, str] | None = None) -> builders.ThresholdsConfig:
    """Green, and another colour from each value in ``steps`` on."""
    first = models.Threshold(value=None, color=GREEN)
    others = [models.Threshold(value=value, color=color) for value, color in (steps or {}).items()]
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps([first, *others])


def _target(query: Query, name: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().ref_id(name).expr(query.expr).legend_format(query.legend)
