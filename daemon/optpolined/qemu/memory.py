"""The guest's physical memory, read from outside.

:class:`ProcessMemory` reads the memory of the QEMU process, which costs the guest nothing.  Where
the host does not allow that, :class:`StubMemory` reads over the gdbstub, in short stops.
"""

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from optpolined.addresses import GuestPhysical, HostVirtual
from optpolined.qemu.errors import (
    HmpFormatError,
    MemoryMapError,
    OutOfRamError,
    ProcessGoneError,
)
from optpolined.qemu.hmp import parse_flat_view, parse_host_address
from optpolined.qemu.proc import HOST, Proc

__all__ = (
    "PhysicalMemory",
    "ProcessMemory",
    "RamRange",
    "StubMemory",
    "is_mapped",
    "ram_ranges",
)

_PHYSICAL_END = 1 << 52
_USER_END = 1 << 56
"""No user-space address is larger, with 5 levels of page tables."""

_RANGES_MAX = 4096

_STOP_BYTES = 0x4000
"""What StubMemory reads in one stop of its own: a fraction of a millisecond."""


class _Hmp(Protocol):
    def hmp(self, line: str) -> str: ...


class _Process(Protocol):
    @property
    def pid(self) -> int: ...


class _Stub(Protocol):
    @property
    def in_stop(self) -> bool: ...
    def stop(self) -> bool: ...
    def resume(self) -> None: ...
    def read(self, requests: Sequence[tuple[GuestPhysical, int]]) -> list[bytes]: ...


@dataclass(frozen=True, slots=True)
class RamRange:
    """``size`` bytes of guest RAM from ``start``, which the QEMU process has at ``host``."""

    start: GuestPhysical
    size: int
    host: HostVirtual

    @property
    def end(self) -> GuestPhysical:
        """The address after the last byte."""
        return GuestPhysical(self.start + self.size)


class PhysicalMemory(Protocol):
    """A way to read guest-physical memory."""

    def read(self, address: GuestPhysical, size: int) -> bytes:
        """Read ``size`` bytes.

        :raise OutOfRamError: not all of it is RAM.
        :raise QemuError: QEMU is gone, or the way to it failed.
        """


def ram_ranges(monitor: _Hmp) -> list[RamRange]:
    """Ask QEMU where the guest's RAM is, in ascending order.

    A range of ``info mtree -f`` is taken if ``gpa2hva`` agrees that its first and last byte lie in
    one piece of the QEMU process.

    :raise MemoryMapError: QEMU names no RAM, or what it says makes no sense.
    """
    try:
        found = _found_ranges(monitor)
    except HmpFormatError as error:
        raise MemoryMapError(f"QEMU names no RAM of the guest: {error}") from error
    if not found:
        raise MemoryMapError("QEMU names no RAM of the guest")
    return found


def _found_ranges(monitor: _Hmp) -> list[RamRange]:
    found: list[RamRange] = []
    printed = parse_flat_view(monitor.hmp("info mtree -f"))
    if len(printed) > _RANGES_MAX:
        raise MemoryMapError(f"the guest's RAM is in more than {_RANGES_MAX} pieces")
    for start, printed_size in printed:
        size = min(printed_size, _PHYSICAL_END - start)
        if size <= 0:
            continue
        if found and start < found[-1].end:
            raise MemoryMapError("QEMU's list of the guest's RAM is not in order")
        first, last = _host(monitor, start), _host(monitor, GuestPhysical(start + size - 1))
        # Between the two questions the guest may remap what is not system RAM, such as the memory
        # of a video card.
        if first is not None and last is not None and last - first == size - 1:
            found.append(RamRange(start, size, first))
    return found


def is_mapped(pid: int, ranges: Sequence[RamRange], proc: Proc = HOST) -> bool:
    """Return whether process ``pid`` has all of ``ranges`` mapped and readable.

    :raise PermissionDeniedError: we may not look.
    :raise ProcessGoneError: there is no such process.
    """
    mappings = proc.mappings(pid)
    return all(
        any(start <= item.host and item.host + item.size <= end for start, end in mappings)
        for item in ranges
    )


class ProcessMemory:
    """Guest RAM in the memory of the QEMU process; reading it never stops the guest.

    Two bytes of one read need not be of the same moment.
    """

    def __init__(self, process: _Process, ranges: Sequence[RamRange], proc: Proc = HOST) -> None:
        """Open the memory of ``process``.

        :raise PermissionDeniedError: CAP_SYS_PTRACE is missing, or QEMU is another user's.
        :raise ProcessGoneError: it has ended.
        :raise MemoryMapError: it does not have ``ranges`` mapped.
        """
        self._ranges = _Ranges(ranges)
        if not is_mapped(process.pid, ranges, proc):
            raise MemoryMapError(f"process {process.pid} does not have the guest's RAM mapped")
        self._memory = proc.open_memory(process.pid)

    def read(self, address: GuestPhysical, size: int) -> bytes:
        """See :meth:`PhysicalMemory.read`."""
        pieces = [
            self._pread(item.host + (start - item.start), count)
            for item, start, count in self._ranges.pieces(address, size)
        ]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Close the file; after this, nothing can be read.  A second call does nothing."""
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1

    def _pread(self, host: int, size: int) -> bytes:
        try:
            data = os.pread(self._memory, size, host)
            # One call gives 2 GiB at most, and less where a signal comes.
            while 0 < len(data) < size:
                more = os.pread(self._memory, size - len(data), host + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise ProcessGoneError(f"QEMU's memory cannot be read: {error.strerror}") from error
        if len(data) != size:
            raise ProcessGoneError("the QEMU process has ended")
        return data


class StubMemory:
    """Guest RAM over the gdbstub.

    Within a stop it reads at once.  Outside, it stops the guest for at most 16 KiB at a time.
    """

    def __init__(self, stub: _Stub, ranges: Sequence[RamRange]) -> None:
        self._stub = stub
        self._ranges = _Ranges(ranges)

    def read(self, address: GuestPhysical, size: int) -> bytes:
        """See :meth:`PhysicalMemory.read`.

        :raise ResumedError: something else resumed the guest in the middle; another try may
            succeed.
        """
        pieces = [(start, count) for _, start, count in self._ranges.pieces(address, size)]
        if self._stub.in_stop:
            return b"".join(self._stub.read(pieces))
        return b"".join(
            self._read_in_stop(GuestPhysical(start + done), min(_STOP_BYTES, count - done))
            for start, count in pieces
            for done in range(0, count, _STOP_BYTES)
        )

    def _read_in_stop(self, address: GuestPhysical, size: int) -> bytes:
        self._stub.stop()
        try:
            return self._stub.read([(address, size)])[0]
        finally:
            self._stub.resume()


class _Ranges:
    """Ranges of RAM, to look addresses up in."""

    def __init__(self, ranges: Sequence[RamRange]) -> None:
        self.ranges = tuple(sorted(ranges, key=lambda item: item.start))
        self._starts = [item.start for item in self.ranges]

    def pieces(
        self, address: GuestPhysical, size: int
    ) -> list[tuple[RamRange, GuestPhysical, int]]:
        """Cut a span at the ends of ranges: the range, the address and the bytes of each piece.

        :raise OutOfRamError: not all of it is RAM.
        """
        found = []
        at, left = address, size
        while left > 0:
            number = bisect_right(self._starts, at) - 1
            if number < 0 or at >= self.ranges[number].end:
                raise OutOfRamError(address, size)
            item = self.ranges[number]
            count = min(left, item.end - at)
            found.append((item, at, count))
            at, left = GuestPhysical(at + count), left - count
        if left < 0:
            raise OutOfRamError(address, size)
        return found


def _host(monitor: _Hmp, address: GuestPhysical) -> HostVirtual | None:
    """Return where the QEMU process has ``address``; ``None`` where it is not RAM."""
    host = parse_host_address(monitor.hmp(f"gpa2hva {address:#x}"))
    return host if host is None or host < _USER_END else None
