"""From the forms that sites should have, through the poke engine, into the guest.

The live text decides everything: which form a site has, whether it is still ours, and which blocks
of the arena are in use.  A block is retired when no site's live bytes refer to it, and reused after
a grace period that began later.  The blocks of a site that holds foreign bytes are never freed,
because a probe may have copied the instruction that refers to them.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from optpolined.addresses import GuestVirtual
from optpolined.api.refusal import Refusal
from optpolined.codegen.assemble import Assembler, branch_target, site_instruction
from optpolined.codegen.decode import Decoder
from optpolined.codegen.errors import DecodeError
from optpolined.codegen.forms import ORIGINAL, Code, Form, Original
from optpolined.kernel.errors import (
    ArenaFullError,
    GuestReplacedError,
    PokeTableFullError,
    TranslationError,
)
from optpolined.kernel.module.abi import PokeState
from optpolined.kernel.module.header import Header
from optpolined.kernel.module.poke_table import PokeEntry
from optpolined.kernel.paging import AddressSpace
from optpolined.kernel.sites.inline_part import InlinePart
from optpolined.kernel.sites.scan import Site
from optpolined.patching.arena import Arena, rounded
from optpolined.patching.counter_records import RecordAllocator
from optpolined.patching.inline_sites import Found, Head, head_change, joined, split, standing_head
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.protocol.errors import SiteRefusedError
from optpolined.patching.protocol.execute import GivenUp, GracePeriod, PlanResult, execute, walk
from optpolined.patching.protocol.inline_change import inline_steps
from optpolined.patching.protocol.standing import foreign_reason
from optpolined.patching.protocol.steps import Change, Protocol, StepPhase, Write
from optpolined.patching.protocol.transport import Transport

__all__ = ("ArenaBlock", "PatchReport", "Patcher", "site_entry")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ArenaBlock:
    """Code in the arena that was built for one site."""

    address: GuestVirtual
    site: GuestVirtual
    form: Code
    code: bytes


@dataclass(slots=True)
class PatchReport:
    """How many sites were changed, and why the others were refused."""

    done: int = 0
    refused: Counter[Refusal] = field(default_factory=Counter)
    sites: dict[GuestVirtual, Refusal] = field(default_factory=dict)
    """The refused sites, with the reason."""

    def refuse(self, site: GuestVirtual, reason: Refusal) -> None:
        """Count a site that stays as it is.  An inline site has two places and counts once."""
        if self.sites.get(site, Refusal.HELD_UP) is Refusal.HELD_UP:
            self.refused[reason] += 1
        self.sites[site] = reason

    def hold_up(self, sites: Iterable[GuestVirtual]) -> None:
        """Note sites that were not looked at.  They are not counted as refused: they come later."""
        self.sites.update(dict.fromkeys(sites, Refusal.HELD_UP))


class Patcher:
    """Gives sites their forms while the guest runs.

    ``record_offset`` turns a record's index into its percpu offset (optpoline_abi.h).
    ``inline_protocol`` changes the inline parts, ``protocol`` all else.
    ``is_held_up`` is asked before each batch and returns whether none may begin now.  A batch that
    has begun is finished.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        grace: GracePeriod,
        space: AddressSpace,
        header: Header,
        sites: Mapping[GuestVirtual, Site],
        entries: PokeEntries,
        arena: Arena,
        records: RecordAllocator,
        record_offset: Callable[[int], int],
        protocol: Protocol,
        inline_protocol: Protocol | None = None,
        batch_sites: int,
        is_held_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._transport = transport
        self._grace = grace
        self._space = space
        self._header = header
        self._sites = sites
        self._entries = entries
        self._arena = arena
        self._records = records
        self._record_offset = record_offset
        self._protocol = protocol
        self._inline_protocol = inline_protocol or protocol
        self._batch_sites = batch_sites
        self._is_held_up = is_held_up
        self._assembler = Assembler()
        self._decoder = Decoder(self._assembler)
        self._blocks: dict[GuestVirtual, ArenaBlock] = {}
        self._touched: set[GuestVirtual] = set()
        self._referred_bytes = 0

    @property
    def room_bytes(self) -> int:
        """The arena without the blocks that must not be freed, as of the last :meth:`observe`."""
        return self._arena.size - (self._arena.usage().used - self._referred_bytes)

    def block_bytes(self, address: GuestVirtual, form: Form) -> int:
        """Return how many bytes of the arena the site takes in this form."""
        site = self._sites[address]
        rest = form if site.inline is None else split(form)[1]
        if isinstance(rest, Original):
            return 0
        return rounded(self._assembler.block_size(rest, site.register))

    def observe(self) -> dict[GuestVirtual, Found]:
        """Read what stands at every touched site; ``None`` where it is foreign.

        Blocks that nothing refers to any more are retired.

        :raise GuestReplacedError: a site refers to a block that we did not build, or a block that
            is in use does not hold what we wrote.
        """
        forms: dict[GuestVirtual, Found] = {}
        in_use: set[GuestVirtual] = set()
        with self._space.snapshot() as pages:
            for address in self._touched:
                site = self._sites[address]
                form, referred = self._standing(site, pages)
                forms[address] = form if site.inline is None else _whole(site.inline, form, pages)
                if referred is not None:
                    in_use.add(referred)
            self._check_blocks(in_use, pages)
        for block in list(self._blocks.values()):
            if block.address not in in_use and forms.get(block.site, ORIGINAL) is not None:
                self._arena.retire(block.address)
                del self._blocks[block.address]
        self._referred_bytes = sum(rounded(len(self._blocks[block].code)) for block in in_use)
        return forms

    def block_of(self, address: GuestVirtual, pages: AddressSpace) -> ArenaBlock | None:
        """Return the block that the site leads to now; ``None`` where it leads to no block of ours.

        :raise GuestReplacedError: as :meth:`observe`.
        """
        _, block = self._standing(self._sites[address], pages)
        return None if block is None else self._blocks[block]

    def drop_sites(self, sites: Iterable[GuestVirtual]) -> None:
        """Drop sites that have gone with their module, and retire their blocks."""
        gone = set(sites)
        self._touched -= gone
        for block in list(self._blocks.values()):
            if block.site in gone:
                self._arena.retire(block.address)
                del self._blocks[block.address]

    def _check_blocks(self, in_use: Iterable[GuestVirtual], pages: AddressSpace) -> None:
        for address in in_use:
            block = self._blocks[address]
            if pages.read(address, len(block.code)) != block.code:
                raise GuestReplacedError

    def apply(self, wanted: Mapping[GuestVirtual, Form]) -> PatchReport:
        """Give each site its form; a site that holds anything unexpected is left alone.

        Blocks are allocated in the order of ``wanted``, so put close sites next to each other.

        Where one of an inline site's two places is refused, the other is still changed: each is
        right by itself.

        :raise QemuError: the transport failed; :meth:`observe` tells what stands there now.
        """
        report = PatchReport()
        heads: dict[GuestVirtual, Head] = {}
        rests: dict[GuestVirtual, Form] = {}
        for address in wanted:
            rests[address] = wanted[address]
            if self._sites[address].inline is not None:
                heads[address], rests[address] = split(wanted[address])
        for batch in _batches(list(rests), self._batch_sites):
            if self._is_held_up():
                report.hold_up(batch)
            else:
                self._apply_rests({address: rests[address] for address in batch}, report)
        if heads and self._is_held_up():
            report.hold_up(heads)
        elif heads:
            self._apply_heads(heads, report)
        report.done = len(wanted) - len(report.sites)
        return report

    def _apply_rests(self, wanted: Mapping[GuestVirtual, Form], report: PatchReport) -> None:
        """Change the thunk sites; those of inline sites are their slow paths."""
        changes = []
        with self._space.snapshot() as pages:
            for address, form in wanted.items():
                site = self._sites[address]
                if site.inline is not None and self._standing(site, pages)[0] == form:
                    continue
                try:
                    changes.append(self.change(address, form, pages))
                except SiteRefusedError as error:
                    report.refuse(address, error.reason)
        result = execute(changes, self._protocol, self._transport)
        sites = [self._sites[change.site] for change in changes]
        self._take_refusals(result, sites, report)

    def _apply_heads(self, wanted: Mapping[GuestVirtual, Head], report: PatchReport) -> None:
        """Change the inline parts of sites by one plan, because it may hold a grace period."""
        changes = []
        sites = []
        with self._space.snapshot() as pages:
            for address, head in wanted.items():
                site = self._sites[address]
                assert site.inline is not None
                try:
                    change = head_change(
                        site.inline, head, self._entries, pages, self._inline_protocol
                    )
                except SiteRefusedError as error:
                    report.refuse(address, error.reason)
                    continue
                if change is not None:
                    changes.append(change)
                    sites.append(site)
                    self._touched.add(address)
        result = walk(inline_steps(changes, self._inline_protocol), self._transport, self._grace)
        self._take_refusals(result, sites, report)

    def _take_refusals(
        self, result: PlanResult, sites: Sequence[Site], report: PatchReport
    ) -> None:
        """Note what became of the changes of ``sites``, which have the same numbers."""
        for refusal in result.refused:
            self._refused(sites[refusal.change], refusal, report)
        if any(refusal.phase is StepPhase.PREPARE for refusal in result.refused):
            self._entries.reload()

    def _standing(self, site: Site, pages: AddressSpace) -> tuple[Form | None, GuestVirtual | None]:
        """Return the form of a site, and the block that it refers to."""
        try:
            found = pages.read(site.address, site.length)
        except TranslationError:
            return None, None
        if found == site.original:
            return ORIGINAL, None
        if found[:-4] != site.original[:-4]:
            return None, None
        try:
            target = branch_target(found, site.address)
        except DecodeError:
            return None, None
        block = self._blocks.get(target)
        if block is not None and block.site == site.address:
            return block.form, block.address
        if 0 <= target - self._arena.base < self._arena.size:
            raise GuestReplacedError
        return None, None

    def change(self, address: GuestVirtual, form: Form, pages: AddressSpace) -> Change:
        """Return the change that gives the site at ``address`` its form; allocate its block.

        :raise SiteRefusedError: the site cannot be changed now.
        """
        site = self._sites[address]
        try:
            before = pages.read(address, site.length)
        except TranslationError as error:
            raise SiteRefusedError(address, Refusal.UNMAPPED) from error
        if self._standing(site, pages)[0] is None:
            raise SiteRefusedError(address, foreign_reason(before))
        if not pages.is_contiguous(address, site.length):
            # It takes two packets, and a daemon may die between them.  The bytes would then be no
            # instruction, and neither ours nor the original.
            raise SiteRefusedError(address, Refusal.SPLIT_PAGE)
        block: tuple[Write, ...] = ()
        after = site.original
        if not isinstance(form, Original):
            block = (self._build(site, form, pages),)
            after = site_instruction(site.original, address, block[0].address)
        # Last, because an entry that is booked and never written hides those behind it.
        try:
            prepare, disarm = self._entries.guard(site_entry(site), pages, self._protocol)
        except PokeTableFullError as error:
            raise SiteRefusedError(address, Refusal.POKE_TABLE_FULL) from error
        self._touched.add(address)
        return Change(address, before, after, (*prepare, *block), disarm)

    def _build(self, site: Site, form: Code, pages: AddressSpace) -> Write:
        """Make the block of ``form``, which nothing refers to yet."""
        records = self._records.of_block(site.address, form)
        if records is None:
            raise SiteRefusedError(site.address, Refusal.NO_RECORD_LEFT)
        record = self._record_offset(records[0])
        key_table = 0 if records[1] is None else self._record_offset(records[1])
        size = self._assembler.block_size(form, site.register)
        try:
            address = self._arena.allocate(size)
        except ArenaFullError as error:
            raise SiteRefusedError(site.address, Refusal.ARENA_FULL) from error
        learn_stub = self._header.learn_stub[site.register]
        code = self._assembler.assemble(
            form,
            register=site.register,
            at=address,
            record=record,
            learn_stub=learn_stub,
            key_table=key_table,
        )
        self._decoder.verify(
            code,
            form,
            register=site.register,
            at=address,
            record=record,
            learn_stub=learn_stub,
            key_table=key_table,
        )
        self._blocks[address] = ArenaBlock(address, site.address, form, code)
        return Write(address, pages.read(address, size), code)

    def _refused(self, site: Site, refusal: GivenUp, report: PatchReport) -> None:
        in_code = {site.address}
        if site.inline is not None:
            in_code |= {site.inline.compare, site.inline.branch}
        ours = refusal.write.address in in_code
        reason = refusal.reason if ours else Refusal.TABLE_CHANGED
        report.refuse(site.address, reason)
        _log.warning(
            "%s at %#x left alone: %s where %s was expected (%s, in phase %s)",
            site.function,
            site.address,
            refusal.outcome,
            refusal.write.expect.hex(" "),
            reason,
            refusal.phase.value,
            extra={"site": f"{site.address:#x}", "reason": reason},
        )


def _whole(part: InlinePart, rest: Form | None, pages: AddressSpace) -> Found:
    """Return the form of an inline site with this rest."""
    head = standing_head(part, pages)
    return None if head is None or rest is None else joined(head, rest)


def site_entry(site: Site) -> PokeEntry:
    """Return the entry of a thunk site in the poke table; its slow path is the thunk."""
    return PokeEntry(site.address, site.thunk, site.kind, PokeState.IDLE, site.original)


def _batches(items: Sequence[GuestVirtual], size: int) -> Iterator[Sequence[GuestVirtual]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
