"""Virtual to physical, by the guest's own page tables.

    space = AddressSpace(memory, root=GuestPhysical(0x2610000), levels=4)
    space.read(GuestVirtual(0xffffffff81000000), 16)

    with space.snapshot() as pages:      # in one stop: each table is read once
        pages.translate(site)

Source: Intel SDM volume 3, sections 4.5.4 (4-level paging) and 4.5.5 (5-level paging), tables 4-14
to 4-20 for the bits of the entries.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from optpolined.addresses import GuestPhysical, GuestVirtual
from optpolined.kernel.errors import TranslationError
from optpolined.qemu.errors import OutOfRamError
from optpolined.qemu.memory import PhysicalMemory

__all__ = ("ADDRESS_MASK", "PAGE_SIZE", "AddressSpace", "PageRange", "Snapshot", "is_canonical")

PAGE_SIZE: Final = 4096
ADDRESS_MASK: Final = 0x000F_FFFF_FFFF_F000
"""The bits of an entry, and of CR3, that hold a physical address."""

_PAGE_SHIFT = 12
_INDEX_BITS = 9
_ENTRIES = 1 << _INDEX_BITS

_PRESENT = 1 << 0
_WRITABLE = 1 << 1
_PAGE = 1 << 7  # this entry maps a page, at levels 2 (2 MiB) and 3 (1 GiB)
_NO_EXECUTE = 1 << 63
_LARGEST_LEAF = 3
_WALKED = np.uint64(~(1 << 5 | 1 << 6) & 0xFFFF_FFFF_FFFF_FFFF)
"""The bits of an entry without those in which the CPU notes accesses and writes."""

_Entries = npt.NDArray[np.uint64]


def _shift(level: int) -> int:
    """Return the number of address bits below those that index a table of ``level``."""
    return _PAGE_SHIFT + _INDEX_BITS * (level - 1)


def is_canonical(address: int, levels: int) -> bool:
    """Return whether the bits that ``levels`` of tables do not translate copy the highest one."""
    width = _shift(levels + 1)
    return address < 1 << (width - 1) or (1 << 64) - (1 << (width - 1)) <= address < 1 << 64


@dataclass(frozen=True, slots=True)
class PageRange:
    """One mapping: a 4 KiB, 2 MiB or 1 GiB page, cut to the range that was asked for.

    ``size`` is in bytes.  The flags are those of the whole walk: writable where every level allows
    it, executable where no level forbids it.
    """

    start: GuestVirtual
    size: int
    physical: GuestPhysical
    writable: bool
    executable: bool


class AddressSpace:
    """What one root of page tables maps, read anew at every call."""

    def __init__(self, memory: PhysicalMemory, root: GuestPhysical, levels: int) -> None:
        if levels not in (4, 5):
            raise ValueError(f"page tables have 4 or 5 levels, not {levels}")
        self._memory = memory
        self._root = GuestPhysical(root & ADDRESS_MASK)
        self._levels = levels

    @property
    def memory(self) -> PhysicalMemory:
        return self._memory

    @property
    def root(self) -> GuestPhysical:
        return self._root

    @property
    def levels(self) -> int:
        return self._levels

    def translate(self, address: GuestVirtual) -> GuestPhysical:
        """Return where ``address`` is in guest-physical memory.

        :raise TranslationError: nothing is mapped there, or a table makes no sense.
        :raise QemuError: the guest's memory cannot be read at all.
        """
        page, shift = self._leaf(address)
        return GuestPhysical(page + (address & ((1 << shift) - 1)))

    def pieces(self, address: GuestVirtual, size: int) -> list[tuple[GuestPhysical, int]]:
        """Return a virtual range as physical ones, in order, cut at page ends; sizes in bytes.

        :raise TranslationError: part of it is not mapped.
        """
        pieces = []
        while size > 0:
            page, shift = self._leaf(address)
            offset = address & ((1 << shift) - 1)
            here = min(size, (1 << shift) - offset)
            pieces.append((GuestPhysical(page + offset), here))
            address = GuestVirtual(address + here)
            size -= here
        return pieces

    def is_contiguous(self, address: GuestVirtual, size: int) -> bool:
        """Return whether a virtual range is one physical range too.

        :raise TranslationError: part of it is not mapped.
        """
        pieces = self.pieces(address, size)
        return all(start + here == after for (start, here), (after, _) in pairwise(pieces))

    def read(self, address: GuestVirtual, size: int) -> bytes:
        """Return the ``size`` bytes from ``address`` on; the caller bounds the size.

        :raise TranslationError: part of it is not mapped, or is not RAM.
        :raise QemuError: the guest's memory cannot be read at all.
        """
        pieces = []
        for physical, here in self.pieces(address, size):
            try:
                pieces.append(self._memory.read(physical, here))
            except OutOfRamError as error:
                raise TranslationError(address, 0, f"{physical:#x} is not RAM") from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def mapped(self, start: GuestVirtual, end: GuestVirtual) -> Iterator[PageRange]:
        """Yield the mappings in ``start`` .. ``end`` (exclusive), in order.

        What the tables do not map, or map by an illegal entry, is left out.  The range bounds the
        number of mappings: at most one for each 4 KiB of it.

        :raise QemuError: the guest's memory cannot be read at all.
        """
        if start < end and is_canonical(start, self._levels):
            yield from self._walk(self._root, self._levels, start, end, _WRITABLE)

    @contextmanager
    def snapshot(self) -> Iterator["Snapshot"]:
        """Yield the same address space; it remembers each table and translation in the block.

        Use it in a stop, or for a scan that may see one state of the tables.  As soon as the guest
        runs, a page may be gone or belong to something else.
        """
        snapshot = Snapshot(self._memory, self._root, self._levels)
        try:
            yield snapshot
        finally:
            snapshot.end()

    def _entry(self, table: GuestPhysical, index: int) -> int:
        return int.from_bytes(self._memory.read(GuestPhysical(table + 8 * index), 8), "little")

    def _table(self, table: GuestPhysical) -> _Entries:
        return np.frombuffer(self._memory.read(table, PAGE_SIZE), dtype="<u8")

    def _leaf(self, address: GuestVirtual) -> tuple[GuestPhysical, int]:
        """Return the page that ``address`` is in, and the number of address bits within it."""
        if not is_canonical(address, self._levels):
            raise TranslationError(address, 0, "it is not canonical")
        table = self._root
        for level in range(self._levels, 0, -1):
            shift = _shift(level)
            try:
                entry = self._entry(table, (address >> shift) & (_ENTRIES - 1))
            except OutOfRamError as error:
                reason = f"its table would be at {table:#x}, which is not RAM"
                raise TranslationError(address, level, reason) from error
            if not entry & _PRESENT:
                raise TranslationError(address, level, "it is not mapped")
            if level == 1 or entry & _PAGE:
                base = _page_base(entry, level)
                if base is None:
                    raise TranslationError(address, level, f"reserved bits in the entry {entry:#x}")
                return base, shift
            table = GuestPhysical(entry & ADDRESS_MASK)
        raise AssertionError("level 1 ends the walk")

    def _walk(
        self, table: GuestPhysical, level: int, start: int, end: int, flags: int
    ) -> Iterator[PageRange]:
        """Yield the mappings below one table; ``flags`` is what the levels above allow."""
        shift = _shift(level)
        base = start & ~((1 << _shift(level + 1)) - 1)
        first = (start - base) >> shift
        last = min((end - 1 - base) >> shift, _ENTRIES - 1)
        try:
            entries = self._table(table)[first : last + 1]
        except OutOfRamError:
            return
        for index in np.flatnonzero(entries & np.uint64(_PRESENT)).tolist():
            entry = int(entries[index])
            here = base + ((first + index) << shift)
            low, high = max(start, here), min(end, here + (1 << shift))
            allowed = (flags & entry & _WRITABLE) | ((flags | entry) & _NO_EXECUTE)
            if level > 1 and not entry & _PAGE:
                below = GuestPhysical(entry & ADDRESS_MASK)
                yield from self._walk(below, level - 1, low, high, allowed)
                continue
            page = _page_base(entry, level)
            if page is not None:
                yield PageRange(
                    GuestVirtual(low),
                    high - low,
                    GuestPhysical(page + low - here),
                    writable=bool(allowed & _WRITABLE),
                    executable=not allowed & _NO_EXECUTE,
                )


_LARGE_SHIFT = _shift(2)
_LARGE_MASK = (1 << _LARGE_SHIFT) - 1


class Snapshot(AddressSpace):
    """An address space that remembers; made and ended by :meth:`AddressSpace.snapshot`."""

    def __init__(self, memory: PhysicalMemory, root: GuestPhysical, levels: int) -> None:
        super().__init__(memory, root, levels)
        self._tables: dict[GuestPhysical, _Entries] = {}
        # By size of page: the page's number in the virtual space -> the page.
        self._large: dict[int, GuestPhysical] = {}
        self._leaves = {_LARGE_SHIFT: self._large, _shift(1): {}, _shift(3): {}}
        self._over = False
        self._used: dict[GuestPhysical, dict[int, int]] = {}
        self._frozen: list[tuple[GuestPhysical, npt.NDArray[np.intp], _Entries]] = []

    def freeze(self) -> None:
        """Get ready for :meth:`is_current`: what was translated until now is what it looks at."""
        self._frozen = [
            (
                table,
                np.fromiter(used, dtype=np.intp),
                np.fromiter(used.values(), dtype=np.uint64) & _WALKED,
            )
            for table, used in self._used.items()
        ]

    def is_current(self) -> bool:
        """Whether every translation that was made before :meth:`freeze` would be the same now.

        Reads each table once; the bits in which the CPU notes accesses do not count.

        :raise QemuError: the guest's memory cannot be read at all.
        """
        try:
            return all(
                np.array_equal(super(Snapshot, self)._table(table)[indices] & _WALKED, entries)
                for table, indices, entries in self._frozen
            )
        except OutOfRamError:
            return False

    def end(self) -> None:
        self._over = True
        self._tables.clear()
        for leaves in self._leaves.values():
            leaves.clear()

    def translate(self, address: GuestVirtual) -> GuestPhysical:
        # Kernel text is in large pages, and a stop waits for some hundred translations.
        page = self._large.get(address >> _LARGE_SHIFT)
        if page is None:
            return super().translate(address)
        return GuestPhysical(page + (address & _LARGE_MASK))

    def _leaf(self, address: GuestVirtual) -> tuple[GuestPhysical, int]:
        for shift, leaves in self._leaves.items():
            page = leaves.get(address >> shift)
            if page is not None:
                return page, shift
        page, shift = super()._leaf(address)
        self._leaves[shift][address >> shift] = page
        return page, shift

    def _entry(self, table: GuestPhysical, index: int) -> int:
        entry = int(self._table(table)[index])
        self._used.setdefault(table, {})[index] = entry
        return entry

    def _table(self, table: GuestPhysical) -> _Entries:
        assert not self._over, "a snapshot is used after its block"
        entries = self._tables.get(table)
        if entries is None:
            entries = self._tables[table] = super()._table(table)
        return entries


def _page_base(entry: int, level: int) -> GuestPhysical | None:
    """Return the page that a leaf entry maps; ``None`` where the entry is not a legal one."""
    # Bit 12 of a large page's entry is its PAT bit; the address bits above it must be zero.
    reserved = ((1 << _shift(level)) - 1) & ADDRESS_MASK & ~(1 << _PAGE_SHIFT)
    if level > _LARGEST_LEAF or entry & reserved:
        return None
    return GuestPhysical(entry & ADDRESS_MASK & ~((1 << _shift(level)) - 1))
