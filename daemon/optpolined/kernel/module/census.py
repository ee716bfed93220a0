"""The slots of a census: who called what, as the guest's census stubs have counted.

    census = Census.from_header(space.read, header)
    ...                              # a census, and its end
    counted = census.read()          # pairs of return address and target, with counts

The guest can write all of it: a slot is a claim, bounded in number and nothing more.  A count at an
address that is no call, or to a target that is no function, is for the caller to drop.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from optpolined.addresses import GuestVirtual
from optpolined.kernel.errors import CountersError
from optpolined.kernel.module.header import Header

__all__ = ("SLOT", "Census", "CensusCounts", "gained")

SLOT: Final = np.dtype([("key", "<u8"), ("count", "<u8")])
"""``struct optp_census_slot``."""

_READ_MAX: Final = 256 << 20  # bytes; the guest says how many CPUs and slots it has
_COUNT_MAX: Final = np.uint64(1 << 48)  # of one pair: calls of ten hours at 8 GHz
_TOP: Final = 1 << 64
_HIGH_HALF: Final = np.uint64(0xFFFF_FFFF_0000_0000)
_LOW_HALF: Final = np.uint64(0xFFFF_FFFF)
_SIGN: Final = np.uint64(1 << 31)
_U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class CensusCounts:
    """Calls by return address and target: three arrays of one length, ordered by both.

    ``other`` counts the calls whose pair found no slot, and what cannot be the kernel's: a pair
    with an address outside the top 2 GiB.
    """

    returns: _U64
    targets: _U64
    calls: _U64
    other: int

    @property
    def total(self) -> int:
        """All calls that were counted."""
        return _sum(self.calls) + self.other

    def pairs(self) -> list[tuple[GuestVirtual, GuestVirtual, int]]:
        """The same as a list: return address, target, calls."""
        return [
            (GuestVirtual(at), GuestVirtual(target), calls)
            for at, target, calls in zip(
                self.returns.tolist(), self.targets.tolist(), self.calls.tolist(), strict=True
            )
        ]


class Census:
    """The slots of one guest.

    ``per_cpu_offsets`` are the kernel's ``__per_cpu_offset``; ``chunks`` and ``other`` are percpu
    offsets (see optpoline_abi.h).
    """

    def __init__(
        self,
        read: Callable[[GuestVirtual, int], bytes],
        per_cpu_offsets: Sequence[int],
        chunks: Sequence[int],
        chunk_slots: int,
        other: int,
    ) -> None:
        """Know where the slots are.

        :raise CountersError: they are too many to read.
        """
        self._read = read
        self._per_cpu_offsets = tuple(per_cpu_offsets)
        self._chunks = tuple(chunks)
        self._chunk_bytes = chunk_slots * SLOT.itemsize
        self._other = other
        size = len(self._per_cpu_offsets) * len(self._chunks) * self._chunk_bytes
        if size > _READ_MAX:
            raise CountersError(f"a census of {size >> 20} MiB is more than {_READ_MAX >> 20} MiB")

    @classmethod
    def from_header(cls, read: Callable[[GuestVirtual, int], bytes], header: Header) -> "Census":
        """Read where the CPUs' copies and the chunks are.

        :raise CountersError: the slots are too many to read.
        :raise TranslationError: the tables that say so are not mapped.
        """
        cpus, chunks = header.nr_cpu_ids, header.nr_census_chunks
        return cls(
            read,
            struct.unpack(f"<{cpus}Q", read(header.per_cpu_offset, 8 * cpus)),
            struct.unpack(f"<{chunks}Q", read(header.census_chunks, 8 * chunks)),
            header.census_chunk_slots,
            header.census_other,
        )

    def read(self) -> CensusCounts:
        """Read what was counted on all CPUs since the slots were cleared.

        :raise TranslationError: a part is not mapped.
        """
        slots, other = [], 0
        for cpu in self._per_cpu_offsets:
            for chunk in self._chunks:
                data = self._read(GuestVirtual((cpu + chunk) % _TOP), self._chunk_bytes)
                found = np.frombuffer(data, SLOT)
                slots.append(found[found["key"] != 0])
            data = self._read(GuestVirtual((cpu + self._other) % _TOP), 8)
            other += min(int.from_bytes(data, "little"), int(_COUNT_MAX))
        return _added_up(np.concatenate(slots), other)


def gained(before: CensusCounts, now: CensusCounts) -> CensusCounts:
    """What was counted between two readings; all of ``now`` where the slots were cleared."""
    if now.total < before.total:
        return now
    keys = np.concatenate([_keys(before), _keys(now)])
    signs = np.concatenate([-before.calls.astype(np.int64), now.calls.astype(np.int64)])
    pairs, where = np.unique(keys, return_inverse=True)
    calls = np.zeros(len(pairs), np.int64)
    np.add.at(calls, where, signs)
    rose = calls > 0
    return CensusCounts(
        (pairs[rose] >> np.uint64(32)) | _HIGH_HALF,
        (pairs[rose] & _LOW_HALF) | _HIGH_HALF,
        calls[rose].astype(np.uint64),
        max(0, now.other - before.other),
    )


def _keys(counts: CensusCounts) -> _U64:
    return (counts.returns << np.uint64(32)) | (counts.targets & _LOW_HALF)


def _sum(calls: _U64) -> int:
    """Add up; exact up to 2**53, and no sum of what a guest claims wraps."""
    return int(calls.sum(dtype=np.float64))


def _added_up(slots: npt.NDArray[np.void], other: int) -> CensusCounts:
    keys, where = np.unique(slots["key"], return_inverse=True)
    counts = np.minimum(slots["count"], _COUNT_MAX).astype(np.float64)
    calls = np.bincount(where, weights=counts, minlength=len(keys))
    calls = np.minimum(calls, _COUNT_MAX).astype(np.uint64)
    returns, targets = keys >> np.uint64(32), keys & _LOW_HALF
    is_kernel = ((returns & _SIGN) != 0) & ((targets & _SIGN) != 0)
    other += _sum(calls[~is_kernel])
    return CensusCounts(
        returns[is_kernel] | _HIGH_HALF, targets[is_kernel] | _HIGH_HALF, calls[is_kernel], other
    )
