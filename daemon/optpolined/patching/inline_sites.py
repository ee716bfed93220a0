"""The inline parts of sites: what stands there, and the changes that give them another target.

An inline site holds a chain in two places.  Its hottest target is its *head*: the immediate and
the branch of the inline part.  The others are its *rest*, a block behind the slow path, which is
changed as any thunk site is.  The two may change in any order: calls end where they should at every
moment.
"""

from dataclasses import dataclass
from typing import Final

from optpolined.addresses import GuestVirtual
from optpolined.api.refusal import Refusal
from optpolined.codegen.assemble import branch_target, site_instruction
from optpolined.codegen.errors import DecodeError, ReachError
from optpolined.codegen.forms import Chain, Form
from optpolined.kernel.errors import PokeTableFullError, TranslationError
from optpolined.kernel.module.abi import PokeState, SiteKind
from optpolined.kernel.module.poke_table import PokeEntry
from optpolined.kernel.paging import AddressSpace
from optpolined.kernel.sites.inline_part import InlinePart
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.protocol.errors import SiteRefusedError
from optpolined.patching.protocol.inline_change import InlineChange, InlineForm, classify_inline
from optpolined.patching.protocol.standing import Standing, foreign_reason
from optpolined.patching.protocol.steps import Protocol

__all__ = (
    "UNSETTLED",
    "Found",
    "Head",
    "Unsettled",
    "head_change",
    "inline_entries",
    "joined",
    "split",
    "standing_head",
)


@dataclass(frozen=True, slots=True)
class Head:
    """What an inline part compares with; ``target`` is ``None`` where the part is as built.

    A ``hidden`` head has the branch of its target and compares with nothing, because a change has
    stopped half-way.
    """

    target: GuestVirtual | None
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Unsettled:
    """An inline site between two forms: only one of its two places has changed."""


UNSETTLED: Final = Unsettled()

Found = Form | Unsettled | None
"""What stands at a site; ``None`` where it is foreign."""

_UNLEARNED: Final = Head(None)


def split(form: Form) -> tuple[Head, Form]:
    """Return the head and the rest of an inline site of this form.

    A form that counts its hits, or is no chain, has no head: all its calls take the slow path.
    """
    if isinstance(form, Chain) and form.targets and not form.counts_hits:
        return Head(form.targets[0]), Chain(form.targets[1:])
    return _UNLEARNED, form


def joined(head: Head, rest: Form) -> Form | Unsettled:
    """Return the form of an inline site with this head and rest."""
    if head.target is None:
        return UNSETTLED if split(rest)[0].target else rest
    if isinstance(rest, Chain) and not rest.counts_hits and head.target not in rest.targets:
        return UNSETTLED if head.hidden else Chain((head.target, *rest.targets))
    return UNSETTLED


def standing_head(part: InlinePart, pages: AddressSpace) -> Head | None:
    """Return what the inline part holds; ``None`` where it is foreign or not mapped."""
    try:
        found = _read(part, pages)
    except TranslationError:
        return None
    standing = classify_inline(part.branch, found, _built(part), armed=False)
    if standing is Standing.ORIGINAL:
        return _UNLEARNED
    if standing is not Standing.OURS:
        return None
    hidden = found.compare == part.unlearned_compare
    try:
        return Head(branch_target(found.branch, part.branch), hidden)
    except DecodeError:
        return None


def head_change(
    part: InlinePart, head: Head, entries: PokeEntries, pages: AddressSpace, protocol: Protocol
) -> InlineChange | None:
    """Return the change that gives an inline part its head; ``None`` where it has it already.

    :raise SiteRefusedError: the part cannot be changed now.
    """
    try:
        before = _read(part, pages)
    except TranslationError as error:
        raise SiteRefusedError(part.compare, Refusal.UNMAPPED) from error
    if standing_head(part, pages) is None:
        raise SiteRefusedError(part.compare, foreign_reason(before.compare))
    if not pages.is_contiguous(part.compare, len(before.compare)):
        raise SiteRefusedError(part.compare, Refusal.SPLIT_PAGE)
    after = _form(part, head)
    if after == before:
        return None
    compare, branch = inline_entries(part)
    try:
        note, _ = entries.guard(branch, pages, Protocol.STOPPED)
        arm, disarm = entries.guard(compare, pages, protocol)
    except PokeTableFullError as error:
        raise SiteRefusedError(part.compare, Refusal.POKE_TABLE_FULL) from error
    return InlineChange(
        compare=part.compare,
        branch=part.branch,
        before=before,
        after=after,
        unlearned=_built(part),
        prepare=(*note, *arm),
        disarm=disarm,
    )


def _form(part: InlinePart, head: Head) -> InlineForm:
    if head.target is None:
        return _built(part)
    compared = (head.target & 0xFFFF_FFFF).to_bytes(4, "little")
    try:
        branch = site_instruction(part.unlearned_branch, part.branch, head.target)
    except ReachError as error:
        raise SiteRefusedError(part.compare, Refusal.OUT_OF_REACH) from error
    return InlineForm(part.unlearned_compare[:-4] + compared, branch)


def _built(part: InlinePart) -> InlineForm:
    return InlineForm(part.unlearned_compare, part.unlearned_branch)


def _read(part: InlinePart, pages: AddressSpace) -> InlineForm:
    return InlineForm(
        pages.read(part.compare, len(part.unlearned_compare)),
        pages.read(part.branch, len(part.unlearned_branch)),
    )


def inline_entries(part: InlinePart) -> tuple[PokeEntry, PokeEntry]:
    """Return the entries of compare and branch in the poke table."""
    thunk = branch_target(part.unlearned_branch, part.branch)
    return (
        PokeEntry(
            part.compare, part.slow, SiteKind.COMPARE, PokeState.IDLE, part.unlearned_compare
        ),
        PokeEntry(part.branch, thunk, SiteKind.BRANCH, PokeState.IDLE, part.unlearned_branch),
    )
