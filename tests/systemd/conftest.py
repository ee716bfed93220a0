"""One machine for all tests of the unit; its guest vm1 runs and has its module loaded."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.systemd.debian import build
from tests.systemd.machine import Machine

__all__ = ("Service",)

_UNIT = "optpolined@vm1"


@dataclass(slots=True)
class Service:
    """The daemon of the guest vm1, as systemd sees it, with the journal of one test."""

    machine: Machine
    since: int = 0
    """In microseconds, as in the journal."""

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
        """Return whether the guest runs, according to QEMU."""
        return self.machine.run("/usr/libexec/qmp-status")

    def property(self, name: str) -> str:
        return self.machine.run(f"systemctl show {_UNIT} -P {name}")

    def must_not_be(self, state: str) -> None:
        """Fail with the journal if the unit is in ``state``."""
        assert self.state != state, "\n".join((state, *self.messages()[-40:]))

    def comes_to(self, state: str) -> None:
        """Wait until the unit is in ``state``: it passes through others on its way."""
        self.machine.until(lambda: self.state == state, f"the unit is {state}", 600)

    def says(self, pattern: str) -> None:
        """Wait until a line of the unit's journal matches: it can be written after the event."""
        matches = re.compile(pattern).search
        self.machine.until(lambda: any(map(matches, self.messages())), f"the journal has {pattern}")

    def start(self) -> int:
        """Start the daemon if it does not run; return its process when some calls are direct."""
        self.machine.run(f"systemctl start {_UNIT}", 600)
        self.machine.until(lambda: self.status.startswith("running: "), "calls are made direct")
        return self.pid

    def comes_back(self, pid: int) -> None:
        """Wait until systemd has started a daemon other than process ``pid``, and it is ready."""
        self.machine.until(
            lambda: self.state == "active" and self.pid not in (0, pid), "is started again", 600
        )

    def events(self, *matches: str) -> list[dict[str, object]]:
        """Return what the daemon, ExecStopPost and systemd logged of the unit, oldest first."""
        said = self.machine.journal(*(matches or ("-u", _UNIT)))
        return [event for event in said if _microseconds(event) > self.since]

    def messages(self, *matches: str) -> list[str]:
        return [str(event["MESSAGE"]) for event in self.events(*matches)]

    def leave_out_earlier_entries(self) -> None:
        """Start the journal of one test after its newest entry."""
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
    """Yield the daemon, started or not; afterwards the guest must run."""
    made = Service(machine)
    made.leave_out_earlier_entries()
    yield made
    machine.until(lambda: made.guest == "running", "the guest runs, but for short stops", 60)
