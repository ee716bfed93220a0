"""What a new daemon puts back of inline sites, wherever the last one died."""

from collections.abc import Iterator
from itertools import count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.kernel.module.abi import INLINE_BRANCH, PokeState, SiteKind
from optpolined.kernel.module.poke_table import PokeEntry
from optpolined.kernel.sites.scan import Site
from optpolined.patching.protocol.standing import Standing
from optpolined.patching.protocol.steps import Protocol
from optpolined.patching.recovery import Leftover, find_leftovers
from optpolined.qemu.errors import ResumedError
from optpolined.x86 import Register
from tests.unit.kernel.fake_guest import KERNEL_TEXT
from tests.unit.patching.patched_guest import F1, F2, F3, PatchedGuest, inline_site

CALL = inline_site(KERNEL_TEXT + 0x40, Register.RAX)
CALL_CS = inline_site(KERNEL_TEXT + 0x80, Register.R9, prefix=True)
TAIL = inline_site(KERNEL_TEXT + 0xC0, Register.R11, SiteKind.JMP)

WAYS: tuple[Form, ...] = (
    ORIGINAL,
    LEARNING,
    Chain((F1,)),
    Chain((F1, F2)),
    Chain((F3, F2)),
    Chain((F2, F3)),
    Chain((F2, F3), counts_hits=True),
    ORIGINAL,
)

inline_sites = pytest.mark.parametrize(
    "site", [CALL, CALL_CS, TAIL], ids=["call", "cs call", "tail"]
)


def deaths(site: Site, protocol: Protocol) -> Iterator[tuple[PatchedGuest, bytes]]:
    """A guest for each place at which a daemon may die on its ways, and the text as built."""
    for before, after in pairwise(WAYS):
        for dies_after in count():
            guest = PatchedGuest(site)
            built = guest.text
            patcher = guest.patcher(protocol)
            patcher.apply({site.address: before})
            guest.transport.fails_at = len(guest.transport.log) + dies_after
            try:
                patcher.apply({site.address: after})
            except ResumedError:
                yield guest, built
            else:
                break


def live(guest: PatchedGuest) -> PatchedGuest:
    guest.transport.fails_at = None
    guest.transport.log.clear()
    return guest


def leftovers(guest: PatchedGuest) -> list[Leftover]:
    return find_leftovers(guest.entries, guest.space, guest.header)


@inline_sites
@pytest.mark.parametrize("protocol", Protocol)
def test_an_inline_site_is_put_back_wherever_its_daemon_died(
    site: Site, protocol: Protocol
) -> None:
    standings = set()
    for guest, built in deaths(site, protocol):
        live(guest).entries.reload()
        standings |= {(left.entry.kind, left.standing) for left in leftovers(guest)}
        guest.next_daemon()
        assert guest.text == built
        assert guest.entries.armed(guest.space) == set()
        assert leftovers(guest) == []
    kinds = {SiteKind.COMPARE, site.kind}
    expected = {(kind, Standing.OURS) for kind in kinds}
    if protocol is Protocol.BREAKPOINT:
        expected |= {(kind, Standing.INTERRUPTED) for kind in kinds}
    assert standings == expected


def test_a_daemon_that_dies_while_it_puts_back_is_followed_by_one_that_does() -> None:
    for place, (guest, built) in enumerate(deaths(TAIL, Protocol.BREAKPOINT)):
        for dies_after in range(place % 3, 99, 3):
            live(guest).transport.fails_at = dies_after
            try:
                guest.next_daemon()
            except ResumedError:
                continue
            break
        live(guest).next_daemon()
        assert guest.text == built
        assert guest.entries.armed(guest.space) == set()


@inline_sites
def test_the_branch_goes_back_only_after_a_grace_period(site: Site) -> None:
    assert site.inline is not None
    rewritten = 0
    for guest, _ in deaths(site, Protocol.BREAKPOINT):
        live(guest).next_daemon()
        if site.inline.branch in guest.transport.log:
            rewritten += 1
            branch = guest.transport.log.index(site.inline.branch)
            assert None in guest.transport.log[:branch]
            assert site.inline.compare not in guest.transport.log[branch:]
    assert rewritten > 20


def learned(*heads: GuestVirtual) -> PatchedGuest:
    guest = PatchedGuest(CALL, TAIL)
    patcher = guest.patcher()
    for head in heads:
        patcher.apply(dict.fromkeys((CALL.address, TAIL.address), Chain((head,))))
    return live(guest)


@pytest.mark.parametrize("on_branch", [False, True], ids=["compare", "branch"])
def test_a_probe_on_an_inline_part_stays_and_so_does_what_it_stands_on(on_branch: bool) -> None:
    guest = learned(F1)
    assert CALL.inline is not None
    at = CALL.inline.branch if on_branch else CALL.inline.compare
    guest.write(at, b"\xcc")
    part = guest.space.read(CALL.inline.compare, CALL.address - CALL.inline.compare)
    guest.next_daemon()
    assert guest.space.read(CALL.inline.compare, len(part)) == part
    assert [(left.entry.site, left.standing) for left in leftovers(guest)] == [
        (CALL.inline.compare, Standing.FOREIGN)
    ]
    assert guest.space.read(CALL.address, CALL.length) == CALL.original
    assert TAIL.inline is not None
    assert guest.space.read(TAIL.inline.compare, 7) == TAIL.inline.unlearned_compare


def test_a_probe_on_the_branch_of_a_part_that_was_put_back_is_left_alone() -> None:
    guest = learned(F1)
    guest.next_daemon()
    assert CALL.inline is not None
    guest.write(CALL.inline.branch, b"\xcc")
    live(guest).next_daemon()
    assert guest.transport.log == []


def test_many_inline_parts_wait_for_one_grace_period() -> None:
    guest = learned(F1, F2)
    guest.next_daemon()
    assert guest.transport.graces == 1


entries = st.builds(
    PokeEntry,
    st.sampled_from([0x40, 0x49, 0x50, 0x80, 0x89]).map(
        lambda offset: GuestVirtual(KERNEL_TEXT + offset)
    ),
    st.just(F1),
    st.sampled_from([SiteKind.COMPARE, SiteKind.BRANCH, SiteKind.CALL, SiteKind.JMP]),
    st.sampled_from(PokeState),
    st.one_of(
        st.binary(min_size=1, max_size=8),
        st.binary(min_size=3, max_size=3).map(lambda opcode: opcode + b"\xff\xff\xff\xff"),
        st.binary(min_size=4, max_size=4).map(lambda distance: b"\xe8" + distance),
    ).filter(lambda original: original[0] != 0xCC),
)


@settings(deadline=None)
@given(st.lists(entries, max_size=5, unique_by=lambda entry: entry.site), st.data())
def test_whatever_the_table_says_is_put_back_or_left_alone(
    table: list[PokeEntry], data: st.DataObject
) -> None:
    guest = PatchedGuest()
    for entry in table:
        armed = entry.state is PokeState.ARMED
        protocol = Protocol.BREAKPOINT if armed else Protocol.STOPPED
        writes, _ = guest.entries.guard(entry, guest.space, protocol)
        guest.transport.write(writes)
        found = bytearray(entry.original)
        meddled = data.draw(st.sampled_from(["int3", "tail", "minus one", "nothing"]))
        if meddled == "int3":
            found[0] = 0xCC
        elif meddled == "tail":
            found[-4:] = data.draw(st.binary(min_size=4, max_size=4))[: len(found[-4:])]
        elif meddled == "minus one":
            found[-4:] = b"\xff\xff\xff\xff"[: len(found[-4:])]
        guest.write(entry.site, bytes(found))
    live(guest).next_daemon()
    written = {at for at in guest.transport.log if at is not None and at < guest.header.arena}
    known = {entry.site for entry in table}
    assert {at for at in written if at >= KERNEL_TEXT} <= known


def test_a_compare_that_was_not_built_to_fail_is_not_ours() -> None:
    guest = PatchedGuest()
    compare = GuestVirtual(KERNEL_TEXT + 0x40)
    branch = GuestVirtual(compare + INLINE_BRANCH)
    for at, kind, original in (
        (compare, SiteKind.COMPARE, b"\x48\x81\xf8\0\0\0\0"),
        (branch, SiteKind.BRANCH, b"\xe8\0\0\0\0"),
    ):
        entry = PokeEntry(at, F1, kind, PokeState.IDLE, original)
        writes, _ = guest.entries.guard(entry, guest.space, Protocol.STOPPED)
        guest.transport.write(writes)
        guest.write(at, original)
    guest.write(compare, b"\x48\x81\xf8\xff\xff\xff\xff")
    live(guest).next_daemon()
    assert [left.standing for left in leftovers(guest)] == [Standing.FOREIGN]
    assert guest.transport.log == []


def test_a_compare_whose_branch_was_never_noted_is_not_believed() -> None:
    guest = PatchedGuest(CALL)
    assert CALL.inline is not None
    entry = PokeEntry(
        CALL.inline.compare,
        CALL.address,
        SiteKind.COMPARE,
        PokeState.ARMED,
        CALL.inline.unlearned_compare,
    )
    writes, _ = guest.entries.guard(entry, guest.space, Protocol.BREAKPOINT)
    guest.transport.write(writes)
    assert leftovers(guest) == []
    guest.write(CALL.inline.compare, b"\xcc")
    assert [left.standing for left in leftovers(guest)] == [Standing.FOREIGN]
    assert CALL.inline.branch - CALL.inline.compare == INLINE_BRANCH
