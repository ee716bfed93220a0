"""The live view, by Textual's Pilot: keys pressed, and what the screen then has."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, Static

from optpolined.api.errors import NoAnswerError
from optpolined.api.requests import Answer, ListSites, Request
from optpolined.api.sites import SiteRow
from optpolined.api.status import STATUS, Status
from optpolined.config import load
from optpolined.ctl.client import DaemonClient
from optpolined.ctl.top.app import Top
from optpolined.ctl.top.explain import ExplainScreen
from tests.unit.ctl.fake_daemon import COLD, HOT, MISSED, STATUS_NOW, answer, served

PATIENCE_SECONDS = 30.0

BY_CALLS = [HOT.site, MISSED.site, COLD.site]
BY_MISSES = [MISSED.site, HOT.site, COLD.site]


class Source:
    """A daemon that may change, be slow, or go away."""

    guest = "vm1"

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.answers: Callable[[Request], Answer] = answer
        self.gone = False
        self.may_answer = threading.Event()
        self.may_answer.set()

    def status(self) -> Status:
        if self.gone:
            raise NoAnswerError("no daemon answers")
        return STATUS_NOW

    def ask(self, request: Request, *, timeout_seconds: float) -> Answer:
        assert self.may_answer.wait(PATIENCE_SECONDS), timeout_seconds
        self.asked.append(request)
        return self.answers(request)


class Screen:
    """What is on it."""

    def __init__(self, app: Top, pilot: Pilot[None]) -> None:
        self.app = app
        self._pilot = pilot

    async def press(self, *keys: str) -> None:
        await self._pilot.press(*keys)

    def sites(self) -> list[str]:
        table = self.app.screen_stack[0].query_one("#sites", DataTable)
        return [str(table.get_row_at(row)[3]) for row in range(table.row_count)]

    def heads(self) -> list[str]:
        table = self.app.screen_stack[0].query_one("#sites", DataTable)
        return [str(column.label) for column in table.columns.values()]

    def head(self) -> str:
        return str(self.app.screen_stack[0].query_one("#head", Static).content)

    def explanation(self) -> str:
        if not isinstance(self.app.screen, ExplainScreen):
            return ""
        return "\n".join(strip.text for strip in self.app.screen._compositor.render_strips())

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                await self._pilot.pause(0.01)


def on_screen(
    play: Callable[[Screen], Awaitable[None]],
    source: Source | DaemonClient,
    *,
    interval_seconds: float = 0.05,
) -> None:
    """Run the view, and ``play`` with it."""

    async def run() -> None:
        app = Top(source, interval_seconds)
        async with app.run_test(size=(100, 30)) as pilot:
            await play(Screen(app, pilot))

    asyncio.run(run())


def test_it_shows_the_figures_and_the_hottest_sites_first() -> None:
    async def play(screen: Screen) -> None:
        await screen.until(lambda: screen.sites() == BY_CALLS)
        assert screen.heads() == ["calls/s v", "missed/s", "state", "site", "direct calls to"]
        head = screen.head()
        for words in (
            "vm1  running",
            "224,527 direct/s (97.2% of all), 1,203 missed/s",
            "1,905: p50 1.00, p99 8.26, max 12.00 ms",
            "cold 7000, promoted 61",
            "3 sites, by calls",
        ):
            assert words in head

    on_screen(play, Source())


def test_keys_sort_it_by_something_else() -> None:
    async def play(screen: Screen) -> None:
        await screen.until(lambda: screen.sites() == BY_CALLS)
        await screen.press("m")
        await screen.until(lambda: screen.sites() == BY_MISSES)
        assert "missed/s v" in screen.heads()
        await screen.press("a")
        await screen.until(lambda: screen.sites() == [HOT.site, COLD.site, MISSED.site])
        await screen.press("c")
        await screen.until(lambda: screen.sites() == BY_CALLS)

    on_screen(play, Source(), interval_seconds=1000)


def test_what_is_typed_filters_until_escape() -> None:
    source = Source()

    async def play(screen: Screen) -> None:
        await screen.until(lambda: screen.sites() == BY_CALLS)
        await screen.press("slash", "t", "c", "p")
        await screen.until(lambda: screen.sites() == [MISSED.site])
        await screen.press("enter")
        assert not screen.app.query_one(Input).has_class("open")
        assert "filter 'tcp'" in screen.head()
        await screen.press("m")
        await screen.until(
            lambda: source.asked[-1] == ListSites(pattern="*tcp*", order="misses", top=200)
        )
        await screen.press("slash", "escape")
        await screen.until(lambda: screen.sites() == BY_MISSES)

    on_screen(play, source)


def test_a_shell_pattern_is_a_filter_as_it_stands() -> None:
    source = Source()

    async def play(screen: Screen) -> None:
        await screen.press("slash", *"kvm:", "asterisk")
        await screen.until(
            lambda: ListSites(pattern="kvm:*", order="calls", top=200) in source.asked
        )

    on_screen(play, source)


def test_a_pause_keeps_the_table_and_asks_nobody() -> None:
    source = Source()

    async def play(screen: Screen) -> None:
        await screen.until(lambda: screen.sites() == BY_CALLS)
        await screen.press("p")
        await screen.until(lambda: "paused" in screen.head())
        source.answers = lambda _: Answer(outcome="done", says="1 sites", sites=(COLD,))
        count = len(source.asked)
        await asyncio.sleep(0.3)
        assert (len(source.asked) <= count + 1, screen.sites()) == (True, BY_CALLS)
        await screen.press("p")
        await screen.until(lambda: screen.sites() == [COLD.site])
        assert "paused" not in screen.head()

    on_screen(play, source)


@pytest.mark.parametrize("key", ["e", "enter"])
def test_the_selected_site_is_explained(key: str) -> None:
    async def play(screen: Screen) -> None:
        await screen.until(lambda: screen.sites() == BY_CALLS)
        await screen.press(key)
        await screen.until(lambda: "code now" in screen.explanation())
        assert "je pipe_read" in screen.explanation()
        assert "foreign_breakpoint" in screen.explanation()
        await screen.press("escape")
        await screen.until(lambda: not isinstance(screen.app.screen, ExplainScreen))
        await screen.press("down", key)
        await screen.until(lambda: f"no function {MISSED.address}" in screen.explanation())

    on_screen(play, Source())


def test_the_cursor_stays_on_its_site_when_others_get_hotter() -> None:
    source = Source()

    async def play(screen: Screen) -> None:
        await screen.until(lambda: screen.sites() == BY_CALLS)
        await screen.press("down")
        source.answers = lambda _: Answer(outcome="done", says="", sites=(COLD, HOT, MISSED))
        await screen.until(lambda: screen.sites() == [COLD.site, HOT.site, MISSED.site])
        assert screen.app.query_one(DataTable).cursor_row == 2

    on_screen(play, source)


def test_who_has_scrolled_down_stays_there() -> None:
    source = Source()
    many = [SiteRow(f"site_{place}+0x0", "0x1", "cold", "", "original") for place in range(100)]
    source.answers = lambda _: Answer(outcome="done", says="", sites=tuple(many))

    async def play(screen: Screen) -> None:
        await screen.until(lambda: len(screen.sites()) == 100)
        table = screen.app.query_one(DataTable)
        await screen.press("pagedown", "pagedown", "pagedown")
        await screen.until(lambda: table.scroll_offset.y > 30)
        where, cursor = table.scroll_offset, table.cursor_row
        many[0] = HOT
        await screen.until(lambda: screen.sites()[0] == HOT.site)
        await asyncio.sleep(0.2)
        assert (table.scroll_offset, table.cursor_row) == (where, cursor)
        del many[50:]
        await screen.until(lambda: len(screen.sites()) == 50)

    on_screen(play, source)


def test_a_daemon_that_has_gone_is_told_and_what_was_seen_stays() -> None:
    source = Source()

    async def play(screen: Screen) -> None:
        await screen.until(lambda: screen.sites() == BY_CALLS)
        source.gone = True
        await screen.until(lambda: "no daemon answers" in screen.head())
        assert screen.sites() == BY_CALLS
        await screen.press("e")
        source.gone = False
        await screen.press("escape")
        await screen.until(lambda: "3 sites" in screen.head())

    on_screen(play, source)


def test_keys_work_while_the_daemon_is_busy() -> None:
    source = Source()
    source.may_answer.clear()

    async def play(screen: Screen) -> None:
        await screen.press("m", "p")
        await screen.until(lambda: "paused" in screen.head())
        source.may_answer.set()
        await screen.press("p")
        await screen.until(lambda: screen.sites() == BY_MISSES)

    on_screen(play, source)


def test_q_ends_it() -> None:
    async def play(screen: Screen) -> None:
        await screen.press("q")
        await screen.until(lambda: not screen.app.is_running)

    on_screen(play, Source())


def test_names_from_the_guest_are_neither_markup_nor_control_characters() -> None:
    evil = "[red]x[/] \x1b[2J [@click=app.quit]q[/] [/]"
    shown = "[red]x[/] ?[2J [@click=app.quit]q[/] [/]"
    cut = f"{shown[:33]}…"
    source = Source()
    row = SiteRow(evil, "0x1", evil, evil, evil)
    source.answers = lambda _: Answer(outcome="done", says=evil, sites=(row,))

    async def play(screen: Screen) -> None:
        await screen.until(lambda: screen.sites() == [cut])
        assert shown in screen.head()

    on_screen(play, source)


def test_over_a_real_socket(directory: Path) -> None:
    async def play(screen: Screen) -> None:
        await screen.until(lambda: screen.sites() == BY_CALLS)
        assert "vm1  running" in screen.head()

    with served(directory) as asked:
        on_screen(play, DaemonClient("vm1", load("vm1", [directory])))
    assert ListSites(pattern="*", order="calls", top=200) in asked


def test_as_json_it_is_a_line_for_each_look(directory: Path) -> None:
    code = "from optpolined.ctl import main; main()"
    where = ("--guest", "vm1", "--config-dir", str(directory))
    with (
        served(directory),
        subprocess.Popen(
            [sys.executable, "-c", code, "top", "--json", "--interval", "0.1", *where],
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.terminate()
    for told in lines:
        status = told.pop("status")
        assert STATUS.validate_python(status) == STATUS_NOW
        assert Answer.model_validate(told).sites == (HOT, MISSED, COLD)
