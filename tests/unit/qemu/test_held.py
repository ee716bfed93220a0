"""The gdbstub that is given up to a debugger, and taken back."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from optpolined.addresses import GuestPhysical
from optpolined.qemu.errors import StubBusyError, StubReleasedError
from optpolined.qemu.held import HeldStub
from tests.unit.fakes.fake_stub import FakeStub

AT = GuestPhysical(0x1000)


class Monitor:
    """A monitor that knows the gdbstub's character device, and whether the guest runs."""

    def __init__(self, fake: FakeStub) -> None:
        self._fake = fake
        self.opened = False
        self.debugger = False
        self.closed = False

    def execute(self, command: str, _: Mapping[str, object] | None = None) -> object:
        if command == "cont":
            self._fake.cont()
            return {}
        if command == "query-cpus-fast":
            return [{}, {}]
        assert command == "query-chardev"
        if not self.opened:
            return []
        state = "" if self.debugger else "disconnected:"
        return [{"label": "gdb", "filename": f"{state}unix:{self._fake.path},server=on"}]

    def hmp(self, line: str) -> str:
        self.opened = line != "gdbserver none"
        self.closed = not self.opened
        return ""

    def status(self) -> str:
        return "running" if self._fake.running else "paused"


@contextlib.contextmanager
def held(fake: FakeStub, *, is_own: bool = True) -> Iterator[tuple[HeldStub, Monitor]]:
    monitor = Monitor(fake)
    own = fake.path if is_own else fake.path.with_name("own")
    with fake, HeldStub(monitor, own=own, configured=fake.path, timeout_seconds=2) as stub:
        stub.take()
        yield stub, monitor


def test_what_is_released_cannot_be_used_until_it_is_taken_back(path: Path) -> None:
    fake = FakeStub(path)
    with held(fake) as (stub, _):
        assert not stub.is_released
        assert fake.packets.count(b"?") == 2, "removes each vCPU's breakpoints"
        stub.release()
        assert stub.is_released
        assert not fake.physical
        for use in (stub.stop, stub.resume, lambda: stub.read([(AT, 1)]), lambda: stub.write([])):
            with pytest.raises(StubReleasedError):
                use()
        stub.drain()
        stub.release()
        stub.take()
        assert fake.physical
        assert stub.stop()
        stub.write([(AT, b"back")])
        assert stub.read([(AT, 4)]) == [b"back"]
        stub.resume()
        stub.take()


def test_it_is_not_taken_from_a_debugger(path: Path) -> None:
    with held(FakeStub(path)) as (stub, monitor):
        stub.release()
        monitor.debugger = True
        with pytest.raises(StubBusyError, match="a gdb is connected"):
            stub.take()
        assert stub.is_released
    assert not monitor.closed, "the debugger goes on"


def test_a_stub_that_we_opened_is_closed_at_the_end_without_a_client(path: Path) -> None:
    with held(FakeStub(path)) as (_, monitor):
        pass
    assert monitor.closed
    path.unlink(missing_ok=True)
    with held(FakeStub(path)) as (stub, monitor):
        stub.release()
    assert monitor.closed


def test_a_configured_stub_stays_and_takes_virtual_addresses(path: Path) -> None:
    fake = FakeStub(path)
    with held(fake, is_own=False) as (_, monitor):
        assert fake.physical
    assert not fake.physical
    assert not monitor.closed


def test_a_guest_that_was_stopped_silently_by_connecting_is_resumed(path: Path) -> None:
    """QEMU 8.1 and later does not report the stop."""
    fake = FakeStub(path, silent_stops=True)
    with held(fake) as (stub, _):
        assert fake.running
        stub.release()
        deadline = time.monotonic() + 2
        while not fake.running:  # the fake acknowledges ``c`` before it acts on it
            assert time.monotonic() < deadline
        stub.take()
        assert fake.running
