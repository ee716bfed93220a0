"""A guest of bytes with sites in its text, a transport that may fail, and a patcher over both."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from optpolined.addresses import GuestVirtual
from optpolined.kernel.module.abi import SiteKind
from optpolined.kernel.module.header import Header, parse_header
from optpolined.kernel.paging import AddressSpace
from optpolined.kernel.sites.declarations import Declaration, DeclarationKind
from optpolined.kernel.sites.inline_part import InlinePart, inline_part
from optpolined.kernel.sites.scan import Site
from optpolined.kernel.sites.thunks import Thunks
from optpolined.patching.arena import Arena
from optpolined.patching.counter_records import RecordAllocator
from optpolined.patching.patcher import Patcher
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.protocol.standing import Standing
from optpolined.patching.protocol.steps import Protocol, Write
from optpolined.patching.protocol.transport import (
    WRITTEN,
    Differs,
    Outcome,
    Transport,
    TransportKind,
)
from optpolined.patching.recovery import find_leftovers, put_back
from optpolined.qemu.errors import ResumedError
from optpolined.x86 import Register
from tests.unit.kernel.fake_guest import (
    HEADER,
    KERNEL_TEXT,
    MODULE_TEXT,
    PAGE_SIZE,
    FakeGuest,
    PageTables,
    raw_header,
)
from tests.unit.kernel.inline_code import emitted

__all__ = (
    "F1",
    "F2",
    "F3",
    "TEXT_SIZE",
    "PatchedGuest",
    "inline_site",
    "thunk_site",
)

TEXT_SIZE = 2 * PAGE_SIZE
ARENA_SIZE = 2 * PAGE_SIZE
POKE_ORDER = 5

F1 = GuestVirtual(KERNEL_TEXT + 0x40_0000)
F2 = GuestVirtual(KERNEL_TEXT + 0x50_0000)
F3 = GuestVirtual(KERNEL_TEXT + 0x60_0000)

_PARSED = parse_header(bytes(raw_header()), HEADER)
_RECORDS = {SiteKind.CALL: DeclarationKind.INLINE_CALL, SiteKind.JMP: DeclarationKind.INLINE_JMP}
_OPCODES = {SiteKind.CALL: b"\xe8", SiteKind.JMP: b"\xe9"}


def thunk_site(
    address: int, register: Register, kind: SiteKind = SiteKind.CALL, *, prefix: bool = False
) -> Site:
    """A call, or jmp, to the register's thunk."""
    thunk = _PARSED.thunk[register]
    opcode = b"\x2e" * prefix + _OPCODES[kind]
    distance = thunk - address - len(opcode) - 4
    original = opcode + distance.to_bytes(4, "little", signed=True)
    return Site(GuestVirtual(address), original, kind, register, thunk, "function", None)


def inline_site(
    address: int, register: Register, kind: SiteKind = SiteKind.CALL, *, prefix: bool = False
) -> Site:
    """An inline site whose compare stands at ``address``."""
    at = GuestVirtual(address)
    built = emitted(at, register, _PARSED.thunk[register], kind, prefix=prefix)
    declared = Declaration(_RECORDS[kind], at, GuestVirtual(0), register, None)
    part = inline_part(declared, built, at, Thunks.one_array(_PARSED.thunk))
    assert isinstance(part, InlinePart), part
    return replace(thunk_site(part.slow, register, kind, prefix=prefix), inline=part)


class FakeTransport(Transport):
    """Compares and writes at once; fails before the write or grace period number ``fails_at``.

    ``log`` holds the addresses that were written, and None for each grace period.
    """

    def __init__(self, tables: PageTables) -> None:
        self._tables = tables
        self.log: list[GuestVirtual | None] = []
        self.fails_at: int | None = None

    kind = TransportKind.STOPPED

    def write(self, writes: Sequence[Write]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for write in writes:
            self._fail()
            now = self._tables.space.read(write.address, len(write.expect))
            outcomes.append(WRITTEN if now == write.expect else Differs(now))
            if now == write.expect:
                self._tables.write(write.address, write.data)
                self.log.append(write.address)
        return outcomes

    def sync(self) -> None:
        """Nothing runs here."""

    def grace(self) -> None:
        self._fail()
        self.log.append(None)

    @property
    def graces(self) -> int:
        return self.log.count(None)

    def _fail(self) -> None:
        if len(self.log) == self.fails_at:
            raise ResumedError


class PatchedGuest:
    """The guest, and what a daemon has that works on it."""

    def __init__(self, *sites: Site, records: int | None = None) -> None:
        guest = FakeGuest()
        self.tables = guest.kernel
        # The two pages of the text are not adjacent in physical memory.
        self.tables.map(KERNEL_TEXT, 0x200_0000)
        self.tables.map(KERNEL_TEXT + PAGE_SIZE, 0x210_0000)
        self.header: Header = replace(_PARSED, arena_size=ARENA_SIZE, poke_order=POKE_ORDER)
        self.tables.map_range(self.header.arena, 0x220_0000, ARENA_SIZE)
        assert self.header.arena > MODULE_TEXT
        self.sites = {site.address: site for site in sites}
        for site in sites:
            self.tables.write(*code_of(site))
        self.transport = FakeTransport(self.tables)
        self.arena = Arena(self.header.arena, ARENA_SIZE)
        self._records = RecordAllocator(range(len(sites) if records is None else records))
        self.entries = PokeEntries(self.space, self.header)

    @property
    def space(self) -> AddressSpace:
        return self.tables.space

    @property
    def text(self) -> bytes:
        return self.space.read(KERNEL_TEXT, TEXT_SIZE)

    def write(self, address: int, data: bytes) -> None:
        """Write as another program does."""
        self.tables.write(address, data)

    def patcher(self, protocol: Protocol = Protocol.BREAKPOINT) -> Patcher:
        return Patcher(
            transport=self.transport,
            grace=self._grace,
            space=self.space,
            header=self.header,
            sites=self.sites,
            entries=self.entries,
            arena=self.arena,
            records=self._records,
            record_offset=lambda record: 0x1_0000 + 64 * record,
            protocol=protocol,
            batch_sites=8,
        )

    def _grace(self) -> None:
        self.transport.grace()

    def next_daemon(self) -> None:
        """What a daemon does first: everything that an earlier one left is put back."""
        self.entries = PokeEntries(self.space, self.header)
        self.put_back(lambda _standing: True)

    def mend(self) -> None:
        """As :meth:`optpolined.session.session.Session.mend`."""
        self.entries.reload()
        self.put_back(lambda standing: standing is Standing.INTERRUPTED)

    def put_back(self, chosen: Callable[[Standing], bool]) -> None:
        leftovers = find_leftovers(self.entries, self.space, self.header)
        wanted = [left for left in leftovers if chosen(left.standing)]
        put_back(wanted, self.entries, self.space, self.transport, self.transport.grace)


def code_of(site: Site) -> tuple[GuestVirtual, bytes]:
    """All code of a site as it was built, and where it begins."""
    if site.inline is None:
        return site.address, site.original
    at, prefix = site.inline.compare, site.length > 5
    return at, emitted(at, site.register, site.thunk, site.kind, prefix=prefix)
