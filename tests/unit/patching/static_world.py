"""A guest with static calls, over memory made of bytes; each is called after each write."""

import struct
from collections.abc import Mapping, Sequence

from optpolined.addresses import GuestVirtual
from optpolined.kernel.module.abi import PokeState, SiteKind
from optpolined.kernel.module.header import parse_header
from optpolined.kernel.module.module_list import GuestModule
from optpolined.kernel.module.poke_table import ENTRY_SIZE, PokeEntry, PokeTable
from optpolined.kernel.sites.declarations import Declaration, DeclarationKind
from optpolined.kernel.sites.static_calls import StaticCall
from optpolined.kernel.symbols.symbols import Symbols
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.protocol.steps import Protocol, Write
from optpolined.patching.protocol.transport import (
    WRITTEN,
    Differs,
    Outcome,
    Transport,
    TransportKind,
)
from optpolined.patching.recovery import find_leftovers, put_back
from optpolined.patching.static_calls import (
    StaticCalls,
    find_static_calls,
)
from optpolined.qemu.errors import ResumedError, StubClosedError
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


class World(Transport):
    """A guest with static calls, and the transport to it.

    After each write every place is called: it must reach one of ``allowed``.
    """

    kind = TransportKind.STOPPED

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

    def sync(self) -> None:
        """Every call looks at the memory anew."""

    def write(self, writes: Sequence[Write]) -> list[Outcome]:
        outcomes: list[Outcome] = []
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
            outcomes.append(WRITTEN if now == write.expect else Differs(now))
            self.call_all()
        return outcomes

    def grace(self) -> None:
        return

    def call_all(self) -> None:
        for place, allowed in self.allowed.items():
            assert self.reaches(place) in allowed, hex(place)

    def entry(self, site: GuestVirtual) -> PokeEntry:
        image = self.guest.space.read(self.header.poke_table, ENTRY_SIZE << self.header.poke_order)
        return PokeTable(image).entries[site]

    def reaches(self, at: GuestVirtual) -> GuestVirtual | None:
        """Return the function that a call at this place comes to; ``None`` where it goes on."""
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

    def declared_calls(self) -> Mapping[str, StaticCall]:
        """What a daemon that starts now finds."""
        kinds = DeclarationKind.STATIC_CALL, DeclarationKind.STATIC_JMP
        declarations = [
            *(Declaration(DeclarationKind.TRAMPOLINE, key, NOWHERE, None, None) for key in KEYS),
            *(
                Declaration(kind, site, key, None, None)
                for key, sites in KEYS.items()
                for kind, site in zip(kinds, sites, strict=True)
            ),
        ]
        originals = PokeEntries(self.guest.space, self.header).originals()
        calls, refused = find_static_calls(declarations, self.guest.space, self.symbols, originals)
        assert refused == []
        return calls

    def static_calls(
        self, protocol: Protocol = Protocol.BREAKPOINT, transport: Transport | None = None
    ) -> StaticCalls:
        """What a daemon that starts now has."""
        return StaticCalls(
            transport=transport or self,
            space=self.guest.space,
            symbols=self.symbols,
            entries=PokeEntries(self.guest.space, self.header),
            protocol=protocol,
            calls=self.declared_calls(),
        )

    def recover(self) -> None:
        """What a daemon does first of all."""
        entries = PokeEntries(self.guest.space, self.header)
        left = find_leftovers(entries, self.guest.space, self.header)
        put_back(left, entries, self.guest.space, self, self.grace)


NOWHERE = GuestVirtual(0)
KEYS = {NUMBER: (CALL, TAIL), EVENT: (EVENT_CALL, EVENT_TAIL)}
PLACES = {"number": (NUMBER, *KEYS[NUMBER]), "event": (EVENT, *KEYS[EVENT])}


def targets(calls: StaticCalls) -> dict[str, str]:
    """Where each key goes, by name."""
    return {row.key: row.target for row in calls.list()}
