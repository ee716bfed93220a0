"""The blocks of the module's executable arena, from allocation to reuse.

    block = arena.allocate(43)
    ...                             # the block is written; then a site branches to it
    arena.retire(block)             # no site branches to it any more
    token = arena.grace_begin()
    ...                             # the guest's grace period (RequestOp.GRACE) begins and ends
    arena.grace_end(token)          # what was retired before grace_begin() is free

This keeps invariant 2 of the design.  A block that a vCPU could reach is allocated again only after
a grace period that began after its last branch was gone.  A grace period that fails is never ended;
the next one covers its blocks too.

A new Arena is all free.  Where an earlier daemon used the same memory, call ``mark_used`` for every
block that a site still branches to, and wait for a grace period first.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from dataclasses import dataclass
from typing import Final, NewType

from optpolined.addresses import GuestVirtual
from optpolined.kernel.errors import ArenaError, ArenaFullError

__all__ = ("UNIT", "Arena", "GraceToken", "Usage", "rounded")

UNIT: Final = 32
"""Blocks start at, and take up, multiples of this many bytes."""


def rounded(size: int) -> int:
    """Return how many bytes a block of ``size`` bytes takes up."""
    return -(-size // UNIT) * UNIT


GraceToken = NewType("GraceToken", int)
"""A grace period, from ``grace_begin`` to ``grace_end``."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes by state; their sum is the arena's size."""

    used: int
    retired: int
    free: int


class Arena:
    """The arena of ``size`` bytes at ``base``; a part of a unit at its end is left alone."""

    def __init__(self, base: GuestVirtual, size: int) -> None:
        if base % UNIT or size < UNIT:
            raise ArenaError(f"{size} bytes at {base:#x} are no arena of {UNIT}-byte units")
        self.base: Final = base
        self.size: Final = size - size % UNIT
        self._free = _FreeUnits(self.size // UNIT)
        self._used: dict[int, int] = {}  # units by first unit
        self._retired: deque[tuple[int, int, int]] = deque()  # grace period, first unit, units
        self._retired_units = 0
        self._grace = 0  # the next one to begin

    def allocate(self, size: int) -> GuestVirtual:
        """Take ``size`` bytes, rounded up to units, from the shortest free range that holds them.

        :raise ArenaFullError: no free range is long enough.
        """
        if size <= 0:
            raise ArenaError(f"a block of {size} bytes makes no sense")
        units = -(-size // UNIT)
        first = self._free.take(units)
        if first is None:
            usage = self.usage()
            raise ArenaFullError(size, usage.free, usage.retired)
        self._used[first] = units
        return GuestVirtual(self.base + first * UNIT)

    def mark_used(self, address: GuestVirtual, size: int) -> None:
        """Note a block that is in use already.

        :raise ArenaError: not all of it is free, or it does not start where a block can.
        """
        first, units = self._unit(address), -(-size // UNIT)
        if units <= 0 or not self._free.take_at(first, units):
            raise ArenaError(f"{size} bytes at {address:#x} are not free in the arena")
        self._used[first] = units

    def retire(self, address: GuestVirtual) -> None:
        """Give back the block at ``address``, to which no site branches any more.

        :raise ArenaError: no block in use starts there.
        """
        first = self._unit(address)
        units = self._used.pop(first, None)
        if units is None:
            raise ArenaError(f"no block in use starts at {address:#x}")
        self._retired.append((self._grace, first, units))
        self._retired_units += units

    def grace_begin(self) -> GraceToken:
        """Mark the moment before the guest is asked for a grace period."""
        token = GraceToken(self._grace)
        self._grace += 1
        return token

    def grace_end(self, token: GraceToken) -> int:
        """Free what was retired before ``token`` began; return how many bytes that is.

        :raise ArenaError: no such grace period began.
        """
        if not 0 <= token < self._grace:
            raise ArenaError(f"grace period {token} has not begun")
        freed = 0
        while self._retired and self._retired[0][0] <= token:
            _, first, units = self._retired.popleft()
            self._free.give(first, units)
            freed += units
        self._retired_units -= freed
        return freed * UNIT

    def usage(self) -> Usage:
        """Return how the arena's bytes are used."""
        free = self._free.units
        retired = self._retired_units
        used = self.size // UNIT - free - retired
        return Usage(used=used * UNIT, retired=retired * UNIT, free=free * UNIT)

    def _unit(self, address: GuestVirtual) -> int:
        first, odd = divmod(address - self.base, UNIT)
        if odd or not 0 <= first < self.size // UNIT:
            raise ArenaError(f"no block of the arena can start at {address:#x}")
        return first


class _FreeUnits:
    """Free ranges of units.  No two ranges touch; all of one length are in one bucket."""

    def __init__(self, units: int) -> None:
        self.units = 0
        self._firsts: list[int] = []  # ascending
        self._lengths: dict[int, int] = {}  # by first unit
        self._buckets: dict[int, dict[int, None]] = {}  # first units by length, last freed last
        self._sorted: list[int] = []  # the lengths that have a bucket, ascending
        self.give(0, units)

    def take(self, units: int) -> int | None:
        """Take the start of a shortest range that holds ``units``; ``None`` where no range does."""
        place = bisect_left(self._sorted, units)
        if place == len(self._sorted):
            return None
        first = next(reversed(self._buckets[self._sorted[place]]))
        self._cut(first, first, units)
        return first

    def take_at(self, first: int, units: int) -> bool:
        """Take just these units if all of them are free; return whether they were."""
        place = bisect_right(self._firsts, first) - 1
        if place < 0:
            return False
        around = self._firsts[place]
        if first + units > around + self._lengths[around]:
            return False
        self._cut(around, first, units)
        return True

    def give(self, first: int, units: int) -> None:
        """Make these units free; they and free neighbours become one range."""
        end = first + units
        place = bisect_left(self._firsts, first)
        if place < len(self._firsts) and self._firsts[place] == end:
            end += self._lengths[end]
            self._remove(self._firsts[place])
        if place > 0:
            before = self._firsts[place - 1]
            if before + self._lengths[before] == first:
                self._remove(before)
                first = before
        self._insert(first, end - first)

    def _cut(self, around: int, first: int, units: int) -> None:
        """Take units out of the range that starts at ``around``."""
        end = around + self._lengths[around]
        self._remove(around)
        if around < first:
            self._insert(around, first - around)
        if first + units < end:
            self._insert(first + units, end - first - units)

    def _insert(self, first: int, length: int) -> None:
        insort(self._firsts, first)
        self._lengths[first] = length
        if length not in self._buckets:
            self._buckets[length] = {}
            insort(self._sorted, length)
        self._buckets[length][first] = None
        self.units += length

    def _remove(self, first: int) -> None:
        del self._firsts[bisect_left(self._firsts, first)]
        length = self._lengths.pop(first)
        bucket = self._buckets[length]
        del bucket[first]
        if not bucket:
            del self._buckets[length]
            del self._sorted[bisect_left(self._sorted, length)]
        self.units -= length
