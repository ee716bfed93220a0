"""Static calls whose change is interrupted: by a death, a resume or another program."""

from collections.abc import Sequence
from itertools import product

import pytest

from optpolined.kernel.module.abi import PokeState, SiteKind
from optpolined.kernel.module.poke_table import ENTRY_SIZE, PokeEntry, encode, home
from optpolined.kernel.sites.static_calls import StaticPlace
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.protocol.steps import Protocol
from optpolined.patching.static_calls import (
    StaticCallError,
)
from optpolined.qemu.errors import ResumedError, StubClosedError
from optpolined.x86 import INT3
from tests.unit.patching.static_world import (
    CALL,
    EVENT,
    NOP,
    NUMBER,
    ONE,
    PLACES,
    TARGETS,
    THREE,
    TWO,
    World,
    targets,
)


@pytest.fixture
def world() -> World:
    return World()


def writes_of(key: str, functions: Sequence[str | None]) -> int:
    """How many writes the last of some changes takes if nothing disturbs it."""
    world = World()
    calls = world.static_calls()
    before = 0
    for function in functions:
        before = world.writes
        calls.set(key, function)
    return world.writes - before


def test_a_change_goes_on_where_the_guest_is_resumed() -> None:
    """In front of each write, once and twice; calls reach the old target or the new one."""
    total = writes_of("number", ["two"])
    assert total == 15
    for first, then in product(range(total), (0, 1, 5)):
        world = World()
        world.resumed_at = {first, first + then}
        world.allowed = {place: {ONE, TWO} for place in PLACES["number"]}
        assert world.static_calls().set("number", "two") == 3
        world.allowed = {place: {TWO} for place in PLACES["number"]}
        world.call_all()
        assert PokeEntries(world.guest.space, world.header).armed(world.guest.space) == set()
        world.allowed = {}
        world.static_calls().restore()
        assert world.live() == world.built


def test_a_change_that_cannot_be_ended_leaves_calls_right_and_can_be_asked_for_again() -> None:
    world = World()
    calls = world.static_calls()
    world.allowed = {place: {ONE, TWO} for place in PLACES["number"]}
    world.resumed_at = {4, 5, 6}
    with pytest.raises(ResumedError):
        calls.set("number", "two")
    world.call_all()
    assert targets(calls)["number"] in {"one [mine]", "two [mine]"}
    world.resumed_at = set()
    calls.set("number", "two")
    assert targets(calls)["number"] == "two [mine]"


@pytest.mark.parametrize("function", ["two", None])
def test_a_daemon_that_dies_at_any_write_leaves_calls_right_and_the_next_puts_them_back(
    function: str | None,
) -> None:
    for death in range(writes_of("event", ["three", function])):
        world = World()
        first = world.static_calls()
        first.set("event", "three")
        new = TARGETS.get(function or "")
        world.allowed = {place: {THREE, new, None} for place in PLACES["event"]}
        world.dies_at = world.writes + death
        with pytest.raises(StubClosedError):
            first.set("event", function)
        world.dies_at = None
        world.recover()
        assert INT3 not in {code[0] for code in world.live().values()}
        assert PokeEntries(world.guest.space, world.header).armed(world.guest.space) == set()
        world.static_calls().settle()
        world.allowed = {place: {world.reaches(EVENT)} for place in PLACES["event"]}
        world.call_all()
        world.allowed = {}
        world.static_calls().restore()
        assert world.live() == world.built


def test_recovery_ends_what_is_half_way_and_leaves_whole_places_alone(
    world: World,
) -> None:
    world.static_calls().set("number", "two")
    whole = world.live()
    entry = world.entry(CALL)
    armed = PokeEntry(entry.site, entry.slow_path, entry.kind, PokeState.ARMED, entry.original)
    place = world.header.poke_table + ENTRY_SIZE * home(CALL, world.header.poke_order)
    world.guest.kernel.write(place, encode(armed))
    world.guest.kernel.write(CALL, b"\xcc")
    world.recover()
    assert world.live() == whole | {CALL: world.built[CALL]}
    next_calls = world.static_calls()
    assert targets(next_calls)["number"] == "two [mine]"
    assert next_calls.restore() == 2
    assert world.live() == world.built


def test_what_is_settled_or_never_was_set_is_not_touched(world: World) -> None:
    world.static_calls().set("number", "two")
    writes = world.writes
    world.static_calls().settle()
    assert world.writes == writes


def test_a_key_with_foreign_bytes_is_not_settled_but_told_of(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    calls = world.static_calls()
    world.guest.kernel.write(CALL, NOP[::-1])
    before = world.live()
    calls.settle()
    assert world.live() == before
    assert "a static call is left as it is: caller+0x10 [mine] holds foreign bytes" in caplog.text


def test_a_foreign_breakpoint_is_not_taken_for_ours(world: World) -> None:
    world.static_calls().set("number", "two")
    world.guest.kernel.write(CALL, b"\xcc")
    before = world.live()
    world.recover()
    assert world.live() == before


def test_the_place_of_a_probe_that_was_armed_by_hand_is_left_alone_by_stopped(
    world: World,
) -> None:
    """Only the breakpoint protocol ends a change that is half-way."""
    place = StaticPlace(CALL, world.built[CALL], SiteKind.STATIC_CALL, NUMBER)
    entry = PokeEntry(place.address, NUMBER, place.kind, PokeState.ARMED, place.original)
    table = world.header.poke_table + ENTRY_SIZE * home(CALL, world.header.poke_order)
    world.guest.kernel.write(table, encode(entry))
    world.guest.kernel.write(CALL, b"\xcc")
    calls = world.static_calls(Protocol.STOPPED)
    with pytest.raises(StaticCallError, match="holds foreign bytes"):
        calls.set("number", "two")
