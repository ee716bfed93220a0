"""Inline sites: what stands there, and the patcher's way from one form to another."""

from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import (
    LEARNING,
    ORIGINAL,
    Chain,
    Form,
    Key,
    Keyed,
    LearnKeys,
    Tree,
)
from optpolined.kernel.module.abi import PokeState, SiteKind
from optpolined.kernel.module.poke_table import ENTRY_SIZE, PokeEntry, PokeTable, home
from optpolined.kernel.sites.inline_part import InlinePart
from optpolined.kernel.sites.scan import Site
from optpolined.patching.inline_sites import (
    UNSETTLED,
    Head,
    Unsettled,
    head_change,
    joined,
    split,
    standing_head,
)
from optpolined.patching.patcher import Patcher
from optpolined.patching.protocol.errors import SiteRefusedError
from optpolined.patching.protocol.steps import Protocol
from optpolined.patching.protocol.transport import WRITTEN
from optpolined.qemu.errors import ResumedError
from optpolined.x86 import Register
from tests.unit.kernel.fake_guest import KERNEL_TEXT, PAGE_SIZE
from tests.unit.kernel.inline_code import emitted
from tests.unit.patching.patched_guest import F1, F2, F3, PatchedGuest, inline_site, thunk_site

CALL = inline_site(KERNEL_TEXT + 0x40, Register.RAX)
CALL_CS = inline_site(KERNEL_TEXT + 0x80, Register.R9, prefix=True)
TAIL = inline_site(KERNEL_TEXT + 0xC0, Register.R11, SiteKind.JMP)
PLAIN = thunk_site(KERNEL_TEXT + 0x100, Register.RBX)

WAYS: tuple[Form, ...] = (
    LEARNING,
    Chain((F1,)),
    Chain((F1, F2)),
    Chain((F3, F2)),
    Chain((F2, F3)),
    Chain((F2, F3), counts_hits=True),
    Tree((F1, F2)),
    ORIGINAL,
)

inline_sites = pytest.mark.parametrize(
    "site", [CALL, CALL_CS, TAIL], ids=["call", "cs call", "tail"]
)
protocols = pytest.mark.parametrize("protocol", Protocol)


def part_of(site: Site) -> InlinePart:
    assert site.inline is not None
    return site.inline


targets = st.sampled_from([F1, F2, F3, GuestVirtual(F1 + 16), GuestVirtual(F2 + 16)])
some_targets = st.lists(targets, unique=True, max_size=5).map(tuple)
keys = st.builds(Key, st.just(Register.RDI), st.integers(0, 8), st.integers(1, 6))
leaves = st.dictionaries(st.integers(0, 1), targets, min_size=1).map(
    lambda found: (*found.items(),)
)
any_form = st.one_of(
    st.just(ORIGINAL),
    st.builds(Chain, some_targets, st.booleans()),
    st.builds(Tree, some_targets),
    st.builds(Keyed, keys, leaves),
    st.builds(LearnKeys, keys),
)


@given(any_form)
def test_head_and_rest_of_a_form_join_to_it(form: Form) -> None:
    head, rest = split(form)
    assert joined(head, rest) == form
    assert not head.hidden
    assert isinstance(form, Chain) or head.target is None


@given(st.builds(Head, st.none() | targets), any_form)
def test_what_joins_to_a_form_is_its_head_and_rest(head: Head, rest: Form) -> None:
    form = joined(head, rest)
    if not isinstance(form, Unsettled):
        assert split(form) == (head, rest)
        assert not isinstance(form, Chain) or len(set(form.targets)) == len(form.targets)


@given(targets, any_form)
def test_a_head_that_is_hidden_is_no_form(target: GuestVirtual, rest: Form) -> None:
    assert joined(Head(target, hidden=True), rest) == UNSETTLED


# What stands in an inline part.


def learned(site: Site, head: GuestVirtual | None) -> bytes:
    at, prefix = part_of(site).compare, site.length > 5
    return emitted(at, site.register, site.thunk, site.kind, prefix=prefix, head=head)


@inline_sites
def test_the_head_that_stands_there(site: Site) -> None:
    guest, part = PatchedGuest(site), part_of(site)
    assert standing_head(part, guest.space) == Head(None)
    guest.write(part.compare, learned(site, F1))
    assert standing_head(part, guest.space) == Head(F1)
    guest.write(part.compare, part.unlearned_compare)
    assert standing_head(part, guest.space) == Head(F1, hidden=True)


OUT_OF_THE_ADDRESS_SPACE = b"\xff\xff\xff\x7f"


@inline_sites
@pytest.mark.parametrize(
    "meddle",
    [
        lambda guest, part: guest.write(part.compare, b"\xcc"),
        lambda guest, part: guest.write(part.branch, b"\xcc"),
        lambda guest, part: guest.write(part.compare + 3, b"\0\0\0\0"),
        lambda guest, part: guest.write(part.branch, b"\x90" * 5),
        lambda guest, part: guest.write(part.compare + 2, b"\xff"),
        lambda guest, part: guest.write(
            part.compare,
            part.unlearned_compare
            + b"\x75\x07"
            + part.unlearned_branch[:1]
            + OUT_OF_THE_ADDRESS_SPACE,
        ),
        lambda guest, _: guest.tables.map(KERNEL_TEXT, 1 << 40),
    ],
    ids=[
        "int3",
        "int3 on the branch",
        "other immediate",
        "nops",
        "other register",
        "no address",
        "unmapped",
    ],
)
def test_foreign_bytes_are_no_head_and_are_left_alone(
    site: Site, meddle: Callable[[PatchedGuest, InlinePart], None]
) -> None:
    guest, part = PatchedGuest(site), part_of(site)
    guest.write(part.compare, learned(site, F1))
    meddle(guest, part)
    assert standing_head(part, guest.space) is None
    with pytest.raises(SiteRefusedError):
        change(guest, site, Head(F2))
    assert guest.transport.log == []


def change(
    guest: PatchedGuest, site: Site, head: Head, protocol: Protocol = Protocol.BREAKPOINT
) -> object:
    return head_change(part_of(site), head, guest.entries, guest.space, protocol)


@inline_sites
@protocols
def test_a_head_that_stands_there_needs_no_change(site: Site, protocol: Protocol) -> None:
    guest, part = PatchedGuest(site), part_of(site)
    assert change(guest, site, Head(None), protocol) is None
    assert change(guest, site, Head(F1), protocol) is not None
    guest.write(part.compare, learned(site, F1))
    assert change(guest, site, Head(F1), protocol) is None
    guest.write(part.compare, part.unlearned_compare)
    assert change(guest, site, Head(F1), protocol) is not None
    assert change(guest, site, Head(None), protocol) is not None


def reason(guest: PatchedGuest, site: Site, head: Head) -> str:
    with pytest.raises(SiteRefusedError) as refused:
        change(guest, site, head)
    return refused.value.reason


def test_why_a_head_is_refused() -> None:
    guest, part = PatchedGuest(CALL), part_of(CALL)
    assert reason(guest, CALL, Head(GuestVirtual(0xFFFF_8880_0000_0000))) == "out_of_reach"
    guest.write(part.compare, b"\xcc")
    assert reason(guest, CALL, Head(F1)) == "foreign_breakpoint"
    guest.write(part.compare, b"\x90")
    assert reason(guest, CALL, Head(F1)) == "foreign_bytes"

    split_site = inline_site(KERNEL_TEXT + PAGE_SIZE - 3, Register.RDX)
    assert reason(PatchedGuest(split_site), split_site, Head(F1)) == "split_page"

    for room in (0, 1):
        guest = PatchedGuest(CALL)
        fill(guest, room)
        assert reason(guest, CALL, Head(F1)) == "poke_table_full"


def fill(guest: PatchedGuest, room: int) -> None:
    """Leave ``room`` places in the poke table."""
    for number in range((1 << guest.header.poke_order) - room):
        site = thunk_site(KERNEL_TEXT + 0x400 + 8 * number, Register.RAX)
        entry = PokeEntry(site.address, site.thunk, site.kind, PokeState.IDLE, site.original)
        writes, _ = guest.entries.guard(entry, guest.space, Protocol.STOPPED)
        assert guest.transport.write(writes) == [WRITTEN]
    guest.transport.log.clear()


# The patcher.


def give(patcher: Patcher, site: Site, form: Form) -> None:
    report = patcher.apply({site.address: form})
    assert (report.done, report.sites) == (1, {})
    assert patcher.observe().get(site.address, ORIGINAL) == form


@inline_sites
@protocols
def test_every_way_ends_in_its_form_and_the_last_in_the_text_that_was_built(
    site: Site, protocol: Protocol
) -> None:
    guest = PatchedGuest(site)
    built = guest.text
    patcher = guest.patcher(protocol)
    for form in WAYS:
        give(patcher, site, form)
        head, _ = split(form)
        at, code = part_of(site).compare, learned(site, head.target)
        inline = len(code) - site.length
        assert guest.space.read(at, inline) == code[:inline]
    assert guest.text == built
    assert guest.entries.armed(guest.space) == set()


@inline_sites
def test_only_a_branch_that_was_shown_is_waited_for(site: Site) -> None:
    guest = PatchedGuest(site)
    patcher = guest.patcher()
    waited = []
    for form in WAYS:
        before = guest.transport.graces
        give(patcher, site, form)
        waited.append(guest.transport.graces - before)
    assert waited == [0, 0, 0, 1, 1, 1, 0, 0]


def test_a_batch_waits_once_and_each_site_gets_its_own() -> None:
    guest = PatchedGuest(CALL, TAIL, PLAIN)
    built = guest.text
    patcher = guest.patcher()
    forms: list[dict[GuestVirtual, Form]] = [
        {CALL.address: Chain((F1, F2)), TAIL.address: Chain((F1,)), PLAIN.address: Chain((F1,))},
        {CALL.address: Chain((F2, F1)), TAIL.address: Chain((F2,)), PLAIN.address: Chain((F2,))},
        dict.fromkeys((CALL.address, TAIL.address, PLAIN.address), ORIGINAL),
    ]
    for wanted, graces in zip(forms, (0, 1, 2), strict=True):
        report = patcher.apply(wanted)
        assert (report.done, report.sites) == (3, {})
        assert patcher.observe() == wanted
        assert guest.transport.graces == graces
    assert guest.text == built


def test_a_form_that_stands_there_is_not_written_again() -> None:
    guest = PatchedGuest(CALL)
    patcher = guest.patcher()
    give(patcher, CALL, Chain((F1, F2)))
    written = len(guest.transport.log)
    give(patcher, CALL, Chain((F1, F2)))
    assert len(guest.transport.log) == written


def test_another_head_leaves_the_block_of_the_rest_where_it_is() -> None:
    guest = PatchedGuest(CALL)
    patcher = guest.patcher()
    give(patcher, CALL, Chain((F1, F2)))
    slow = guest.space.read(CALL.address, CALL.length)
    give(patcher, CALL, Chain((F3, F2)))
    assert guest.space.read(CALL.address, CALL.length) == slow


@inline_sites
@protocols
def test_a_failure_anywhere_leaves_what_the_next_change_makes_good(
    site: Site, protocol: Protocol
) -> None:
    seen = set()
    for before, after in zip((ORIGINAL, *WAYS), WAYS, strict=False):
        for fails_after in count():
            guest = PatchedGuest(site)
            built = guest.text
            patcher = guest.patcher(protocol)
            give(patcher, site, before)
            guest.transport.fails_at = len(guest.transport.log) + fails_after
            try:
                patcher.apply({site.address: after})
            except ResumedError:
                guest.transport.fails_at = None
            else:
                break
            guest.mend()
            found = patcher.observe().get(site.address, ORIGINAL)
            assert found is not None
            seen.add(found == UNSETTLED)
            give(patcher, site, after)
            give(patcher, site, ORIGINAL)
            assert guest.text == built
            assert guest.entries.armed(guest.space) == set()
    assert seen == {True, False}


def test_a_foreign_rest_does_not_keep_the_head_from_going_back() -> None:
    guest = PatchedGuest(CALL)
    patcher = guest.patcher()
    give(patcher, CALL, Chain((F1, F2)))
    probed = b"\xcc" + guest.space.read(CALL.address, CALL.length)[1:]
    guest.write(CALL.address, probed)
    report = patcher.apply({CALL.address: ORIGINAL})
    assert report.sites == {CALL.address: "foreign_breakpoint"}
    assert patcher.observe() == {CALL.address: None}
    assert standing_head(part_of(CALL), guest.space) == Head(None)
    assert guest.space.read(CALL.address, CALL.length) == probed


def test_a_site_counts_once_though_both_of_its_places_are_refused() -> None:
    guest = PatchedGuest(CALL)
    guest.write(CALL.address, b"\xcc")
    guest.write(part_of(CALL).compare, b"\x90")
    report = guest.patcher().apply({CALL.address: Chain((F1,))})
    assert report.done == 0
    assert report.refused.total() == 1


def test_a_branch_that_another_program_writes_to_meanwhile_is_left_alone() -> None:
    guest = PatchedGuest(CALL)
    patcher = guest.patcher()
    give(patcher, CALL, Chain((F1,)))
    part = part_of(CALL)
    probe = b"\xcc" + guest.space.read(part.branch, 5)[1:]
    waited = guest.transport.grace

    def probing() -> None:
        waited()
        guest.write(part.branch, probe)

    guest.transport.grace = probing  # type: ignore[method-assign]
    report = patcher.apply({CALL.address: Chain((F2,))})
    assert report.sites == {CALL.address: "foreign_breakpoint"}
    assert guest.space.read(part.compare, 7) == part.unlearned_compare
    assert guest.space.read(part.branch, 5) == probe
    assert guest.entries.armed(guest.space) == set()


def test_every_entry_that_is_booked_is_written() -> None:
    """A gap would end the search of the guest's int3 handler for the entries behind it."""
    order = PatchedGuest().header.poke_order
    others = (thunk_site(PLAIN.address + 8 * number, Register.RAX) for number in count(1))
    first = PLAIN
    second = next(
        site for site in others if home(site.address, order) == home(first.address, order)
    )
    guest = PatchedGuest(first, second, records=0)
    patcher = guest.patcher()
    report = patcher.apply({first.address: LEARNING})
    assert report.sites == {first.address: "no_record_left"}
    give(patcher, second, ORIGINAL)
    table = PokeTable(guest.space.read(guest.header.poke_table, ENTRY_SIZE << order))
    assert table.defects == []
    assert second.address in table.entries
