"""The guest's poke table: its int3 handler reads it, and so does the next daemon."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np

from optpolined.addresses import GuestVirtual
from optpolined.kernel.module.abi import PokeEntryLayout, PokeState
from optpolined.kernel.module.header import Header
from optpolined.kernel.module.poke_table import ENTRY_SIZE, Defect, PokeEntry, PokeTable, encode
from optpolined.kernel.paging import AddressSpace
from optpolined.patching.protocol.steps import Protocol, Write

__all__ = ("PokeEntries",)

_log = logging.getLogger(__name__)

_DEFECTS_SAID = 16
"""Lines about defects that one look at the table may log: the guest can make thousands."""

_STATE_OFFSET = PokeEntryLayout.state.offset


class PokeEntries:
    """The table as it was last read, with the entries that were written since."""

    def __init__(self, space: AddressSpace, header: Header) -> None:
        """Read the table.

        :raise TranslationError: it is not mapped.
        """
        self._space = space
        self._base = header.poke_table
        self._size = ENTRY_SIZE << header.poke_order
        self._defects: Sequence[Defect] = ()
        self.reload()

    def reload(self) -> None:
        """Read the table anew, because the guest or a failed write has changed it.

        Each defect that was not there at the last look is logged.

        :raise TranslationError: it is not mapped.
        """
        self._table = PokeTable(self._space.read(self._base, self._size))
        known, self._defects = set(self._defects), self._table.defects
        new = [defect for defect in self._defects if defect not in known]
        for defect in new[:_DEFECTS_SAID]:
            _log.warning("entry %d of the poke table is ignored: %s", defect.index, defect.reason)
        if len(new) > _DEFECTS_SAID:
            _log.warning("%d more entries of the poke table are ignored", len(new) - _DEFECTS_SAID)

    @property
    def defects(self) -> int:
        """The entries that made no sense at the last look; they are never used."""
        return len(self._defects)

    def __iter__(self) -> Iterator[PokeEntry]:
        return iter(list(self._table.entries.values()))

    def originals(self) -> dict[GuestVirtual, bytes]:
        """Return the instruction that stood at each site before the first poke."""
        return {entry.site: entry.original for entry in self}

    def armed(self, pages: AddressSpace) -> set[GuestVirtual]:
        """Read anew which sites have an entry that says that a 0xCC of ours may stand there.

        :raise TranslationError: the table is not mapped any more.
        """
        image = pages.read(self._base, self._size)
        states = np.frombuffer(image, np.uint8)[_STATE_OFFSET::ENTRY_SIZE]
        sites = np.frombuffer(image, "<u8")[:: ENTRY_SIZE // 8]
        indices = np.flatnonzero(states == PokeState.ARMED)
        armed = zip(indices.tolist(), map(GuestVirtual, sites[indices].tolist()), strict=True)
        entries = self._table.entries
        return {
            site for index, site in armed if site in entries and self._table.place(site) == index
        }

    def guard(
        self, entry: PokeEntry, pages: AddressSpace, protocol: Protocol
    ) -> tuple[tuple[Write, ...], Write | None]:
        """Return the writes before and after a change of the entry's site.

        Under `breakpoint` the entry is armed before and disarmed after.  Under `stopped` the guest
        never needs it, but the next daemon does.

        :raise PokeTableFullError: the table has no place for it.
        """
        address = self._address(self._table.put(entry))
        idle = encode(_in_state(entry, PokeState.IDLE))
        armed = encode(_in_state(entry, PokeState.ARMED))
        found = pages.read(address, ENTRY_SIZE)
        if protocol is Protocol.STOPPED:
            return ((Write(address, found, idle),) if found != idle else ()), None
        before = (Write(address, found, armed),) if found != armed else ()
        return before, self.disarm(entry.site)

    def disarm(self, site: GuestVirtual) -> Write:
        """Return the write that disarms the entry of ``site``."""
        state = GuestVirtual(self._address(self._table.place(site)) + _STATE_OFFSET)
        return Write(state, bytes([PokeState.ARMED]), bytes([PokeState.IDLE]))

    def _address(self, index: int) -> GuestVirtual:
        return GuestVirtual(self._base + index * ENTRY_SIZE)


def _in_state(entry: PokeEntry, state: PokeState) -> PokeEntry:
    return PokeEntry(entry.site, entry.slow_path, entry.kind, state, entry.original)
