"""Where things are in the modelled guest, and its memory as one string of bytes."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from optpolined.addresses import GuestPhysical, GuestVirtual
from optpolined.kernel.module.header import Header, parse_header
from optpolined.kernel.module.poke_table import ENTRY_SIZE
from optpolined.kernel.paging import AddressSpace
from optpolined.patching.arena import UNIT
from optpolined.x86 import Register
from tests.unit.kernel.fake_guest import (
    HEADER,
    KERNEL_TEXT,
    PAGE_SIZE,
    TABLES,
    FakeMemory,
    PageTables,
    raw_header,
)

TEXT_SIZE = 192
PAGE_END = GuestVirtual(KERNEL_TEXT + PAGE_SIZE)
TEXT = GuestVirtual(PAGE_END - 128)
LINE_END = GuestVirtual(TEXT + 64)
"""The text ends one cache line here, and one page at ``PAGE_END``; the pages are not neighbours."""

ARENA_UNITS = 12
POKE_ORDER = 3

F1 = GuestVirtual(KERNEL_TEXT + 0x40_0000)
F2 = GuestVirtual(KERNEL_TEXT + 0x50_0000)
F3 = GuestVirtual(KERNEL_TEXT + 0x61_2340)
FUNCTIONS = {F1: "f1", F2: "f2", F3: "f3"}
RETURN_THUNK = GuestVirtual(KERNEL_TEXT + 0x72_4680)
"""``__x86_return_thunk``: to jump to it is to return."""

CALLER = -1
"""On the stack: the return address of the caller of the site's function."""

_SAVED = -16

_UNUSED_TEXT = b"\xf4"


def _header() -> Header:
    header = parse_header(bytes(raw_header()), HEADER)
    return replace(header, arena_size=ARENA_UNITS * UNIT, poke_order=POKE_ORDER)


HEADER_OF_MODEL = _header()
ARENA = HEADER_OF_MODEL.arena
THUNKS = {address: register for register, address in HEADER_OF_MODEL.thunk.items()}
LEARN_STUBS = {address: register for register, address in HEADER_OF_MODEL.learn_stub.items()}


@dataclass(frozen=True, slots=True)
class Region:
    """A part of the guest's memory, and where it begins in the image."""

    start: GuestVirtual
    size: int
    offset: int


_TABLE_SIZE = ENTRY_SIZE << POKE_ORDER
TABLE_OFFSET = TEXT_SIZE + HEADER_OF_MODEL.arena_size
REGIONS = (
    Region(TEXT, TEXT_SIZE, 0),
    Region(ARENA, HEADER_OF_MODEL.arena_size, TEXT_SIZE),
    Region(TABLES, _TABLE_SIZE, TABLE_OFFSET),
)


def offset_of(address: int) -> int | None:
    """Where a byte of the guest stands in the image; ``None`` outside of what is modelled."""
    for region in REGIONS:
        if 0 <= address - region.start < region.size:
            return region.offset + address - region.start
    return None


def in_arena(address: int) -> bool:
    return 0 <= address - ARENA < HEADER_OF_MODEL.arena_size


def saved(register: int) -> int:
    """What a register holds at the site where nothing is known of it; no address is negative."""
    return _SAVED - register


def text_of(image: bytes) -> bytes:
    return image[:TEXT_SIZE]


def text_differences(image: bytes, other: bytes) -> str:
    """Where the text of two images differs, for a reader; empty where it does not."""
    return ", ".join(
        f"{theirs:02x} instead of {ours:02x} at {describe(TEXT + place)}"
        for place, (ours, theirs) in enumerate(zip(text_of(image), text_of(other), strict=True))
        if ours != theirs
    )


def fresh_image(code: Iterable[tuple[GuestVirtual, bytes]]) -> bytes:
    """The memory before the daemon came: ``code`` in the text, no block, an empty table."""
    text = bytearray(_UNUSED_TEXT * TEXT_SIZE)
    for address, data in code:
        text[address - TEXT : address - TEXT + len(data)] = data
    return bytes(text) + bytes(HEADER_OF_MODEL.arena_size + _TABLE_SIZE)


def describe(address: int) -> str:
    """An address as a reader of a counterexample wants it."""
    if address in FUNCTIONS:
        return FUNCTIONS[GuestVirtual(address)]
    for names, kind in ((THUNKS, "thunk"), (LEARN_STUBS, "learn")):
        if address in names:
            return f"{kind}_{names[GuestVirtual(address)].name.lower()}"
    for region, name in zip(REGIONS, ("text", "arena", "table"), strict=True):
        if 0 <= address - region.start < region.size:
            return f"{name}+{address - region.start:#x}"
    if address < CALLER:
        return f"{Register(saved(0) - address).name.lower()}'s value"
    return {CALLER: "caller", RETURN_THUNK: "the return thunk"}.get(address, f"{address:#x}")


class Memory:
    """The guest's memory behind page tables, for the daemon's own code to read."""

    def __init__(self, image: bytes) -> None:
        self._tables = PageTables(FakeMemory())
        self._tables.map_range(PAGE_END - PAGE_SIZE, 0x100_0000, PAGE_SIZE)
        self._tables.map_range(PAGE_END, 0x110_0000, PAGE_SIZE)
        self._tables.map_range(ARENA, 0x120_0000, PAGE_SIZE)
        self._tables.map_range(TABLES, 0x130_0000, PAGE_SIZE)
        for region in REGIONS:
            self.write(region.start, image[region.offset : region.offset + region.size])

    @property
    def space(self) -> AddressSpace:
        return self._tables.space

    def write(self, address: int, data: bytes) -> None:
        self._tables.write(address, data)

    def pieces(self, address: GuestVirtual, data: bytes) -> list[tuple[GuestVirtual, bytes]]:
        """A write, as the packets that it takes: one for each physical page."""
        pieces: list[tuple[GuestPhysical, int]] = self.space.pieces(address, len(data))
        cut = []
        for _, size in pieces:
            cut.append((address, data[:size]))
            address, data = GuestVirtual(address + size), data[size:]
        return cut
