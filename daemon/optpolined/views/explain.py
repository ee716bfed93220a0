"""Explains one site: its original code, its code now, and the block that it leads to."""

from collections.abc import Iterator

from optpolined.addresses import GuestVirtual
from optpolined.api.sites import Explanation, Instruction, Listing, Part, SiteRow
from optpolined.codegen.listing import disassemble
from optpolined.control.event_log import EventLog
from optpolined.kernel.errors import TranslationError
from optpolined.kernel.module.abi import SiteKind
from optpolined.kernel.paging import AddressSpace
from optpolined.kernel.sites.scan import Site
from optpolined.session.session import Session

__all__ = ("explain",)


def explain(session: Session, site: Site, row: SiteRow, event_log: EventLog) -> Explanation:
    """Return all that is known of one site; reads only, and does not stop the guest.

    :raise TranslationError: the site is not mapped any more.
    :raise QemuError: the guest's memory cannot be read.
    """
    with session.space.snapshot() as pages:
        parts = tuple(
            Part(
                name,
                _listing(session, built, at),
                _listing(session, pages.read(at, len(built)), at),
            )
            for name, at, built in _places(site)
        )
        block = _block(session, site, pages)
    return Explanation(
        row=row,
        register=site.register.name.lower(),
        kind="call" if site.kind is SiteKind.CALL else "jmp",
        parts=parts,
        block=block,
        history=event_log.of(site.address),
    )


def _places(site: Site) -> Iterator[tuple[str, GuestVirtual, bytes]]:
    """Yield each place of a site that may be changed, in the order of the code."""
    if site.inline is not None:
        yield "compare", site.inline.compare, site.inline.unlearned_compare
        yield "branch", site.inline.branch, site.inline.unlearned_branch
        yield "slow path", site.address, site.original
    else:
        yield "site", site.address, site.original


def _block(session: Session, site: Site, pages: AddressSpace) -> Listing | None:
    found = session.patcher.block_of(site.address, pages)
    if found is None:
        return None
    try:
        code = pages.read(found.address, len(found.code))
    except TranslationError:
        return None
    return _listing(session, code, found.address)


def _listing(session: Session, code: bytes, at: GuestVirtual) -> Listing:
    def name(address: GuestVirtual) -> str | None:
        return _name(session, address)

    lines = tuple(
        Instruction(f"{line.address:#x}", line.code.hex(" "), line.text)
        for line in disassemble(code, at, name)
    )
    return Listing(f"{at:#x}", len(code), lines)


def _name(session: Session, address: GuestVirtual) -> str | None:
    header = session.header
    for register, stub in header.learn_stub.items():
        if address == stub:
            return f"learning stub of {register.name.lower()}"
    if 0 <= address - header.arena < header.arena_size:
        return f"arena+{address - header.arena:#x}"
    function = session.survey.symbols.function(address)
    return None if function is None else session.survey.symbols.name(address)
