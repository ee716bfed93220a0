"""The poke table: the sites that were ever patched, in the guest's memory.

    table = PokeTable(space.read(header.poke_table, table_size))
    table.entries                       # by site, but for those that have gone with a module
    table.defects                       # entries that make no sense; reported, never used
    table.place(site)                   # its entry's index, or that of the one it would take
    table.put(entry)                    # the same, when encode(entry) is to be written there

The layout and the hash stand in optpoline_abi.h.  The guest can write the table: an image may hold
anything, and no operation takes longer for it.
"""

import struct
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from optpolined.addresses import GuestVirtual
from optpolined.kernel.errors import PokeEntryError, PokeTableFullError
from optpolined.kernel.module.abi import POKE_HASH, PokeState, SiteKind
from optpolined.x86 import INT3

__all__ = ("ENTRY_SIZE", "Defect", "PokeEntry", "PokeTable", "decode", "encode", "home")

# struct optp_poke_entry: site, slow_path, kind, state, length, reserved, original
_ENTRY: Final = struct.Struct("<QQBBB5x8s")
ENTRY_SIZE: Final = _ENTRY.size

_ORIGINAL_MAX: Final = 8
_TEXT_START: Final = (1 << 64) - (2 << 30)  # kernel and modules share the top 2 GiB
_U64: Final = (1 << 64) - 1
_KINDS: Final = frozenset(SiteKind)
_STATES: Final = frozenset(PokeState)


@dataclass(frozen=True, slots=True)
class PokeEntry:
    """``struct optp_poke_entry``; ``original`` is the whole instruction before the first poke."""

    site: GuestVirtual
    slow_path: GuestVirtual
    kind: SiteKind
    state: PokeState
    original: bytes

    @property
    def length(self) -> int:
        """Bytes of the instruction."""
        return len(self.original)


@dataclass(frozen=True, slots=True)
class Defect:
    """The place of an entry that makes no sense, and why."""

    index: int
    reason: str


def home(site: GuestVirtual, order: int) -> int:
    """Return the place where the search for a site begins, in a table of ``1 << order``."""
    return ((site * POKE_HASH) & _U64) >> (64 - order)


def encode(entry: PokeEntry) -> bytes:
    """Return the ``ENTRY_SIZE`` bytes of an entry."""
    if not 0 < entry.length <= _ORIGINAL_MAX:
        raise ValueError(f"an instruction of {entry.length} bytes does not fit a poke entry")
    return _ENTRY.pack(
        entry.site, entry.slow_path, entry.kind, entry.state, entry.length, entry.original
    )


def decode(data: bytes) -> PokeEntry | None:
    """Decode ``ENTRY_SIZE`` bytes; None where the entry is free.

    :raise PokeEntryError: it makes no sense.
    """
    site, slow_path, kind, state, length, original = _ENTRY.unpack(data)
    if not site:
        return None
    reason = _nonsense(site, slow_path, kind, state, length)
    if reason is None and original[0] == INT3:
        reason = "its original instruction is a breakpoint"
    if reason is not None:
        raise PokeEntryError(reason)
    return PokeEntry(
        site=GuestVirtual(site),
        slow_path=GuestVirtual(slow_path),
        kind=SiteKind(kind),
        state=PokeState(state),
        original=original[:length],
    )


def _nonsense(site: int, slow_path: int, kind: int, state: int, length: int) -> str | None:
    """Return what is wrong with an entry's fields; thousands are asked about at each attach."""
    if site < _TEXT_START:
        return f"site {site:#x} is not in kernel text"
    if slow_path < _TEXT_START:
        return f"slow path {slow_path:#x} is not in kernel text"
    if kind not in _KINDS:
        return f"kind {kind}"
    if state not in _STATES:
        return f"state {state}"
    return None if 0 < length <= _ORIGINAL_MAX else f"length {length}"


class PokeTable:
    """A model of the table whose ``image`` was read: ``1 << order`` entries.

    The guest looks for a site from its home on, round the end, until it finds it or a free place.
    An entry that this search cannot reach is a defect like one whose fields make no sense.
    """

    def __init__(self, image: bytes) -> None:
        self.capacity: Final = len(image) // ENTRY_SIZE
        if self.capacity.bit_count() != 1 or len(image) % ENTRY_SIZE:
            raise ValueError(f"{len(image)} bytes are no poke table")
        self.order: Final = self.capacity.bit_length() - 1
        sites = np.frombuffer(image, "<u8").reshape(self.capacity, -1)[:, 0]
        self._free: list[int] = np.flatnonzero(sites == 0).tolist()
        # The nearest place of each site, counted from its home: the one that a search meets first,
        # if it comes so far.
        self._nearest: dict[GuestVirtual, int] = {}
        self._entries: dict[GuestVirtual, PokeEntry] = {}
        self._defects: dict[int, str] = {}
        taken = np.flatnonzero(sites)
        for index, site in zip(taken.tolist(), sites[taken].tolist(), strict=True):
            self._note(index, GuestVirtual(site))
        for site, index in self._nearest.items():
            if self.place(site) == index:
                self._load(site, index, image[index * ENTRY_SIZE : (index + 1) * ENTRY_SIZE])
            else:
                self._defects[index] = "no search reaches it"

    @property
    def entries(self) -> Mapping[GuestVirtual, PokeEntry]:
        """The entries that make sense and whose code is still there, by site."""
        return MappingProxyType(self._entries)

    @property
    def defects(self) -> list[Defect]:
        """The others, by place."""
        return [Defect(index, reason) for index, reason in sorted(self._defects.items())]

    def place(self, site: GuestVirtual) -> int:
        """Return the index of the entry of ``site``, or else of the free one that it would take.

        :raise PokeTableFullError: there is neither.
        """
        nearest = self._nearest.get(site)
        free = self._first_free(site)
        if free is None:
            if nearest is None:
                raise PokeTableFullError(self.capacity)
            return nearest
        if nearest is None or self._distance(site, free) < self._distance(site, nearest):
            return free
        return nearest

    def put(self, entry: PokeEntry) -> int:
        """Take over an entry that is to be written at once; return its index.

        Where the write then fails, read the table anew: the guest's search for what is placed
        after it would end at the place that is still free.

        :raise PokeTableFullError: there is no place for it.
        """
        index = self.place(entry.site)
        if self._nearest.get(entry.site) != index:
            del self._free[bisect_left(self._free, index)]
            self._nearest[entry.site] = index
        self._defects.pop(index, None)
        self._entries[entry.site] = entry
        return index

    def _first_free(self, site: GuestVirtual) -> int | None:
        """Return the free place that the search for ``site`` would end at."""
        if not self._free:
            return None
        return self._free[bisect_left(self._free, home(site, self.order)) % len(self._free)]

    def _distance(self, site: GuestVirtual, index: int) -> int:
        """Return how many places the search for ``site`` passes before ``index``."""
        return (index - home(site, self.order)) % self.capacity

    def _note(self, index: int, site: GuestVirtual) -> None:
        """Note that ``site`` stands at ``index``."""
        rival = self._nearest.setdefault(site, index)
        if rival == index:
            return
        nearer, farther = sorted((rival, index), key=lambda place: self._distance(site, place))
        self._nearest[site] = nearer
        self._defects[farther] = f"second entry of site {site:#x}"

    def _load(self, site: GuestVirtual, index: int, data: bytes) -> None:
        try:
            entry = decode(data)
        except PokeEntryError as error:
            self._defects[index] = str(error)
            return
        if entry is not None and entry.state is not PokeState.GONE:
            self._entries[site] = entry
