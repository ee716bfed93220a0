"""Prometheus, and guests of their own for the tests."""

from collections.abc import Iterator

import pytest

from guest.image.boot import Guest
from guest.image.build import build
from tests.observability.prometheus import Tools, provide

WORKLOAD = "optload --state /run/optload"


@pytest.fixture(scope="session")
def tools() -> Tools:
    """promtool and prometheus."""
    return provide()


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """A guest under the load of `make demo`, whose checks must all have been right."""
    image = build("cloud")
    with Guest(image.flavour, append=f'workload="{WORKLOAD}"') as running:
        running.wait_ready()
        yield running
