"""Which site made a call that a census has counted by return address and target.

A call site is the instruction in front of its return address.  A tail jump leaves the return
address of the call that led to its function:

    caller:  call F          the return address that the census sees is behind this call
    F:       ...
             jmp __x86_indirect_thunk_rax      the site; its target is what the census sees

So a pair with a direct call in front of its return address *nominates* the tail jumps of the called
function.  It proves nothing: F may have several, or may itself jump to a function that has one.
A call site is suspect where one of its targets has a tail jump of its own, because what that one
calls looks like a target of the call site.  Nominated and suspect sites learn by a stub of their
own; what is attributed for certain is learned from the census.
"""

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from optpolined.addresses import GuestVirtual
from optpolined.kernel.module.abi import SiteKind
from optpolined.kernel.sites.scan import Site

__all__ = ("Attributed", "Attribution")

_CALL = 0xE8
_CALL_BYTES = 5

Calls = dict[GuestVirtual, int]
"""Calls by target."""


@dataclass(slots=True)
class Attributed:
    """The calls of one census.  ``foreign`` counts those of no site that may be patched."""

    sites: dict[GuestVirtual, Calls] = field(default_factory=dict)
    """By call site."""
    suspects: dict[GuestVirtual, int] = field(default_factory=dict)
    """Calls of each call site whose targets are not certain; they are in ``sites`` too."""
    nominated: dict[GuestVirtual, int] = field(default_factory=dict)
    """The calls that each tail jump may have made."""
    tail_calls: int = 0
    """Calls that one or several nominated tail jumps have made."""
    foreign: int = 0


class Attribution:
    """Attributes the calls of one guest; made anew when modules come or go."""

    def __init__(
        self,
        sites: Mapping[GuestVirtual, Site],
        entry_of: Callable[[GuestVirtual], GuestVirtual | None],
        text_at: Callable[[GuestVirtual, int], bytes],
    ) -> None:
        """Know the sites.

        :param sites: Those that may be patched, by address.
        :param entry_of: The entry of the function that an address lies in, if any does.
        :param text_at: So many bytes of the original text at an address; fewer where there is none.
        """
        self._text_at = text_at
        self._call_sites = {
            GuestVirtual(site.address + site.length): site.address
            for site in sites.values()
            if site.kind is SiteKind.CALL and site.inline is None
        }
        self._tails: dict[GuestVirtual, list[GuestVirtual]] = {}
        for site in sites.values():
            entry = entry_of(site.address)
            if site.kind is SiteKind.JMP and site.inline is None and entry is not None:
                self._tails.setdefault(entry, []).append(site.address)

    @property
    def covered(self) -> AbstractSet[GuestVirtual]:
        """The sites that a census sees: certainly the calls, tail jumps as nominations."""
        tails = {site for sites in self._tails.values() for site in sites}
        return frozenset(self._call_sites.values()) | tails

    def attribute(self, pairs: Iterable[tuple[GuestVirtual, GuestVirtual, int]]) -> Attributed:
        """Say which sites made the calls of ``pairs``: return address, target, calls."""
        found = Attributed()
        for returns_to, target, calls in pairs:
            site = self._call_sites.get(returns_to)
            if site is not None:
                of_site = found.sites.setdefault(site, {})
                of_site[target] = of_site.get(target, 0) + calls
                continue
            tails = self._tails.get(self._called_before(returns_to), ())
            for tail in tails:
                found.nominated[tail] = found.nominated.get(tail, 0) + calls
            if tails:
                found.tail_calls += calls
            else:
                found.foreign += calls
        for site, of_site in found.sites.items():
            if len(of_site) > 1 and not self._tails.keys().isdisjoint(of_site):
                found.suspects[site] = sum(of_site.values())
        return found

    def _called_before(self, returns_to: GuestVirtual) -> GuestVirtual:
        """The target of the direct call in front of a return address; 0 where there is none."""
        at = GuestVirtual(returns_to - _CALL_BYTES)
        found = self._text_at(at, _CALL_BYTES)
        if len(found) != _CALL_BYTES or found[0] != _CALL:
            return GuestVirtual(0)
        rel32 = int.from_bytes(found[1:], "little", signed=True)
        return GuestVirtual((returns_to + rel32) % (1 << 64))
