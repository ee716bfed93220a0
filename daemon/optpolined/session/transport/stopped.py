"""The guest as the poke engine's machine: writes over the gdbstub, cut into short stops."""

from collections.abc import Callable, Sequence
from typing import Protocol

from optpolined.addresses import GuestPhysical
from optpolined.kernel.errors import TranslationError
from optpolined.kernel.paging import AddressSpace
from optpolined.patching.protocol.execute import Machine
from optpolined.patching.protocol.steps import Write
from optpolined.qemu.errors import OutOfRamError
from optpolined.qemu.memory import PhysicalMemory
from optpolined.session.transport.stops import Stopper

__all__ = ("GuestMachine",)

_GROUP = 24
"""Writes between two looks at the clock."""

_GAP_BYTES = 64
_SPAN_BYTES = 1024
"""Writes at most this far apart go into one packet of at most this size, gap included."""


class PhysicalWriter(Protocol):
    """What the machine needs of the gdbstub, within a stop."""

    def write(self, writes: Sequence[tuple[GuestPhysical, bytes]]) -> None: ...


class GuestMachine(Machine):
    """Compare, write and verify, each write within one stop of at most the budget.

    Addresses are translated within the stop: a module's page may be gone, or somebody else's, by
    the time of the next one.
    """

    def __init__(
        self,
        *,
        stopper: Stopper,
        writer: PhysicalWriter,
        memory: PhysicalMemory,
        space: AddressSpace,
        budget_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self.stopper = stopper
        self._writer = writer
        self._memory = memory
        self._space = space
        self._budget_seconds = budget_seconds
        self._clock = clock
        self._group_seconds = budget_seconds / 8

    def write(self, writes: Sequence[Write]) -> list[bytes | None]:
        """See :class:`optpolined.patching.protocol.execute.Machine`.

        :raise QemuError: the stub failed; which of the writes were made is then unknown.
        """
        found: list[bytes | None] = []
        while len(found) < len(writes):
            slice_found = self._one_stop(writes, len(found))
            self._verify(writes[len(found) : len(found) + len(slice_found)], slice_found)
            found += slice_found
        return found

    def _one_stop(self, writes: Sequence[Write], start: int) -> list[bytes | None]:
        found: list[bytes | None] = []
        with self.stopper.stopped() as stopped_at, self._space.snapshot() as pages:
            deadline = stopped_at + self._budget_seconds
            now = self._clock()
            while start + len(found) < len(writes):
                if found and now + self._group_seconds > deadline:
                    break
                position = start + len(found)
                spans = _Spans(self._memory)
                group = writes[position : position + _GROUP]
                found.extend(self._compare(write, pages, spans) for write in group)
                self._writer.write(spans.packets())
                before, now = now, self._clock()
                self._group_seconds = (self._group_seconds + now - before) / 2
        return found

    def _compare(self, write: Write, pages: AddressSpace, spans: "_Spans") -> bytes | None:
        try:
            pieces = pages.pieces(write.address, len(write.data))
            found = b"".join(self._memory.read(address, size) for address, size in pieces)
        except (TranslationError, OutOfRamError):
            return b""
        if found != write.expect:
            return found
        done = 0
        for address, size in pieces:
            spans.add(address, write.data[done : done + size])
            done += size
        return None

    def _verify(self, writes: Sequence[Write], found: list[bytes | None]) -> None:
        """Read back what was written; what is not there counts as not written."""
        with self._space.snapshot() as pages:
            for number, write in enumerate(writes):
                if found[number] is None:
                    try:
                        now = pages.read(write.address, len(write.data))
                    except TranslationError:
                        now = b""
                    if now != write.data:
                        found[number] = now


class _Spans:
    """Collects writes and joins close ones, with what stands between them, into one packet."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory
        self._spans: list[tuple[GuestPhysical, bytearray]] = []

    def add(self, address: GuestPhysical, data: bytes) -> None:
        if self._spans:
            start, span = self._spans[-1]
            gap = address - (start + len(span))
            if 0 <= gap <= _GAP_BYTES and len(span) + gap + len(data) <= _SPAN_BYTES:
                if gap:
                    span += self._memory.read(GuestPhysical(start + len(span)), gap)
                span += data
                return
        self._spans.append((address, bytearray(data)))

    def packets(self) -> list[tuple[GuestPhysical, bytes]]:
        return [(address, bytes(data)) for address, data in self._spans]
