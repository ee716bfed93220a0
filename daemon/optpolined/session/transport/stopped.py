"""Bytes over the gdbstub, in short stops of all vCPUs."""

from collections.abc import Callable, Sequence
from typing import Protocol

from optpolined.addresses import GuestPhysical
from optpolined.kernel.errors import TranslationError
from optpolined.kernel.paging import AddressSpace, Snapshot
from optpolined.patching.protocol.steps import Write
from optpolined.patching.protocol.transport import (
    UNMAPPED,
    WRITTEN,
    Differs,
    Outcome,
    Transport,
    TransportKind,
)
from optpolined.qemu.memory import PhysicalMemory
from optpolined.session.transport.prepared import Packet, Unit, prepare
from optpolined.session.transport.stops import Stopper

__all__ = ("StoppedTransport",)

_GROUP = 32
"""Units between two looks at the clock."""

_STALE_TRIES = 3
"""So often the page tables may change between step 1 and step 2; then one stop does both."""


class PhysicalWriter(Protocol):
    """What the transport needs of the gdbstub, within a stop."""

    def write(self, writes: Sequence[tuple[GuestPhysical, bytes]]) -> None: ...


class StoppedTransport(Transport):
    """Compares, writes and verifies; each write is made within one stop of at most the budget.

    A stop costs the guest time on every vCPU, so it holds only what must be in it:

    1. The guest runs: translate the addresses, read what stands there, lay out the packets
       (`prepared.py`).
    2. The guest stops: see that the page-table entries used in step 1 still stand, because by now a
       module's page may be gone, or may belong to something else.
    3. Compare, and send the packets of what is as expected.
    4. The guest runs: read back.
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
        stale = 0
        while len(outcomes) < len(writes):
            start = len(outcomes)
            if stale == _STALE_TRIES:
                outcomes.append(self._all_in_stop(writes[start]))
            else:
                self._make(writes[start:], outcomes)
            stale = 0 if len(outcomes) > start else stale + 1
            self._verify(writes[start : len(outcomes)], outcomes, start)
        return outcomes

    def _make(self, writes: Sequence[Write], outcomes: list[Outcome]) -> None:
        """Prepare ``writes`` once, and make them in stops until the page tables change."""
        with self._space.snapshot() as tables:
            units = prepare(writes, tables, self._memory)
            tables.freeze()
            while units and (done := self._one_stop(units, tables, outcomes)):
                del units[:done]

    def sync(self) -> None:
        """Do nothing: a vCPU that enters the guest after a stop has been serialised."""

    def _one_stop(self, units: Sequence[Unit], tables: Snapshot, outcomes: list[Outcome]) -> int:
        """Make as many of ``units`` as the budget allows; return how many.

        None is made where the page tables have changed since ``tables`` was taken.
        """
        done = 0
        with self.stopper.stopped() as stopped_at:
            if not tables.is_current():
                return 0
            deadline = stopped_at + self._budget_seconds
            now = self._clock()
            while done < len(units) and not (done and now + self._group_seconds > deadline):
                packets: list[Packet] = []
                for unit in units[done : done + _GROUP]:
                    of_unit, its_packets = unit.compare(self._memory)
                    outcomes += of_unit
                    packets += its_packets
                    done += 1
                if packets:
                    self._writer.write(packets)
                before, now = now, self._clock()
                self._group_seconds = (self._group_seconds + now - before) / 2
        return done

    def _all_in_stop(self, write: Write) -> Outcome:
        """Translate, compare and write within one stop: right however often the tables change."""
        with self.stopper.stopped(), self._space.snapshot() as tables:
            (unit,) = prepare([write], tables, self._memory)
            (outcome,), packets = unit.compare(self._memory)
            if packets:
                self._writer.write(packets)
        return outcome

    def _verify(self, writes: Sequence[Write], outcomes: list[Outcome], start: int) -> None:
        """Read back what was written; what is not there counts as not written.

        ``outcomes[start]`` is that of the first of ``writes``.
        """
        with self._space.snapshot() as pages:
            for number, write in enumerate(writes, start):
                if outcomes[number] is not WRITTEN:
                    continue
                try:
                    now = pages.read(write.address, len(write.data))
                except TranslationError:
                    outcomes[number] = UNMAPPED
                    continue
                if now != write.data:
                    outcomes[number] = Differs(now)
