"""Writes that are prepared while the guest runs, so that a stop only compares and sends.

    prepared = prepare(writes, pages, memory)    # the guest runs: translate, read, lay out packets
    ...                                          # the guest stops
    prepared.units[n].compare(memory)            # one read a span; the packets lie ready

A *span* is a physical range that one packet writes: a write, or several that are close, with the
bytes between them.  A *unit* is what is compared as a whole before any of it is written: mostly one
span.  A write that crosses into a page that is not adjacent is a unit of two.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from optpolined.addresses import GuestPhysical
from optpolined.kernel.errors import TranslationError
from optpolined.kernel.paging import AddressSpace
from optpolined.patching.protocol.steps import Write
from optpolined.patching.protocol.transport import UNMAPPED, WRITTEN, Differs, Outcome
from optpolined.qemu.errors import OutOfRamError
from optpolined.qemu.memory import PhysicalMemory

__all__ = ("Packet", "Unit", "prepare")

_GAP_BYTES = 64
_SPAN_BYTES = 1024
"""Writes at most this far apart go into one packet of at most this size, gap included."""

Packet = tuple[GuestPhysical, bytes]


@dataclass(slots=True)
class _Span:
    start: GuestPhysical
    size: int
    before: bytes = b""
    """What stood there when the span was prepared."""


@dataclass(frozen=True, slots=True)
class _Part:
    """The bytes of a write in a span: ``offset`` in the span, ``done`` in the write."""

    span: int
    offset: int
    done: int
    size: int


@dataclass(slots=True)
class Unit:
    """Writes that are compared together; a unit without spans holds one write that is unmapped."""

    writes: list[Write] = field(default_factory=list)
    _parts: list[list[_Part]] = field(default_factory=list)
    _spans: list[_Span] = field(default_factory=list)
    _expected: tuple[list[Outcome], list[Packet]] = ([], [])

    def compare(self, memory: PhysicalMemory) -> tuple[list[Outcome], list[Packet]]:
        """Read what stands there now: the outcome of each write, and the packets that make them.

        To be called within the stop in which the packets are sent.

        :raise QemuError: the guest's memory cannot be read at all.
        """
        try:
            now = [memory.read(span.start, span.size) for span in self._spans]
        except OutOfRamError:  # it was unplugged meanwhile
            now = []
        if not now:
            return [UNMAPPED] * len(self.writes), []
        if all(data == span.before for data, span in zip(now, self._spans, strict=True)):
            return self._expected
        return self._laid_out(now)

    def _laid_out(self, now: Sequence[bytes]) -> tuple[list[Outcome], list[Packet]]:
        after = [bytearray(data) for data in now]
        outcomes: list[Outcome] = []
        touched: set[int] = set()
        for write, parts in zip(self.writes, self._parts, strict=True):
            found = b"".join(
                now[part.span][part.offset : part.offset + part.size] for part in parts
            )
            if found != write.expect:
                outcomes.append(Differs(found))
                continue
            outcomes.append(WRITTEN)
            for part in parts:
                data = write.data[part.done : part.done + part.size]
                after[part.span][part.offset : part.offset + part.size] = data
                touched.add(part.span)
        packets = [(self._spans[number].start, bytes(after[number])) for number in sorted(touched)]
        return outcomes, packets

    def is_mapped(self) -> bool:
        """Whether its writes lie in RAM."""
        return bool(self._spans)

    def takes(self, start: GuestPhysical, size: int) -> bool:
        """Whether a write of one piece may join the only span, behind what it has."""
        if len(self._spans) != 1:
            return False
        span = self._spans[0]
        gap = start - (span.start + span.size)
        return 0 <= gap <= _GAP_BYTES and span.size + gap + size <= _SPAN_BYTES

    def add(self, write: Write, pieces: Iterable[tuple[GuestPhysical, int]]) -> None:
        """Take in a write, whose bytes lie in ``pieces``."""
        parts = []
        done = 0
        for start, size in pieces:
            if self.takes(start, size):
                self._spans[0].size = start + size - self._spans[0].start
            else:
                self._spans.append(_Span(start, size))
            number = len(self._spans) - 1
            parts.append(_Part(number, start - self._spans[number].start, done, size))
            done += size
        self.writes.append(write)
        self._parts.append(parts)

    def read_ahead(self, memory: PhysicalMemory) -> None:
        """Lay out the packets by what stands there now, which a stop will mostly find again."""
        for span in self._spans:
            span.before = memory.read(span.start, span.size)
        self._expected = self._laid_out([span.before for span in self._spans])


def prepare(writes: Sequence[Write], pages: AddressSpace, memory: PhysicalMemory) -> list[Unit]:
    """Lay out ``writes``, in order, by the page tables of ``pages``.

    :raise QemuError: the guest's memory cannot be read at all.
    """
    units: list[Unit] = []
    for write in writes:
        try:
            pieces = pages.pieces(write.address, len(write.data))
            for start, size in pieces:
                memory.read(start, size)
        except (TranslationError, OutOfRamError):
            units.append(Unit([write]))
            continue
        if not (units and len(pieces) == 1 and units[-1].takes(*pieces[0])):
            units.append(Unit())
        units[-1].add(write, pieces)
    for unit in filter(Unit.is_mapped, units):
        unit.read_ahead(memory)
    return units
