"""Counters: what is read from which address, and what two snapshots make."""

import struct
import time
from collections import Counter
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from optpolined.addresses import GuestPhysical, GuestVirtual
from optpolined.kernel.errors import CountersError
from optpolined.kernel.module.abi import RECORD_SLOTS, CounterRecord
from optpolined.kernel.module.counters import (
    RECORD_DTYPE,
    Counters,
    Int3Stats,
    RecordGain,
    Records,
    difference,
    each_cpu,
    full_address,
    set_cleared,
    zero_records,
)
from optpolined.kernel.module.header import Header

CPUS = (0xFFFF888007C00000, 0xFFFF888007E00000)
CHUNKS = (0x2C000, 0xFFFFFFFFFFFF8000)  # of the second, the sum with a CPU's offset wraps
STATS = 0x1F000
TABLES = 0xFFFFFFFFC0201000
HOT = 0x81234560
TARGET = GuestVirtual(0xFFFFFFFF81234560)
COLD = 0xC0300000


class Memory:
    """Sparse memory of 32 KiB pieces; what was not written is zero."""

    def __init__(self) -> None:
        self.octets: dict[int, int] = {}
        self.reads: list[tuple[int, int]] = []

    def write(self, address: int, data: bytes) -> None:
        self.octets.update(enumerate(data, address))

    def read(self, address: GuestVirtual, size: int) -> bytes:
        self.reads.append((address, size))
        return bytes(self.octets.get(address + index, 0) for index in range(size))


def records(cpus: int, count: int) -> Records:
    return np.zeros((cpus, count), RECORD_DTYPE)


def put(
    snapshot: Records, cpu: int, record: int, *slots: tuple[int, int], other: int = 0, hits: int = 0
) -> None:
    padded = [*slots, *[(0, 0)] * (RECORD_SLOTS - len(slots))]
    snapshot[cpu, record] = (padded, other, hits)


def counters(memory: Memory) -> Counters:
    return Counters(memory.read, CPUS, CHUNKS, STATS)


def test_the_layout_is_that_of_the_abi() -> None:
    raw = CounterRecord()
    raw.slots[6].target, raw.slots[6].count, raw.other, raw.hits = 1, 2, 3, 4
    (record,) = np.frombuffer(bytes(raw), RECORD_DTYPE)
    assert record["slots"][6].tolist() == (1, 2)
    assert (record["other"], record["hits"]) == (3, 4)


def test_snapshot_reads_whole_chunks() -> None:
    memory = Memory()
    memory.write(CPUS[1] + CHUNKS[0] + 64 * 511, struct.pack("<2I", HOT, 7))
    memory.write((CPUS[0] + CHUNKS[1]) % (1 << 64) + 64 * 2, struct.pack("<2I", COLD, 9))
    snapshot = counters(memory).snapshot(515)
    assert snapshot.shape == (2, 515)
    assert snapshot[1, 511]["slots"][0].tolist() == (HOT, 7)
    assert snapshot[0, 514]["slots"][0].tolist() == (COLD, 9)
    assert np.count_nonzero(snapshot.view(np.uint32)) == 4
    assert memory.reads == [
        (CPUS[0] + CHUNKS[0], 32768),
        ((CPUS[0] + CHUNKS[1]) % (1 << 64), 192),
        (CPUS[1] + CHUNKS[0], 32768),
        ((CPUS[1] + CHUNKS[1]) % (1 << 64), 192),
    ]


def test_where_a_record_is() -> None:
    found = counters(Memory())
    assert found.capacity == 1024
    assert found.offset(513) == (CHUNKS[1] + 64) % (1 << 64)
    assert found.copies(1) == [cpu + CHUNKS[0] + 64 for cpu in CPUS]


def test_int3_stats_are_summed() -> None:
    memory = Memory()
    for cpu, (hits, late) in zip(CPUS, [(5, 1), ((1 << 64) - 1, 2)], strict=True):
        memory.write(cpu + STATS, struct.pack("<2Q", hits, late))
    assert counters(memory).int3() == Int3Stats(hits=(1 << 64) + 4, late=3)


def test_from_header() -> None:
    memory = Memory()
    memory.write(TABLES, struct.pack("<2Q", *CPUS))
    memory.write(TABLES + 64, struct.pack("<2Q", *CHUNKS))
    nowhere = GuestVirtual(TABLES)
    header = Header(
        address=nowhere,
        boot_nonce=0,
        vmcoreinfo=GuestPhysical(0),
        vmcoreinfo_size=0,
        module_text=nowhere,
        module_text_size=0,
        arena=nowhere,
        arena_size=0,
        poke_table=nowhere,
        poke_order=8,
        per_cpu_offset=GuestVirtual(TABLES),
        nr_cpu_ids=2,
        record_chunks=GuestVirtual(TABLES + 64),
        nr_record_chunks=2,
        cpu_stats=STATS,
        thunk=MappingProxyType({}),
        learn_stub=MappingProxyType({}),
        census_stub=MappingProxyType({}),
        thunk_head=MappingProxyType({}),
        census_chunks=nowhere,
        nr_census_chunks=1,
        census_chunk_slots=1,
        census_other=0,
        modules=nowhere,
        modules_capacity=1,
    )
    found = Counters.from_header(memory.read, header)
    assert found.copies(512) == [(cpu + CHUNKS[1]) % (1 << 64) for cpu in CPUS]


@pytest.mark.parametrize("count", [-1, 1025])
def test_records_that_are_not_there(count: int) -> None:
    with pytest.raises(CountersError, match="1024 records"):
        counters(Memory()).snapshot(count)


def test_a_guest_that_claims_too_much_is_not_read() -> None:
    memory = Memory()
    many = Counters(memory.read, [0] * 8192, CHUNKS * 64, 0)
    with pytest.raises(CountersError, match="8192 CPUs"):
        many.snapshot(65536)
    assert memory.reads == []


def test_targets_are_merged_over_cpus() -> None:
    before, now = records(2, 3), records(2, 3)
    put(before, 0, 1, (HOT, 10))
    put(now, 0, 1, (HOT, 15), (COLD, 1), other=2)
    put(now, 1, 1, (COLD, 4), (HOT, 6), other=3, hits=8)
    put(now, 1, 2, (HOT, 1))
    gained = difference(before, now)
    assert gained.records.tolist() == [1, 1, 2]
    assert gained.targets.tolist() == [TARGET, 0xFFFFFFFFC0300000, TARGET]
    assert gained.calls.tolist() == [11, 5, 1]
    assert gained.other.tolist() == [0, 5, 0]
    assert gained.hits.tolist() == [0, 8, 0]
    assert gained.by_record() == {
        1: RecordGain({TARGET: 11, GuestVirtual(0xFFFFFFFFC0300000): 5}, 5, 8),
        2: RecordGain({TARGET: 1}, 0, 0),
    }


def test_nothing_gained() -> None:
    now = records(2, 4)
    put(now, 1, 3, (HOT, 5), other=1, hits=1)
    assert difference(now, now.copy()).by_record() == {}
    assert difference(records(1, 0), records(1, 0)).by_record() == {}


def test_only_hits() -> None:
    now = records(1, 2)
    put(now, 0, 1, hits=3)
    assert difference(records(1, 2), now).by_record() == {1: RecordGain({}, 0, 3)}


def test_counts_wrap() -> None:
    before, now = records(1, 1), records(1, 1)
    top = (1 << 32) - 1
    put(before, 0, 0, (HOT, top), other=top, hits=top - 1)
    put(now, 0, 0, (HOT, 2), other=0, hits=top)
    assert difference(before, now).by_record() == {0: RecordGain({TARGET: 3}, 1, 1)}


def test_a_count_that_goes_back_was_cleared() -> None:
    before, now = records(1, 1), records(1, 1)
    put(before, 0, 0, (HOT, 1000), other=9, hits=70)
    put(now, 0, 0, (HOT, 40), other=3, hits=2)
    assert difference(before, now).by_record() == {0: RecordGain({TARGET: 40}, 3, 2)}


def test_a_record_that_lost_a_target_counts_from_zero() -> None:
    before, now = records(1, 2), records(1, 2)
    put(before, 0, 0, (HOT, 100), (COLD, 50), other=9, hits=9)
    put(now, 0, 0, (COLD, 5), (COLD, 60), other=1, hits=2)
    put(before, 0, 1, (HOT, 100))
    gained = difference(before, now).by_record()
    assert gained == {0: RecordGain({GuestVirtual(0xFFFFFFFFC0300000): 65}, 1, 2)}


def test_a_forgotten_record_counts_from_zero() -> None:
    before, now = records(1, 2), records(1, 2)
    put(before, 0, 0, (HOT, 100), hits=5)
    put(before, 0, 1, (HOT, 100), hits=5)
    put(now, 0, 0, (HOT, 3), hits=1)
    put(now, 0, 1, (HOT, 103), hits=6)
    set_cleared(before, [0])
    assert difference(before, now).by_record() == {
        0: RecordGain({TARGET: 3}, 0, 1),
        1: RecordGain({TARGET: 3}, 0, 1),
    }


def test_a_count_without_a_target_waits_for_it() -> None:
    """The slot was read between its claim and its first count, in the wrong order."""
    first, second, third = records(1, 1), records(1, 1), records(1, 1)
    put(second, 0, 0, (0, 1))
    put(third, 0, 0, (HOT, 2))
    assert difference(first, second).by_record() == {}
    assert difference(second, third).by_record() == {0: RecordGain({TARGET: 2}, 0, 0)}


def test_what_cannot_be_a_target_is_other() -> None:
    now = records(2, 1)
    put(now, 0, 0, (0x7FFFFFFF, 3), (1, (1 << 32) - 1), (HOT, 1), other=4)
    put(now, 1, 0, (0x7FFFFFFF, 3))
    gained = difference(records(2, 1), now).by_record()
    assert gained == {0: RecordGain({TARGET: 1}, 4 + 6 + (1 << 32) - 1, 0)}


def test_two_slots_of_one_target_are_one() -> None:
    now = records(1, 1)
    put(now, 0, 0, (HOT, 3), (HOT, 4))
    assert difference(records(1, 1), now).by_record() == {0: RecordGain({TARGET: 7}, 0, 0)}


def test_more_or_fewer_records_than_before() -> None:
    small, large = records(1, 1), records(1, 3)
    put(small, 0, 0, (HOT, 1))
    put(large, 0, 0, (HOT, 2))
    put(large, 0, 2, (HOT, 7))
    assert sorted(difference(small, large).by_record()) == [0, 2]
    assert sorted(difference(large, small).by_record()) == [0]


def test_clean_records() -> None:
    now = records(2, 4)
    put(now, 1, 0, (0, 1))
    put(now, 0, 2, hits=1)
    assert zero_records(now) == [1, 3]


def test_the_cpus_alone_make_the_sum() -> None:
    before, now = records(2, 1), records(2, 2)
    put(now, 0, 1, (HOT, 3), other=1)
    put(now, 1, 1, (COLD, 4), (HOT, 2), hits=5)
    put(before, 1, 0, (HOT, 9))
    put(now, 1, 0, (HOT, 9))
    first, second = (gained.by_record() for gained in each_cpu(before, now))
    assert first == {1: RecordGain({TARGET: 3}, 1, 0)}
    assert second == {1: RecordGain({TARGET: 2, GuestVirtual(0xFFFFFFFFC0300000): 4}, 0, 5)}
    assert difference(before, now).by_record()[1].calls[TARGET] == 5


_ANY = arrays.arrays(np.uint32, (2, 3, 16), elements=st.integers(0, (1 << 32) - 1))


@given(_ANY, _ANY)
def test_hostile_records_never_raise(before: np.ndarray, now: np.ndarray) -> None:
    snapshots = [words.view(RECORD_DTYPE)[:, :, 0] for words in (before, now)]
    gained = difference(snapshots[0], snapshots[1])
    assert (gained.targets >> np.uint64(31) == (1 << 33) - 1).all()
    assert (gained.calls > 0).all()
    pairs = list(zip(gained.records.tolist(), gained.targets.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    gained.by_record()
    zero_records(snapshots[0])


_FEW = st.sampled_from([0, 5, HOT, COLD, HOT + 16, HOT + 32, COLD + 16, COLD + 32, COLD + 48])


@given(
    st.lists(
        st.lists(st.lists(st.tuples(_FEW, st.integers(0, 9)), max_size=7), min_size=2, max_size=2),
        min_size=1,
        max_size=4,
    )
)
def test_calls_are_summed_over_cpus_and_slots(cpus: list[list[list[tuple[int, int]]]]) -> None:
    now = records(len(cpus), 2)
    wanted: dict[int, Counter[int]] = {0: Counter(), 1: Counter()}
    others = [0, 0]
    for cpu, found in enumerate(cpus):
        for record, slots in enumerate(found):
            put(now, cpu, record, *slots)
            for called, number in slots:
                if called >> 31:
                    wanted[record][full_address(called)] += number
                elif called:
                    others[record] += number
    gained = difference(records(len(cpus), 2), now).by_record()
    for record in (0, 1):
        gain = gained.get(record, RecordGain({}, 0, 0))
        assert gain.calls == +wanted[record]
        assert gain.other == others[record]


def busy(cpus: int, count: int, share: float) -> tuple[Records, Records]:
    """Snapshots in which ``share`` of the records have gained, two targets on each CPU."""
    chance = np.random.default_rng(1)
    before = np.zeros((cpus, count, 16), np.uint32)
    before[:, :, 0], before[:, :, 2] = HOT, COLD
    now = before.copy()
    for cpu in range(cpus):
        gaining = chance.random(count) < share
        now[cpu, gaining, 1] += 5
        now[cpu, gaining, 3] += 1
    return before.view(RECORD_DTYPE)[:, :, 0], now.view(RECORD_DTYPE)[:, :, 0]


@pytest.mark.parametrize(
    ("cpus", "count", "share", "seconds"),
    # On a quiet machine 2 ms and 100 ms.
    [(2, 8000, 0.25, 0.05), (64, 20000, 0.1, 1.0)],
)
def test_difference_is_fast(cpus: int, count: int, share: float, seconds: float) -> None:
    before, now = busy(cpus, count, share)
    start = time.process_time()
    gained = difference(before, now)
    assert time.process_time() - start < seconds
    assert len(gained.records) > 0
