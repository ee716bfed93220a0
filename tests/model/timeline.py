"""What the daemon did, cut into moments: points at which it may be slow, or die.

A moment has the guest's whole memory, so what a vCPU does at a moment depends on nothing else of
the host.  After each moment the daemon may die; what the next one does depends on that memory
alone, so equal memories share the rest of their history.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from optpolined.patching.protocol.steps import Write
from optpolined.patching.protocol.transport import TransportKind
from tests.model.machine import Act, Guest, Ledger
from tests.model.rules import Rules, Violation
from tests.model.world import TEXT, TEXT_SIZE, Memory, describe, offset_of

Program = Callable[[Guest], None]
"""What a daemon does to a guest; raises :class:`Violation` where it does not end as it should."""

Pieces = list[tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Edge:
    """The way to another moment; ``stale`` are the bytes that it wrote over, by address."""

    act: Act
    to: int
    stale: tuple[tuple[int, int], ...] = ()
    text: str = ""


@dataclass(slots=True)
class Moment:
    """The guest's memory at one time, and the moment before it.

    ``held``: in the middle of a stop, no vCPU runs.
    """

    image: bytes
    score: Ledger
    before: int | None
    held: bool = False
    edges: list[Edge] = field(default_factory=list)

    def byte(self, address: int) -> int:
        """What stands at ``address``."""
        offset = offset_of(address)
        assert offset is not None
        return self.image[offset]


class Timeline:
    """All moments of a program, from ``start`` on, and of the recoveries from each of them."""

    def __init__(
        self, image: bytes, program: Program, recover: Program | None, rules: Rules
    ) -> None:
        """Run ``program`` on ``image``, and ``recover`` on what each of its moments leaves.

        :raise Violation: one of them does not end as it should.
        """
        self.moments: list[Moment] = []
        self.writes: set[Write] = set()
        self._memory = Memory(image)
        self._rules = rules
        self.start = self._run(None, image, Ledger(), program)
        if recover is not None:
            self._let_die(recover)

    def _let_die(self, recover: Program) -> None:
        recovered: dict[tuple[bytes, Ledger], int] = {}
        number = 0
        while number < len(self.moments):
            moment = self.moments[number]
            left = (moment.image, moment.score)
            if left not in recovered:
                try:
                    recovered[left] = self._run(number, *left, recover)
                except Violation as violation:
                    raise Violation(violation.kind, violation.text, self._trace(number)) from None
            if recovered[left] != number:
                moment.edges.append(Edge(Act.DIES, recovered[left], text=Act.DIES.value))
            number += 1

    def _trace(self, number: int) -> list[str]:
        """What the daemons did up to a moment."""
        lines = [Act.DIES.value]
        while (before := self.moments[number].before) is not None:
            edge = next(edge for edge in self.moments[before].edges if edge.to == number)
            lines.append(edge.text)
            number = before
        return lines[::-1]

    def _run(self, before: int | None, image: bytes, score: Ledger, program: Program) -> int:
        """Cut what a program does into moments; answer the first."""
        kind = TransportKind.LIVE if self._rules.live else TransportKind.STOPPED
        guest = Guest(image, score, kind)
        program(guest)
        first = len(self.moments)
        self.moments.append(Moment(image, score, before))
        for event in guest.events:
            if event.write is not None:
                self.writes.add(event.write)
                self._write(event.write)
            elif event.act is Act.SETTLES:
                self.moments[first:] = [Moment(self.moments[-1].image, event.score, before)]
            elif event.act is not Act.SYNC or (self._rules.live and self._rules.sync_serialises):
                self._add(event.act, self.moments[-1].image, event.score, (), event.act.value)
        return first

    def _write(self, write: Write) -> None:
        pieces = self._pieces(write)
        stops = not self._rules.live and self._rules.stop_holds_sites
        for number, (address, data) in enumerate(pieces):
            before = self.moments[-1]
            offset = offset_of(address)
            assert offset is not None
            end = offset + len(data)
            stale = tuple(
                (address + place, old)
                for place, (old, new) in enumerate(zip(before.image[offset:end], data, strict=True))
                if old != new
            )
            image = before.image[:offset] + data + before.image[end:]
            text = f"{Act.WRITE.value} {data.hex(' ')} at {describe(address)}"
            self._add(Act.WRITE, image, before.score, stale, text)
            self.moments[-1].held = stops and number < len(pieces) - 1

    def _pieces(self, write: Write) -> Pieces:
        """As one packet for each physical page; byte by byte where vCPUs see it happen."""
        if not (self._rules.live or not self._rules.stop_holds_sites):
            return list(self._memory.pieces(write.address, write.data))
        if 0 <= write.address - TEXT < TEXT_SIZE:
            changed = zip(range(len(write.data)), write.expect, write.data, strict=True)
            return [(write.address + i, bytes([new])) for i, old, new in changed if old != new]
        return list(_words(write))

    def _add(
        self,
        act: Act,
        image: bytes,
        score: Ledger,
        stale: tuple[tuple[int, int], ...],
        text: str,
    ) -> None:
        self.moments[-1].edges.append(Edge(act, len(self.moments), stale, text))
        self.moments.append(Moment(image, score, len(self.moments) - 1))


def _words(write: Write) -> Iterator[tuple[int, bytes]]:
    """Blocks and table entries change in aligned words of 8 bytes."""
    at = 0
    while at < len(write.data):
        end = min(len(write.data), at + 8 - (write.address + at) % 8)
        yield write.address + at, write.data[at:end]
        at = end
