"""What a new daemon reads at a site that an old one left."""

from hypothesis import given
from hypothesis import strategies as st

from optpolined.patching.protocol.standing import Range, Standing, classify

SITE = 0xFFFFFFFF81000100
ARENA = Range(0xFFFFFFFFC0200000, 0xFFFFFFFFC0400000)
THUNK = 0xFFFFFFFF82000000


def call(target: int, prefix: bytes = b"") -> bytes:
    size = len(prefix) + 5
    return prefix + b"\xe8" + (target - SITE - size).to_bytes(4, "little", signed=True)


def standing(found: bytes, original: bytes, *, armed: bool = False) -> Standing:
    return classify(SITE, found, original, armed=armed, arena=ARENA)


def test_the_original_is_original() -> None:
    assert standing(call(THUNK), call(THUNK)) is Standing.ORIGINAL


def test_a_call_into_the_arena_is_ours() -> None:
    assert standing(call(ARENA.start + 64), call(THUNK)) is Standing.OURS


def test_a_call_with_its_prefix_into_the_arena_is_ours() -> None:
    assert standing(call(ARENA.start, b"\x2e"), call(THUNK, b"\x2e")) is Standing.OURS


def test_an_armed_breakpoint_over_either_tail_is_an_interrupted_change() -> None:
    for tail in (call(THUNK), call(ARENA.start + 96)):
        assert standing(b"\xcc" + tail[1:], call(THUNK), armed=True) is Standing.INTERRUPTED


def test_a_breakpoint_without_an_armed_entry_is_a_probe() -> None:
    assert standing(b"\xcc" + call(THUNK)[1:], call(THUNK)) is Standing.FOREIGN


def test_another_target_outside_the_arena_is_foreign() -> None:
    assert standing(call(THUNK + 32), call(THUNK)) is Standing.FOREIGN


@given(st.binary(max_size=16), st.binary(max_size=16), st.booleans())
def test_any_bytes_are_classified(found: bytes, original: bytes, armed: bool) -> None:
    answer = standing(found, original, armed=armed)
    if answer in (Standing.OURS, Standing.INTERRUPTED):
        assert len(found) == len(original) >= 5
