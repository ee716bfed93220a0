"""Inline sites in the model: their code, and a daemon that changes them."""

from collections.abc import Sequence
from dataclasses import dataclass

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import scratch_register, site_instruction
from optpolined.kernel.abi import PokeState, SiteKind
from optpolined.kernel.poketable import PokeEntry
from optpolined.poke.execute import walk
from optpolined.poke.inline import InlineChange, InlineForm, classify_inline, inline_steps
from optpolined.poke.protocol import Protocol
from optpolined.poke.recovery import Standing
from optpolined.service.entries import Entries
from optpolined.x86 import Register
from tests.model.cpu import Call, CallSite
from tests.model.listing import Listing
from tests.model.machine import Guest
from tests.model.rules import Kind, Rules, Violation
from tests.model.scenarios import Scenario
from tests.model.timeline import Program, Timeline
from tests.model.world import FUNCTIONS, HEADER_OF_MODEL, fresh_image, text_differences

_NO_POINTER = b"\xff\xff\xff\xff"
_CALL, _JMP = b"\xe8", b"\xe9"


@dataclass(frozen=True)
class InlineSite:
    """An inline site as the gcc plugin emits it; the tail form where not ``is_call``."""

    address: GuestVirtual
    register: Register
    is_call: bool

    @property
    def branch(self) -> GuestVirtual:
        return GuestVirtual(self.address + 9)

    @property
    def slow(self) -> GuestVirtual:
        return GuestVirtual(self.branch + (7 if self.is_call else 5))

    @property
    def done(self) -> GuestVirtual:
        return GuestVirtual(self.slow + 5)

    def form(self, function: GuestVirtual | None) -> InlineForm:
        """Learned for ``function``, or as built."""
        rex = bytes([0x48 | self.register >> 3, 0x81, 0xF8 | self.register & 7])
        compared = (
            _NO_POINTER if function is None else (function & 0xFFFF_FFFF).to_bytes(4, "little")
        )
        return InlineForm(rex + compared, self._branch_at(self.branch, function))

    def code(self, form: InlineForm) -> bytes:
        jne = bytes([0x75, self.slow - self.branch])
        jmp = bytes([0xEB, self.done - self.slow]) if self.is_call else b""
        return form.compare + jne + form.branch + jmp + self._branch_at(self.slow, None)

    def call_site(self) -> CallSite:
        return CallSite(
            entry=self.address,
            register=self.register,
            scratch=scratch_register(self.register),
            is_call=self.is_call,
            returns=frozenset({self.branch + 5, self.done}),
            done=self.done,
            record=0,
        )

    def entries(self) -> tuple[PokeEntry, PokeEntry]:
        """Those of compare and branch in the poke table."""
        built = self.form(None)
        kind = SiteKind.CALL if self.is_call else SiteKind.JMP
        thunk = HEADER_OF_MODEL.thunk[self.register]
        return (
            PokeEntry(self.address, self.slow, SiteKind.JMP, PokeState.IDLE, built.compare),
            PokeEntry(self.branch, thunk, kind, PokeState.IDLE, built.branch),
        )

    def _branch_at(self, at: GuestVirtual, function: GuestVirtual | None) -> bytes:
        target = HEADER_OF_MODEL.thunk[self.register] if function is None else function
        return site_instruction((_CALL if self.is_call else _JMP) + bytes(4), at, target)


Wanted = Sequence[GuestVirtual | None]
"""The function that each site is to learn, in order; ``None`` for none."""


def _standing(site: InlineSite, guest: Guest) -> InlineForm:
    built = site.form(None)
    return InlineForm(
        guest.space.read(site.address, len(built.compare)),
        guest.space.read(site.branch, len(built.branch)),
    )


def _change(
    site: InlineSite, after: InlineForm, guest: Guest, entries: Entries, protocol: Protocol
) -> InlineChange:
    compare, branch = site.entries()
    note, _ = entries.guard(branch, guest.space, Protocol.STOPPED)
    arm, disarm = entries.guard(compare, guest.space, protocol)
    return InlineChange(
        compare=site.address,
        branch=site.branch,
        before=_standing(site, guest),
        after=after,
        unlearned=site.form(None),
        prepare=(*note, *arm),
        disarm=disarm,
    )


def _make(changes: Sequence[InlineChange], protocol: Protocol, guest: Guest) -> None:
    report = walk(inline_steps(changes, protocol), guest)
    if report.refused:
        raise Violation(Kind.TEXT, f"refused: {report.refused}")


def learning(sites: Sequence[InlineSite], protocol: Protocol, *wanted: Wanted) -> Program:
    """Give the sites one set of functions after the other."""

    def run(guest: Guest) -> None:
        entries = Entries(guest.space, HEADER_OF_MODEL)
        for functions in wanted:
            forms = [site.form(function) for site, function in zip(sites, functions, strict=True)]
            pairs = [
                (site, form)
                for site, form in zip(sites, forms, strict=True)
                if form != _standing(site, guest)
            ]
            changes = [_change(site, form, guest, entries, protocol) for site, form in pairs]
            _make(changes, protocol, guest)
            if forms != [_standing(site, guest) for site in sites]:
                raise Violation(Kind.TEXT, f"not {forms}")

    return run


def unlearning(image: bytes, sites: Sequence[InlineSite]) -> Program:
    """What the next daemon does: bring every site of the poke table back to how it was built."""

    def run(guest: Guest) -> None:
        entries = Entries(guest.space, HEADER_OF_MODEL)
        originals = entries.originals()
        changes = []
        for site in sites:
            if site.address not in originals or site.branch not in originals:
                continue
            armed = site.address in entries.armed(guest.space)
            unlearned = InlineForm(originals[site.address], originals[site.branch])
            standing = classify_inline(site.branch, _standing(site, guest), unlearned, armed=armed)
            if standing in (Standing.OURS, Standing.INTERRUPTED):
                changes.append(_change(site, unlearned, guest, entries, Protocol.BREAKPOINT))
        _make(changes, Protocol.BREAKPOINT, guest)
        if left := text_differences(image, guest.image()):
            raise Violation(Kind.TEXT, f"after recovery {left}")

    return run


def inline_sites(
    name: str,
    sites: Sequence[InlineSite],
    functions: Sequence[GuestVirtual],
    *wanted: Wanted,
    protocol: Protocol = Protocol.BREAKPOINT,
    dies: bool = False,
    rules: Rules | None = None,
) -> Scenario:
    """Inline sites that learn ``wanted`` one after the other, called with ``functions``."""
    image = fresh_image([(site.address, site.code(site.form(None))) for site in sites])

    def plan(listing: Listing, _timeline: Timeline) -> None:
        for site in sites:
            for function in (None, *FUNCTIONS):
                listing.add(site.address, site.code(site.form(function)))
            listing.add_breakpoint(site.address)

    return Scenario(
        name=name,
        image=image,
        calls=tuple(Call(site.call_site(), function) for site in sites for function in functions),
        program=learning(sites, protocol, *wanted),
        recover=unlearning(image, sites) if dies else None,
        plan=plan,
        rules=rules or Rules(),
    )
