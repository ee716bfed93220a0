"""Puts back what a daemon that died left in the guest.

The poke table names every site that was ever patched, with its original instruction; the live bytes
say how far the last change came.  Nothing else is needed, and nothing else is believed.
"""

import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import branch_target
from optpolined.codegen.errors import CodegenError
from optpolined.kernel.errors import TranslationError
from optpolined.kernel.header import Header
from optpolined.kernel.paging import AddressSpace
from optpolined.kernel.poketable import PokeEntry
from optpolined.poke.execute import Machine, execute
from optpolined.poke.protocol import Change, Protocol
from optpolined.poke.recovery import Range, Standing, classify
from optpolined.service.entries import Entries

__all__ = ("Leftover", "blocks_in_use", "find_leftovers", "put_back")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Leftover:
    """A site that holds something else than its original instruction."""

    entry: PokeEntry
    found: bytes
    standing: Standing


def find_leftovers(entries: Entries, space: AddressSpace, header: Header) -> list[Leftover]:
    """Look at every site of the poke table; those of modules that have gone are passed over."""
    arena = _arena(header)
    leftovers = []
    with space.snapshot() as pages:
        for entry in entries:
            try:
                found = pages.read(entry.site, entry.length)
                armed = entries.is_armed(entry.site, pages)
            except TranslationError:
                continue
            standing = classify(entry.site, found, entry.original, armed=armed, arena=arena)
            if standing is not Standing.ORIGINAL:
                leftovers.append(Leftover(entry, found, standing))
    return leftovers


def put_back(
    leftovers: Iterable[Leftover], entries: Entries, space: AddressSpace, machine: Machine
) -> None:
    """Restore the sites that hold something of ours; those of others are left alone.

    Uses the breakpoint protocol, which also ends a change that stopped half-way.

    :raise QemuError: QEMU failed; this can be done again.
    """
    changes = []
    with space.snapshot() as pages:
        for left in leftovers:
            if left.standing in (Standing.OURS, Standing.INTERRUPTED):
                prepare, disarm = entries.guard(left.entry, pages, Protocol.BREAKPOINT)
                entry = left.entry
                changes.append(Change(entry.site, left.found, entry.original, prepare, disarm))
            else:
                _log.warning("site %#x holds somebody else's bytes: left alone", left.entry.site)
    if changes:
        report = execute(changes, Protocol.BREAKPOINT, machine)
        _log.warning(
            "%d of %d sites that were left patched or half-way are restored",
            len(report.done),
            len(changes),
        )


def blocks_in_use(leftovers: Iterable[Leftover], header: Header) -> set[GuestVirtual]:
    """The blocks that leftovers still refer to, or that a probe on one may have a copy of."""
    arena = _arena(header)
    targets = set()
    for left in leftovers:
        # Behind a probe's 0xCC stands our tail.
        branch = left.entry.original[:-4] + left.found[-4:]
        with suppress(CodegenError):  # the table's original is no branch: the guest's own doing
            targets.add(branch_target(branch, left.entry.site))
    return {target for target in targets if target in arena}


def _arena(header: Header) -> Range:
    return Range(header.arena, header.arena + header.arena_size)
