"""Static calls set and put back, over memory made of bytes, while somebody calls them all."""

import struct
from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.kernel.abi import PokeState, SiteKind
from optpolined.kernel.exclusions import Exclusions, Reason, TextRange
from optpolined.kernel.header import parse_header
from optpolined.kernel.modules import GuestModule
from optpolined.kernel.optsites import Declaration, RecordKind
from optpolined.kernel.poketable import ENTRY_SIZE, PokeEntry, PokeTable, encode, home
from optpolined.kernel.staticcalls import StaticPlace
from optpolined.kernel.symbols import Symbols
from optpolined.poke.execute import PatientMachine
from optpolined.poke.protocol import Protocol, Write
from optpolined.qemu.errors import ResumedError, StubClosedError
from optpolined.service.entries import Entries
from optpolined.service.recovery import find_leftovers, put_back
from optpolined.service.static_calls import (
    StaticCallError,
    StaticCalls,
    StaticKey,
    changeable,
    find_static_calls,
)
from optpolined.x86 import INT3
from tests.unit.kernel.fake_guest import HEADER, KERNEL_TEXT, FakeGuest

INIT_TEXT = KERNEL_TEXT + 0x1000
KERNEL_FUNCTION = GuestVirtual(KERNEL_TEXT + 0x40)
RETURN_THUNK = GuestVirtual(KERNEL_TEXT + 0x80)
THEIRS = 0xFFFF_FFFF_C070_0000
MINE = 0xFFFF_FFFF_C060_0000
NUMBER, EVENT = GuestVirtual(MINE), GuestVirtual(MINE + 8)
ONE, TWO, THREE = (GuestVirtual(MINE + 0x100 * number) for number in (1, 2, 3))
CALLER = MINE + 0x400
CALL, TAIL, EVENT_CALL, EVENT_TAIL = (
    GuestVirtual(CALLER + offset) for offset in (0x10, 0x20, 0x30, 0x40)
)
NOP, RETURN = bytes.fromhex("0f1f440000"), bytes.fromhex("c3cccccccc")
TARGETS = {
    "one": ONE,
    "two": TWO,
    "three": THREE,
    "kernel_function": KERNEL_FUNCTION,
}

FUNCTIONS = {
    int(NUMBER): "__optp_tramp_number",
    int(EVENT): "__optp_tramp_event",
    int(ONE): "one",
    int(TWO): "two",
    int(THREE): "three",
    CALLER: "caller",
}

KERNEL_SYMBOLS = (
    (KERNEL_TEXT, "_stext"),
    (KERNEL_TEXT, "first"),
    (KERNEL_FUNCTION, "kernel_function"),
    (RETURN_THUNK, "__x86_return_thunk"),
    (KERNEL_TEXT + 0xA0, "twin"),
    (KERNEL_TEXT + 0xC0, "twin"),
    (KERNEL_TEXT + 0x100, "_etext"),
    (INIT_TEXT, "_sinittext"),
    (INIT_TEXT, "start_kernel"),
    (INIT_TEXT + 0x100, "_einittext"),
    (KERNEL_TEXT + 0x8000, "jiffies"),
)


def branch(opcode: int, at: int, target: int) -> bytes:
    return bytes([opcode]) + (target - at - 5).to_bytes(4, "little", signed=True)


class World(PatientMachine):
    """A guest with static calls, and the machine that writes to it.

    After each write every place is called: it must reach one of ``allowed``.
    """

    def __init__(self, *, has_return_thunk: bool = True) -> None:
        self.guest = FakeGuest()
        self.guest.kernel.map_range(MINE, 0x200_0000, 0x2000)
        self.guest.kernel.map_range(THEIRS, 0x210_0000, 0x3000)
        nothing = branch(0xE9, EVENT, RETURN_THUNK) if has_return_thunk else RETURN
        self.built = {
            NUMBER: branch(0xE9, NUMBER, ONE),
            EVENT: nothing,
            CALL: branch(0xE8, CALL, NUMBER),
            TAIL: branch(0xE9, TAIL, NUMBER),
            EVENT_CALL: branch(0xE8, EVENT_CALL, EVENT),
            EVENT_TAIL: branch(0xE9, EVENT_TAIL, EVENT),
        }
        for address, code in self.built.items():
            self.guest.kernel.write(address, code)
        self.symbols = Symbols(
            symbol
            for symbol in KERNEL_SYMBOLS
            if has_return_thunk or symbol[1] != "__x86_return_thunk"
        )
        self.set_modules()
        self.header = parse_header(bytes(self.guest.raw), HEADER)
        self.writes = 0
        self.resumed_at: set[int] = set()
        self.dies_at: int | None = None
        self.allowed: dict[GuestVirtual, set[GuestVirtual | None]] = {}

    def set_modules(self, *more: GuestModule) -> None:
        mine = self.module("mine", MINE, FUNCTIONS, MINE + 0x1000)
        far = {THEIRS: "far", THEIRS + 0x100: "two"}
        theirs = self.module("theirs", THEIRS, far, THEIRS + 0x1000)
        self.symbols.set_modules(self.guest.space, [mine, theirs, *more])

    def module(self, name: str, text: int, functions: dict[int, str], tables: int) -> GuestModule:
        """Write the symbols of a module to the page at ``tables``."""
        names = b"\0"
        symbols = b""
        for address, function in functions.items():
            symbols += struct.pack("<IBBHQQ", len(names), 2, 0, 1, address, 0)
            names += function.encode() + b"\0"
        self.guest.kernel.write(tables, symbols)
        self.guest.kernel.write(tables + 0x800, names)
        return GuestModule(
            name=name,
            text=GuestVirtual(text),
            size=0x1000,
            symtab=GuestVirtual(tables),
            strtab=GuestVirtual(tables + 0x800),
            nr_symbols=len(functions),
        )

    def write(self, writes: Sequence[Write]) -> list[bytes | None]:
        found: list[bytes | None] = []
        for write in writes:
            if self.writes == self.dies_at:
                raise StubClosedError("gone")
            if self.writes in self.resumed_at:
                self.resumed_at.discard(self.writes)
                raise ResumedError("the guest was resumed from outside during a stop")
            self.writes += 1
            now = self.guest.space.read(write.address, len(write.expect))
            if now == write.expect:
                self.guest.kernel.write(write.address, write.data)
            found.append(None if now == write.expect else now)
            self.call_all()
        return found

    def grace(self) -> None:
        return

    def call_all(self) -> None:
        for place, allowed in self.allowed.items():
            assert self.reaches(place) in allowed, hex(place)

    def entry(self, site: GuestVirtual) -> PokeEntry:
        image = self.guest.space.read(self.header.poke_table, ENTRY_SIZE << self.header.poke_order)
        return PokeTable(image).entries[site]

    def reaches(self, at: GuestVirtual) -> GuestVirtual | None:
        """What the guest does at a place: the function that it comes to, none where it goes on."""
        for _ in range(4):
            code = self.guest.space.read(at, 5)
            if code[0] == INT3:
                entry = self.entry(at)
                assert entry.state is PokeState.ARMED
                is_call = self.built[at][0] == 0xE8
                assert entry.kind is (SiteKind.STATIC_CALL if is_call else SiteKind.STATIC_JMP)
                assert entry.original == self.built[at]
                at = entry.slow_path
            elif code in (NOP, RETURN):
                return None
            else:
                assert code[0] in (0xE8, 0xE9)
                at = GuestVirtual(at + 5 + int.from_bytes(code[1:], "little", signed=True))
            if at == RETURN_THUNK:
                return None
            if at not in self.built:
                return at
        raise AssertionError("it goes round in a ring")

    def live(self) -> dict[GuestVirtual, bytes]:
        return {place: self.guest.space.read(place, 5) for place in self.built}

    def static_calls(self, protocol: Protocol = Protocol.BREAKPOINT) -> StaticCalls:
        """As a daemon that starts now would have it."""
        kinds = RecordKind.STATIC_CALL, RecordKind.STATIC_JMP
        declarations = [
            *(Declaration(RecordKind.TRAMPOLINE, key, NOWHERE, None, None) for key in KEYS),
            *(
                Declaration(kind, site, key, None, None)
                for key, sites in KEYS.items()
                for kind, site in zip(kinds, sites, strict=True)
            ),
        ]
        entries = Entries(self.guest.space, self.header)
        calls, refused = find_static_calls(
            declarations, self.guest.space, self.symbols, entries.originals()
        )
        assert refused == []
        return StaticCalls(
            machine=self,
            space=self.guest.space,
            symbols=self.symbols,
            entries=entries,
            protocol=protocol,
            calls=calls,
        )

    def recover(self) -> None:
        """What a daemon does first of all."""
        entries = Entries(self.guest.space, self.header)
        left = find_leftovers(entries, self.guest.space, self.header)
        put_back(left, entries, self.guest.space, self)


NOWHERE = GuestVirtual(0)
KEYS = {NUMBER: (CALL, TAIL), EVENT: (EVENT_CALL, EVENT_TAIL)}
PLACES = {"number": (NUMBER, *KEYS[NUMBER]), "event": (EVENT, *KEYS[EVENT])}


@pytest.fixture
def world() -> World:
    return World()


def targets(calls: StaticCalls) -> dict[str, str]:
    return {row.key: row.target for row in calls.list()}


def test_a_key_with_a_place_in_code_that_must_be_left_alone_is_left_alone(world: World) -> None:
    calls = world.static_calls()._calls
    nothing = Exclusions([])
    assert changeable(calls, world.symbols, nothing) == (calls, [])
    for place in PLACES["number"]:
        noinstr = Exclusions([(Reason.NOINSTR, TextRange(place, GuestVirtual(place + 1)))])
        may, (line,) = changeable(calls, world.symbols, noinstr)
        assert may == {"event": calls["event"]}
        assert line == "the static call number is left alone, for one of its places: noinstr"


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
    assert Entries(world.guest.space, world.header).armed(world.guest.space) == set()


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
    """A site's is its trampoline; a trampoline's the new target, or what there is instead."""
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


def test_somebody_who_knows_no_key_is_told_of_some(world: World) -> None:
    calls = world.static_calls()
    with pytest.raises(StaticCallError, match="there is none"):
        _followed(world, []).set("number", "one")
    many = [f"key{number:04}" for number in range(5000)]
    with pytest.raises(StaticCallError, match="and 4992 more") as refused:
        _followed(world, many).set("number", "one")
    assert len(str(refused.value)) < 200
    assert targets(calls) == {"number": "one [mine]", "event": ""}


def _followed(world: World, keys: Sequence[str]) -> StaticCalls:
    calls, known = world.static_calls(), world.static_calls()._calls["number"]
    calls.follow(dict.fromkeys(keys, known))
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
    with pytest.raises(StaticCallError, match="somebody else's") as refused:
        calls.set("number", "two")
    assert str(refused.value).isprintable()
    with pytest.raises(StaticCallError, match="somebody else's"):
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
    calls = world.static_calls()

    class Meddler(World):
        def write(self, writes: Sequence[Write]) -> list[bytes | None]:
            if any(write.address == CALL for write in writes):
                world.guest.kernel.write(CALL, NOP[::-1])
            return world.write(writes)

    calls._machine = Meddler()
    with pytest.raises(StaticCallError, match=f"{CALL:#x} holds .*: somebody else changes it"):
        calls.set("number", "two")
    assert world.live()[CALL] == NOP[::-1]
    assert world.reaches(NUMBER) == world.reaches(TAIL) == TWO


def writes_of(key: str, functions: Sequence[str | None]) -> int:
    """How many writes the last of some changes takes where nobody disturbs it."""
    world = World()
    calls = world.static_calls()
    before = 0
    for function in functions:
        before = world.writes
        calls.set(key, function)
    return world.writes - before


def test_a_change_goes_on_where_somebody_resumes_the_guest() -> None:
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
        assert Entries(world.guest.space, world.header).armed(world.guest.space) == set()
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
        assert Entries(world.guest.space, world.header).armed(world.guest.space) == set()
        world.static_calls().restore()
        assert world.live() == world.built


def test_recovery_ends_what_is_half_way_and_leaves_the_rest_to_who_knows_the_key(
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


def test_a_breakpoint_of_somebody_else_is_not_taken_for_ours(world: World) -> None:
    world.static_calls().set("number", "two")
    world.guest.kernel.write(CALL, b"\xcc")
    before = world.live()
    world.recover()
    assert world.live() == before


def test_the_place_of_a_probe_that_was_armed_by_hand_is_left_alone_by_stopped(
    world: World,
) -> None:
    """Only the breakpoint protocol ends a change that is half-way."""
    calls = world.static_calls()
    place = StaticPlace(CALL, world.built[CALL], SiteKind.STATIC_CALL, NUMBER)
    entry = PokeEntry(place.address, NUMBER, place.kind, PokeState.ARMED, place.original)
    table = world.header.poke_table + ENTRY_SIZE * home(CALL, world.header.poke_order)
    world.guest.kernel.write(table, encode(entry))
    world.guest.kernel.write(CALL, b"\xcc")
    calls._protocol = Protocol.STOPPED
    calls._entries.reload()
    with pytest.raises(StaticCallError, match="somebody else's"):
        calls.set("number", "two")
