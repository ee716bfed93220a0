"""Which site made a call: call sites for certain, tail jumps as nominations, suspects by name."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.kernel.module.abi import SiteKind
from optpolined.kernel.sites.attribution import Attributed, Attribution
from optpolined.kernel.sites.scan import Site
from optpolined.x86 import Register
from tests.unit.kernel.fake_guest import KERNEL_TEXT
from tests.unit.patching.patched_guest import inline_site, thunk_site

FUNCTION_SIZE = 0x100
SIZE = 0x2000
TOP = 1 << 64


def at(function: int, offset: int = 0) -> GuestVirtual:
    """An address in the function of that number."""
    return GuestVirtual(KERNEL_TEXT + FUNCTION_SIZE * function + offset)


CALL = thunk_site(at(1, 0x10), Register.RAX)
PREFIXED = thunk_site(at(1, 0x20), Register.RBX, prefix=True)
TAIL = thunk_site(at(2, 0x30), Register.RAX, SiteKind.JMP)
TWO = [thunk_site(at(3, place), Register.RAX, SiteKind.JMP) for place in (0x10, 0x80)]
INLINE = inline_site(at(4, 0x10), Register.RAX)
INLINE_TAIL = inline_site(at(5, 0x10), Register.RAX, SiteKind.JMP)
NOWHERE = thunk_site(at(20, 0x10), Register.RAX, SiteKind.JMP)
SITES = (CALL, PREFIXED, TAIL, *TWO, INLINE, INLINE_TAIL, NOWHERE)

CALLS_TAIL = at(8, 0x40)
CALLS_TWO = at(8, 0x60)
CALLS_PLAIN = at(8, 0x80)
F, G = at(10), at(11)

Pair = tuple[GuestVirtual, GuestVirtual, int]


def entry_of(address: GuestVirtual) -> GuestVirtual | None:
    number = (address - KERNEL_TEXT) // FUNCTION_SIZE
    return at(number) if 0 <= number < 16 else None


def code() -> bytes:
    """Text with direct calls in front of three return addresses."""
    text = bytearray(b"\x90" * SIZE)
    for returns_to, target in (
        (CALLS_TAIL, at(2)),
        (CALLS_TWO, at(3)),
        (CALLS_PLAIN, F),
    ):
        end = returns_to - KERNEL_TEXT
        text[end - 5 : end] = b"\xe8" + (target - returns_to).to_bytes(4, "little", signed=True)
    return bytes(text)


TEXT = code()


def text_at(address: GuestVirtual, size: int) -> bytes:
    start = address - KERNEL_TEXT
    return TEXT[start : start + size] if 0 <= start <= SIZE - size else b""


def attribution(*sites: Site, text: Callable[[GuestVirtual, int], bytes] = text_at) -> Attribution:
    return Attribution({site.address: site for site in sites or SITES}, entry_of, text)


def attribute(*pairs: Pair) -> Attributed:
    return attribution().attribute(pairs)


def end(site: Site) -> GuestVirtual:
    return GuestVirtual(site.address + site.length)


def test_a_call_is_attributed_by_its_return_address() -> None:
    assert (CALL.length, PREFIXED.length) == (5, 6)
    found = attribute((end(CALL), F, 5), (end(CALL), G, 2), (end(PREFIXED), G, 3))
    assert found == Attributed({CALL.address: {F: 5, G: 2}, PREFIXED.address: {G: 3}})


def test_the_calls_of_one_pair_are_added_up() -> None:
    found = attribute((end(CALL), F, 5), (end(CALL), F, 2))
    assert found.sites == {CALL.address: {F: 7}}


def test_an_address_within_or_behind_a_site_is_not_its_return_address() -> None:
    others = [*range(PREFIXED.address, end(PREFIXED)), end(PREFIXED) + 1]
    found = attribute(*((GuestVirtual(other), F, 1) for other in others))
    assert found == Attributed(foreign=len(others))


def test_a_tail_jump_is_nominated_by_the_call_of_its_function() -> None:
    found = attribute((CALLS_TAIL, F, 5), (CALLS_TAIL, G, 2))
    assert found == Attributed(nominated={TAIL.address: 7}, tail_calls=7)


def test_each_of_several_tail_jumps_is_nominated_and_the_calls_count_once() -> None:
    found = attribute((CALLS_TWO, F, 5))
    first, second = TWO
    assert found == Attributed(nominated={first.address: 5, second.address: 5}, tail_calls=5)


def test_a_call_of_a_function_without_tail_jumps_is_foreign() -> None:
    assert attribute((CALLS_PLAIN, G, 5)) == Attributed(foreign=5)


def test_a_return_address_with_no_call_in_front_is_foreign() -> None:
    assert attribute((at(9), F, 5)) == Attributed(foreign=5)


def test_a_jump_in_front_is_no_call() -> None:
    def jump(address: GuestVirtual, size: int) -> bytes:
        return text_at(address, size).replace(b"\xe8", b"\xe9")

    found = attribution(TAIL, text=jump).attribute([(CALLS_TAIL, F, 5)])
    assert found == Attributed(foreign=5)


@pytest.mark.parametrize("text", [b"", b"\xe8", b"\xe8\0\0\0"])
def test_without_text_nothing_is_nominated(text: bytes) -> None:
    found = attribution(TAIL, text=lambda *_: text).attribute([(CALLS_TAIL, F, 5)])
    assert found == Attributed(foreign=5)


def test_a_site_that_calls_a_function_with_a_tail_jump_is_suspect() -> None:
    """What the tail jump of at(2) called looks like a target of the site."""
    found = attribute((end(CALL), at(2), 5), (end(CALL), G, 2), (end(PREFIXED), F, 1))
    assert found.suspects == {CALL.address: 7}
    assert found.sites[CALL.address] == {at(2): 5, G: 2}


def test_a_site_with_one_target_is_not_suspect() -> None:
    assert attribute((end(CALL), at(2), 5)).suspects == {}


def test_a_target_within_a_function_with_a_tail_jump_makes_no_suspect() -> None:
    assert attribute((end(CALL), at(2, 4), 5), (end(CALL), G, 2)).suspects == {}


def test_a_census_covers_calls_and_tail_jumps_that_are_not_inline() -> None:
    sites = {site.address for site in (CALL, PREFIXED, TAIL, *TWO)}
    assert attribution().covered == sites


def test_a_tail_jump_outside_every_function_is_not_covered() -> None:
    assert entry_of(NOWHERE.address) is None
    assert attribution(NOWHERE).covered == frozenset()


def test_an_inline_site_is_never_attributed_to() -> None:
    part = INLINE.inline
    assert part is not None
    places = [*range(part.compare, part.compare + 32)]
    found = attribution(INLINE).attribute([(GuestVirtual(place), F, 1) for place in places])
    assert (found.sites, found.nominated) == ({}, {})


def test_a_direct_call_may_wrap_around_the_address_space() -> None:
    entry = GuestVirtual(TOP - 0x100)
    tail = thunk_site(KERNEL_TEXT + 0x10, Register.RAX, SiteKind.JMP)
    returns_to = GuestVirtual(0x40)

    def low_text(address: GuestVirtual, size: int) -> bytes:
        assert (address, size) == (returns_to - 5, 5)
        return b"\xe8" + (-0x140).to_bytes(4, "little", signed=True)

    found = Attribution({tail.address: tail}, lambda _: entry, low_text).attribute(
        [(returns_to, F, 3)]
    )
    assert found.nominated == {tail.address: 3}


places = st.sampled_from(
    [end(CALL), end(PREFIXED), CALLS_TAIL, CALLS_TWO, CALLS_PLAIN, at(9)]
) | st.integers(0, TOP - 1).map(GuestVirtual)
targets = st.sampled_from([F, G, at(1), at(2), at(3)]) | st.integers(0, TOP - 1).map(GuestVirtual)


@given(pairs=st.lists(st.tuples(places, targets, st.integers(0, 1 << 48)), max_size=20))
def test_every_call_is_counted_once_and_a_target_is_one_that_its_site_called(
    pairs: list[Pair],
) -> None:
    found = attribute(*pairs)
    at_sites = sum(sum(calls.values()) for calls in found.sites.values())
    assert at_sites + found.tail_calls + found.foreign == sum(calls for _, _, calls in pairs)
    by_return = {end(site): site.address for site in (CALL, PREFIXED)}
    called = {(by_return.get(returns_to), target) for returns_to, target, _ in pairs}
    for site, calls in found.sites.items():
        assert {(site, target) for target in calls} <= called
    assert found.suspects.keys() <= found.sites.keys()
    assert found.nominated.keys() <= {site.address for site in (TAIL, *TWO)}
    assert all(calls <= found.tail_calls for calls in found.nominated.values())
