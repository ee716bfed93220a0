"""The status page in Chromium, over a made-up guest; guest/test_status_page.py has a real one."""

import threading
from contextlib import ExitStack
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect
from prometheus_client import CollectorRegistry

from optpolined.api.requests import Answer, Question
from optpolined.api.status import DaemonPhase, Status
from optpolined.telemetry.web import Sources, serve_web
from tests.browser.visit import DESK, PHONE, Theme, contrasts, scrolls_sideways, visit
from tests.unit.telemetry.made_up import MARKUP, MadeUpGuest, served

GUEST = MadeUpGuest(7861, odd_name=MARKUP)
PROMOTED = next(row for row in GUEST.rows[1:] if row.state == "promoted")
ROWS = "#sites tbody tr"
CONTRAST_MIN = 4.5
"""The contrast that WCAG 2, level AA, requires of text."""
SHIFT_MAX = 0.1
"""Up to this layout shift a page counts as stable."""


def sites(page: Page) -> list[str]:
    return page.locator(f"{ROWS} a").all_text_contents()


def pixels(page: Page, property_: str) -> str:
    color: str = page.evaluate(f"getComputedStyle(document.body).{property_}")
    return color


@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_and_can_be_read(browser: Browser, width: int, theme: Theme) -> None:
    with served(GUEST) as url, visit(browser, url, width=width, theme=theme) as page:
        expect(page.locator("#guest")).to_have_text("vm1")
        expect(page.locator("#phase")).to_have_text("running")
        expect(page.locator("#coverage")).to_have_text("96.8 %")
        expect(page.locator("#p99")).to_have_text("4.12 ms")
        assert page.locator("#stops tr").count() == len(GUEST.status().stops.buckets)
        assert page.locator("#hour path.line").count() == 2
        assert not scrolls_sideways(page)
        assert {at: ratio for at, ratio in contrasts(page).items() if ratio < CONTRAST_MIN} == {}
        page.locator(f"{ROWS} a", has_text=PROMOTED.site).click()
        page.wait_for_selector("#explain .block table")
        assert not scrolls_sideways(page)
        assert {at: ratio for at, ratio in contrasts(page).items() if ratio < CONTRAST_MIN} == {}


def test_the_themes_differ_and_the_chosen_one_is_kept(browser: Browser) -> None:
    with served(GUEST) as url, visit(browser, url) as page:
        button, light = page.locator("#theme"), pixels(page, "backgroundColor")
        button.click()  # light
        button.click()
        expect(button).to_have_text("Theme: dark")
        dark = pixels(page, "backgroundColor")
        assert dark != light
        page.reload()
        expect(button).to_have_text("Theme: dark")
        assert pixels(page, "backgroundColor") == dark
        button.click()
        expect(button).to_have_text("Theme: auto")
        assert pixels(page, "backgroundColor") == light


def test_the_filters_find_among_all_sites(browser: Browser) -> None:
    cold = next(row for row in GUEST.rows if row.state == "cold" and row.site.startswith("napi"))
    assert cold not in GUEST.rows[:200]
    function = cold.site.partition("+")[0]
    with served(GUEST) as url, visit(browser, url) as page:
        expect(page.locator(ROWS)).to_have_count(200)
        page.fill("#text", "napi_")
        page.wait_for_function(
            "[...document.querySelectorAll('#sites tbody a')]"
            ".every((a) => a.textContent.startsWith('napi_'))"
        )
        page.fill("#text", f"[{function[0]}]{function[1:]}")  # no more than this name
        expect(page.locator(ROWS)).to_have_count(1)
        assert sites(page) == [cold.site]
        page.fill("#text", "")
        page.select_option("#state", "pinned")
        pinned = [row.site for row in GUEST.rows if row.state == "pinned"]
        expect(page.locator(ROWS)).to_have_count(len(pinned))
        assert sites(page) == pinned
        page.fill("#text", "no_such_function")
        expect(page.locator(ROWS)).to_have_count(0)
        expect(page.locator("#count")).to_have_text("0 sites")


@pytest.mark.parametrize("text", ["[", "(*", "vfs_[", "[!a", "\\", "a+b [x", "{}"])
def test_half_a_pattern_breaks_nothing(browser: Browser, text: str) -> None:
    with served(GUEST) as url, visit(browser, url) as page:
        page.fill("#text", text)
        expect(page.locator("#count")).to_have_text("0 sites")
        page.fill("#text", "")
        expect(page.locator(ROWS)).to_have_count(200)


def test_columns_sort_by_clicking(browser: Browser) -> None:
    with served(GUEST) as url, visit(browser, url) as page:
        assert sites(page)[:3] == [row.site for row in GUEST.rows[:3]]
        page.click("#sites th[data-key=misses] button")
        worst = sorted(GUEST.rows, key=lambda row: -row.misses_per_second)
        expect(page.locator(ROWS).first).to_contain_text(worst[0].site)
        page.click("#sites th[data-key=site] button")
        expect(page.locator("#sites th[data-key=site]")).to_have_attribute("aria-sort", "ascending")
        expect(page.locator("#sites [aria-sort]")).to_have_count(1)
        page.wait_for_timeout(500)
        assert sites(page) == sorted(sites(page))


def test_a_click_explains_a_site_and_keys_do_too(browser: Browser) -> None:
    with served(GUEST) as url, visit(browser, url) as page:
        page.locator(ROWS, has_text=PROMOTED.site).locator("td").nth(1).click()
        dialog = page.locator("#explain")
        expect(dialog).to_be_visible()
        expect(page.locator("#explain-title")).to_have_text(PROMOTED.site)
        for target in PROMOTED.targets:
            expect(dialog.locator(".block")).to_contain_text(f"je {target.name}")
        expect(dialog.locator(".part")).to_contain_text("call __x86_indirect_thunk_rax")
        assert dialog.locator(".past tbody tr").count() == 7
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        assert urlsplit(page.url).fragment == ""
        link = page.locator(f"{ROWS} a", has_text=PROMOTED.site)
        link.focus()
        page.keyboard.press("Enter")
        expect(dialog).to_be_visible()
        page.click("#explain-close")
        expect(dialog).to_be_hidden()


def test_a_link_to_a_site_explains_it(browser: Browser) -> None:
    with served(GUEST) as url, visit(browser, url, errors=True) as page:
        page.goto(f"{url}/#site={PROMOTED.address}")
        expect(page.locator("#explain-title")).to_have_text(PROMOTED.site)
        page.goto(f"{url}/#site=no_such%2B0x1")
        expect(page.locator("#explain-body")).to_have_text(
            "no_such+0x1: there is no indirect call there"
        )


def test_names_with_markup_are_text(browser: Browser) -> None:
    site = f"{MARKUP}+0x1f"
    with served(GUEST) as url, visit(browser, url) as page:
        assert sites(page)[0] == site
        page.locator(f"{ROWS} a").first.click()
        expect(page.locator("#explain-title")).to_have_text(site)
        assert page.locator("img").count() == 0


def test_the_chart_tells_its_values(browser: Browser) -> None:
    with served(GUEST) as url, visit(browser, url) as page:
        chart = page.locator("#hour svg")
        latest = page.locator("#readout").text_content()
        box = chart.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        expect(page.locator("#hour line.cursor")).to_have_count(1)
        expect(page.locator("#readout")).not_to_have_text(latest or "")
        page.mouse.move(0, 0)
        chart.focus()
        page.keyboard.press("Home")
        expect(chart).to_have_attribute("aria-valuenow", "0")
        expect(page.locator("#readout")).to_contain_text("coverage \u2013")
        page.keyboard.press("ArrowRight")
        expect(chart).to_have_attribute("aria-valuenow", "1")
        page.keyboard.press("End")
        expect(page.locator("#readout")).to_have_text(latest or "")


def test_nothing_moves_once_it_is_there(browser: Browser) -> None:
    with served(GUEST) as url, visit(browser, url) as page:
        page.wait_for_timeout(2500)  # a round of polls
        shift = page.evaluate(
            "new Promise((done) => new PerformanceObserver((list) => done(list.getEntries()"
            ".reduce((sum, entry) => sum + entry.value, 0)))"
            ".observe({type: 'layout-shift', buffered: true})"
            " || setTimeout(() => done(0), 500))"
        )
        assert shift <= SHIFT_MAX


def test_a_page_that_nobody_sees_asks_nothing(browser: Browser) -> None:
    hide = (
        "(hidden) => { Object.defineProperty(document, 'hidden', {configurable: true,"
        " get: () => hidden}); document.dispatchEvent(new Event('visibilitychange')); }"
    )
    with served(GUEST) as url, visit(browser, url) as page:
        page.evaluate(hide, arg=True)
        page.wait_for_timeout(500)  # what is on its way
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_timeout(3000)
        assert asked == []
        with page.expect_request("**/api/status"):
            page.evaluate(hide, arg=False)


def test_it_says_that_the_daemon_is_gone_and_goes_on_when_it_is_back(browser: Browser) -> None:
    sources = Sources(GUEST.status, GUEST.history, GUEST.ask, CollectorRegistry())
    with ExitStack() as daemon:
        port = daemon.enter_context(serve_web("127.0.0.1", 0, sources))
        with visit(browser, f"http://127.0.0.1:{port}", errors=True) as page:
            daemon.close()
            expect(page.locator("#link")).to_contain_text(
                "the daemon does not answer; the data below"
            )
            expect(page.locator("#shown.stale")).to_have_count(1)
            daemon.enter_context(serve_web("127.0.0.1", port, sources))
            expect(page.locator("#link")).to_contain_text("live")
            expect(page.locator("#shown.stale")).to_have_count(0)


def test_a_loop_that_does_not_answer_is_told_in_its_place(browser: Browser) -> None:
    silent = threading.Event()

    def ask(question: Question) -> Answer | None:
        return None if silent.is_set() else GUEST.ask(question)

    sources = Sources(GUEST.status, GUEST.history, ask, CollectorRegistry())
    with (
        serve_web("127.0.0.1", 0, sources) as port,
        visit(browser, f"http://127.0.0.1:{port}", errors=True) as page,
    ):
        silent.set()
        expect(page.locator("#count")).to_contain_text("does not answer in time")
        expect(page.locator("#link")).to_contain_text("live")
        silent.clear()
        expect(page.locator("#count")).to_have_text(f"{len(GUEST.rows)} sites")


def test_trouble_is_told_and_no_loop_is_asked_that_does_not_run(browser: Browser) -> None:
    now = [GUEST.status()]

    def status() -> Status:
        return now[0]

    asked = []

    def ask(question: Question) -> Answer:
        asked.append(question)
        return GUEST.ask(question)

    sources = Sources(status, GUEST.history, ask, CollectorRegistry())
    with (
        serve_web("127.0.0.1", 0, sources) as port,
        visit(browser, f"http://127.0.0.1:{port}") as page,
    ):
        trouble = "optpoline.ko is not loaded: modprobe optpoline in the guest"
        now[0] = replace(now[0], phase=DaemonPhase.ATTACHING, trouble=trouble)
        expect(page.locator("#trouble")).to_have_text(trouble)
        page.wait_for_timeout(500)
        asked.clear()
        page.wait_for_timeout(3000)
        assert asked == []
        now[0] = GUEST.status()
        expect(page.locator("#trouble")).to_be_hidden()
