"""Static calls of code that was built with our macros (guest/include/optpoline_static_call.h).

    trampoline:  jmp   target       of each key there is one; code built without the plugin calls it
                 int3; int3; int3
    site:        call  trampoline   inline, where the plugin has logged it; a tail call is a jmp

The daemon changes the target of one branch.  A call of a key without a function does nothing, as in
include/linux/static_call.h: its trampoline returns, and its sites are nops or return.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import branch_target, site_instruction
from optpolined.codegen.errors import DecodeError
from optpolined.kernel.module.abi import SiteKind
from optpolined.kernel.sites.declarations import TRAMPOLINE_PREFIX, Declaration, DeclarationKind
from optpolined.kernel.sites.scan import FunctionRange

__all__ = (
    "StaticCall",
    "StaticPlace",
    "collect_static_calls",
    "static_instruction",
    "static_target",
)

_OPCODES: Final = {SiteKind.STATIC_CALL: 0xE8, SiteKind.STATIC_JMP: 0xE9}
_BRANCH_SIZE: Final = 5

# Intel SDM volume 2, NOP: the recommended one of five bytes.
_NOP: Final = bytes.fromhex("0f1f440000")
_RETURN: Final = b"\xc3\xcc\xcc\xcc\xcc"


@dataclass(frozen=True, slots=True)
class StaticPlace:
    """One instruction that goes where its static call goes: a trampoline, or a call of one.

    ``original`` are its five bytes as they were built.
    """

    address: GuestVirtual
    original: bytes
    kind: SiteKind
    trampoline: GuestVirtual


@dataclass(frozen=True, slots=True)
class StaticCall:
    """All places of one key; ``module`` is the one that defines it, ``None`` in the kernel."""

    key: str
    trampoline: StaticPlace
    sites: tuple[StaticPlace, ...]
    module: str | None

    @property
    def places(self) -> tuple[StaticPlace, ...]:
        """The trampoline, then the sites."""
        return (self.trampoline, *self.sites)


def collect_static_calls(
    declarations: Iterable[Declaration],
    code: Callable[[GuestVirtual, int], bytes],
    function: Callable[[GuestVirtual], FunctionRange | None],
) -> tuple[dict[str, StaticCall], Sequence[str]]:
    """Return the static calls by key, and why other declarations are not believed, one line each.

    ``code`` gives bytes as they were built (none where nothing is mapped), ``function`` the one
    that an address lies in.
    """
    refused: list[str] = []
    trampolines: dict[GuestVirtual, tuple[str, str | None, StaticPlace]] = {}
    sites: dict[GuestVirtual, list[StaticPlace]] = {}
    keys: set[str] = set()
    for declaration in declarations:
        if declaration.kind is DeclarationKind.TRAMPOLINE:
            place = _trampoline(declaration.site, code)
            home = function(declaration.site)
            if place is None or home is None or home.start != place.address:
                refused.append(f"the trampoline at {declaration.site:#x} is not taken for one")
                continue
            key = home.name.removeprefix(TRAMPOLINE_PREFIX)
            if key == home.name or key in keys:
                refused.append(f"the trampoline at {declaration.site:#x} is named {home.name}")
                continue
            keys.add(key)
            trampolines[place.address] = (key, home.module, place)
        elif declaration.kind in (DeclarationKind.STATIC_CALL, DeclarationKind.STATIC_JMP):
            found = _site(declaration, code) if function(declaration.site) else None
            if found is None:
                refused.append(f"the static call at {declaration.site:#x} is not taken for one")
            else:
                sites.setdefault(declaration.other, []).append(found)
    refused += [
        f"the static call at {places[0].address:#x} has no trampoline at {trampoline:#x}"
        for trampoline, places in sites.items()
        if trampoline not in trampolines
    ]
    calls = {
        key: StaticCall(key, place, tuple(sites.get(address, ())), module)
        for address, (key, module, place) in trampolines.items()
    }
    return calls, refused


def static_instruction(
    place: StaticPlace, target: GuestVirtual | None, return_thunk: GuestVirtual | None
) -> bytes:
    """Return the instruction at ``place`` that goes to ``target``; ``None``: the call does nothing.

    ``return_thunk`` is the kernel's ``__x86_return_thunk``, where it has one: returns go through it
    (arch/x86/lib/retpoline.S).

    :raise ReachError: the target is out of reach.
    """
    if target is None and place.kind is SiteKind.STATIC_CALL:
        return _NOP
    destination = return_thunk if target is None else target
    if destination is None:
        return _RETURN
    branch = bytes([_OPCODES[place.kind], 0, 0, 0, 0])
    return site_instruction(branch, place.address, destination)


def static_target(place: StaticPlace, found: bytes) -> GuestVirtual | None:
    """Return where the instruction ``found`` at ``place`` goes; ``None`` where it does nothing.

    :raise DecodeError: no static call holds such an instruction.
    """
    if found == (_NOP if place.kind is SiteKind.STATIC_CALL else _RETURN):
        return None
    if found[:1] != bytes([_OPCODES[place.kind]]):
        raise DecodeError(place.address, f"{found.hex(' ')} is no static call")
    return branch_target(found, place.address)


def _trampoline(
    address: GuestVirtual, code: Callable[[GuestVirtual, int], bytes]
) -> StaticPlace | None:
    place = StaticPlace(address, code(address, _BRANCH_SIZE), SiteKind.STATIC_JMP, address)
    return place if _is_static(place) else None


def _site(
    declaration: Declaration, code: Callable[[GuestVirtual, int], bytes]
) -> StaticPlace | None:
    is_call = declaration.kind is DeclarationKind.STATIC_CALL
    kind = SiteKind.STATIC_CALL if is_call else SiteKind.STATIC_JMP
    found = code(declaration.site, _BRANCH_SIZE)
    place = StaticPlace(declaration.site, found, kind, declaration.other)
    if not _is_static(place) or static_target(place, place.original) != declaration.other:
        return None
    return place


def _is_static(place: StaticPlace) -> bool:
    try:
        static_target(place, place.original)
    except DecodeError:
        return False
    return True
