"""Opens QEMU's gdbstub at run time, and closes it again."""

import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from optpolined.qemu.errors import StubAbsentError, StubBusyError, one_line

__all__ = ("close_stub", "close_unused_stub", "open_stub")

_LABEL = "gdb"
"""QEMU's name of the gdbstub's character device, however it was opened (gdbserver_start())."""

_UNIX = re.compile(r"(?P<free>disconnected:)?unix:(?P<path>[^,]*)(,.*)?")

_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./@:+-]+")
"""Has nothing that HMP's command line or QEMU's option syntax would take apart."""


class _Monitor(Protocol):
    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object: ...
    def hmp(self, line: str) -> str: ...


def open_stub(monitor: _Monitor, path: Path) -> Path:
    """Make sure that the guest has a gdbstub on a unix socket, without a client.

    A stub that is open and free is taken as it is: the guest was started with it, or a daemon that
    died has left it.  Otherwise a stub is opened at ``path``.  Its directory is made if it is
    absent, and only its owner may enter it, because the socket gives full control over the guest.

    :return: The socket to connect to.
    :raise StubBusyError: a gdb is connected, or the gdbstub is not on a unix socket.
    :raise StubAbsentError: QEMU cannot open it there.
    """
    existing = _existing(monitor)
    if existing is not None:
        return existing
    if not _PLAIN_PATH.fullmatch(str(path)):
        raise StubAbsentError(f"{path}: a gdbstub's path may have letters, digits and _./@:+- only")
    path = path.absolute()
    _check_directory(path.parent)
    said = monitor.hmp(f"gdbserver unix:{path},server=on,wait=off")
    opened = _existing(monitor)
    if opened is None:
        reason = one_line(said) or "no reason given"
        raise StubAbsentError(f"QEMU cannot open a gdbstub at {path}: {reason}")
    return opened


def close_stub(monitor: _Monitor) -> None:
    """Close the gdbstub; a client that is connected is cut off."""
    monitor.hmp("gdbserver none")


def close_unused_stub(monitor: _Monitor, path: Path) -> None:
    """Close the gdbstub at ``path``, if it is there and has no client."""
    with suppress(StubBusyError):
        if _existing(monitor) == path:
            close_stub(monitor)


def _existing(monitor: _Monitor) -> Path | None:
    devices = monitor.execute("query-chardev")
    for device in devices if isinstance(devices, list) else []:
        if not isinstance(device, dict) or device.get("label") != _LABEL:
            continue
        place = one_line(str(device.get("filename")))
        found = _UNIX.fullmatch(place)
        if not found:
            raise StubBusyError(
                f"the guest's gdbstub is on {place}; start it with -gdb unix:..., or without -gdb"
            )
        if not found["free"]:
            raise StubBusyError(
                f"a gdb is connected to the guest's gdbstub, {found['path']}; disconnect it"
            )
        return Path(found["path"])
    return None


def _check_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = directory.stat().st_mode
    except OSError as error:
        raise StubAbsentError(f"{directory}: {error.strerror}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise StubAbsentError(f"{directory}: others may enter it; chmod 0700 {directory}")
