"""One browser for all tests of a page."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.browser.visit import chromium


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Each visit has a profile of its own."""
    with chromium() as browser:
        yield browser
