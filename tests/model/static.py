"""Static calls in the model: the code of a key, and the daemon's own code at work on it.

Each call must end in a function that the key names: one, or while the key changes that and the
next.  What a daemon leaves half-way, the next one makes again what it was built as, so from then on
a call may also end in the function that the key was built for, until the key is set anew.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import Original
from optpolined.kernel.module.abi import SiteKind
from optpolined.kernel.sites.declarations import TRAMPOLINE_PREFIX, Declaration, DeclarationKind
from optpolined.kernel.sites.static_calls import StaticPlace, static_instruction
from optpolined.kernel.symbols.symbols import Symbols
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.protocol.steps import Protocol
from optpolined.patching.recovery import find_leftovers, put_back
from optpolined.patching.static_calls import StaticCalls, find_static_calls
from optpolined.x86 import INT3
from tests.model.explore import Crew
from tests.model.listing import Listing
from tests.model.machine import Guest
from tests.model.rules import Kind, Rules, Violation
from tests.model.scenarios import Scenario
from tests.model.task import Call, CallSite
from tests.model.timeline import Timeline
from tests.model.world import (
    CALLER,
    FUNCTIONS,
    HEADER_OF_MODEL,
    LINE_END,
    PAGE_END,
    RETURN_THUNK,
    TEXT,
    describe,
    fresh_image,
)
from tests.unit.kernel.fake_guest import KERNEL_TEXT

Target = GuestVirtual | Original | None
"""Where a key is pointed; ``None``: at nothing."""

KEY = "key"
TRAMPOLINE = GuestVirtual(TEXT + 32)
CALL = (GuestVirtual(LINE_END - 2), SiteKind.STATIC_CALL)
JMP = (GuestVirtual(LINE_END - 3), SiteKind.STATIC_JMP)
FAR_CALL = (GuestVirtual(LINE_END + 8), SiteKind.STATIC_CALL)
FAR_JMP = (GuestVirtual(TEXT + 8), SiteKind.STATIC_JMP)
SPLIT = (GuestVirtual(PAGE_END - 3), SiteKind.STATIC_CALL)
"""Its bytes stand in two pages that are no neighbours."""

_STRANGER = GuestVirtual(TEXT + 16)
"""A call of the trampoline that no record tells of."""

_RETURN = 0xC3

_RECORDS = {
    SiteKind.STATIC_CALL: DeclarationKind.STATIC_CALL,
    SiteKind.STATIC_JMP: DeclarationKind.STATIC_JMP,
}


@dataclass(frozen=True)
class StaticCode:
    """The code of one key, which was built for ``function``, and its ``sites``."""

    sites: Sequence[tuple[GuestVirtual, SiteKind]]
    function: GuestVirtual | None
    has_return_thunk: bool = True

    @property
    def places(self) -> list[StaticPlace]:
        """The trampoline, then the sites, as they were built."""
        trampoline = StaticPlace(TRAMPOLINE, b"", SiteKind.STATIC_JMP, TRAMPOLINE)
        return [
            self._built(trampoline, self.function),
            *(
                self._built(StaticPlace(address, b"", kind, TRAMPOLINE), TRAMPOLINE)
                for address, kind in self.sites
            ),
        ]

    @property
    def stranger(self) -> StaticPlace:
        """A call in code that was built without the plugin; it never changes."""
        place = StaticPlace(_STRANGER, b"", SiteKind.STATIC_CALL, TRAMPOLINE)
        return self._built(place, TRAMPOLINE)

    @property
    def return_thunk(self) -> GuestVirtual | None:
        return RETURN_THUNK if self.has_return_thunk else None

    def forms(self, place: StaticPlace) -> Iterator[bytes]:
        """Every instruction that may stand at a place that is changed."""
        yield place.original
        for target in (None, *FUNCTIONS):
            yield static_instruction(place, target, self.return_thunk)

    def image(self) -> bytes:
        return fresh_image(
            (place.address, place.original) for place in (*self.places, self.stranger)
        )

    def attach(self, guest: Guest, protocol: Protocol) -> StaticCalls:
        """What a daemon knows of the key, of which it reads records and text."""
        entries = PokeEntries(guest.space, HEADER_OF_MODEL)
        symbols = Symbols(self._symbols())
        nowhere = GuestVirtual(0)
        declared = [
            Declaration(DeclarationKind.TRAMPOLINE, TRAMPOLINE, nowhere, None, None),
            *(
                Declaration(_RECORDS[kind], address, TRAMPOLINE, None, None)
                for address, kind in self.sites
            ),
        ]
        calls, refused = find_static_calls(declared, guest.space, symbols, entries.originals())
        assert not refused, refused
        return StaticCalls(
            transport=guest,
            space=guest.space,
            symbols=symbols,
            entries=entries,
            protocol=protocol,
            calls=calls,
        )

    def point(self, guest: Guest, calls: StaticCalls, target: Target) -> None:
        """Point the key somewhere, and see that it goes there."""
        to = self.function if isinstance(target, Original) else target
        guest.name(*guest.score.named, to)
        if isinstance(target, Original):
            calls.restore()
        else:
            calls.set(KEY, None if target is None else FUNCTIONS[target])
        guest.name(to)
        (key,) = calls.list()
        if key.target != ("" if to is None else FUNCTIONS[to]):
            raise Violation(Kind.TEXT, f"{key}")
        if isinstance(target, Original):
            self._check(guest, [place.original for place in self.places])

    def recover(self, guest: Guest) -> None:
        """What the next daemon does: places that are half-way become what they were built as."""
        entries = PokeEntries(guest.space, HEADER_OF_MODEL)
        found = [guest.space.read(place.address, len(place.original)) for place in self.places]
        leftovers = find_leftovers(entries, guest.space, HEADER_OF_MODEL)
        if leftovers:
            guest.name(*guest.score.named, self.function)
        put_back(leftovers, entries, guest.space, guest, guest.grace)
        self._check(
            guest,
            [
                place.original if data[0] == INT3 else data
                for place, data in zip(self.places, found, strict=True)
            ],
        )
        if armed := entries.armed(guest.space):
            raise Violation(Kind.TEXT, f"after recovery {len(armed)} entries are armed")

    def _check(self, guest: Guest, meant: Sequence[bytes]) -> None:
        for place, data in zip(self.places, meant, strict=True):
            found = guest.space.read(place.address, len(data))
            if found != data:
                where = describe(place.address)
                raise Violation(
                    Kind.TEXT, f"{found.hex(' ')} instead of {data.hex(' ')} at {where}"
                )

    def _built(self, place: StaticPlace, target: GuestVirtual | None) -> StaticPlace:
        original = static_instruction(place, target, self.return_thunk)
        return StaticPlace(place.address, original, place.kind, place.trampoline)

    def _symbols(self) -> Iterator[tuple[int, str]]:
        yield KERNEL_TEXT, "_stext"
        yield TEXT, "callers"
        yield TRAMPOLINE, TRAMPOLINE_PREFIX + KEY
        yield TRAMPOLINE + 8, "more_callers"
        yield from FUNCTIONS.items()
        if self.has_return_thunk:
            yield RETURN_THUNK, "__x86_return_thunk"
        end = RETURN_THUNK + 64
        yield from ((end, mark) for mark in ("_etext", "_sinittext", "_einittext"))


def static_scenario(
    name: str,
    code: StaticCode,
    *targets: Target,
    protocol: Protocol = Protocol.BREAKPOINT,
    dies: bool = False,
    then: Sequence[Target] = (),
    rules: Rules | None = None,
    crew: Crew | None = None,
) -> Scenario:
    """A key that is pointed at ``targets`` one after the other, while its sites are called.

    With ``dies``, the daemon may die after every moment, and the next one recovers and points the
    key at those of ``then``.
    """

    def program(guest: Guest) -> None:
        guest.name(code.function)
        calls = code.attach(guest, protocol)
        guest.settle()
        for target in targets:
            code.point(guest, calls, target)

    def recover(guest: Guest) -> None:
        code.recover(guest)
        for target in then:
            code.point(guest, code.attach(guest, protocol), target)

    def plan(listing: Listing, _timeline: Timeline) -> None:
        listing.add(code.stranger.address, code.stranger.original)
        for place in code.places:
            listing.add_breakpoint(place.address)
            for form in code.forms(place):
                # Behind a return stand breakpoints, which no task may reach.
                listing.add(place.address, form[:1] if form[0] == _RETURN else form)

    return Scenario(
        name=name,
        image=code.image(),
        calls=tuple(Call(_call_site(place)) for place in (*code.places[1:], code.stranger)),
        program=program,
        recover=recover if dies else None,
        plan=plan,
        rules=rules or Rules(),
        crew=crew or Crew(),
    )


def _call_site(place: StaticPlace) -> CallSite:
    is_call = place.kind is SiteKind.STATIC_CALL
    end = place.address + len(place.original)
    return CallSite(
        entry=place.address,
        register=None,
        is_call=is_call,
        returns=frozenset({end}),
        done=end if is_call else CALLER,
    )
