"""The guest's poke table: what its int3 handler needs, and what a new daemon starts from."""

from collections.abc import Iterator

from optpolined.addresses import GuestVirtual
from optpolined.kernel.abi import PokeEntry as PokeEntryLayout
from optpolined.kernel.abi import PokeState
from optpolined.kernel.header import Header
from optpolined.kernel.paging import AddressSpace
from optpolined.kernel.poketable import ENTRY_SIZE, PokeEntry, PokeTable, encode
from optpolined.poke.protocol import Protocol, Write

__all__ = ("Entries",)

_STATE_OFFSET = PokeEntryLayout.state.offset


class Entries:
    """The table as it was read at attach, and as we have written it since."""

    def __init__(self, space: AddressSpace, header: Header) -> None:
        """Read the table.

        :raise TranslationError: it is not mapped.
        """
        self._space = space
        self._base = header.poke_table
        self._size = ENTRY_SIZE << header.poke_order
        self.reload()

    def reload(self) -> None:
        """Read the table anew: somebody else has written to it.

        :raise TranslationError: it is not mapped.
        """
        self._table = PokeTable(self._space.read(self._base, self._size))

    def __iter__(self) -> Iterator[PokeEntry]:
        return iter(list(self._table.entries.values()))

    def originals(self) -> dict[GuestVirtual, bytes]:
        """The instruction that stood at each site before the first poke."""
        return {entry.site: entry.original for entry in self}

    def is_armed(self, site: GuestVirtual, pages: AddressSpace) -> bool:
        """Whether the entry of ``site`` says that a 0xCC of ours may stand there, read anew."""
        address = self._address(self._table.place(site))
        state = pages.read(GuestVirtual(address + _STATE_OFFSET), 1)
        return state[0] == PokeState.ARMED

    def guard(
        self, entry: PokeEntry, pages: AddressSpace, protocol: Protocol
    ) -> tuple[tuple[Write, ...], Write | None]:
        """The writes before and after a change of the entry's site.

        Under `breakpoint` the entry is armed before and disarmed after; under `stopped` it is only
        there, for the next daemon.

        :raise PokeTableFullError: there is no place for it.
        """
        address = self._address(self._table.put(entry))
        idle = encode(_in_state(entry, PokeState.IDLE))
        armed = encode(_in_state(entry, PokeState.ARMED))
        found = pages.read(address, ENTRY_SIZE)
        if protocol is Protocol.STOPPED:
            return ((Write(address, found, idle),) if found != idle else ()), None
        before = (Write(address, found, armed),) if found != armed else ()
        state = GuestVirtual(address + _STATE_OFFSET)
        return before, Write(state, bytes([PokeState.ARMED]), bytes([PokeState.IDLE]))

    def _address(self, index: int) -> GuestVirtual:
        return GuestVirtual(self._base + index * ENTRY_SIZE)


def _in_state(entry: PokeEntry, state: PokeState) -> PokeEntry:
    return PokeEntry(entry.site, entry.slow_path, entry.kind, state, entry.original)
