"""Defects of the guest's poke table are reported."""

import logging

import pytest

from optpolined.addresses import GuestVirtual
from optpolined.kernel.module.abi import PokeState, SiteKind
from optpolined.kernel.module.poke_table import ENTRY_SIZE, PokeEntry, encode, home
from optpolined.patching.poke_entries import PokeEntries
from tests.unit.kernel.fake_guest import KERNEL_TEXT
from tests.unit.patching.patched_guest import PatchedGuest

SITE = GuestVirtual(KERNEL_TEXT + 0x10)
KIND = 16
"""The offset of an entry's kind."""


def entry_at(guest: PatchedGuest, site: GuestVirtual) -> int:
    """Write an entry of ``site``; return its address."""
    entry = PokeEntry(site, GuestVirtual(KERNEL_TEXT), SiteKind.CALL, PokeState.IDLE, bytes(5))
    place = guest.header.poke_table + ENTRY_SIZE * home(site, guest.header.poke_order)
    guest.write(place, encode(entry))
    return place


def test_a_defect_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    guest = PatchedGuest()
    place = entry_at(guest, SITE)
    entries = PokeEntries(guest.space, guest.header)
    assert (entries.defects, caplog.messages) == (0, [])

    guest.write(place + KIND, b"\x4d")
    for _ in range(3):
        entries.reload()
    index = (place - guest.header.poke_table) // ENTRY_SIZE
    assert entries.defects == 1
    assert caplog.messages == [f"entry {index} of the poke table is ignored: kind 77"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]

    guest.write(place + KIND, b"\x4e")
    entries.reload()
    assert caplog.messages[1:] == [f"entry {index} of the poke table is ignored: kind 78"]

    entry_at(guest, SITE)
    entries.reload()
    assert (entries.defects, len(caplog.messages)) == (0, 2)


def test_a_table_of_nonsense_is_reported_in_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    guest = PatchedGuest()
    count = 1 << guest.header.poke_order
    guest.write(guest.header.poke_table, b"\x01" * ENTRY_SIZE * count)
    entries = PokeEntries(guest.space, guest.header)
    assert entries.defects == count
    assert len(caplog.messages) == 17
    assert caplog.messages[-1] == f"{count - 16} more entries of the poke table are ignored"
