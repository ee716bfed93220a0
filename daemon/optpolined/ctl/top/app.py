"""The screen: figures, the table of sites, a filter, keys."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.coordinate import Coordinate
from textual.widgets import DataTable, Footer, Input, Static

from optpolined.api.sites import SiteRow
from optpolined.ctl.rendering.sites import STATE_STYLES, target_names
from optpolined.ctl.rendering.text import rate, styled
from optpolined.ctl.top.explain import ExplainScreen
from optpolined.ctl.top.head import head
from optpolined.ctl.top.source import FILTER_MAX, Order, Seen, Source, View, look

__all__ = ("Top",)

_COLUMNS = ("calls/s", "missed/s", "state", "site", "direct calls to")
_BY: dict[Order, str] = {"calls": "calls/s", "misses": "missed/s", "address": "site"}
"""The column that an order sorts by."""

_SITE_COLUMNS = 34
"""Longer names are cut, so that there is space for the targets."""


class Top(App[None]):
    """Shows the sites of one guest until ``q``."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head { height: auto; padding: 0 1; background: $surface; }
    #filter { display: none; height: 1; border: none; padding: 0 1; }
    #filter.open { display: block; }
    #sites { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "order('calls')", "by calls"),
        Binding("m", "order('misses')", "by misses"),
        Binding("a", "order('address')", "by address"),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("escape", "unfilter", "all", show=False),
        Binding("p", "pause", "pause"),
        Binding("e", "explain", "explain"),
        Binding("q,ctrl+c", "quit", "quit", key_display="q"),
    ]

    def __init__(self, source: Source, interval_seconds: float) -> None:
        super().__init__()
        self._source = source
        self._interval_seconds = interval_seconds
        self._view = View()
        self._seen = Seen(says="asking")
        self._shown: tuple[SiteRow, ...] = ()
        self._sorted_by: Order | None = None
        self._paused = False
        self._wake = asyncio.Event()
        # Kept here instead of queried: another screen may cover this one, and at exit this one is
        # removed while an update still runs.
        self._head = Static(id="head", markup=False)
        self._filter = Input(
            id="filter",
            placeholder="part of a function's name, or a shell pattern; Esc shows all sites",
            max_length=FILTER_MAX,
            select_on_focus=False,
        )
        self._table: DataTable[Text] = DataTable(id="sites", cursor_type="row", zebra_stripes=True)

    def compose(self) -> ComposeResult:
        yield self._head
        yield self._filter
        yield self._table
        yield Footer()

    def on_mount(self) -> None:
        self.title = f"optpolinectl top: {self._source.guest}"
        self._table.focus()
        self._draw()
        self.run_worker(self._follow())

    async def _follow(self) -> None:
        """Ask, draw, wait; a key that changes the view ends the wait."""
        while True:
            if not self._paused:
                view = self._view
                seen = await asyncio.to_thread(look, self._source, view)
                if view == self._view and not self._paused:
                    self._seen = seen if not seen.trouble else self._seen.in_trouble(seen)
                    self._draw()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._interval_seconds)
            self._wake.clear()

    def action_order(self, order: Order) -> None:
        """Sort by another column."""
        self._look_at(replace(self._view, order=order))

    def action_filter(self) -> None:
        """Open the filter."""
        self._filter.add_class("open")
        self._filter.focus()

    def action_unfilter(self) -> None:
        """Show all sites again."""
        self._filter.value = ""
        self._close_filter()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while you type."""
        self._look_at(replace(self._view, symbol=event.value))

    def on_input_submitted(self) -> None:
        """Go back to the table, and keep the filter."""
        self._close_filter()

    def action_pause(self) -> None:
        """Stop or continue updating the table."""
        self._paused = not self._paused
        self._draw()
        self._wake.set()

    def action_explain(self) -> None:
        """Explain the selected site."""
        if self._shown:
            row = self._shown[self._table.cursor_row]
            self.push_screen(ExplainScreen(self._source, row))

    def on_data_table_row_selected(self) -> None:
        """Explain the row that you click, or press Enter on."""
        self.action_explain()

    def _close_filter(self) -> None:
        self._filter.remove_class("open")
        self._table.focus()

    def _look_at(self, view: View) -> None:
        if view != self._view:
            self._view, self._paused = view, False
            self._wake.set()

    def _draw(self) -> None:
        self._head.update(head(self._seen, self._view, paused=self._paused))
        table, rows, before = self._table, self._seen.rows, self._shown
        selected = table.cursor_row
        followed = before[selected].site if 0 < selected < len(before) else None
        if self._sorted_by != self._view.order:
            before = ()
            self._sort()
        for place, row in enumerate(rows):
            if place >= len(before):
                table.add_row(*_cells(row))
            elif row != before[place]:
                for column, cell in enumerate(_cells(row)):
                    table.update_cell_at(Coordinate(place, column), cell, update_width=True)
        for key in list(table.rows)[len(rows) :]:
            table.remove_row(key)
        self._shown = rows
        if followed is not None:
            places = (place for place, row in enumerate(rows) if row.site == followed)
            table.move_cursor(row=next(places, selected))

    def _sort(self) -> None:
        """Empty the table, and mark the column that it is sorted by."""
        self._sorted_by = self._view.order
        self._table.clear(columns=True)
        for name in _COLUMNS:
            is_key = name == _BY[self._sorted_by]
            self._table.add_column(Text(f"{name} v" if is_key else name))


def _cells(row: SiteRow) -> tuple[Text, ...]:
    site = styled(row.site)
    site.truncate(_SITE_COLUMNS, overflow="ellipsis")
    return (
        Text(rate(row.calls_per_second), justify="right"),
        Text(rate(row.misses_per_second), justify="right"),
        styled(row.state, STATE_STYLES.get(row.state, "")),
        site,
        styled(target_names(row.targets)),
    )
