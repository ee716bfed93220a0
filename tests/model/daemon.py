"""The daemon's own code at work on a modelled guest: patcher, arena, poke table and recovery."""

from collections.abc import Mapping, Sequence

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import site_instruction
from optpolined.codegen.forms import ORIGINAL, Form
from optpolined.kernel.module.abi import SiteKind
from optpolined.kernel.sites.scan import Site
from optpolined.patching.counter_records import RecordAllocator
from optpolined.patching.patcher import Patcher
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.protocol.steps import Protocol
from optpolined.patching.recovery import find_leftovers, put_back
from optpolined.x86 import Register
from tests.model.machine import NOBODY, Guest, WatchedArena
from tests.model.rules import Kind, Violation
from tests.model.timeline import Program
from tests.model.world import HEADER_OF_MODEL, text_differences

Wanted = Mapping[GuestVirtual, Form]

_OPCODES = {SiteKind.CALL: b"\xe8", SiteKind.JMP: b"\xe9"}
_CS_PREFIX = b"\x2e"


def thunk_site(
    address: int, register: Register, kind: SiteKind = SiteKind.CALL, *, prefix: bool = False
) -> Site:
    """A call, or jmp, to the register's thunk, as the compiler emits it."""
    at = GuestVirtual(address)
    thunk = HEADER_OF_MODEL.thunk[register]
    blank = _CS_PREFIX * prefix + _OPCODES[kind] + bytes(4)
    original = site_instruction(blank, at, thunk)
    return Site(at, original, kind, register, thunk, "function", None)


def record_offset(record: int) -> int:
    """The percpu offset of a record."""
    return 0x1_0000 + 64 * record


class Daemon:
    """A daemon that has just attached; ``sites`` have records 0, 1, ..., then key tables have."""

    def __init__(self, guest: Guest, sites: Sequence[Site], protocol: Protocol) -> None:
        self._guest = guest
        self._arena = WatchedArena(guest)
        records = RecordAllocator(range(2 * len(sites)))
        for site in sites:
            records.of(site.address)
        self._patcher = Patcher(
            transport=guest,
            grace=guest.grace,
            space=guest.space,
            header=HEADER_OF_MODEL,
            sites={site.address: site for site in sites},
            entries=PokeEntries(guest.space, HEADER_OF_MODEL),
            arena=self._arena,
            records=records,
            record_offset=record_offset,
            protocol=protocol,
            batch_sites=len(sites),
        )

    def give(self, wanted: Wanted) -> None:
        """Give sites their forms, and see that they have them."""
        report = self._patcher.apply(wanted)
        forms = self._patcher.observe()
        if report.refused or any(
            forms.get(site, ORIGINAL) != form for site, form in wanted.items()
        ):
            raise Violation(Kind.TEXT, f"{forms}, refused {report.sites}")

    def give_while_recycling(self, wanted: Wanted) -> None:
        """Ask for a grace period, change sites while it passes, then free what was retired."""
        token = self._arena.grace_begin()
        self._guest.grace_begins()
        self.give(wanted)
        self._guest.grace_ends()
        self._arena.grace_end(token)


def program(
    sites: Sequence[Site], protocol: Protocol, *wanted: Wanted, settled: Wanted | None = None
) -> Program:
    """Give sites one form after the other, as epochs do: a grace period passes during each.

    They have those of ``settled`` before the first call.
    """

    def run(guest: Guest) -> None:
        daemon = Daemon(guest, sites, protocol)
        if settled is not None:
            daemon.give(settled)
            guest.settle()
        daemon.give(wanted[0])
        for forms in wanted[1:]:
            daemon.give_while_recycling(forms)

    return run


def recovery(image: bytes, sites: Sequence[Site], then: Wanted | None = None) -> Program:
    """What the next daemon does: put all back, wait, and go on with the arena as its own."""

    def run(guest: Guest) -> None:
        entries = PokeEntries(guest.space, HEADER_OF_MODEL)
        leftovers = find_leftovers(entries, guest.space, HEADER_OF_MODEL)
        put_back(leftovers, entries, guest.space, guest, guest.grace)
        if left := text_differences(image, guest.image()):
            raise Violation(Kind.TEXT, f"after recovery {left}")
        if then is not None:
            guest.grace()
            guest.own(NOBODY)
            Daemon(guest, sites, Protocol.BREAKPOINT).give(then)

    return run


def originals(sites: Sequence[Site]) -> Wanted:
    """All of them as they were built."""
    return {site.address: ORIGINAL for site in sites}
