"""Inline sites in the model: their code as the gcc plugin emits it, seen as the daemon sees it."""

from dataclasses import replace

from optpolined.addresses import GuestVirtual
from optpolined.kernel.module.abi import SiteKind
from optpolined.kernel.sites.declarations import Declaration, DeclarationKind
from optpolined.kernel.sites.inline_part import InlinePart, inline_part
from optpolined.kernel.sites.scan import Site
from optpolined.kernel.sites.thunks import Thunks
from optpolined.x86 import Register
from tests.model.daemon import thunk_site
from tests.model.world import HEADER_OF_MODEL
from tests.unit.kernel.inline_code import emitted

_RECORDS = {SiteKind.CALL: DeclarationKind.INLINE_CALL, SiteKind.JMP: DeclarationKind.INLINE_JMP}


def inline_site(
    address: int, register: Register, kind: SiteKind = SiteKind.CALL, *, prefix: bool = False
) -> Site:
    """The inline site whose compare stands at ``address``; ``prefix`` is one of its slow path."""
    at = GuestVirtual(address)
    built = emitted(at, register, HEADER_OF_MODEL.thunk[register], kind, prefix=prefix)
    declared = Declaration(_RECORDS[kind], at, GuestVirtual(0), register, None)
    part = inline_part(declared, built, at, Thunks.one_array(HEADER_OF_MODEL.thunk))
    assert isinstance(part, InlinePart), part
    return replace(thunk_site(part.slow, register, kind, prefix=prefix), inline=part)


def code_of(site: Site, head: GuestVirtual | None = None) -> tuple[GuestVirtual, bytes]:
    """All code of a site, and where it begins; of an inline site with ``head`` in its inline part.

    At the site itself stands the original.
    """
    if site.inline is None:
        return site.address, site.original
    at, prefix = site.inline.compare, site.length > 5
    return at, emitted(at, site.register, site.thunk, site.kind, prefix=prefix, head=head)
