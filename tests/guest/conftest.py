"""Guests for the tests: one that all share, and others on demand."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from guest.image.boot import Guest
from guest.image.build import Image, build
from guest.image.paths import FLAVOURS, Flavour


@pytest.fixture(scope="session")
def images() -> dict[Flavour, Image]:
    """Build both images where their sources changed."""
    return {flavour: build(flavour) for flavour in FLAVOURS}


@pytest.fixture(scope="session")
def guest(images: dict[Flavour, Image]) -> Iterator[Guest]:
    """The shared guest: cloud, 2 vCPUs.  A test leaves it as it found it: running, unpatched."""
    with Guest(images["cloud"].flavour) as running:
        running.wait_ready()
        yield running


@pytest.fixture
def boot(images: dict[Flavour, Image]) -> Iterator[Callable[..., Guest]]:
    """Boot guests on demand.  The function takes what Guest takes; its guests end with the test."""
    with ExitStack() as running:

        def start(flavour: Flavour = "cloud", **options: Any) -> Guest:
            started = running.enter_context(Guest(images[flavour].flavour, **options))
            started.wait_ready()
            return started

        yield start
