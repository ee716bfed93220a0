"""The screen that explains one site."""

import asyncio
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Footer, Static

from optpolined.ctl.rendering.explanation import explained
from optpolined.ctl.rendering.text import styled
from optpolined.ctl.top.looking import Source, explain

__all__ = ("ExplainScreen",)


class ExplainScreen(Screen[None]):
    """Why a site is as it is, as of now."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,e", "dismiss", "back", key_display="esc"),
        Binding("r", "ask", "look again"),
    ]

    def __init__(self, source: Source, site: str) -> None:
        super().__init__()
        self._source = source
        self._site = site

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(id="explanation", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        self.query_one("#explanation", Static).update(styled(f"asking about {self._site}"))
        self.action_ask()

    def action_ask(self) -> None:
        """Look again."""
        self.run_worker(self._ask(), exclusive=True)

    async def _ask(self) -> None:
        answer = await asyncio.to_thread(explain, self._source, self._site)
        shown = self.query_one("#explanation", Static)
        if answer.explanation is None:
            shown.update(styled(answer.says, "red"))
        else:
            shown.update(explained(answer.explanation))
