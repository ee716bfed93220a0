"""The slots of a census: what is added up, and what a guest may claim in them."""

import struct
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.kernel.errors import CountersError, TranslationError
from optpolined.kernel.module.census import Census, CensusCounts, gained
from optpolined.kernel.module.header import parse_header
from tests.unit.kernel.fake_guest import HEADER, raw_header

CPUS = (0xFFFF_8880_07C0_0000, 0xFFFF_8880_07E0_0000)
CHUNKS = (0x2_C000, 0xFFFF_FFFF_FFFF_8000)  # of the second, the sum with a CPU's offset wraps
SLOTS = 4
OTHER = 0x1_F000
TOP = 1 << 64
COUNT_MAX = 1 << 48

A, B, C = 0x8123_4560, 0x8200_0040, 0xC030_0000
HIGH = 0xFFFF_FFFF_0000_0000

Pairs = dict[tuple[int, int], int]


class Slots:
    """The memory that the slots of two CPUs are in; what was not written is zero."""

    def __init__(self) -> None:
        self.memory: dict[int, bytearray] = {}
        for cpu in CPUS:
            for chunk in CHUNKS:
                self.memory[(cpu + chunk) % TOP] = bytearray(16 * SLOTS)
            self.memory[cpu + OTHER] = bytearray(8)
        self.census = Census(self.read, CPUS, CHUNKS, SLOTS, OTHER)

    def read(self, address: GuestVirtual, size: int) -> bytes:
        data = self.memory[address]
        assert size == len(data)
        return bytes(data)

    def put(self, cpu: int, chunk: int, slot: int, key: int, count: int) -> None:
        place = (CPUS[cpu] + CHUNKS[chunk]) % TOP
        self.memory[place][16 * slot : 16 * slot + 16] = struct.pack("<QQ", key, count)

    def put_other(self, cpu: int, count: int) -> None:
        self.memory[CPUS[cpu] + OTHER][:] = struct.pack("<Q", count)


def key(returns: int, target: int) -> int:
    return returns << 32 | target


def pairs_of(counts: CensusCounts) -> Pairs:
    return {(int(at) - HIGH, int(target) - HIGH): calls for at, target, calls in counts.pairs()}


@pytest.fixture
def slots() -> Slots:
    return Slots()


def test_nothing_was_counted(slots: Slots) -> None:
    counts = slots.census.read()
    assert counts.pairs() == []
    assert (counts.total, counts.other) == (0, 0)


def test_the_counts_of_all_cpus_and_chunks_are_added_up(slots: Slots) -> None:
    slots.put(0, 0, 0, key(A, B), 5)
    slots.put(0, 1, 3, key(A, B), 7)
    slots.put(1, 0, 2, key(A, B), 11)
    slots.put(1, 1, 0, key(A, C), 2)
    slots.put(1, 1, 1, key(C, A), 3)
    slots.put_other(0, 4)
    slots.put_other(1, 6)
    counts = slots.census.read()
    assert pairs_of(counts) == {(A, B): 23, (A, C): 2, (C, A): 3}
    assert (counts.total, counts.other) == (38, 10)
    assert counts.pairs() == sorted(counts.pairs())


def test_a_slot_that_nothing_has_claimed_counts_nothing(slots: Slots) -> None:
    slots.put(0, 0, 0, 0, 99)
    assert slots.census.read().total == 0


def test_a_full_table_is_read_whole_and_the_rest_is_told(slots: Slots) -> None:
    number = 0
    for cpu in range(2):
        for chunk in range(2):
            for slot in range(SLOTS):
                number += 1
                slots.put(cpu, chunk, slot, key(A + number, B), number)
        slots.put_other(cpu, 1000)
    counts = slots.census.read()
    assert len(counts.calls) == number == 16
    assert counts.other == 2000
    assert counts.total == 136 + 2000


@pytest.mark.parametrize(
    "wrong",
    [
        key(A & ~(1 << 31), B),
        key(A, B & ~(1 << 31)),
        key(0, 1),
        key(0x7FFF_FFFF, 0x7FFF_FFFF),
    ],
)
def test_an_address_outside_the_top_2_gib_is_no_pair(slots: Slots, wrong: int) -> None:
    slots.put(0, 0, 0, wrong, 9)
    slots.put(0, 0, 1, key(A, B), 1)
    counts = slots.census.read()
    assert pairs_of(counts) == {(A, B): 1}
    assert counts.other == 9


def test_the_edges_of_the_top_2_gib_are_pairs(slots: Slots) -> None:
    slots.put(0, 0, 0, key(0x8000_0000, 0xFFFF_FFFF), 9)
    assert pairs_of(slots.census.read()) == {(0x8000_0000, 0xFFFF_FFFF): 9}


def test_counts_that_lie_are_cut_and_their_sum_does_not_wrap(slots: Slots) -> None:
    for cpu in range(2):
        for chunk in range(2):
            for slot in range(SLOTS):
                slots.put(cpu, chunk, slot, key(A, B), TOP - 1)
        slots.put_other(cpu, TOP - 1)
    counts = slots.census.read()
    assert pairs_of(counts) == {(A, B): COUNT_MAX}
    assert counts.total == 3 * COUNT_MAX


def test_the_sum_of_many_pairs_that_lie_does_not_wrap() -> None:
    many = 1 << 17
    counts = CensusCounts(
        np.arange(many, dtype=np.uint64),
        np.zeros(many, np.uint64),
        np.full(many, COUNT_MAX, np.uint64),
        0,
    )
    assert counts.total == many * COUNT_MAX > TOP


@pytest.mark.parametrize(
    ("cpus", "chunks", "slots"), [(8192, 64, 2048), (8192, 1, 2049), (129, 64, 2048)]
)
def test_more_slots_than_a_daemon_reads_are_refused(cpus: int, chunks: int, slots: int) -> None:
    def read(address: GuestVirtual, size: int) -> bytes:
        raise AssertionError((address, size))

    with pytest.raises(CountersError, match="256 MiB"):
        Census(read, [0] * cpus, [0] * chunks, slots, 0)
    Census(read, [0] * 128, [0] * 64, 2048, 0)


def test_the_header_says_where_the_slots_are(slots: Slots) -> None:
    header = replace(
        parse_header(bytes(raw_header()), HEADER),
        nr_cpu_ids=2,
        nr_census_chunks=2,
        census_chunk_slots=SLOTS,
        census_other=OTHER,
    )
    slots.memory[header.per_cpu_offset] = bytearray(struct.pack("<2Q", *CPUS))
    slots.memory[header.census_chunks] = bytearray(struct.pack("<2Q", *CHUNKS))
    slots.put(1, 1, 2, key(A, B), 3)
    assert pairs_of(Census.from_header(slots.read, header).read()) == {(A, B): 3}


def test_slots_that_are_not_mapped_are_an_error() -> None:
    def read(address: GuestVirtual, _: int) -> bytes:
        raise TranslationError(address, 1, "it is not mapped")

    with pytest.raises(TranslationError):
        Census(read, CPUS, CHUNKS, SLOTS, OTHER).read()


@given(
    placed=st.dictionaries(
        st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, SLOTS - 1)),
        st.tuples(st.integers(0, TOP - 1) | st.sampled_from((0, key(A, B))), st.integers(0, TOP)),
    )
)
def test_any_slots_give_bounded_pairs_of_the_kernel(
    placed: dict[tuple[int, int, int], tuple[int, int]],
) -> None:
    slots = Slots()
    for (cpu, chunk, slot), (its_key, count) in placed.items():
        slots.put(cpu, chunk, slot, its_key, min(count, TOP - 1))
    counts = slots.census.read()
    assert len(counts.returns) == len(counts.targets) == len(counts.calls) <= len(placed)
    for at, target, calls in counts.pairs():
        assert at >= TOP - (2 << 30)
        assert target >= TOP - (2 << 30)
        assert 0 <= calls <= COUNT_MAX
    keys = [its_key for its_key, _ in placed.values()]
    assert set(pairs_of(counts)) <= {divmod(its_key, 1 << 32) for its_key in keys}
    assert 0 <= counts.other <= len(placed) * COUNT_MAX


def counted(pairs: Pairs, other: int = 0) -> CensusCounts:
    """Return what a census has read that counted ``pairs``."""
    ordered = sorted(pairs)
    return CensusCounts(
        np.array([HIGH | at for at, _ in ordered], np.uint64),
        np.array([HIGH | target for _, target in ordered], np.uint64),
        np.array([pairs[pair] for pair in ordered], np.uint64),
        other,
    )


address = st.integers(0x8000_0000, 0x8000_0003) | st.just(0xFFFF_FFFF)
pairs_counted = st.dictionaries(
    st.tuples(address, address), st.integers(1, 100) | st.just(COUNT_MAX), max_size=6
)


@given(before=pairs_counted, gain=pairs_counted, others=st.tuples(st.integers(0, 9)))
def test_what_was_gained_is_the_difference(before: Pairs, gain: Pairs, others: tuple[int]) -> None:
    now = Counter(before)
    now.update(gain)
    found = gained(counted(before, 3), counted(now, 3 + others[0]))
    assert pairs_of(found) == gain
    assert found.other == others[0]


@given(before=pairs_counted, now=pairs_counted, others=st.tuples(st.integers(0, 9)))
def test_counts_that_run_backwards_gain_nothing(
    before: Pairs, now: Pairs, others: tuple[int]
) -> None:
    found = gained(counted(before, 5), counted(now, others[0]))
    assert found.other >= 0
    for pair, calls in pairs_of(found).items():
        assert 0 < calls <= now[pair]
    if counted(now, others[0]).total < counted(before, 5).total:
        assert pairs_of(found) == now  # the slots were cleared in between
        return
    for pair, calls in now.items():
        if calls <= before.get(pair, 0):
            assert pair not in pairs_of(found)


def test_a_pair_that_went_back_is_left_out_where_the_others_rose() -> None:
    before, now = {(A, B): 10, (A, C): 1}, {(A, B): 4, (A, C): 90}
    assert pairs_of(gained(counted(before), counted(now))) == {(A, C): 89}


def test_after_a_clear_all_is_a_gain() -> None:
    before, now = counted({(A, B): 10}, 7), counted({(A, B): 4}, 1)
    found = gained(before, now)
    assert pairs_of(found) == {(A, B): 4}
    assert found.other == 1
