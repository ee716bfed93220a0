"""One machine for all tests of the unit; it has the guest vm1, which runs and has its module."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.systemd.debian import build
from tests.systemd.machine import Machine

__all__ = ("Service",)

_UNIT = "optpolined@vm1"


@dataclass(frozen=True, slots=True)
class Service:
    """The daemon of the guest vm1, as systemd sees it."""

    machine: Machine

    @property
    def state(self) -> str:
        return self.property("ActiveState")

    @property
    def status(self) -> str:
        return self.property("StatusText")

    @property
    def pid(self) -> int:
        return int(self.property("MainPID"))

    @property
    def restarts(self) -> int:
        return int(self.property("NRestarts"))

    @property
    def guest(self) -> str:
        """Whether the guest runs, as QEMU says."""
        return self.machine.run("/usr/libexec/qmp-status")

    def property(self, name: str) -> str:
        return self.machine.run(f"systemctl show {_UNIT} -P {name}")

    def start(self) -> None:
        """Start it, where it does not run; returns when it is ready."""
        self.machine.run(f"systemctl start {_UNIT}", timeout_seconds=600)
        assert self.state == "active"

    def stop(self) -> None:
        self.machine.run(f"systemctl stop {_UNIT}; systemctl reset-failed {_UNIT}", 600)

    def messages(self) -> list[str]:
        """What daemon, ExecStopPost and systemd said of it, oldest first."""
        return [str(entry["MESSAGE"]) for entry in self.machine.journal("-u", _UNIT)]

    def forget(self) -> None:
        """Begin the journal anew."""
        self.machine.run("journalctl -q --rotate && journalctl -q --vacuum-time=1s; sleep 1")

    def comes_back(self, restarts: int) -> None:
        """Wait until systemd has started it again, and it is ready."""
        self.machine.until(
            lambda: self.restarts > restarts and self.state == "active", "is started again"
        )


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    with Machine(build()) as booted:
        booted.wait_ready()
        booted.run("systemctl start vm1")
        booted.until(lambda: booted.try_run("grep ready /run/vm1/ready")[0] == 0, "the guest")
        yield booted


@pytest.fixture
def service(machine: Machine) -> Iterator[Service]:
    """Not started; stopped afterwards, whatever became of it."""
    made = Service(machine)
    made.forget()
    yield made
    made.stop()
    assert made.guest == "running"
