"""One machine for all tests of the unit; it has the guest vm1, which runs and has its module."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.systemd.debian import build
from tests.systemd.machine import Machine

__all__ = ("Service",)

_UNIT = "optpolined@vm1"


@dataclass(slots=True)
class Service:
    """The daemon of the guest vm1, as systemd sees it; what it says is what it said in one test."""

    machine: Machine
    since: int = 0
    """In microseconds, as the journal has it."""

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
    def guest(self) -> str:
        """Whether the guest runs, as QEMU says."""
        return self.machine.run("/usr/libexec/qmp-status")

    def property(self, name: str) -> str:
        return self.machine.run(f"systemctl show {_UNIT} -P {name}")

    def must_be(self, state: str) -> None:
        """Fail, with what was said, where it is in another state."""
        found = self.state
        assert found == state, "\n".join((found, *self.messages()[-40:]))

    def start(self) -> int:
        """Start it, where it does not run; returns its process when calls are made direct."""
        self.machine.run(f"systemctl start {_UNIT}", 600)
        self.machine.until(lambda: self.status.startswith("running: "), "calls are made direct")
        return self.pid

    def comes_back(self, pid: int) -> None:
        """Wait until systemd has started another one than process ``pid``, and it is ready."""
        self.machine.until(
            lambda: self.state == "active" and self.pid not in (0, pid), "is started again", 600
        )

    def events(self, *matches: str) -> list[dict[str, object]]:
        """What the daemon, ExecStopPost, and systemd said of the unit, oldest first."""
        said = self.machine.journal(*(matches or ("-u", _UNIT)))
        return [event for event in said if _microseconds(event) > self.since]

    def messages(self, *matches: str) -> list[str]:
        return [str(event["MESSAGE"]) for event in self.events(*matches)]

    def forget(self) -> None:
        """Leave out what was said before."""
        (last,) = self.machine.journal("-n", "1")
        self.since = _microseconds(last)


def _microseconds(event: dict[str, object]) -> int:
    return int(str(event["__REALTIME_TIMESTAMP"]))


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    with Machine(build()) as booted:
        booted.wait_ready()
        booted.run("systemctl start vm1")
        booted.until(lambda: booted.try_run("grep ready /run/vm1/ready")[0] == 0, "the guest")
        yield booted


@pytest.fixture
def service(machine: Machine) -> Iterator[Service]:
    """Started or not; whatever a test does to the daemon, the guest runs afterwards."""
    made = Service(machine)
    made.forget()
    yield made
    machine.until(lambda: made.guest == "running", "the guest runs, but for short stops", 60)
