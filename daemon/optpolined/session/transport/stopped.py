"""Bytes over the gdbstub, in short stops of all vCPUs."""

from collections.abc import Callable, Sequence
from typing import Protocol

from optpolined.addresses import GuestPhysical
from optpolined.kernel.errors import TranslationError
from optpolined.kernel.paging import AddressSpace
from optpolined.patching.protocol.steps import Write
from optpolined.patching.protocol.transport import (
    UNMAPPED,
    WRITTEN,
    Differs,
    Outcome,
    Transport,
    TransportKind,
)
from optpolined.qemu.errors import OutOfRamError
from optpolined.qemu.memory import PhysicalMemory
from optpolined.session.transport.stops import Stopper

__all__ = ("StoppedTransport",)

_GROUP = 24
"""Writes between two looks at the clock."""

_GAP_BYTES = 64
_SPAN_BYTES = 1024
"""Writes at most this far apart go into one packet of at most this size, gap included."""


class PhysicalWriter(Protocol):
    """What the transport needs of the gdbstub, within a stop."""

    def write(self, writes: Sequence[tuple[GuestPhysical, bytes]]) -> None: ...


class StoppedTransport(Transport):
    """Compares, writes and verifies; each write is made within one stop of at most the budget.

    Addresses are translated within the stop: by the time of the next one a module's page may be
    gone, or may belong to something else.
    """

    kind = TransportKind.STOPPED

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

    def write(self, writes: Sequence[Write]) -> list[Outcome]:
        """Make ``writes`` in as many stops as the budget asks for.

        Close writes share a packet, with what stands between them.

        :raise QemuError: the stub failed; which of the writes were made is then unknown.
        """
        outcomes: list[Outcome] = []
        while len(outcomes) < len(writes):
            of_stop = self._one_stop(writes, len(outcomes))
            self._verify(writes[len(outcomes) : len(outcomes) + len(of_stop)], of_stop)
            outcomes += of_stop
        return outcomes

    def sync(self) -> None:
        """Do nothing: a vCPU that enters the guest after a stop has been serialised."""

    def _one_stop(self, writes: Sequence[Write], start: int) -> list[Outcome]:
        outcomes: list[Outcome] = []
        with self.stopper.stopped() as stopped_at, self._space.snapshot() as pages:
            deadline = stopped_at + self._budget_seconds
            now = self._clock()
            while start + len(outcomes) < len(writes):
                if outcomes and now + self._group_seconds > deadline:
                    break
                position = start + len(outcomes)
                spans = _Spans(self._memory)
                group = writes[position : position + _GROUP]
                outcomes.extend(self._compare(write, pages, spans) for write in group)
                self._writer.write(spans.packets())
                before, now = now, self._clock()
                self._group_seconds = (self._group_seconds + now - before) / 2
        return outcomes

    def _compare(self, write: Write, pages: AddressSpace, spans: "_Spans") -> Outcome:
        try:
            pieces = pages.pieces(write.address, len(write.data))
            found = b"".join(self._memory.read(address, size) for address, size in pieces)
        except (TranslationError, OutOfRamError):
            return UNMAPPED
        if found != write.expect:
            return Differs(found)
        done = 0
        for address, size in pieces:
            spans.add(address, write.data[done : done + size])
            done += size
        return WRITTEN

    def _verify(self, writes: Sequence[Write], outcomes: list[Outcome]) -> None:
        """Read back what was written; what is not there counts as not written."""
        with self._space.snapshot() as pages:
            for number, write in enumerate(writes):
                if outcomes[number] is not WRITTEN:
                    continue
                try:
                    now = pages.read(write.address, len(write.data))
                except TranslationError:
                    outcomes[number] = UNMAPPED
                    continue
                if now != write.data:
                    outcomes[number] = Differs(now)


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
