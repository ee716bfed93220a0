"""The status page and the API of a real daemon, which manages a real guest, in a real browser.

Keeps build/status.png, and beside it the same in the dark and on a phone, and a site explained.
"""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from playwright.sync_api import Page, expect

from guest.image.boot import Guest
from optpolined.api.requests import Freeze
from optpolined.api.status import STATUS
from optpolined.telemetry.history import HISTORY
from optpolined.telemetry.server import status_socket
from optpolined.telemetry.socket_client import ask
from tests.browser.visit import DESK, PHONE, Theme, chromium, scrolls_sideways, visit
from tests.guest.harness import PATIENCE_SECONDS, end_load, start_load, wait_until, write_config

COMMAND = Path(sys.executable).with_name("optpolined")
PICTURES: Sequence[tuple[str, int, Theme]] = (
    ("status", DESK, "light"),
    ("status-dark", DESK, "dark"),
    ("status-phone", PHONE, "light"),
    ("status-phone-dark", PHONE, "dark"),
)
PROMOTED_MIN = 30
MOMENTS_MIN = 5
CALM_SECONDS = 2.0
"""An answer that comes so soon shows that the loop has no long work to do."""


def tell(url: str, path: str, **query: object) -> Any:
    with urllib.request.urlopen(f"{url}{path}?{urlencode(query)}", timeout=30) as answer:
        return json.load(answer)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def managed(guest: Guest, directory: Path) -> Iterator[str]:
    """Let the daemon manage ``guest`` under load until it has promoted sites; yield its URL."""
    port = free_port()
    write_config(guest, directory, f"[metrics]\nport = {port}\n")
    start_load(guest)
    url = f"http://127.0.0.1:{port}"
    with (
        (directory / "daemon.log").open("wb") as log,
        subprocess.Popen(
            [COMMAND, "--guest", "test", "--config-dir", directory], stdout=log, stderr=log
        ) as daemon,
    ):
        try:

            def look() -> bool:
                assert daemon.poll() is None, (directory / "daemon.log").read_text()
                return is_known(url)

            wait_until(look, "the daemon knows something", pause_seconds=1)
            yield url
        finally:
            try:
                daemon.terminate()
                code = daemon.wait(PATIENCE_SECONDS)
            finally:
                daemon.kill()  # nothing where it has ended
                end_load(guest)
        assert code == 0, (directory / "daemon.log").read_text()


def is_known(url: str) -> bool:
    """Return whether sites are promoted, the chart has a line, and the loop has no long work to do.

    An answer that does not come in time would be an error on the page's console.
    """
    try:
        status, moments = tell(url, "/api/status"), tell(url, "/api/history")
        promoted = sum(status["targets_histogram"].values())
        if promoted < PROMOTED_MIN or len(moments) < MOMENTS_MIN:
            return False
        began = time.monotonic()
        tell(url, "/api/sites", order="calls", top=200)
        return time.monotonic() - began < CALM_SECONDS
    except OSError:
        return False


def test_the_page_and_the_api_tell_of_a_real_guest(guest: Guest, tmp_path: Path) -> None:
    with managed(guest, tmp_path) as url, chromium() as browser:
        check_api(url)
        # What the API tells first and the page shows later must be the same.
        answer = ask(status_socket(guest.directory / "run", "test"), Freeze())
        assert answer.outcome == "done", answer.says
        hottest = tell(url, "/api/sites", order="calls", state="promoted", top=1)["sites"][0]
        for name, width, theme in PICTURES:
            with visit(browser, url, width=width, theme=theme) as page:
                check_page(page, hottest, Path(f"build/{name}.png"))


def check_api(url: str) -> None:
    """Check that the answers of the routes agree with each other and with the guest."""
    status = STATUS.validate_python(tell(url, "/api/status"))
    assert status.kernel.startswith("6.1")
    assert status.found >= 7000
    moments = HISTORY.validate_python(tell(url, "/api/history"))
    assert moments[-1].promoted > 0
    everything = tell(url, "/api/sites", top=1000)
    assert len(everything["sites"]) == 1000
    assert everything["says"].startswith(str(status.found))
    assert tell(url, "/api/static-calls")["static_calls"] == []
    assert tell(url, "/api/schema").keys() >= {"/api/status", "/api/explain"}
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        assert b'optpolined_up{guest="test"} 1.0' in answer.read()


def check_page(page: Page, site: dict[str, Any], picture: Path) -> None:
    """Check that the page shows the guest, filters sites, and explains ``site`` on a click."""
    expect(page.locator("#guest")).to_have_text("test")
    expect(page.locator("#facts")).to_contain_text("6.1")
    expect(page.locator("#coverage")).to_contain_text("%")
    expect(page.locator("#stops-note")).to_contain_text("stops")
    expect(page.locator("#hour path.line")).to_have_count(2)
    expect(page.locator("#journal li")).not_to_have_count(0)
    assert not scrolls_sideways(page)
    page.screenshot(path=picture, full_page=True)
    check_filter(page, site["site"])
    page.get_by_role("link", name=site["site"], exact=True).click()
    expect(page.locator("#explain-title")).to_have_text(site["site"])
    block = page.locator("#explain .block .code")
    for target in site["targets"]:
        expect(block).to_contain_text(target["name"])
    expect(page.locator("#explain .part")).to_contain_text("__x86_indirect_thunk_")
    expect(page.locator("#explain .past tbody tr")).not_to_have_count(0)
    assert not scrolls_sideways(page)
    page.screenshot(path=picture.with_stem(f"{picture.stem}-explain"))


def check_filter(page: Page, site: str) -> None:
    """Check that a filter narrows the table to one function, of which ``site`` is the hottest."""
    links = page.locator("#sites tbody a")
    expect(links).not_to_have_count(0)
    before = links.count()
    function = site.partition("+")[0]
    page.fill("#text", function)
    page.select_option("#state", "promoted")
    shown = wait_until(
        links.all_text_contents,
        f"the table shows sites of {function} alone, {site} first",
        lambda names: names[:1] == [site] and all(function in name for name in names),
    )
    assert len(shown) < before
