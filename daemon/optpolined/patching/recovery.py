"""Puts back what a daemon that died left in the guest.

The poke table names every site that was ever patched, with its original instruction.  The live
bytes say how far the last change came.  Nothing else is needed, and nothing else is believed.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import branch_target
from optpolined.codegen.errors import CodegenError
from optpolined.kernel.errors import TranslationError
from optpolined.kernel.module.abi import INLINE_BRANCH, STATIC_KINDS, SiteKind
from optpolined.kernel.module.header import Header
from optpolined.kernel.module.poke_table import PokeEntry
from optpolined.kernel.paging import AddressSpace
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.protocol.execute import GracePeriod, execute, walk
from optpolined.patching.protocol.inline_change import (
    InlineChange,
    InlineForm,
    classify_inline,
    inline_steps,
)
from optpolined.patching.protocol.standing import (
    Range,
    Standing,
    classify,
    classify_static,
    foreign_reason,
)
from optpolined.patching.protocol.steps import Change, Protocol, Write
from optpolined.patching.protocol.transport import Transport
from optpolined.x86 import INT3

__all__ = ("Leftover", "blocks_in_use", "find_leftovers", "put_back")

_log = logging.getLogger(__name__)

_SPAN_BYTES = 0x10000
"""Sites within so many bytes are read at once, because the table may name thousands."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """A site that holds something other than its original instruction.

    For an inline part this is the compare; ``branch`` is then the entry of its branch, and what
    stands there.
    """

    entry: PokeEntry
    found: bytes
    standing: Standing
    branch: tuple[PokeEntry, bytes] | None = None


def find_leftovers(entries: PokeEntries, space: AddressSpace, header: Header) -> list[Leftover]:
    """Look at every site of the poke table; sites of modules that have gone are left out."""
    arena = _arena(header)
    leftovers = []
    with space.snapshot() as pages:
        armed = entries.armed(pages)
        live = list(_live(entries, pages))
    branches = {
        entry.site: (entry, found) for entry, found in live if entry.kind is SiteKind.BRANCH
    }
    for entry, found in live:
        branch = None
        if entry.kind is SiteKind.BRANCH:
            continue  # it goes with its compare
        if entry.kind is SiteKind.COMPARE:
            branch = branches.get(GuestVirtual(entry.site + INLINE_BRANCH))
            standing = _inline_standing(entry, found, branch, armed=entry.site in armed)
        elif entry.kind in STATIC_KINDS:
            standing = classify_static(found, armed=entry.site in armed)
        else:
            standing = classify(
                entry.site, found, entry.original, armed=entry.site in armed, arena=arena
            )
        if standing is not Standing.ORIGINAL:
            leftovers.append(Leftover(entry, found, standing, branch))
    return leftovers


def _inline_standing(
    compare: PokeEntry, found: bytes, branch: tuple[PokeEntry, bytes] | None, *, armed: bool
) -> Standing:
    """Return what an inline part holds.  Both entries are written before the part is touched."""
    if branch is None:
        return Standing.ORIGINAL if found == compare.original else Standing.FOREIGN
    entry, branch_found = branch
    unlearned = InlineForm(compare.original, entry.original)
    return classify_inline(entry.site, InlineForm(found, branch_found), unlearned, armed=armed)


def _live(entries: Iterable[PokeEntry], pages: AddressSpace) -> Iterator[tuple[PokeEntry, bytes]]:
    """Give each entry with what stands at its site; unmapped sites are left out."""
    span: list[PokeEntry] = []
    for entry in sorted(entries, key=attrgetter("site")):
        if span and entry.site - span[0].site > _SPAN_BYTES:
            yield from _live_span(span, pages)
            span = []
        span.append(entry)
    yield from _live_span(span, pages)


def _live_span(span: Sequence[PokeEntry], pages: AddressSpace) -> Iterator[tuple[PokeEntry, bytes]]:
    """Read close sites at once; read them by halves where a page between them is not mapped."""
    if not span:
        return
    start = span[0].site
    try:
        data = pages.read(start, max(entry.site + entry.length for entry in span) - start)
    except TranslationError:
        if len(span) > 1:
            half = len(span) // 2
            yield from _live_span(span[:half], pages)
            yield from _live_span(span[half:], pages)
        return
    for entry in span:
        offset = entry.site - start
        yield entry, data[offset : offset + entry.length]


def put_back(
    leftovers: Iterable[Leftover],
    entries: PokeEntries,
    space: AddressSpace,
    transport: Transport,
    grace: GracePeriod,
) -> None:
    """Restore the sites that hold something of ours; foreign bytes are left alone.

    An inline part whose branch is not as it was built takes a grace period.

    The breakpoint protocol is used, because it also ends a change that stopped half-way.  An entry
    that is still armed where no 0xCC of ours stands is disarmed.  As long as it is armed, a probe
    that comes there would be taken for ours.

    :raise QemuError: QEMU failed; this can be done again.
    """
    changes = []
    parts = []
    with space.snapshot() as pages:
        for left in leftovers:
            if left.standing not in (Standing.OURS, Standing.INTERRUPTED):
                _log.warning(
                    "site %#x holds bytes that another program wrote: left alone",
                    left.entry.site,
                    extra={
                        "site": f"{left.entry.site:#x}",
                        "reason": foreign_reason(left.found),
                    },
                )
                continue
            prepare, disarm = entries.guard(left.entry, pages, Protocol.BREAKPOINT)
            entry = left.entry
            if left.branch is None:
                changes.append(Change(entry.site, left.found, entry.original, prepare, disarm))
            else:
                parts.append(_unlearning(left, left.branch, prepare, disarm))
    if changes or parts:
        done = len(execute(changes, Protocol.BREAKPOINT, transport).done)
        done += len(walk(inline_steps(parts, Protocol.BREAKPOINT), transport, grace).done)
        _log.warning(
            "restored %d of %d sites that were left patched or half-way",
            done,
            len(changes) + len(parts),
        )
    stale = list(_stale(entries, space))
    if stale:
        transport.write(stale)


def _unlearning(
    left: Leftover,
    branch: tuple[PokeEntry, bytes],
    prepare: tuple[Write, ...],
    disarm: Write | None,
) -> InlineChange:
    """Return the change that makes an inline part as it was built."""
    entry, found = branch
    unlearned = InlineForm(left.entry.original, entry.original)
    return InlineChange(
        compare=left.entry.site,
        branch=entry.site,
        before=InlineForm(left.found, found),
        after=unlearned,
        unlearned=unlearned,
        prepare=prepare,
        disarm=disarm,
    )


def _stale(entries: PokeEntries, space: AddressSpace) -> Iterator[Write]:
    """Give the writes that disarm entries whose site is gone or holds a whole instruction."""
    with space.snapshot() as pages:
        armed = entries.armed(pages)
        suspects = [entry for entry in entries if entry.site in armed]
        live = {entry.site: found for entry, found in _live(suspects, pages)}
    for entry in suspects:
        found = live.get(entry.site, entry.original)
        whole = (
            found[0] != INT3 if entry.kind in STATIC_KINDS else found[:-4] == entry.original[:-4]
        )
        if whole:
            yield entries.disarm(entry.site)


def blocks_in_use(leftovers: Iterable[Leftover], header: Header) -> set[GuestVirtual]:
    """Return the blocks that leftovers refer to, or of which a probe may have copied the branch."""
    arena = _arena(header)
    targets = set()
    for left in leftovers:
        # Behind a probe's 0xCC stands our tail.
        branch = left.entry.original[:-4] + left.found[-4:]
        with suppress(CodegenError):  # the table's original is no branch: the guest wrote to it
            targets.add(branch_target(branch, left.entry.site))
    return {target for target in targets if target in arena}


def _arena(header: Header) -> Range:
    return Range(header.arena, header.arena + header.arena_size)
