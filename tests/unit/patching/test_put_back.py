"""What a new daemon finds and puts back, over memory made of bytes."""

from collections.abc import Sequence

import pytest

from optpolined.addresses import GuestVirtual
from optpolined.kernel.module.abi import PokeState, SiteKind
from optpolined.kernel.module.header import Header, parse_header
from optpolined.kernel.module.poke_table import ENTRY_SIZE, PokeEntry, encode, home
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.protocol.standing import Standing
from optpolined.patching.protocol.steps import Write
from optpolined.patching.protocol.transport import (
    WRITTEN,
    Differs,
    Outcome,
    Transport,
    TransportKind,
)
from optpolined.patching.recovery import find_leftovers, put_back
from tests.unit.kernel.fake_guest import (
    HEADER,
    KERNEL_TEXT,
    PAGE_SIZE,
    FakeGuest,
    raw_header,
)

FIRST = GuestVirtual(KERNEL_TEXT + 0x10)
HOLE = GuestVirtual(KERNEL_TEXT + 3 * PAGE_SIZE)
BEHIND_HOLE = GuestVirtual(HOLE + PAGE_SIZE)


class Direct(Transport):
    """Writes at once."""

    kind = TransportKind.STOPPED

    def __init__(self, guest: FakeGuest) -> None:
        self._guest = guest

    def write(self, writes: Sequence[Write]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for write in writes:
            now = self._guest.space.read(write.address, len(write.expect))
            if now == write.expect:
                self._guest.kernel.write(write.address, write.data)
            outcomes.append(WRITTEN if now == write.expect else Differs(now))
        return outcomes

    def sync(self) -> None:
        """Nothing runs here."""


@pytest.fixture
def guest() -> FakeGuest:
    guest = FakeGuest()
    guest.kernel.map_range(KERNEL_TEXT, 0x200_0000, 3 * PAGE_SIZE)
    guest.kernel.map_range(BEHIND_HOLE, 0x201_0000, PAGE_SIZE)
    return guest


@pytest.fixture
def header() -> Header:
    return parse_header(bytes(raw_header()), HEADER)


def call(site: int, target: int) -> bytes:
    return b"\xe8" + (target - site - 5).to_bytes(4, "little", signed=True)


def patched(
    guest: FakeGuest, header: Header, site: GuestVirtual, found: bytes, state: PokeState
) -> bytes:
    """Write an entry of the poke table and, where it is mapped, its site; the original."""
    thunk = GuestVirtual(0xFFFF_FFFF_8200_0000)
    original = call(site, thunk)
    entry = PokeEntry(site, thunk, SiteKind.CALL, state, original)
    place = header.poke_table + ENTRY_SIZE * home(site, header.poke_order)
    guest.kernel.write(place, encode(entry))
    if found:
        guest.kernel.write(site, found)
    return original


def restore(guest: FakeGuest, header: Header) -> PokeEntries:
    entries = PokeEntries(guest.space, header)
    left = find_leftovers(entries, guest.space, header)
    put_back(left, entries, guest.space, Direct(guest), lambda: None)
    return entries


def test_sites_on_both_sides_of_a_module_that_has_gone_are_restored(
    guest: FakeGuest, header: Header
) -> None:
    originals = {
        site: patched(guest, header, site, call(site, header.arena), PokeState.IDLE)
        for site in (FIRST, BEHIND_HOLE)
    }
    patched(guest, header, HOLE, b"", PokeState.ARMED)
    entries = restore(guest, header)
    for site, original in originals.items():
        assert guest.space.read(site, 5) == original
    assert entries.armed(guest.space) == set()


@pytest.mark.parametrize("ours", [False, True])
def test_an_entry_that_is_armed_at_a_whole_instruction_is_disarmed(
    guest: FakeGuest, header: Header, ours: bool
) -> None:
    target = header.arena if ours else 0xFFFF_FFFF_8200_0000
    original = patched(guest, header, FIRST, call(FIRST, target), PokeState.ARMED)
    entries = restore(guest, header)
    assert entries.armed(guest.space) == set()
    guest.kernel.write(FIRST, b"\xcc" + original[1:])
    (left,) = find_leftovers(entries, guest.space, header)
    assert left.standing is Standing.FOREIGN  # a probe that came later is not ours


def test_an_entry_whose_site_holds_foreign_bytes_stays_armed(
    guest: FakeGuest, header: Header
) -> None:
    theirs = b"\x0f\x1f\x44\x00\x00"
    patched(guest, header, FIRST, theirs, PokeState.ARMED)
    entries = restore(guest, header)
    assert guest.space.read(FIRST, 5) == theirs
    assert entries.armed(guest.space) == {FIRST}
