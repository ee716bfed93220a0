"""From the forms that sites should have, through the poke engine, into the guest.

What stands in the live text decides everything: which form a site has, whether it is still ours,
and which blocks of the arena are in use.  A block is retired when no site's live bytes refer to it,
and reused after a grace period that began later.  The blocks of a site that somebody else has
written to are never freed: a probe may have copied the instruction that refers to them.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import Assembler, branch_target, site_instruction
from optpolined.codegen.decode import Decoder
from optpolined.codegen.errors import DecodeError
from optpolined.codegen.forms import ORIGINAL, Chain, Form
from optpolined.kernel.abi import PokeState
from optpolined.kernel.arena import Arena
from optpolined.kernel.errors import (
    ArenaFullError,
    GuestReplacedError,
    PokeTableFullError,
    TranslationError,
)
from optpolined.kernel.header import Header
from optpolined.kernel.paging import AddressSpace
from optpolined.kernel.poketable import PokeEntry
from optpolined.kernel.sites import Site
from optpolined.poke.errors import SiteRefusedError
from optpolined.poke.execute import Machine, Refusal, execute
from optpolined.poke.protocol import Change, Phase, Protocol, Write
from optpolined.service.entries import Entries
from optpolined.service.records import Records
from optpolined.x86 import INT3

__all__ = ("Block", "PatchReport", "Patcher")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Block:
    """Code in the arena that was built for one site."""

    address: GuestVirtual
    site: GuestVirtual
    form: Chain
    code: bytes


@dataclass(slots=True)
class PatchReport:
    """How many sites were changed, and what the others were refused for."""

    done: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    sites: dict[GuestVirtual, str] = field(default_factory=dict)
    """The refused sites, with the reason."""

    def refuse(self, site: GuestVirtual, reason: str) -> None:
        """Count one site that stays as it is."""
        self.refused[reason] += 1
        self.sites[site] = reason


class Patcher:
    """Gives sites their forms; the guest may run all the while.

    ``record_offset`` turns a record's index into its percpu offset (optpoline_abi.h).
    """

    def __init__(
        self,
        *,
        machine: Machine,
        space: AddressSpace,
        header: Header,
        sites: Mapping[GuestVirtual, Site],
        entries: Entries,
        arena: Arena,
        records: Records,
        record_offset: Callable[[int], int],
        protocol: Protocol,
        batch_sites: int,
    ) -> None:
        self._machine = machine
        self._space = space
        self._header = header
        self._sites = sites
        self._entries = entries
        self._arena = arena
        self._records = records
        self._record_offset = record_offset
        self._protocol = protocol
        self._batch_sites = batch_sites
        self._assembler = Assembler()
        self._decoder = Decoder(self._assembler)
        self._blocks: dict[GuestVirtual, Block] = {}
        self._touched: set[GuestVirtual] = set()

    @property
    def touched(self) -> Collection[GuestVirtual]:
        """The sites that were ever changed in this run."""
        return self._touched

    def observe(self) -> dict[GuestVirtual, Form | None]:
        """Read what stands at every touched site; ``None`` where it is not ours.

        Blocks that nothing refers to any more are retired.

        :raise GuestReplacedError: a site refers to a block that we did not build, or a block that
            is in use does not hold what we wrote.
        """
        forms: dict[GuestVirtual, Form | None] = {}
        in_use: set[GuestVirtual] = set()
        with self._space.snapshot() as pages:
            for address in self._touched:
                forms[address], referred = self._standing(self._sites[address], pages)
                if referred is not None:
                    in_use.add(referred)
            self._check_blocks(in_use, pages)
        for block in list(self._blocks.values()):
            if block.address not in in_use and forms.get(block.site, ORIGINAL) is not None:
                self._arena.retire(block.address)
                del self._blocks[block.address]
        return forms

    def forget(self, sites: Iterable[GuestVirtual]) -> None:
        """Drop sites whose memory has gone with their module; their blocks are retired."""
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

        :raise QemuError: the machine failed; :meth:`observe` and :meth:`recoverable` tell what
            stands there now.
        """
        report = PatchReport()
        for batch in _batches(sorted(wanted), self._batch_sites):
            changes = []
            with self._space.snapshot() as pages:
                for address in batch:
                    try:
                        changes.append(self.change(address, wanted[address], pages))
                    except SiteRefusedError as error:
                        report.refuse(address, error.reason)
            result = execute(changes, self._protocol, self._machine)
            report.done += len(result.done)
            for refusal in result.refused:
                self._refused(changes[refusal.change], refusal, report)
            if any(refusal.phase is Phase.PREPARE for refusal in result.refused):
                self._entries.reload()
        return report

    def _standing(self, site: Site, pages: AddressSpace) -> tuple[Form | None, GuestVirtual | None]:
        """The form of a site, and the block that it refers to."""
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
        """The change that gives the site at ``address`` its form; its block is allocated.

        :raise SiteRefusedError: the site cannot be changed now.
        """
        site = self._sites[address]
        try:
            before = pages.read(address, site.length)
        except TranslationError as error:
            raise SiteRefusedError(address, _foreign_reason(b"")) from error
        if self._standing(site, pages)[0] is None:
            raise SiteRefusedError(address, _foreign_reason(before))
        if _takes_two_packets(site, pages):
            raise SiteRefusedError(address, "split_page")
        try:
            prepare, disarm = self._entries.guard(_entry(site), pages, self._protocol)
        except PokeTableFullError as error:
            raise SiteRefusedError(address, "poke_table_full") from error
        after = site.original
        if isinstance(form, Chain):
            write = self._build(site, form, pages)
            prepare = (*prepare, write)
            after = site_instruction(site.original, address, write.address)
        self._touched.add(address)
        return Change(address, before, after, prepare, disarm)

    def _build(self, site: Site, form: Chain, pages: AddressSpace) -> Write:
        """Make the block of ``form``, which nothing refers to yet."""
        record = self._records.of(site.address)
        if record is None:
            raise SiteRefusedError(site.address, "no_record_left")
        size = self._assembler.block_size(form, site.register)
        try:
            address = self._arena.allocate(size)
        except ArenaFullError as error:
            raise SiteRefusedError(site.address, "arena_full") from error
        offset, learn_stub = self._record_offset(record), self._header.learn_stub[site.register]
        code = self._assembler.assemble(
            form, register=site.register, at=address, record=offset, learn_stub=learn_stub
        )
        self._decoder.verify(
            code, form, register=site.register, at=address, record=offset, learn_stub=learn_stub
        )
        self._blocks[address] = Block(address, site.address, form, code)
        return Write(address, pages.read(address, size), code)

    def _refused(self, change: Change, refusal: Refusal, report: PatchReport) -> None:
        site = self._sites[change.site]
        ours = refusal.write.address == site.address
        reason = _foreign_reason(refusal.found) if ours else "table_changed"
        report.refuse(site.address, reason)
        _log.warning(
            "%s at %#x left alone: %s where %s was expected (%s, in phase %s)",
            site.function,
            site.address,
            refusal.found.hex(" ") or "nothing",
            refusal.write.expect.hex(" "),
            reason,
            refusal.phase.value,
        )


def _entry(site: Site) -> PokeEntry:
    return PokeEntry(site.address, site.thunk, site.kind, PokeState.IDLE, site.original)


def _takes_two_packets(site: Site, pages: AddressSpace) -> bool:
    """Whether its bytes stand in two pages apart: a daemon may die between the two writes of them.

    What would stand there then is no instruction, and neither ours nor the original.
    """
    pieces = pages.pieces(site.address, site.length)
    return any(start + size != following for (start, size), (following, _) in pairwise(pieces))


def _foreign_reason(found: bytes) -> str:
    """Why the bytes at a site keep us from changing it."""
    if not found:
        return "unmapped"
    return "foreign_breakpoint" if found[0] == INT3 else "foreign_bytes"


def _batches(items: Sequence[GuestVirtual], size: int) -> Iterator[Sequence[GuestVirtual]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
