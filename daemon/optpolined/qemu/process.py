"""Finds the QEMU process behind a QMP socket, and tells whether it still lives.

The kernel names the process that opened the listening socket (SO_PEERCRED).  That is QEMU, except
under libvirt, which opens the socket itself and hands it over.  Then the process that holds the
socket is looked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Protocol, Self

from optpolined.qemu.errors import PermissionDeniedError, ProcessError, ProcessGoneError
from optpolined.qemu.memory import RamRange, is_mapped, ram_ranges
from optpolined.qemu.proc import HOST, Proc

__all__ = ("QemuProcess",)


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
    proc: Proc = field(default=HOST, compare=False, repr=False)

    @classmethod
    def find(cls, monitor: _Monitor, proc: Proc = HOST) -> Self:
        """Find the process that ``monitor`` talks to: a QEMU that has the guest's RAM mapped.

        Where we may not look at its mappings, its name has to do.

        :raise ProcessError: no such process can be seen.
        :raise MemoryMapError: QEMU does not say where the RAM is.
        """
        ranges = ram_ranges(monitor)
        peer = monitor.peer_pid()
        for pid in chain((peer,), proc.holders(monitor.path)):
            start_time = proc.start_time(pid)
            if start_time is not None and _is_qemu(proc, pid) and _may_have(proc, pid, ranges):
                return cls(pid, start_time, proc)
        raise ProcessError(
            f"{monitor.path}: opened by process {peer}, which is not QEMU, and no QEMU is seen to "
            "hold it; run in QEMU's host or container, as root"
        )

    def is_alive(self) -> bool:
        """Return whether it has not ended."""
        return self.proc.start_time(self.pid) == self.start_time


def _is_qemu(proc: Proc, pid: int) -> bool:
    return any("qemu" in name or name == "kvm" for name in proc.names(pid))


def _may_have(proc: Proc, pid: int, ranges: Sequence[RamRange]) -> bool:
    try:
        return is_mapped(pid, ranges, proc)
    except PermissionDeniedError:
        return True
    except ProcessGoneError:
        return False
