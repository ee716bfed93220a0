"""Static calls listed, set and refused."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.api.refusal import Refusal
from optpolined.kernel.sites.exclusions import Exclusions, TextRange
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.protocol.steps import Protocol, Write
from optpolined.patching.protocol.transport import Outcome
from optpolined.patching.static_calls import (
    StaticCallError,
    StaticCalls,
    StaticKey,
    changeable,
)
from tests.unit.patching.static_world import (
    CALL,
    EVENT,
    NOP,
    NUMBER,
    ONE,
    PLACES,
    RETURN_THUNK,
    TAIL,
    TARGETS,
    THEIRS,
    THREE,
    TWO,
    World,
    branch,
    targets,
)


@pytest.fixture
def world() -> World:
    return World()


def test_a_key_with_a_place_in_code_that_must_be_left_alone_is_left_alone(world: World) -> None:
    calls = world.declared_calls()
    nothing = Exclusions([])
    assert changeable(calls, world.symbols, nothing) == (calls, [])
    for place in PLACES["number"]:
        noinstr = Exclusions([(Refusal.NOINSTR, TextRange(place, GuestVirtual(place + 1)))])
        may, (line,) = changeable(calls, world.symbols, noinstr)
        assert may == {"event": calls["event"]}
        assert line == "the static call number is left alone: one of its places is noinstr"


def test_the_keys_are_listed_with_where_they_go(world: World) -> None:
    calls = world.static_calls()
    event = StaticKey("event", target="", built="", sites=2, module="mine")
    number = StaticKey("number", target="one [mine]", built="one [mine]", sites=2, module="mine")
    assert calls.list() == [event, number]
    calls.set("number", "kernel_function")
    calls.set("event", "two")
    assert targets(calls) == {"number": "kernel_function", "event": "two [mine]"}
    assert [row.built for row in calls.list()] == ["", "one [mine]"]


@settings(deadline=None)
@given(
    st.booleans(),
    st.sampled_from(Protocol),
    st.lists(st.tuples(st.sampled_from(list(PLACES)), st.sampled_from([None, *TARGETS]))),
)
def test_each_call_reaches_the_old_or_the_new_target_while_it_is_set(
    has_return_thunk: bool, protocol: Protocol, wishes: list[tuple[str, str | None]]
) -> None:
    world = World(has_return_thunk=has_return_thunk)
    calls = world.static_calls(protocol)
    goes: dict[str, GuestVirtual | None] = {"number": ONE, "event": None}
    were_set: set[str] = set()  # only then do the sites not go through the trampoline
    for key, function in wishes:
        old, new = goes[key], None if function is None else TARGETS[function]
        world.allowed = {place: {goes[other]} for other in PLACES for place in PLACES[other]}
        world.allowed |= {place: {old, new} for place in PLACES[key]}
        changed = calls.set(key, function)
        assert changed == (3 if old != new else 0 if key in were_set else 2)
        were_set.add(key)
        goes[key] = new
        assert {world.reaches(place) for place in PLACES[key]} == {new}
        assert calls.set(key, function) == 0
        if protocol is Protocol.BREAKPOINT:
            world.recover()  # finds nothing to do
    world.allowed = {}
    calls.restore()
    assert world.live() == world.built
    assert PokeEntries(world.guest.space, world.header).armed(world.guest.space) == set()


def test_nothing_and_back(world: World) -> None:
    calls = world.static_calls()
    assert calls.set("number", None) == 3
    live = world.live()
    assert live[NUMBER] == branch(0xE9, NUMBER, RETURN_THUNK)
    assert (live[CALL], live[TAIL]) == (NOP, branch(0xE9, TAIL, RETURN_THUNK))
    assert targets(calls)["number"] == ""
    assert calls.set("number", "one") == 3
    live = world.live()
    assert (live[CALL], live[TAIL]) == (branch(0xE8, CALL, ONE), branch(0xE9, TAIL, ONE))
    assert calls.restore() == 2, "the trampoline is as it was built"
    assert world.live() == world.built


@pytest.mark.parametrize("has_return_thunk", [True, False])
def test_the_slow_path_of_each_place(has_return_thunk: bool) -> None:
    """A site takes its trampoline, a trampoline the new target or what stands in for it."""
    world = World(has_return_thunk=has_return_thunk)
    calls = world.static_calls()
    calls.set("number", "two")
    assert world.entry(CALL).slow_path == world.entry(TAIL).slow_path == NUMBER
    assert world.entry(NUMBER).slow_path == TWO
    calls.set("number", None)
    assert world.entry(NUMBER).slow_path == (RETURN_THUNK if has_return_thunk else TWO)
    calls.set("event", "three")
    assert world.entry(EVENT).slow_path == THREE
    calls.restore()
    assert world.entry(NUMBER).slow_path == ONE
    assert world.entry(EVENT).slow_path == (RETURN_THUNK if has_return_thunk else THREE)


@pytest.mark.parametrize(
    ("key", "function", "why"),
    [
        ("nothing", "two", "no static call has the key 'nothing' (known: event, number)"),
        ("number", "four", "the guest has no function 'four'"),
        ("number", "jiffies", "the guest has no function 'jiffies'"),
        ("number", "start_kernel", "the guest has no function 'start_kernel'"),
        ("number", "twin", "the guest has 2 functions 'twin'"),
        ("number", "far", "far is in the module theirs, which could be unloaded"),
        ("number", "__optp_tramp_number", "__optp_tramp_number is a static call itself"),
        ("number", "__optp_tramp_event", "__optp_tramp_event is a static call itself"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_written(
    world: World, key: str, function: str, why: str
) -> None:
    with pytest.raises(StaticCallError) as refused:
        world.static_calls().set(key, function)
    assert str(refused.value).startswith(why)
    assert str(refused.value).isprintable()
    assert world.writes == 0


def test_a_wrong_key_is_answered_with_known_ones(world: World) -> None:
    calls = world.static_calls()
    with pytest.raises(StaticCallError, match="the guest has none"):
        _followed(world, []).set("number", "one")
    many = [f"key{number:04}" for number in range(5000)]
    with pytest.raises(StaticCallError, match="and 4992 more") as refused:
        _followed(world, many).set("number", "one")
    assert len(str(refused.value)) < 200
    assert targets(calls) == {"number": "one [mine]", "event": ""}


def _followed(world: World, keys: Sequence[str]) -> StaticCalls:
    calls, known = world.static_calls(), world.declared_calls()["number"]
    calls.replace_calls(dict.fromkeys(keys, known))
    return calls


def test_a_function_out_of_reach_is_refused(world: World) -> None:
    """The guest may name any address."""
    low = 0x2000_0000
    world.set_modules(world.module("mine", low, {low: "afar"}, THEIRS + 0x2000))
    calls = world.static_calls()
    with pytest.raises(StaticCallError, match="out of reach"):
        calls.set("number", "afar")
    assert world.writes == 0


@pytest.mark.parametrize("place", PLACES["number"])
@pytest.mark.parametrize("theirs", [b"\xcc\x01\x02\x03\x04", NOP[::-1]])
def test_foreign_bytes_are_left_alone_and_told_of(
    world: World, place: GuestVirtual, theirs: bytes
) -> None:
    calls = world.static_calls()
    world.guest.kernel.write(place, theirs)
    before = world.live()
    with pytest.raises(StaticCallError, match="holds foreign bytes") as refused:
        calls.set("number", "two")
    assert str(refused.value).isprintable()
    with pytest.raises(StaticCallError, match="holds foreign bytes"):
        calls.restore()
    assert world.writes == 0
    assert world.live() == before


def test_the_other_keys_are_put_back_where_one_cannot_be(world: World) -> None:
    calls = world.static_calls()
    calls.set("number", "two")
    calls.set("event", "two")
    world.guest.kernel.write(NUMBER, b"\xcc")
    with pytest.raises(StaticCallError, match="number"):
        calls.restore()
    live = world.live()
    assert {place: live[place] for place in PLACES["event"]} == {
        place: world.built[place] for place in PLACES["event"]
    }


def test_a_place_that_changes_meanwhile_is_told_of(world: World) -> None:
    class Meddler(World):
        def write(self, writes: Sequence[Write]) -> list[Outcome]:
            if any(write.address == CALL for write in writes):
                world.guest.kernel.write(CALL, NOP[::-1])
            return world.write(writes)

    calls = world.static_calls(transport=Meddler())
    with pytest.raises(StaticCallError, match=f"{CALL:#x} has changed .*: another program"):
        calls.set("number", "two")
    assert world.live()[CALL] == NOP[::-1]
    assert world.reaches(NUMBER) == world.reaches(TAIL) == TWO
