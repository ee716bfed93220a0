"""A guest at work, its daemon, and a Prometheus that watches both."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from guest.image.boot import Guest
from guest.image.build import build
from tests.guest.harness import bench_calls, load_state
from tests.observability.daemon import GUEST, Daemon
from tests.observability.prometheus import Prometheus, Tools, provide

WORKLOAD = "optload --state /run/optload & echo run all >/proc/optbench; wait"
"""The workload of `make demo`."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What the tests of a file share; each test starts the daemon as it needs it."""

    guest: Guest
    daemon: Daemon
    prometheus: Prometheus


@pytest.fixture(scope="session")
def tools() -> Tools:
    """Return promtool and prometheus."""
    return provide()


@pytest.fixture(scope="module")
def scene(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Yield the guest of the demo and what observes it; each result in the guest must be right."""
    directory: Path = tmp_path_factory.mktemp("observability")
    image = build("cloud")
    with Guest(image.flavour, append=f'workload="{WORKLOAD}"') as guest:
        guest.wait_ready()
        with (
            Daemon(guest, directory) as daemon,
            Prometheus(tools, directory, {GUEST: daemon.port}) as prometheus,
        ):
            yield Scene(guest, daemon, prometheus)
        assert load_state(guest)["errors"] == 0, guest.run("cat /run/optload")
        assert all(errors == 0 for _, errors in bench_calls(guest).values())
        # To its guest, a QEMU that was stopped for 20 s looks like a CPU that hangs.
        log = guest.run("dmesg").replace("BUG: soft lockup", "")
        assert "BUG" not in log
