"""Opening the gdbstub through the monitor."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from optpolined.qemu.errors import StubAbsentError, StubBusyError
from optpolined.qemu.stub_setup import close_stub, open_stub


class Chardevs:
    """A monitor that knows character devices, as QEMU 7.2 lists them."""

    def __init__(self, *filenames: str, refusal: str = "") -> None:
        self.devices: list[object] = [{"label": "compat_monitor0", "filename": "unix:/q,server=on"}]
        self.devices += [{"label": "gdb", "filename": name} for name in filenames]
        self.lines: list[str] = []
        self.refusal = refusal

    def execute(self, command: str, _: Mapping[str, object] | None = None) -> object:
        assert command == "query-chardev"
        return self.devices

    def hmp(self, line: str) -> str:
        self.lines.append(line)
        if self.refusal:
            return self.refusal
        device = line.removeprefix("gdbserver ").removesuffix(",wait=off")
        self.devices.append({"label": "gdb", "filename": f"disconnected:{device}"})
        return f"Waiting for gdb connection on device '{device}'\r\n"


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def test_a_stub_is_opened_in_a_directory_for_its_owner_alone(directory: Path) -> None:
    monitor, path = Chardevs(), directory / "new" / "gdb"
    assert open_stub(monitor, path) == path
    assert monitor.lines == [f"gdbserver unix:{path},server=on,wait=off"]
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_others_may_enter_is_refused(directory: Path) -> None:
    directory.chmod(0o710)
    monitor = Chardevs()
    with pytest.raises(StubAbsentError, match="chmod 0700"):
        open_stub(monitor, directory / "gdb")
    assert not monitor.lines


def test_a_free_stub_that_is_there_already_is_taken(directory: Path) -> None:
    monitor = Chardevs("disconnected:unix:/run/vm1/gdb,server=on")
    assert open_stub(monitor, directory / "gdb") == Path("/run/vm1/gdb")
    assert not monitor.lines


@pytest.mark.parametrize(
    "filename",
    [
        "unix:/run/vm1/gdb,server=on",
        "unix:/run/vm1/gdb",
        "disconnected:tcp::1234,server=on",
        "stdio",
    ],
)
def test_a_stub_that_a_debugger_uses_is_left_alone(directory: Path, filename: str) -> None:
    monitor = Chardevs(filename)
    with pytest.raises(StubBusyError):
        open_stub(monitor, directory / "gdb")
    assert not monitor.lines


@pytest.mark.parametrize("name", ["a b", "a,b", 'a"b', "a\nb", "a'b", "a$b"])
def test_a_path_that_qemu_would_take_apart_is_refused(directory: Path, name: str) -> None:
    monitor = Chardevs()
    with pytest.raises(StubAbsentError, match="letters"):
        open_stub(monitor, directory / name)
    assert not monitor.lines


def test_qemus_reason_is_told(directory: Path) -> None:
    monitor = Chardevs(refusal="Failed to bind socket:\r\nPermission denied\r\n")
    with pytest.raises(StubAbsentError, match="bind socket: Permission denied"):
        open_stub(monitor, directory / "gdb")


def test_a_directory_that_cannot_be_made_is_told(directory: Path) -> None:
    (directory / "file").touch()
    with pytest.raises(StubAbsentError, match="file"):
        open_stub(Chardevs(), directory / "file" / "gdb")


def test_closing_closes() -> None:
    monitor = Chardevs()
    close_stub(monitor)
    assert monitor.lines == ["gdbserver none"]
