"""What the service manager is told, over a real socket."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from optpolined.api.status import DaemonPhase, Status
from optpolined.telemetry.notify import Notifier, one_line, summary


class Manager:
    """The manager's end."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self.now = 0.0
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(0)
        self.socket.bind(self.address)

    def heard(self) -> list[list[str]]:
        """The messages since the last look, each as its lines."""
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode().split("\n"))
            except BlockingIOError:
                return messages

    def notifier(self, watchdog_seconds: float | None = 60.0) -> Notifier:
        return Notifier(self.address, watchdog_seconds=watchdog_seconds, clock=lambda: self.now)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    with made.socket:
        yield made


def test_nothing_is_sent_without_a_manager() -> None:
    notifier = Notifier.from_environment({})
    notifier.ready()
    notifier.alive()
    with notifier.reloading():
        pass
    assert not notifier.is_watched


def test_the_environment_names_the_manager_and_is_not_inherited(manager: Manager) -> None:
    environment = {
        "NOTIFY_SOCKET": manager.address,
        "WATCHDOG_USEC": "60000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/",
    }
    notifier = Notifier.from_environment(environment)
    assert environment == {"HOME": "/"}
    assert notifier.is_watched
    notifier.ready()
    assert manager.heard() == [["READY=1"]]


@pytest.mark.parametrize(
    "watchdog",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
    ],
)
def test_a_watchdog_of_another_process(manager: Manager, watchdog: dict[str, str]) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.address} | watchdog)
    assert not notifier.is_watched


def test_pings_come_at_half_the_watchdogs_time_however_often_progress_is_reported(
    manager: Manager,
) -> None:
    notifier = manager.notifier(watchdog_seconds=10.0)
    notifier.ready()
    manager.heard()
    told = []
    for manager.now in (tenth / 10 for tenth in range(200)):
        notifier.alive()
        told += [manager.now] * len(manager.heard())
    assert told == [0.0, 5.0, 10.0, 15.0]


def test_progress_extends_the_deadline_of_start_and_stop_only(manager: Manager) -> None:
    notifier = manager.notifier()
    steps: list[tuple[Callable[[], None], bool]] = [
        (lambda: None, True),
        (notifier.ready, False),
        (notifier.stopping, True),
    ]
    for step, extends in steps:
        step()
        manager.heard()
        manager.now += 31.0
        notifier.alive()
        assert manager.heard() == [["EXTEND_TIMEOUT_USEC=60000000" if extends else "WATCHDOG=1"]]


def test_a_status_is_sent_when_it_changes_and_cannot_add_lines(manager: Manager) -> None:
    notifier = manager.notifier()
    for text in ("attaching", "attaching", "evil\nREADY=1"):
        notifier.send_status(text)
    assert manager.heard() == [["STATUS=attaching"], ["STATUS=evil\\nREADY=1"]]


def test_a_reload_ends_with_ready_even_where_it_fails(manager: Manager) -> None:
    def reload() -> None:
        with manager.notifier().reloading():
            ((reloading, when),) = manager.heard()
            assert reloading == "RELOADING=1"
            assert when.startswith("MONOTONIC_USEC=")
            assert when.removeprefix("MONOTONIC_USEC=").isdecimal()
            raise OSError("no file")

    with pytest.raises(OSError, match="no file"):
        reload()
    assert manager.heard() == [["READY=1"]]


def test_a_manager_that_is_gone_is_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Notifier(str(tmp_path / "absent")).ready()
    assert "the service manager cannot be reached" in caplog.text


def test_an_abstract_address() -> None:
    name = f"optpolined-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        Notifier(f"@{name}").ready()
        assert listener.recv(64) == b"READY=1"


def test_the_summary_and_what_is_kept_on_its_line() -> None:
    status = Status("vm1", DaemonPhase.LEARNING, eligible=7865)
    assert summary(status) == "learning: 7,865 sites, 0 promoted"
    status = Status(
        "vm1", DaemonPhase.RUNNING, eligible=7865, targets_histogram={1: 227}, coverage=0.98
    )
    said = "running: 7,865 sites, 227 promoted, 98% of calls direct"
    assert summary(status) == said
    assert one_line("a\x1b[31m\u2028b\tc") == "a\\x1b[31m\\u2028b\\tc"
    assert one_line(said) is said
