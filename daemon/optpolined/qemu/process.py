"""Finds the QEMU process behind a QMP socket, and tells whether it still lives.

The kernel names who opened the listening socket (SO_PEERCRED).  That is QEMU, except under libvirt,
which opens the socket itself and hands it over; then the process that holds the socket is looked
for.  Sources: unix(7), proc(5).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol, Self

from optpolined.qemu.errors import PermissionDeniedError, ProcessError, ProcessGoneError
from optpolined.qemu.memory import RamRange, is_mapped, ram_ranges

__all__ = ("QemuProcess",)

_PROC = Path("/proc")

_LISTENS = 0x10000
"""__SO_ACCEPTCON among the flags of /proc/net/unix."""

_STATE, _START_TIME = 0, 19
"""Places in /proc/PID/stat, counted after the name in parentheses (fields 3 and 22)."""


class _Monitor(Protocol):
    @property
    def path(self) -> Path: ...
    def peer_pid(self) -> int: ...
    def hmp(self, line: str) -> str: ...


@dataclass(frozen=True, slots=True)
class QemuProcess:
    """A process, told apart from later ones of the same pid by its start.

    ``start_time`` is in clock ticks since the host's boot.
    """

    pid: int
    start_time: int

    @classmethod
    def find(cls, monitor: _Monitor) -> Self:
        """Find the process that ``monitor`` talks to: a QEMU that has the guest's RAM mapped.

        Where we may not look at its mappings, its name has to do.

        :raise ProcessError: there is none that we can see.
        :raise MemoryMapError: QEMU does not say where the RAM is.
        """
        ranges = ram_ranges(monitor)
        peer = monitor.peer_pid()
        for pid in chain((peer,), _holders(monitor.path)):
            start_time = _start_time(pid)
            if start_time is not None and _is_qemu(pid) and _may_have(pid, ranges):
                return cls(pid, start_time)
        raise ProcessError(
            f"{monitor.path}: opened by process {peer}, which is not QEMU, and no QEMU is seen to "
            "hold it; run in QEMU's host or container, as root"
        )

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return _start_time(self.pid) == self.start_time


def _start_time(pid: int) -> int | None:
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[_STATE] in ("Z", "X") else int(fields[_START_TIME])


def _is_qemu(pid: int) -> bool:
    names = []
    try:
        names.append((_PROC / str(pid) / "comm").read_text(encoding="utf-8", errors="replace"))
        names.append((_PROC / str(pid) / "exe").readlink().name)
    except OSError:
        pass  # Only its user and root may see exe.
    return any("qemu" in name or name.strip() == "kvm" for name in names)


def _may_have(pid: int, ranges: Sequence[RamRange]) -> bool:
    try:
        return is_mapped(pid, ranges)
    except PermissionDeniedError:
        return True
    except ProcessGoneError:
        return False


def _holders(path: Path) -> Iterator[int]:
    """The processes that have a socket open that listens at ``path``."""
    links = {f"socket:[{inode}]" for inode in _inodes(path)}
    if not links:
        return
    for entry in _PROC.iterdir():
        if not re.fullmatch(r"\d+", entry.name):
            continue
        try:
            if any(str(link.readlink()) in links for link in (entry / "fd").iterdir()):
                yield int(entry.name)
        except OSError:
            continue


def _inodes(path: Path) -> Iterator[int]:
    names = {str(path), str(path.absolute()), str(path.resolve())}
    try:
        text = (_PROC / "net/unix").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7] in names and int(fields[3], 16) & _LISTENS:
            yield int(fields[6])
