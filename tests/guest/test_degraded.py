"""An arena that is too small for all that is hot."""

import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from guest.image.boot import Guest
from guest.image.errors import GuestCommandError
from optpolined.api.status import Status
from optpolined.config import GuestConfig, LearningConfig, PolicyConfig
from optpolined.daemon.serve import Options, serve
from optpolined.learning.config import CensusConfig
from optpolined.views.report import RunReport
from tests.guest.harness import (
    PATIENCE_SECONDS,
    bench_calls,
    config_of,
    end_load,
    open_session,
    sites_called,
    start_load,
)

ARENA_BYTES = 4096
_KERNEL = ("vfs_*", "sock_*", "tcp_*", "inet_*", "security_*", "do_*", "__x64_sys_*")
BUSY = (*_KERNEL, "optbench:optbench_call_1")
"""More hot sites than there is room for, and few enough cold ones for a short test."""


@pytest.fixture
def small(boot: Callable[..., Guest]) -> Iterator[Guest]:
    """A busy guest whose module is told to use 4 KiB of its arena; every result must be right."""
    guest = boot(append="noload")
    guest.run("insmod /lib/modules/optpoline.ko")
    start_load(guest)
    yield guest
    guest.run("echo stop >/proc/optbench")
    end_load(guest)
    assert all(errors == 0 for _, errors in bench_calls(guest).values())


def with_arena(guest: Guest, size: int) -> None:
    guest.run(f"rmmod optpoline; insmod /lib/modules/optpoline.ko arena_bytes={size}")


def busy_config(guest: Guest) -> GuestConfig:
    return config_of(guest).model_copy(
        update={
            "learning": LearningConfig(epoch_milliseconds=200, census=CensusConfig(enabled=False)),
            "policy": PolicyConfig(mode="opt-in", include=BUSY),
        }
    )


class Run:
    """Runs the daemon until its status has met some conditions, one after the other."""

    def __init__(self, *conditions: Callable[[Status], bool]) -> None:
        self._conditions = list(conditions)
        self._stop = threading.Event()
        self._deadline = time.monotonic() + PATIENCE_SECONDS
        self.statuses: list[Status] = []

    def on(self, guest: Guest) -> RunReport:
        report = serve("test", busy_config(guest), Options(), self._stop, self._show)
        assert not self._conditions, self.statuses[-1]
        return report

    def _show(self, status: Status) -> None:
        if self._stop.is_set():
            return
        self.statuses.append(status)
        arena = status.arena
        assert arena.total_bytes == ARENA_BYTES
        assert arena.used_bytes + arena.retired_bytes <= ARENA_BYTES
        if self._conditions and self._conditions[0](status):
            del self._conditions[0]
        if not self._conditions or time.monotonic() > self._deadline:
            self._stop.set()


def test_the_hottest_sites_get_the_room_and_it_is_said(
    small: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "optpolined")
    with open_session(busy_config(small)) as session:  # with all of the arena
        name = session.survey.symbols.name
        hottest = [name(site) for site in sites_called(session, 40)[:12]]
    with_arena(small, ARENA_BYTES)

    def settled(status: Status) -> bool:
        named = {site.site for site in status.hottest}
        return status.arena.denied >= 3 and len(named.intersection(hottest)) >= 6

    def goes_on(_: Status) -> bool:
        small.run("echo rate 1000 >/proc/optbench; echo run call_1 >/proc/optbench")
        return True

    def has_newcomer(status: Status) -> bool:
        return any(site.site.startswith("optbench_call_1") for site in status.hottest[:3])

    def prefers_the_hot(status: Status) -> bool:
        denied = status.arena.denied_per_second / max(1, status.arena.denied)
        promoted = status.direct_per_second / max(1, status.promoted)
        return status.arena.denied > 0 and promoted > 4 * denied

    report = Run(settled, goes_on, has_newcomer, prefers_the_hot).on(small)
    assert report.text_identical_after_detach
    assert report.arena["degraded"]
    assert report.sites.skipped["arena_full"] == report.arena["denied"] + report.arena["waiting"]
    begins = [record for record in caplog.records if "arena is too small" in record.message]
    assert len(begins) == 1


def test_an_arena_that_cannot_be_is_refused(boot: Callable[..., Guest]) -> None:
    guest = boot(append="noload")
    for size in (100, 4096 + 32, 1 << 30):
        with pytest.raises(GuestCommandError, match="Invalid"):
            guest.run(f"insmod /lib/modules/optpoline.ko arena_bytes={size}")
    assert "arena_bytes must be a multiple of 4096" in guest.run("dmesg")
