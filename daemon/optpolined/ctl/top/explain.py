"""The screen that explains one site."""

import asyncio
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Static

from optpolined.api.sites import SiteRow
from optpolined.ctl.rendering.explanation import explained
from optpolined.ctl.rendering.text import styled
from optpolined.ctl.top.source import Source, explain

__all__ = ("ExplainScreen",)


class ExplainScreen(ModalScreen[None]):
    """Shows one site in depth; the keys of the table do nothing here."""

    DEFAULT_CSS = "ExplainScreen { background: $background; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,e", "dismiss", "back", key_display="esc"),
        Binding("r", "ask", "refresh"),
    ]

    def __init__(self, source: Source, row: SiteRow) -> None:
        super().__init__()
        self._source = source
        self._address = row.address  # the name may be ambiguous
        self._shown = Static(styled(f"asking about {row.site}"), markup=False)

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield self._shown
        yield Footer()

    def on_mount(self) -> None:
        self.action_ask()

    def action_ask(self) -> None:
        """Ask the daemon again."""
        self.run_worker(self._ask(), exclusive=True)

    async def _ask(self) -> None:
        answer = await asyncio.to_thread(explain, self._source, self._address)
        if answer.explanation is None:
            self._shown.update(styled(answer.says, "red"))
        else:
            self._shown.update(explained(answer.explanation))
