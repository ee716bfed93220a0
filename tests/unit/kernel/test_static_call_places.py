"""Static calls as code declares them: believed where the code itself says the same."""

from collections.abc import Iterable, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.codegen.errors import DecodeError, ReachError
from optpolined.kernel.module.abi import SiteKind
from optpolined.kernel.sites.declarations import Declaration, DeclarationKind
from optpolined.kernel.sites.static_calls import (
    StaticCall,
    StaticPlace,
    collect_static_calls,
    static_instruction,
    static_target,
)
from optpolined.kernel.symbols.symbols import Function

TEXT = 0xFFFF_FFFF_C060_0000
KEY_A, KEY_B = GuestVirtual(TEXT), GuestVirtual(TEXT + 8)
TARGET, OTHER = GuestVirtual(TEXT + 0x100), GuestVirtual(TEXT + 0x180)
CALLER = GuestVirtual(TEXT + 0x200)
CALL, TAIL, OTHER_CALL = (GuestVirtual(CALLER + offset) for offset in (0x10, 0x20, 0x30))
RETURN_THUNK = GuestVirtual(0xFFFF_FFFF_8200_0400)
NOP = bytes.fromhex("0f1f440000")
RETURN = bytes.fromhex("c3cccccccc")

FUNCTIONS = (
    Function(KEY_A, 8, "__optp_tramp_a", "m"),
    Function(KEY_B, 8, "__optp_tramp_b", "m"),
    Function(TARGET, 0x40, "target", "m"),
    Function(OTHER, 0x40, "other", "m"),
    Function(CALLER, 0x80, "caller", "m"),
)


def branch(opcode: int, at: int, target: int) -> bytes:
    return bytes([opcode]) + (target - at - 5).to_bytes(4, "little", signed=True)


CODE = {
    KEY_A: branch(0xE9, KEY_A, TARGET),
    KEY_B: branch(0xE9, KEY_B, OTHER),
    CALL: branch(0xE8, CALL, KEY_A),
    TAIL: branch(0xE9, TAIL, KEY_A),
    OTHER_CALL: branch(0xE8, OTHER_CALL, KEY_B),
}


def declared(kind: DeclarationKind, site: int, other: int = 0) -> Declaration:
    return Declaration(kind, GuestVirtual(site), GuestVirtual(other), None, None)


HONEST = (
    declared(DeclarationKind.STATIC_CALL, CALL, KEY_A),
    declared(DeclarationKind.TRAMPOLINE, KEY_A),
    declared(DeclarationKind.TRAMPOLINE, KEY_B),
    declared(DeclarationKind.STATIC_JMP, TAIL, KEY_A),
    declared(DeclarationKind.STATIC_CALL, OTHER_CALL, KEY_B),
    Declaration(DeclarationKind.INLINE_CALL, CALL, GuestVirtual(0), None, None),
)


def collect(
    declarations: Iterable[Declaration],
    code: Mapping[GuestVirtual, bytes] = CODE,
    functions: Sequence[Function] = FUNCTIONS,
) -> tuple[dict[str, StaticCall], Sequence[str]]:
    def function(address: GuestVirtual) -> Function | None:
        homes = (home for home in functions if 0 <= address - home.start < home.size)
        return next(homes, None)

    return collect_static_calls(
        declarations, lambda address, size: code.get(address, b"")[:size], function
    )


def test_the_places_of_each_key() -> None:
    calls, refused = collect(HONEST)
    assert refused == []
    assert list(calls) == ["a", "b"]
    assert calls["a"] == StaticCall(
        "a",
        StaticPlace(KEY_A, CODE[KEY_A], SiteKind.STATIC_JMP, KEY_A),
        (
            StaticPlace(CALL, CODE[CALL], SiteKind.STATIC_CALL, KEY_A),
            StaticPlace(TAIL, CODE[TAIL], SiteKind.STATIC_JMP, KEY_A),
        ),
        "m",
    )
    assert [place.address for place in calls["b"].places] == [KEY_B, OTHER_CALL]


@pytest.mark.parametrize("nothing", [RETURN, branch(0xE9, KEY_A, RETURN_THUNK)])
def test_a_key_that_is_built_without_a_target(nothing: bytes) -> None:
    calls, refused = collect(HONEST, CODE | {KEY_A: nothing})
    assert refused == []
    assert calls["a"].trampoline.original == nothing
    assert len(calls["a"].sites) == 2


@pytest.mark.parametrize(
    "bad",
    [
        declared(DeclarationKind.TRAMPOLINE, KEY_A + 1),  # not the function's start
        declared(DeclarationKind.TRAMPOLINE, TEXT + 0x8000),  # no function, no memory
        declared(DeclarationKind.TRAMPOLINE, TARGET),  # what stands there is no jmp
        declared(DeclarationKind.STATIC_CALL, CALL, KEY_B),  # it goes elsewhere
        declared(DeclarationKind.STATIC_CALL, TAIL, KEY_A),  # it is a jmp
        declared(DeclarationKind.STATIC_JMP, CALL, KEY_A),  # it is a call
        declared(DeclarationKind.STATIC_CALL, CALL + 1, KEY_A),  # not mapped, or cut off
        declared(DeclarationKind.STATIC_CALL, TEXT + 0x8000, KEY_A),  # in no function
    ],
)
def test_what_the_code_does_not_say_is_refused_and_the_others_are_taken(bad: Declaration) -> None:
    code = CODE | {GuestVirtual(KEY_A + 1): CODE[KEY_A][1:], TARGET: b"\x48\x89\xf8\xc3\xcc"}
    calls, refused = collect([bad, *HONEST], code)
    assert calls == collect(HONEST)[0]
    (line,) = refused
    assert f"at {bad.site:#x} is not taken for one" in line


def test_a_function_that_is_not_named_as_a_trampoline_is_none() -> None:
    code = CODE | {TARGET: branch(0xE9, TARGET, OTHER)}
    calls, refused = collect([declared(DeclarationKind.TRAMPOLINE, TARGET), *HONEST], code)
    assert calls == collect(HONEST)[0]
    assert refused == [f"the trampoline at {TARGET:#x} is named target"]


def test_of_two_trampolines_of_a_key_the_first_is_taken_and_no_site_of_the_other() -> None:
    functions = (FUNCTIONS[0], FUNCTIONS[1]._replace(name="__optp_tramp_a"), *FUNCTIONS[2:])
    calls, refused = collect(HONEST, functions=functions)
    assert list(calls) == ["a"]
    assert calls["a"] == collect(HONEST)[0]["a"]
    assert refused == [
        f"the trampoline at {KEY_B:#x} is named __optp_tramp_a",
        f"the static call at {OTHER_CALL:#x} has no trampoline at {KEY_B:#x}",
    ]


def test_calls_of_a_trampoline_that_nobody_declares_are_left_alone() -> None:
    calls, refused = collect(
        entry for entry in HONEST if entry != declared(DeclarationKind.TRAMPOLINE, KEY_A)
    )
    assert list(calls) == ["b"]
    assert refused == [f"the static call at {CALL:#x} has no trampoline at {KEY_A:#x}"]


@given(
    st.lists(
        st.builds(
            declared,
            st.sampled_from(DeclarationKind),
            st.integers(TEXT - 8, TEXT + 0x300) | st.integers(0, 2**64 - 1),
            st.integers(TEXT - 8, TEXT + 0x300) | st.integers(0, 2**64 - 1),
        ),
        max_size=8,
    ),
    st.dictionaries(
        st.integers(TEXT - 8, TEXT + 0x300).map(GuestVirtual),
        st.binary(max_size=5)
        | st.builds(
            lambda opcode, rest: bytes([opcode]) + rest,
            st.sampled_from([0xE8, 0xE9, 0xC3, 0x0F, 0xCC]),
            st.binary(min_size=4, max_size=4),
        ),
    ),
)
def test_whatever_is_declared_what_is_believed_agrees_with_the_code(
    declarations: list[Declaration], code: dict[GuestVirtual, bytes]
) -> None:
    calls, refused = collect([*declarations, *HONEST], CODE | code)
    assert all(line.isprintable() for line in refused)
    for call in calls.values():
        assert call.trampoline.address in {home.start for home in FUNCTIONS}
        for place in call.places:
            assert place.original == (CODE | code)[place.address]
            assert len(place.original) == 5
        for place in call.sites:
            assert static_target(place, place.original) == call.trampoline.address


places = st.builds(
    lambda address, kind: StaticPlace(GuestVirtual(address), b"", kind, KEY_A),
    st.integers(TEXT, TEXT + (1 << 20)),
    st.sampled_from([SiteKind.STATIC_CALL, SiteKind.STATIC_JMP]),
)


@given(places, st.none() | st.integers(TEXT, TEXT + (1 << 20)).map(GuestVirtual), st.booleans())
def test_an_instruction_goes_where_it_was_made_to_go(
    place: StaticPlace, target: GuestVirtual | None, has_thunk: bool
) -> None:
    thunk = RETURN_THUNK if has_thunk else None
    made = static_instruction(place, target, thunk)
    assert len(made) == 5
    is_tail_of_nothing = target is None and place.kind is SiteKind.STATIC_JMP
    assert static_target(place, made) == (thunk if is_tail_of_nothing else target)


def test_nothing_is_a_nop_a_return_or_the_way_to_the_return_thunk() -> None:
    call = StaticPlace(CALL, CODE[CALL], SiteKind.STATIC_CALL, KEY_A)
    tail = StaticPlace(TAIL, CODE[TAIL], SiteKind.STATIC_JMP, KEY_A)
    assert static_instruction(call, None, None) == NOP
    assert static_instruction(call, None, RETURN_THUNK) == NOP
    assert static_instruction(tail, None, None) == RETURN
    assert static_instruction(tail, None, RETURN_THUNK) == branch(0xE9, TAIL, RETURN_THUNK)


def test_a_target_out_of_reach_is_refused() -> None:
    place = StaticPlace(CALL, CODE[CALL], SiteKind.STATIC_CALL, KEY_A)
    with pytest.raises(ReachError):
        static_instruction(place, GuestVirtual(0x1000_0000_0000), None)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (SiteKind.STATIC_CALL, RETURN),
        (SiteKind.STATIC_CALL, CODE[TAIL]),
        (SiteKind.STATIC_CALL, b"\xcc" + CODE[CALL][1:]),
        (SiteKind.STATIC_CALL, CODE[CALL][:4]),
        (SiteKind.STATIC_CALL, b"\x2e" + CODE[CALL]),
        (SiteKind.STATIC_CALL, b""),
        (SiteKind.STATIC_JMP, NOP),
        (SiteKind.STATIC_JMP, CODE[CALL]),
        (SiteKind.STATIC_JMP, b"\xc3\xcc\xcc\xcc\xc3"),
        (SiteKind.STATIC_JMP, b"\xc3"),
    ],
)
def test_other_bytes_are_no_static_call(kind: SiteKind, found: bytes) -> None:
    with pytest.raises(DecodeError):
        static_target(StaticPlace(CALL, CODE[CALL], kind, KEY_A), found)
