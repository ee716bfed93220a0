"""The model of the poke table, against a plain search such as the guest's."""

import ctypes
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.kernel.errors import PokeEntryError, PokeTableFullError
from optpolined.kernel.module import abi
from optpolined.kernel.module.abi import PokeState, SiteKind
from optpolined.kernel.module.poke_table import (
    ENTRY_SIZE,
    Defect,
    PokeEntry,
    PokeTable,
    decode,
    encode,
    home,
)

TEXT = 0xFFFFFFFF81000000
THUNK = GuestVirtual(0xFFFFFFFF81E01740)


def entry(site: int, state: PokeState = PokeState.IDLE) -> PokeEntry:
    return PokeEntry(GuestVirtual(site), THUNK, SiteKind.CALL, state, b"\x2e\xe8\1\2\3\4")


def site_at(place: int, order: int, nth: int = 0) -> GuestVirtual:
    """The ``nth`` site whose home is ``place``."""
    found = (
        site for site in range(TEXT, TEXT + (1 << 24)) if home(GuestVirtual(site), order) == place
    )
    for _ in range(nth):
        next(found)
    return GuestVirtual(next(found))


def image(order: int, **places: PokeEntry | bytes) -> bytes:
    """A table with these entries, given as ``_INDEX=entry``."""
    table = bytearray(ENTRY_SIZE << order)
    for name, found in places.items():
        start = int(name[1:]) * ENTRY_SIZE
        table[start : start + ENTRY_SIZE] = found if isinstance(found, bytes) else encode(found)
    return bytes(table)


def search(table: bytes, site: int) -> int | None:
    """As optp_poke_find() in int3.c."""
    capacity = len(table) // ENTRY_SIZE
    place = ((site * 0x9E3779B97F4A7C15) % (1 << 64)) >> (64 - (capacity.bit_length() - 1))
    for _ in range(capacity):
        (found,) = struct.unpack_from("<Q", table, place * ENTRY_SIZE)
        if found == site:
            return place
        if found == 0:
            return None
        place = (place + 1) % capacity
    return None


def test_the_layout_is_that_of_the_abi() -> None:
    raw = abi.PokeEntryLayout(
        site=TEXT + 5, slow_path=THUNK, kind=2, state=1, length=5, original=(0xE9, 1, 2, 3, 4)
    )
    made = PokeEntry(GuestVirtual(TEXT + 5), THUNK, SiteKind.JMP, PokeState.ARMED, b"\xe9\1\2\3\4")
    assert encode(made) == bytes(raw)
    assert decode(bytes(raw)) == made
    assert made.length == 5
    assert decode(bytes(ENTRY_SIZE)) is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("site", 0x1000, "site 0x1000"),
        ("slow_path", 0xFFFF888000000000, "slow path"),
        ("kind", 0, "kind 0"),
        ("kind", 7, "kind 7"),
        ("state", 3, "state 3"),
        ("length", 0, "length 0"),
        ("length", 9, "length 9"),
        ("original", (ctypes.c_uint8 * 8)(0xCC, 1, 2, 3, 4), "original instruction"),
    ],
)
def test_entries_that_make_no_sense(field: str, value: int, message: str) -> None:
    raw = abi.PokeEntryLayout.from_buffer_copy(encode(entry(TEXT)))
    setattr(raw, field, value)
    with pytest.raises(PokeEntryError, match=message):
        decode(bytes(raw))


@pytest.mark.parametrize("original", [b"", bytes(9)])
def test_an_instruction_that_does_not_fit(original: bytes) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        encode(PokeEntry(GuestVirtual(TEXT), THUNK, SiteKind.CALL, PokeState.IDLE, original))


@pytest.mark.parametrize("size", [0, ENTRY_SIZE - 1, 3 * ENTRY_SIZE, 8 * ENTRY_SIZE + 1])
def test_what_is_no_table(size: int) -> None:
    with pytest.raises(ValueError, match="no poke table"):
        PokeTable(bytes(size))


def test_a_site_takes_its_home_or_the_next_free_place() -> None:
    first, second, third = (site_at(15, 4, nth) for nth in range(3))
    table = PokeTable(image(4))
    assert table.place(first) == 15
    assert [table.put(entry(site)) for site in (first, second, third)] == [15, 0, 1]
    assert table.put(entry(first, PokeState.ARMED)) == 15
    assert [table.place(site) for site in (first, second, third)] == [15, 0, 1]
    assert table.entries[first].state is PokeState.ARMED
    assert list(table.entries) == [first, second, third]


def test_an_image_is_read_back() -> None:
    sites = [site_at(3, 4, nth) for nth in range(3)]
    table = PokeTable(image(4, _3=entry(sites[0]), _4=entry(sites[1]), _5=entry(sites[2])))
    assert {site: table.place(site) for site in sites} == dict(zip(sites, (3, 4, 5), strict=True))
    assert set(table.entries) == set(sites)
    assert table.defects == []


def test_an_entry_that_went_with_its_module_keeps_its_place_and_means_nothing() -> None:
    gone, behind = (site_at(3, 4, nth) for nth in range(2))
    table = PokeTable(image(4, _3=entry(gone, PokeState.GONE), _4=entry(behind)))
    assert set(table.entries) == {behind}
    assert (table.place(gone), table.place(behind)) == (3, 4)
    assert table.defects == []
    assert table.put(entry(gone, PokeState.ARMED)) == 3
    assert table.entries[gone].state is PokeState.ARMED


def test_an_entry_that_no_search_reaches() -> None:
    site = site_at(3, 4)
    table = PokeTable(image(4, _5=entry(site)))
    assert table.defects == [Defect(5, "no search reaches it")]
    assert table.entries == {}
    assert table.place(site) == 3


def test_a_second_entry_of_a_site() -> None:
    site = site_at(15, 4)
    table = PokeTable(image(4, _15=entry(site), _0=entry(site, PokeState.ARMED)))
    assert [defect.index for defect in table.defects] == [0]
    assert table.place(site) == 15
    assert table.entries[site].state is PokeState.IDLE


def test_a_defect_is_mended_in_its_place() -> None:
    site = site_at(7, 4)
    broken = bytearray(encode(entry(site)))
    broken[16] = 77
    table = PokeTable(image(4, _7=bytes(broken)))
    assert table.defects == [Defect(7, "kind 77")]
    assert table.put(entry(site)) == 7
    assert table.defects == []
    assert table.entries == {site: entry(site)}


def test_a_full_table() -> None:
    table = PokeTable(image(2))
    sites = [GuestVirtual(TEXT + 5 * index) for index in range(4)]
    assert sorted(table.put(entry(site)) for site in sites) == [0, 1, 2, 3]
    with pytest.raises(PokeTableFullError, match="among 4"):
        table.place(GuestVirtual(TEXT + 99))
    assert table.put(entry(sites[2])) == table.place(sites[2])


def test_a_table_of_one_entry() -> None:
    table = PokeTable(image(0))
    assert table.put(entry(TEXT)) == 0


@given(
    st.lists(st.one_of(st.just(b""), st.binary(min_size=8, max_size=32)), max_size=16),
    st.lists(st.integers(TEXT, TEXT + 63), max_size=20),
    st.lists(st.tuples(st.integers(0, 15), st.integers(TEXT, TEXT + 63)), max_size=12),
)
def test_places_are_those_that_the_guest_finds(
    junk: list[bytes], sites: list[int], planted: list[tuple[int, int]]
) -> None:
    """Whatever the image holds, and as ever more sites are put into it."""
    raw = bytearray(b"".join(data.ljust(ENTRY_SIZE, b"\0") for data in junk))
    raw = raw.ljust(16 * ENTRY_SIZE, b"\0")
    for index, site in planted:
        raw[index * ENTRY_SIZE : (index + 1) * ENTRY_SIZE] = encode(entry(site))
    table = PokeTable(bytes(raw))
    for site in table.entries:
        assert search(bytes(raw), site) == table.place(site)
    for site in map(GuestVirtual, sites):
        before = search(bytes(raw), site)
        try:
            index = table.put(entry(site))
        except PokeTableFullError:
            assert before is None
            assert all(raw[place * ENTRY_SIZE :][:8] != bytes(8) for place in range(16))
            continue
        assert before in (None, index)
        raw[index * ENTRY_SIZE : (index + 1) * ENTRY_SIZE] = encode(entry(site))
        assert search(bytes(raw), site) == index
    again = PokeTable(bytes(raw))
    # Where the places before it were taken since, a search may now reach what it did not.
    assert again.entries.items() >= table.entries.items()
    assert {defect.index for defect in again.defects} <= {defect.index for defect in table.defects}


def test_a_hostile_table_takes_no_longer() -> None:
    """One free place in a table of junk: every search would go round it."""
    order = 15
    junk = b"".join(struct.pack("<4Q", TEXT - 1 - n, 0, 0, 0) for n in range((1 << order) - 1))
    start = time.process_time()
    table = PokeTable(junk + bytes(ENTRY_SIZE))
    for index in range(8000):
        table.place(GuestVirtual(TEXT + index))
    assert time.process_time() - start < 2
    assert len(table.defects) == (1 << order) - 1
