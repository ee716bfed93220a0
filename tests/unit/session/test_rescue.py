"""A guest is resumed where a dead daemon left it stopped, and only there."""

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from optpolined.config import GuestConfig, QemuConfig
from optpolined.qemu.errors import MonitorBusyError
from optpolined.qemu.process import QemuProcess
from optpolined.qemu.stopnote import StopNote, note_path
from optpolined.session.lock import held
from optpolined.session.rescue import rescue, was_rescued
from tests.unit.fakes.fake_monitor import FakeMonitor

PROCESS = QemuProcess(pid=7, start_time=100)
NOTHING = "nothing to resume: "


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Iterator[GuestConfig]:
    monkeypatch.setattr(QemuProcess, "find", lambda _: PROCESS)
    with tempfile.TemporaryDirectory() as directory:
        yield GuestConfig(
            qemu=QemuConfig(qmp_socket=Path(directory) / "qmp", answer_timeout_seconds=0.3),
            runtime_directory=Path(directory) / "run",
        )


def leave(config: GuestConfig, *, pid: int = PROCESS.pid, start_time: int = 100) -> Path:
    """Leave the note of a daemon that died in a stop."""
    config.runtime_directory.mkdir(exist_ok=True)
    path = note_path(config.runtime_directory, pid)
    with StopNote.create(path, start_time) as note:
        note.set()
    return path


def test_what_a_dead_daemon_left_stopped_is_resumed_once(config: GuestConfig) -> None:
    note = leave(config)
    with FakeMonitor(config.qemu.qmp_socket, status="paused") as fake:
        assert rescue(config).startswith("resumed: ")
        assert fake.status == "running"
        fake.status = "paused"
        assert rescue(config).startswith(NOTHING)
        assert fake.status == "paused"
    # The next daemon counts it, once.
    assert was_rescued(PROCESS, config.runtime_directory)
    assert not note.exists()
    assert not was_rescued(PROCESS, config.runtime_directory)


@pytest.mark.parametrize("status", ["running", "inmigrate", "shutdown"])
def test_a_guest_that_is_not_paused_is_left_alone(config: GuestConfig, status: str) -> None:
    note = leave(config)
    with FakeMonitor(config.qemu.qmp_socket, status=status) as fake:
        assert rescue(config).startswith(NOTHING)
        assert "cont" not in fake.commands
        assert not note.exists()


def test_without_a_note_qemu_is_not_asked(config: GuestConfig) -> None:
    assert rescue(config).startswith(NOTHING)


def test_a_guest_that_a_daemon_serves_is_left_alone(config: GuestConfig) -> None:
    leave(config)
    with (
        FakeMonitor(config.qemu.qmp_socket, status="paused") as fake,
        held(config.runtime_directory, PROCESS.pid),
    ):
        assert rescue(config).startswith(NOTHING)
        assert fake.status == "paused"


@pytest.mark.parametrize("of_another", [{"pid": 8}, {"start_time": 99}])
def test_a_note_about_another_qemu_does_not_count(
    config: GuestConfig, of_another: dict[str, int]
) -> None:
    leave(config, **of_another)
    with FakeMonitor(config.qemu.qmp_socket, status="paused") as fake:
        assert rescue(config).startswith(NOTHING)
        assert fake.status == "paused"


def test_where_qemu_has_ended_there_is_nothing_to_resume(config: GuestConfig) -> None:
    leave(config)
    assert "no such socket" in rescue(config)


def test_a_monitor_that_another_client_holds_is_an_error_and_the_note_stays(
    config: GuestConfig,
) -> None:
    note = leave(config)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(config.qemu.qmp_socket))
        deaf.listen()
        with pytest.raises(MonitorBusyError):
            rescue(config)
    assert note.exists()
