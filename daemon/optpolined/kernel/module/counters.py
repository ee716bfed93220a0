"""What the learning stubs have counted, read while they count.

    counters = Counters.from_header(space.read, header)
    before = counters.snapshot(len(records))
    ...
    now = counters.snapshot(len(records))
    gained = difference(before, now).by_record()

Counts only rise, and wrap at 32 bits, so what was gained is the difference modulo 2**32; an epoch
is short against the 2**32 calls that a CPU would need to come round.  What goes back is a record
that was cleared: call ``set_cleared`` where the host has done that.  Without the call, a record
counts as cleared where it lost a target, or where it would have gained half of 2**32.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from optpolined.addresses import GuestVirtual
from optpolined.kernel.errors import CountersError
from optpolined.kernel.module.abi import RECORD_SLOTS, RECORDS_PER_CHUNK
from optpolined.kernel.module.header import Header

__all__ = (
    "RECORD_DTYPE",
    "Counters",
    "Difference",
    "Int3Stats",
    "RecordGain",
    "Records",
    "difference",
    "each_cpu",
    "full_address",
    "set_cleared",
    "zero_records",
)

RECORD_DTYPE: Final = np.dtype(
    [
        ("slots", [("target", "<u4"), ("count", "<u4")], (RECORD_SLOTS,)),
        ("other", "<u4"),
        ("hits", "<u4"),
    ]
)
"""``struct optp_record``."""

Records = npt.NDArray[np.void]
"""A snapshot: ``RECORD_DTYPE`` by CPU and record."""

_WORDS: Final = RECORD_DTYPE.itemsize // 4
_TARGETS: Final = slice(0, 2 * RECORD_SLOTS, 2)
_COUNTS: Final = slice(1, 2 * RECORD_SLOTS, 2)
_OTHER: Final = 2 * RECORD_SLOTS
_HITS: Final = _OTHER + 1

# A target's low half extends by sign to an address of the top 2 GiB, where all of the kernel's
# code is; without the sign it cannot be one.
_SIGN: Final = np.uint32(1 << 31)
_HALF: Final = np.uint32(1 << 31)
_HIGH_HALF: Final = np.uint64(0xFFFF_FFFF_0000_0000)
_LOW_HALF: Final = np.uint64(0xFFFF_FFFF)
_TOP: Final = 1 << 64

_CPU_STATS: Final = struct.Struct("<2Q")
_SNAPSHOT_MAX: Final = 256 << 20  # bytes; the guest says how many CPUs and chunks it has

_MERGE_AT: Final = 1 << 18

_U64 = npt.NDArray[np.uint64]
_U32 = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Int3Stats:
    """``struct optp_cpu_stats``, summed over the CPUs, since the module was loaded."""

    hits: int
    late: int


@dataclass(frozen=True, slots=True)
class RecordGain:
    """What one record gained, on all CPUs together.

    ``other`` counts the calls whose target found no slot, or cannot be the kernel's.
    """

    calls: dict[GuestVirtual, int]
    other: int
    hits: int


@dataclass(frozen=True, slots=True)
class Difference:
    """What the records gained.

    ``records``, ``targets`` and ``calls`` are of one length: one element for each record and target
    that was called, by record, then target.  ``other`` and ``hits`` have one for each record.
    """

    records: npt.NDArray[np.int64]
    targets: _U64
    calls: _U64
    other: _U64
    hits: _U64

    def by_record(self) -> dict[int, RecordGain]:
        """Return the same as a dictionary of the records that gained anything."""
        calls: dict[int, dict[GuestVirtual, int]] = {}
        for record, target, count in zip(
            self.records.tolist(), self.targets.tolist(), self.calls.tolist(), strict=True
        ):
            calls.setdefault(record, {})[GuestVirtual(target)] = count
        gained = calls.keys() | np.flatnonzero(self.other | self.hits).tolist()
        return {
            record: RecordGain(
                calls.get(record, {}), int(self.other[record]), int(self.hits[record])
            )
            for record in sorted(gained)
        }


class Counters:
    """The records of one guest.

    ``per_cpu_offsets`` are the kernel's ``__per_cpu_offset`` of each possible CPU, ``chunks`` and
    ``cpu_stats`` percpu offsets (see optpoline_abi.h).
    """

    def __init__(
        self,
        read: Callable[[GuestVirtual, int], bytes],
        per_cpu_offsets: Sequence[int],
        chunks: Sequence[int],
        cpu_stats: int,
    ) -> None:
        self._read = read
        self._per_cpu_offsets = tuple(per_cpu_offsets)
        self._chunks = tuple(chunks)
        self._cpu_stats = cpu_stats

    @classmethod
    def from_header(cls, read: Callable[[GuestVirtual, int], bytes], header: Header) -> "Counters":
        """Read where the CPUs' copies and the chunks are.

        On x86 the possible CPUs are the first ``nr_cpu_ids``, without holes
        (arch/x86/kernel/smpboot.c, prefill_possible_map()).

        :raise TranslationError: those tables are not mapped.
        """
        cpus, chunks = header.nr_cpu_ids, header.nr_record_chunks
        return cls(
            read,
            struct.unpack(f"<{cpus}Q", read(header.per_cpu_offset, 8 * cpus)),
            struct.unpack(f"<{chunks}Q", read(header.record_chunks, 8 * chunks)),
            header.cpu_stats,
        )

    @property
    def capacity(self) -> int:
        """The number of records."""
        return len(self._chunks) * RECORDS_PER_CHUNK

    def offset(self, record: int) -> int:
        """Return the percpu offset of a record, as code refers to it."""
        chunk, place = divmod(record, RECORDS_PER_CHUNK)
        return (self._chunks[chunk] + place * RECORD_DTYPE.itemsize) % _TOP

    def copies(self, record: int) -> list[GuestVirtual]:
        """Return where each CPU's copy of a record is."""
        return [self._address(cpu, self.offset(record)) for cpu in self._per_cpu_offsets]

    def snapshot(self, count: int) -> Records:
        """Read the first ``count`` records of every CPU; shape (CPUs, ``count``).

        :raise CountersError: there are not so many, or they are too many to read.
        :raise TranslationError: a part is not mapped.
        """
        if not 0 <= count <= self.capacity:
            raise CountersError(f"the guest has {self.capacity} records, not {count}")
        cpus = len(self._per_cpu_offsets)
        size = count * RECORD_DTYPE.itemsize
        if cpus * size > _SNAPSHOT_MAX:
            raise CountersError(
                f"{count} records on {cpus} CPUs are more than {_SNAPSHOT_MAX >> 20} MiB"
            )
        octets = np.empty((cpus, size), np.uint8)
        for row, cpu in zip(octets, self._per_cpu_offsets, strict=True):
            for place, chunk, length in self._pieces(size):
                data = self._read(self._address(cpu, chunk), length)
                row[place : place + length] = np.frombuffer(data, np.uint8)
        return octets.view(RECORD_DTYPE)

    def int3(self) -> Int3Stats:
        """Read what the int3 handler has counted.

        :raise TranslationError: a part is not mapped.
        """
        hits = late = 0
        for cpu in self._per_cpu_offsets:
            data = self._read(self._address(cpu, self._cpu_stats), _CPU_STATS.size)
            cpu_hits, cpu_late = _CPU_STATS.unpack(data)
            hits += cpu_hits
            late += cpu_late
        return Int3Stats(hits, late)

    def _pieces(self, size: int) -> Iterator[tuple[int, int, int]]:
        """Cut ``size`` bytes of records: place in the whole, chunk, bytes in that chunk."""
        chunk_size = RECORDS_PER_CHUNK * RECORD_DTYPE.itemsize
        for place, chunk in zip(range(0, size, chunk_size), self._chunks, strict=False):
            yield place, chunk, min(chunk_size, size - place)

    @staticmethod
    def _address(cpu: int, offset: int) -> GuestVirtual:
        return GuestVirtual((cpu + offset) % _TOP)


def difference(previous: Records, current: Records) -> Difference:
    """Merge what the records gained on each CPU from ``previous`` to ``current``.

    Records that ``previous`` does not have were zero.  A record that lost a target was cleared, and
    counts from zero on that CPU.
    """
    _, count = current.shape
    other, hits = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    merged = _Merged(count)
    for before, now in zip(_resized(previous, count), current, strict=True):
        changed, old, new = _changed(before, now)
        targets = new[_TARGETS]
        moved = targets != old[_TARGETS]
        if moved.any():
            old[:, (moved & (old[_TARGETS] != 0)).any(axis=0)] = 0
            old[_COUNTS][moved] = 0
        # A slot is claimed, then counted in.  Read in the wrong order, a count without its target
        # is left for the next time.
        gained = _risen(old[_COUNTS], new[_COUNTS])
        gained[targets == 0] = 0
        nowhere = np.where(targets < _SIGN, gained, 0)
        gained -= nowhere
        other[changed] += _risen(old[_OTHER], new[_OTHER]) + nowhere.sum(axis=0, dtype=np.uint64)
        hits[changed] += _risen(old[_HITS], new[_HITS])
        merged.add(changed, targets, gained)
    unique, calls = merged.sums()
    return Difference(
        records=(unique >> np.uint64(32)).astype(np.int64),
        targets=unique & _LOW_HALF | _HIGH_HALF,
        calls=calls,
        other=other,
        hits=hits,
    )


def each_cpu(previous: Records, current: Records) -> Iterator[Difference]:
    """Yield what the records gained on each CPU alone; :func:`difference` is the sum."""
    for before, now in zip(previous, current, strict=True):
        yield difference(before[np.newaxis], now[np.newaxis])


def full_address(low_half: int) -> GuestVirtual:
    """Return the target whose low half a slot holds."""
    return GuestVirtual(low_half | int(_HIGH_HALF) if low_half >> 31 else low_half)


def set_cleared(snapshot: Records, records: Iterable[int]) -> None:
    """Make ``records`` zero in ``snapshot``, as the host has just made them in the guest.

    Without it, a target that claims its old slot again would seem to have counted almost 2**32.
    """
    snapshot[:, list(records)] = np.zeros((), RECORD_DTYPE)


def zero_records(snapshot: Records) -> list[int]:
    """Return the indices of the records that are all zero on every CPU."""
    cpus, count = snapshot.shape
    words = snapshot.view(np.uint64).reshape(cpus, count, _WORDS // 2)
    return np.flatnonzero(~words.any(axis=(0, 2))).tolist()


def _resized(snapshot: Records, count: int) -> Records:
    cpus, have = snapshot.shape
    if have >= count:
        return snapshot[:, :count]
    resized = np.zeros((cpus, count), RECORD_DTYPE)
    resized[:, :have] = snapshot
    return resized


def _changed(before: Records, now: Records) -> tuple[npt.NDArray[np.intp], _U32, _U32]:
    """Index the records of one CPU that differ; their words before and now, by word and record."""
    old = before.view(np.uint64).reshape(-1, _WORDS // 2)
    new = now.view(np.uint64).reshape(-1, _WORDS // 2)
    # Eight words a record: eight truth values, which are one word again.
    changed = np.flatnonzero((old != new).view(np.uint64))
    return changed, _by_word(old[changed]), _by_word(new[changed])


def _risen(old: _U32, new: _U32) -> _U32:
    """Return what counters gained; one that went back was cleared, and counts from zero."""
    gained = new - old
    return np.where(gained < _HALF, gained, new)


def _by_word(records: _U64) -> _U32:
    # Side by side for all records: numpy is several times slower along an axis of 7.
    return np.ascontiguousarray(records.view(np.uint32).reshape(-1, _WORDS).T)


class _Merged:
    """Sums the calls of all CPUs by key, which is record << 32 | target.

    CPUs call much the same targets, each in slots of its own order.  So each record has a table of
    the targets of the first CPU that called it: those of the others are found by comparing each
    slot with each.  Only what is not found there is sorted.
    """

    def __init__(self, count: int) -> None:
        self._targets: _U32 = np.zeros((RECORD_SLOTS, count), np.uint32)
        self._calls: _U64 = np.zeros((RECORD_SLOTS, count), np.uint64)
        self._others: list[tuple[_U64, _U64]] = []
        self._pending = 0

    def add(self, records: npt.NDArray[np.intp], targets: _U32, gained: _U32) -> None:
        """Take in one CPU's; targets and calls by slot and record."""
        known = self._targets[:, records]
        new = np.flatnonzero(~known.any(axis=0))
        if len(new):
            known[:, new] = targets[:, new]
            self._targets[:, records] = known
        calls = self._calls[:, records]
        for mine, made in zip(targets, gained, strict=True):
            if not made.any():
                continue
            for theirs, total in zip(known, calls, strict=True):
                found = made * (mine == theirs)
                np.add(total, found, out=total)
                np.subtract(made, found, out=made)  # a guest may have a target twice
        self._calls[:, records] = calls
        self._keep(*_keyed(records, targets, gained))

    def _keep(self, keys: _U64, calls: _U64) -> None:
        """Keep what is in no table; sum it up now and then, because a guest may have much of it."""
        if not len(keys):
            return
        self._others.append((keys, calls))
        self._pending += len(keys)
        if self._pending > max(_MERGE_AT, 2 * len(self._others[0][0])):
            self._others, self._pending = [_summed(self._others)], 0

    def sums(self) -> tuple[_U64, _U64]:
        """Return the keys, each once and in order, and the calls of each."""
        records = np.arange(self._targets.shape[1])
        return _summed([_keyed(records, self._targets, self._calls), *self._others])


def _keyed(records: npt.NDArray[np.intp], targets: _U32, calls: _U32 | _U64) -> tuple[_U64, _U64]:
    """Return the keys that were called, and the calls, of what is by slot and record."""
    slots, places = np.nonzero(calls)
    keys = records[places].astype(np.uint64) << np.uint64(32) | targets[slots, places]
    return keys, calls[slots, places].astype(np.uint64)


def _summed(parts: Sequence[tuple[_U64, _U64]]) -> tuple[_U64, _U64]:
    keys = np.concatenate([keys for keys, _ in parts])
    calls = np.concatenate([calls for _, calls in parts])
    order = np.argsort(keys)
    keys, calls = keys[order], calls[order]
    starts = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
    return keys[starts], np.add.reduceat(calls, starts) if len(starts) else calls
