from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optpolined.addresses import GuestPhysical, GuestVirtual
from optpolined.kernel.errors import TranslationError
from optpolined.kernel.paging import AddressSpace, is_canonical
from tests.unit.kernel.fake_guest import (
    NO_EXECUTE,
    PAGE,
    PRESENT,
    WRITABLE,
    FakeMemory,
    PageTables,
)

TOP = GuestVirtual(0xFFFF_FFFF_8100_0000)


@pytest.fixture(params=(4, 5))
def tables(request: pytest.FixtureRequest) -> PageTables:
    return PageTables(FakeMemory(), levels=request.param)


@pytest.mark.parametrize(("level", "size"), [(1, 1 << 12), (2, 1 << 21), (3, 1 << 30)])
def test_every_page_size_translates(tables: PageTables, level: int, size: int) -> None:
    virtual = 0xFFFF_FFFF_8000_0000
    tables.map(virtual, 3 * size, level=level)
    for offset in (0, 1, size - 1):
        assert tables.space.translate(GuestVirtual(virtual + offset)) == 3 * size + offset


def test_a_read_goes_on_in_the_next_page(tables: PageTables) -> None:
    tables.map(TOP, 0x50_0000)
    tables.map(TOP + 4096, 0x70_0000)
    tables.memory.write(0x50_0FFE, b"ab")
    tables.memory.write(0x70_0000, b"cd")
    assert tables.space.read(GuestVirtual(TOP + 4094), 4) == b"abcd"
    assert tables.space.pieces(GuestVirtual(TOP + 4094), 4) == [(0x50_0FFE, 2), (0x70_0000, 2)]
    assert tables.space.read(TOP, 0) == b""


def test_an_absent_entry_names_address_and_level(tables: PageTables) -> None:
    for level in range(tables.levels, 0, -1):
        tables.entry(TOP, level)
        with pytest.raises(TranslationError, match=f"{TOP:#x}.*level {level}") as caught:
            tables.space.translate(TOP)
        assert (caught.value.address, caught.value.level) == (TOP, level)


def test_a_read_into_an_absent_page_fails_as_a_whole(tables: PageTables) -> None:
    tables.map(TOP, 0x50_0000)
    with pytest.raises(TranslationError) as caught:
        tables.space.read(GuestVirtual(TOP + 4090), 16)
    assert caught.value.address == TOP + 4096


@pytest.mark.parametrize("level", [2, 3, 4])
def test_reserved_bits_end_the_walk(tables: PageTables, level: int) -> None:
    tables.map(TOP, 1 << 13, level=level)
    with pytest.raises(TranslationError, match="reserved") as caught:
        tables.space.translate(TOP)
    assert caught.value.level == level
    assert list(tables.space.mapped(TOP, GuestVirtual(TOP + 4096))) == []


def test_a_large_page_has_its_pat_bit_where_others_have_the_address(tables: PageTables) -> None:
    tables.map(0xFFFF_FFFF_8000_0000, (1 << 21) | (1 << 12), level=2)
    assert tables.space.translate(GuestVirtual(0xFFFF_FFFF_8000_0000)) == 1 << 21


def test_tables_and_pages_outside_ram(tables: PageTables) -> None:
    tables.map(TOP, 1 << 40)
    assert tables.space.translate(TOP) == 1 << 40
    with pytest.raises(TranslationError, match="not RAM"):
        tables.space.read(TOP, 1)
    entry = (1 << 41) | PRESENT
    tables.memory.write(tables.entry(TOP, 2), entry.to_bytes(8, "little"))
    with pytest.raises(TranslationError, match="not RAM") as caught:
        tables.space.translate(TOP)
    assert caught.value.level == 1
    assert list(tables.space.mapped(TOP, GuestVirtual(TOP + 4096))) == []


def test_canonical_addresses() -> None:
    assert is_canonical(0xFFFF_8000_0000_0000, 4)
    assert not is_canonical(0xFFFF_7FFF_FFFF_FFFF, 4)
    assert is_canonical(0xFF00_0000_0000_0000, 5)
    assert not is_canonical(1 << 47, 4)
    assert is_canonical(1 << 47, 5)
    assert not is_canonical(1 << 64, 4)
    space = PageTables(FakeMemory()).space
    with pytest.raises(TranslationError, match="canonical"):
        space.translate(GuestVirtual(1 << 47))


def test_mapped_gives_flags_of_the_whole_walk_and_stays_in_the_range(tables: PageTables) -> None:
    base = 0xFFFF_FFFF_C000_0000
    tables.map(base, 0x50_0000, WRITABLE | NO_EXECUTE)
    tables.map(base + 0x3000, 0x51_0000, 0)
    tables.map(base + 0x20_0000, 0x80_0000, WRITABLE, level=2)
    tables.map(base + 0x60_0000, 0x52_0000, WRITABLE)
    start, end = GuestVirtual(base), GuestVirtual(base + 0x20_2000)
    pages = list(tables.space.mapped(start, end))
    found = [(page.start - base, page.size, page.physical) for page in pages]
    assert found == [
        (0, 4096, 0x50_0000),
        (0x3000, 4096, 0x51_0000),
        (0x20_0000, 0x2000, 0x80_0000),
    ]
    flags = [(page.writable, page.executable) for page in pages]
    assert flags == [(True, False), (False, True), (True, True)]
    upper = tables.entry(base, 3)
    locked = int.from_bytes(tables.memory.read(GuestPhysical(upper), 8), "little")
    locked = (locked | NO_EXECUTE) & ~WRITABLE
    tables.memory.write(upper, locked.to_bytes(8, "little"))
    again = tables.space.mapped(start, end)
    assert {(page.writable, page.executable) for page in again} == {(False, False)}


def test_mapped_starts_within_a_large_page(tables: PageTables) -> None:
    tables.map(0xFFFF_FFFF_8100_0000, 0x80_0000, level=2)
    start = GuestVirtual(0xFFFF_FFFF_8100_5000)
    (page,) = tables.space.mapped(start, GuestVirtual(start + 0x1000))
    assert (page.start, page.size, page.physical) == (start, 0x1000, 0x80_5000)


def test_a_snapshot_reads_each_table_once_and_forgets(tables: PageTables) -> None:
    for number in range(64):
        tables.map(TOP + 4096 * number, 0x50_0000 + 4096 * number)
    with tables.space.snapshot() as pages:
        tables.memory.reads = 0
        for offset in range(0, 64 * 4096, 512):
            address = GuestVirtual(TOP + offset)
            assert pages.translate(address) == 0x50_0000 + offset
        assert tables.memory.reads == tables.levels
        tables.map(TOP, 0x70_0000)
        assert pages.translate(TOP) == 0x50_0000
    with tables.space.snapshot() as later:
        assert later.translate(TOP) == 0x70_0000
    with pytest.raises(AssertionError):
        pages.translate(GuestVirtual(TOP))


def test_a_snapshot_knows_the_last_small_page_from_a_large_one(tables: PageTables) -> None:
    last = GuestVirtual(0xFFFF_FFFF_811F_F000)
    tables.map(last, 0x50_0000)
    with tables.space.snapshot() as pages:
        assert pages.translate(last) == 0x50_0000
        with pytest.raises(TranslationError):
            pages.translate(TOP)


def test_levels_are_four_or_five() -> None:
    with pytest.raises(ValueError, match="not 3"):
        AddressSpace(FakeMemory(), GuestPhysical(0), 3)


entries = st.one_of(
    st.integers(0, 2**64 - 1),
    # Mostly tables that lead to tables, themselves included.
    st.builds(
        lambda page, flags: (page << 12) | PRESENT | flags,
        st.integers(0, 8),
        st.sampled_from((0, WRITABLE, PAGE, NO_EXECUTE, WRITABLE | NO_EXECUTE | PAGE)),
    ),
)


@settings(deadline=None)  # the machine that runs this has other things to do
@given(
    levels=st.sampled_from((4, 5)),
    rows=st.lists(st.lists(entries, min_size=4, max_size=4), min_size=8, max_size=8),
    start=st.integers(0, 2**64 - 1),
    size=st.integers(0, 1 << 24),
)
def test_garbage_ends_in_a_named_error_or_a_bounded_result(
    levels: int, rows: list[list[int]], start: int, size: int
) -> None:
    memory = FakeMemory(8 * 4096)
    for page, row in enumerate(rows):
        table = b"".join(entry.to_bytes(8, "little") for entry in row * 128)
        memory.write(4096 * page, table)
    space = AddressSpace(memory, GuestPhysical(0), levels)
    end = GuestVirtual(min(start + size, 2**64))
    total = 0
    for page_range in space.mapped(GuestVirtual(start), end):
        assert start <= page_range.start < page_range.start + page_range.size <= end
        total += page_range.size
    assert total <= size
    for place in (space, AddressSpace(memory, GuestPhysical(1 << 45), levels)):
        with place.snapshot() as pages:
            for reader in (place, pages):
                with suppress(TranslationError):
                    assert len(reader.read(GuestVirtual(start), 9000)) == 9000
