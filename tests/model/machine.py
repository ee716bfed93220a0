"""The guest as the daemon's own code sees it: a transport that notes what is done to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from optpolined.addresses import GuestVirtual
from optpolined.patching.arena import UNIT, Arena, GraceToken
from optpolined.patching.protocol.steps import Write
from optpolined.patching.protocol.transport import (
    WRITTEN,
    Differs,
    Outcome,
    Transport,
    TransportKind,
)
from tests.model.world import ARENA, ARENA_UNITS, REGIONS, Memory

Owners = tuple[int, ...]
"""By unit of the arena: the number of the block that stands there, 0 where it is free."""

NOBODY: Owners = (0,) * ARENA_UNITS

Named = frozenset[GuestVirtual | None]
"""Where calls of the key may end now; ``None``: a call that does nothing."""


class Ledger(NamedTuple):
    """What holds at a moment, and is not in the guest's memory."""

    owners: Owners = NOBODY
    named: Named = frozenset()


class Act(Enum):
    """What leads from one moment of the guest to the next."""

    WRITE = "writes"
    SYNC = "serialises all vCPUs"
    GRACE_BEGINS = "asks for a grace period"
    GRACE_ENDS = "sees the grace period end"
    BOOKS = "accounts for its arena"
    NAMES = "has other functions named by the key"
    DIES = "dies; the next one starts"
    SETTLES = "is ready"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that the daemon did, and what held after it."""

    act: Act
    score: Ledger
    write: Write | None = None


class Guest(Transport):
    """Compares and writes at once, and never fails."""

    def __init__(self, image: bytes, score: Ledger, kind: TransportKind) -> None:
        self.kind = kind
        self.memory = Memory(image)
        self.space = self.memory.space
        self.events: list[Event] = []
        self.score = score
        self._waiting = False

    def write(self, writes: Sequence[Write]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for write in writes:
            now = self.space.read(write.address, len(write.data))
            outcomes.append(WRITTEN if now == write.expect else Differs(now))
            if now == write.expect:
                self.memory.write(write.address, write.data)
                self.events.append(Event(Act.WRITE, self.score, write))
        return outcomes

    def sync(self) -> None:
        self._note(Act.SYNC)

    def grace(self) -> None:
        """Wait for a new one.  The mailbox holds one request, so an earlier one is waited for."""
        self.grace_ends()
        self.grace_begins()
        self.grace_ends()

    def grace_begins(self) -> None:
        self._waiting = True
        self._note(Act.GRACE_BEGINS)

    def grace_ends(self) -> None:
        """Wait for the one that began, if it has not ended."""
        if self._waiting:
            self._note(Act.GRACE_ENDS)
        self._waiting = False

    def own(self, owners: Owners) -> None:
        """Note that the daemon's view of the arena changed, which the guest cannot see."""
        self.score = self.score._replace(owners=owners)
        self._note(Act.BOOKS)

    def name(self, *functions: GuestVirtual | None) -> None:
        """From now on a call of the key may end in any of these, and nowhere else."""
        self.score = self.score._replace(named=frozenset(functions))
        self._note(Act.NAMES)

    def settle(self) -> None:
        """Make what was done so far the initial state of the guest: no task has run yet."""
        self._note(Act.SETTLES)

    def image(self) -> bytes:
        return b"".join(self.space.read(region.start, region.size) for region in REGIONS)

    def _note(self, act: Act) -> None:
        self.events.append(Event(act, self.score))


class WatchedArena(Arena):
    """The daemon's arena; the guest notes to which block each unit belongs."""

    def __init__(self, guest: Guest) -> None:
        super().__init__(ARENA, ARENA_UNITS * UNIT)
        self._guest = guest
        self._blocks = 0
        self._units: dict[GuestVirtual, range] = {}
        self._leaving: list[tuple[GraceToken | None, range]] = []

    def allocate(self, size: int) -> GuestVirtual:
        address = super().allocate(size)
        first = (address - ARENA) // UNIT
        self._units[address] = range(first, first - -size // UNIT)
        self._blocks += 1
        self._own(self._units[address], self._blocks)
        return address

    def retire(self, address: GuestVirtual) -> None:
        super().retire(address)
        self._leaving.append((None, self._units.pop(address)))

    def grace_begin(self) -> GraceToken:
        token = super().grace_begin()
        self._leaving = [
            (token if since is None else since, units) for since, units in self._leaving
        ]
        return token

    def grace_end(self, token: GraceToken) -> int:
        freed = super().grace_end(token)
        for since, units in self._leaving:
            if since == token:
                self._own(units, 0)
        self._leaving = [item for item in self._leaving if item[0] != token]
        return freed

    def _own(self, units: range, block: int) -> None:
        owners = list(self._guest.score.owners)
        owners[units.start : units.stop] = [block] * len(units)
        self._guest.own(tuple(owners))
