"""Opens a page in Debian's Chromium and collects all its complaints."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import urlsplit

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Error,
    Page,
    Request,
    expect,
    sync_playwright,
)

__all__ = ("DESK", "PHONE", "Complaints", "chromium", "contrasts", "scrolls_sideways", "visit")

Theme = Literal["light", "dark"]

DESK: Final = 1280
PHONE: Final = 360

_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
_PATIENCE_MILLISECONDS = 120_000
expect.set_options(timeout=_PATIENCE_MILLISECONDS)
_HEIGHTS = {DESK: 900, PHONE: 740}


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run Chromium without a window, with a profile of its own, until the block ends."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Complaints:
    """What happened on a page and must not."""

    origin: str
    errors: list[str] = field(default_factory=list)
    """Errors of the console, of scripts and of requests."""
    foreign: list[str] = field(default_factory=list)
    """Requests to other servers."""

    def hear(self, page: Page) -> None:
        """Listen to ``page``."""
        page.on("console", self._console)
        page.on("pageerror", self._error)
        page.on("requestfailed", self._failed)
        page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _error(self, error: Error) -> None:
        self.errors.append(str(error))

    def _failed(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page was left meanwhile
            self.errors.append(f"{request.url}: {request.failure}")

    def _request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme != "data" and f"{parts.scheme}://{parts.netloc}" != self.origin:
            self.foreign.append(request.url)


@contextmanager
def visit(
    browser: Browser, url: str, *, width: int = DESK, theme: Theme = "light", errors: bool = False
) -> Iterator[Page]:
    """Visit the page, which must show sites; fail on a complaint, unless ``errors`` are allowed."""
    complaints = Complaints(url)
    with browser.new_context(
        viewport={"width": width, "height": _HEIGHTS[width]}, color_scheme=theme
    ) as context:
        context.set_default_timeout(_PATIENCE_MILLISECONDS)
        page = context.new_page()
        complaints.hear(page)
        page.goto(url)
        page.wait_for_selector("#sites tbody tr")
        yield page
        page.goto("about:blank")  # asks no more
    assert complaints.foreign == [], complaints.foreign
    assert errors or complaints.errors == [], complaints.errors


def scrolls_sideways(page: Page) -> bool:
    """Return whether the page is wider than its window."""
    wide: bool = page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
    return wide


def contrasts(page: Page) -> dict[str, float]:
    """Return the WCAG 2 contrast of each colour of text with its background, by an example text."""
    found: dict[str, float] = page.evaluate(_CONTRASTS)
    return found


_CONTRASTS = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b]
    .map((part) => part / 255)
    .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (at) => {
    for (let up = at; up; up = up.parentElement) {
      const color = parse(getComputedStyle(up).backgroundColor);
      if (color[3] === undefined || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const found = {};
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const at = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !at.checkVisibility()) continue;
    const style = getComputedStyle(at);
    const color = at.closest("svg") ? style.fill : style.color;
    const [dim, bright] = [luminance(parse(color)), luminance(behind(at))].sort((a, b) => a - b);
    const ratio = (bright + 0.05) / (dim + 0.05);
    found[`${color} on ${behind(at)}: ${walker.currentNode.data.trim().slice(0, 30)}`] = ratio;
  }
  return found;
}"""
