"""The arena: by example, and by a state machine that tries to get it wrong."""

import time

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from optpolined.addresses import GuestVirtual
from optpolined.kernel.errors import ArenaError, ArenaFullError
from optpolined.patching.arena import UNIT, Arena, GraceToken, Usage

BASE = GuestVirtual(0xFFFFFFFFC0400000)


def test_blocks_start_at_units_and_do_not_overlap() -> None:
    arena = Arena(BASE, 256)
    assert [arena.allocate(size) - BASE for size in (1, 33, 32, 64)] == [0, 32, 96, 128]
    assert arena.usage() == Usage(used=192, retired=0, free=64)


def test_a_retired_block_waits_for_its_grace_period() -> None:
    arena = Arena(BASE, 64)
    first, second = arena.allocate(32), arena.allocate(32)
    arena.retire(first)
    token = arena.grace_begin()
    arena.retire(second)
    with pytest.raises(ArenaFullError) as full:
        arena.allocate(1)
    assert (full.value.free, full.value.retired) == (0, 64)
    assert arena.grace_end(token) == 32
    assert arena.allocate(32) == first
    assert arena.grace_end(token) == 0
    assert arena.grace_end(arena.grace_begin()) == 32
    assert arena.allocate(32) == second


def test_a_failed_grace_period_is_made_up_for_by_the_next() -> None:
    arena = Arena(BASE, 64)
    arena.retire(arena.allocate(64))
    arena.grace_begin()
    assert arena.grace_end(arena.grace_begin()) == 64


def test_neighbours_become_one_range() -> None:
    arena = Arena(BASE, 96)
    blocks = [arena.allocate(32) for _ in range(3)]
    for block in (blocks[0], blocks[2], blocks[1]):
        arena.retire(block)
    arena.grace_end(arena.grace_begin())
    assert arena.allocate(96) == BASE


def test_the_shortest_range_that_holds_it_is_used() -> None:
    arena = Arena(BASE, 10 * UNIT)
    blocks = [arena.allocate(UNIT * units) for units in (2, 1, 1, 1, 5)]
    arena.retire(blocks[0])
    arena.retire(blocks[2])
    arena.grace_end(arena.grace_begin())
    assert arena.allocate(UNIT) == blocks[2]
    assert arena.allocate(UNIT) == blocks[0]


def test_blocks_that_are_marked_are_used() -> None:
    arena = Arena(BASE, 160)
    middle = GuestVirtual(BASE + 64)
    arena.mark_used(middle, 20)
    assert arena.usage() == Usage(used=32, retired=0, free=128)
    for address, size in (
        (middle, 1),
        (GuestVirtual(BASE + 32), 33),
        (GuestVirtual(BASE + 128), 33),
    ):
        with pytest.raises(ArenaError, match="not free"):
            arena.mark_used(address, size)
    arena.mark_used(BASE, 64)
    arena.mark_used(GuestVirtual(BASE + 96), 64)
    arena.retire(middle)
    arena.grace_end(arena.grace_begin())
    assert arena.allocate(32) == middle


@pytest.mark.parametrize("address", [BASE - 32, BASE + 1, BASE + 64, BASE + 32, 0])
def test_what_was_not_given_cannot_be_retired(address: int) -> None:
    arena = Arena(BASE, 64)
    arena.allocate(32)
    with pytest.raises(ArenaError):
        arena.retire(GuestVirtual(address))


def test_nothing_is_retired_twice() -> None:
    arena = Arena(BASE, 64)
    block = arena.allocate(32)
    arena.retire(block)
    with pytest.raises(ArenaError, match="no block"):
        arena.retire(block)


@pytest.mark.parametrize("size", [0, -1])
def test_sizes_that_make_no_sense(size: int) -> None:
    arena = Arena(BASE, 64)
    with pytest.raises(ArenaError):
        arena.allocate(size)
    with pytest.raises(ArenaError):
        arena.mark_used(BASE, size)


def test_tokens_that_were_not_given() -> None:
    arena = Arena(BASE, 64)
    for token in (-1, 0):
        with pytest.raises(ArenaError, match="not begun"):
            arena.grace_end(GraceToken(token))


@pytest.mark.parametrize(("base", "size"), [(BASE + 1, 64), (BASE, 31), (BASE, 0)])
def test_what_is_no_arena(base: int, size: int) -> None:
    with pytest.raises(ArenaError):
        Arena(GuestVirtual(base), size)


def test_eight_thousand_blocks_are_fast() -> None:
    arena = Arena(BASE, 2 << 20)
    start = time.process_time()
    blocks = [arena.allocate(30 + 13 * (index % 5)) for index in range(8000)]
    for block in blocks[::3]:
        arena.retire(block)
    arena.grace_end(arena.grace_begin())
    for index in range(len(blocks[::3])):
        arena.allocate(30 + 13 * (index % 5))
    # 30 ms on a quiet machine.
    assert time.process_time() - start < 0.25


class ArenaMachine(RuleBasedStateMachine):
    """Every unit, in a plain list of states, beside the arena."""

    UNITS = 40
    blocks: Bundle[GuestVirtual] = Bundle("blocks")
    tokens: Bundle[tuple[GraceToken, int]] = Bundle("tokens")

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(BASE, self.UNITS * UNIT + UNIT // 2)
        self.clock = 0
        self.used: dict[int, int] = {}
        self.retired: list[tuple[int, int, int]] = []

    def taken(self) -> list[int]:
        spans = [*self.used.items(), *((first, units) for _, first, units in self.retired)]
        return [unit for first, units in spans for unit in range(first, first + units)]

    def longest_free(self) -> int:
        taken = set(self.taken())
        longest = run = 0
        for unit in range(self.UNITS):
            run = 0 if unit in taken else run + 1
            longest = max(longest, run)
        return longest

    @rule(target=blocks, size=st.integers(1, 8 * UNIT))
    def allocate(self, size: int) -> GuestVirtual:
        units = -(-size // UNIT)
        if self.longest_free() < units:
            with pytest.raises(ArenaFullError):
                self.arena.allocate(size)
            return GuestVirtual(0)
        address = self.arena.allocate(size)
        self.book(address, units)
        return address

    @rule(target=blocks, first=st.integers(0, UNITS - 1), units=st.integers(1, 6))
    def mark_used(self, first: int, units: int) -> GuestVirtual:
        address = GuestVirtual(BASE + first * UNIT)
        wanted = range(first, first + units)
        if first + units > self.UNITS or set(wanted) & set(self.taken()):
            with pytest.raises(ArenaError):
                self.arena.mark_used(address, units * UNIT)
            return GuestVirtual(0)
        self.arena.mark_used(address, units * UNIT)
        self.book(address, units)
        return address

    def book(self, address: int, units: int) -> None:
        first, odd = divmod(address - BASE, UNIT)
        assert odd == 0
        assert first >= 0
        assert first + units <= self.UNITS
        assert not set(range(first, first + units)) & set(self.taken())
        self.used[first] = units

    @rule(block=consumes(blocks))
    def retire(self, block: GuestVirtual) -> None:
        first = (block - BASE) // UNIT
        if first not in self.used:
            with pytest.raises(ArenaError):
                self.arena.retire(block)
            return
        self.arena.retire(block)
        self.clock += 1
        self.retired.append((self.clock, first, self.used.pop(first)))

    @rule()
    def fill_up(self) -> None:
        """Every byte that is said to be free can be had, and not one more."""
        for _ in range(self.arena.usage().free // UNIT):
            self.book(self.arena.allocate(UNIT), 1)
        with pytest.raises(ArenaFullError) as full:
            self.arena.allocate(1)
        retired = sum(units for _, _, units in self.retired)
        assert (full.value.free, full.value.retired) == (0, retired * UNIT)

    @rule(target=tokens)
    def grace_begin(self) -> tuple[GraceToken, int]:
        return self.arena.grace_begin(), self.clock

    @rule(token=tokens)
    def grace_end(self, token: tuple[GraceToken, int]) -> None:
        freed = [units for clock, _, units in self.retired if clock <= token[1]]
        assert self.arena.grace_end(token[0]) == sum(freed) * UNIT
        self.retired = [span for span in self.retired if span[0] > token[1]]

    @invariant()
    def conserves(self) -> None:
        used = sum(self.used.values())
        retired = sum(units for _, _, units in self.retired)
        free = self.UNITS - used - retired
        usage = self.arena.usage()
        assert usage == Usage(used * UNIT, retired * UNIT, free * UNIT)
        assert usage.used + usage.retired + usage.free == self.arena.size


TestArenaMachine = ArenaMachine.TestCase
