"""A QEMU without a kernel, for the tests."""

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from optpolined.addresses import GuestPhysical
from optpolined.qemu.errors import (
    MonitorAbsentError,
    StubBusyError,
)
from optpolined.qemu.gdbstub import open_stub
from optpolined.qemu.monitor import Monitor
from tests.guest.harness import wait_until

SLACK_SECONDS = 60.0

AT = GuestPhysical(0x400_0000)
"""RAM that the firmware leaves alone."""


@dataclass(frozen=True)
class Qemu:
    pid: int
    directory: Path

    @property
    def qmp(self) -> Path:
        return self.directory / "qmp"

    @property
    def gdb(self) -> Path:
        return self.directory / "gdb"


@contextlib.contextmanager
def started(
    *arguments: str, memory_mib: int = 128, pass_fds: tuple[int, ...] = ()
) -> Iterator[Qemu]:
    """Start a QEMU that cannot outlive the test."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        arguments = arguments or ("-qmp", f"unix:{directory}/qmp,server=on,wait=off")
        command = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"]
        command += ["-accel", "tcg,thread=multi", "-machine", "q35", "-m", str(memory_mib)]
        command += ["-smp", "2", "-display", "none", "-nodefaults", "-no-user-config", *arguments]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=pass_fds) as process:
            try:
                yield Qemu(process.pid, directory)
            finally:
                process.kill()


def connect(qemu: Qemu) -> Monitor:
    return connect_when_there(qemu.qmp)


def connect_when_there(path: Path) -> Monitor:
    """Connect as soon as QEMU has made the socket and listens on it."""

    def look() -> Monitor | None:
        with contextlib.suppress(MonitorAbsentError):
            return Monitor.connect(path, timeout_seconds=SLACK_SECONDS)
        return None

    monitor = wait_until(look, f"QEMU listens on {path}", pause_seconds=0.005)
    assert monitor is not None
    return monitor


def soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SLACK_SECONDS
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.001)
    return met


def runs(monitor: Monitor) -> bool:
    """Wait until the guest runs, because the stub acknowledges before it acts."""
    return soon(lambda: monitor.status() == "running")


def await_free(monitor: Monitor, path: Path) -> None:
    """Wait until QEMU has noticed that the gdbstub's client is gone."""

    def is_free() -> bool:
        with contextlib.suppress(StubBusyError):
            return open_stub(monitor, path) == path
        return False

    assert soon(is_free)
