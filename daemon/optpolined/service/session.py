"""A guest that is attached, surveyed, and ready to be patched."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import Assembler
from optpolined.codegen.decode import BLOCK_BYTES_MAX, Decoder
from optpolined.codegen.errors import CodegenError
from optpolined.codegen.forms import LEARNING, ORIGINAL, Form
from optpolined.config import GuestConfig
from optpolined.kernel.abi import RECORD_SLOTS, RequestOp
from optpolined.kernel.arena import Arena, GraceToken
from optpolined.kernel.counters import RECORD, Counters, RecordGain, clean, difference, forget
from optpolined.kernel.errors import (
    ArenaError,
    KernelError,
    RequestTimeoutError,
    TranslationError,
)
from optpolined.kernel.modules import read_modules
from optpolined.kernel.services import Mailbox, MailboxWrite
from optpolined.learning.strategy import SiteEpoch
from optpolined.poke.execute import Machine
from optpolined.poke.protocol import Protocol, Write
from optpolined.poke.recovery import Standing
from optpolined.service.attach import Link, NothingToGainError
from optpolined.service.entries import Entries
from optpolined.service.machine import GuestMachine
from optpolined.service.patcher import Patcher, PatchReport
from optpolined.service.records import Records
from optpolined.service.recovery import (
    Leftover,
    blocks_in_use,
    find_leftovers,
    put_back,
)
from optpolined.service.stops import Stopper
from optpolined.service.survey import survey
from optpolined.service.text import differences, read_text

__all__ = ("MailboxChangedError", "Session")

_log = logging.getLogger(__name__)

_RESTORE_ATTEMPTS = 3


class MailboxChangedError(KernelError):
    """The mailbox changed while a request was being written into it."""


class Session:
    """The guest while it is attached: its sites, what stands at them, and how that is changed."""

    def __init__(
        self, link: Link, config: GuestConfig, clock: Callable[[], float], *, force: bool
    ) -> None:
        """Put back what an earlier daemon left, survey the guest, and hold its module.

        :raise NothingToGainError: there is no site to patch, and ``force`` does not ask for none.
        :raise KernelError: what the guest says makes no sense.
        :raise QemuError: QEMU failed.
        """
        assert link.stub is not None
        self._stub = link.stub
        self._config = config
        self.space = link.attachment.space
        self._header = link.attachment.header
        self.stopper = Stopper(link.stub, clock)
        self.machine = GuestMachine(
            stopper=self.stopper,
            writer=link.stub,
            memory=link.memory,
            space=self.space,
            budget_seconds=config.poke.stop_budget_microseconds / 1e6,
            clock=clock,
        )
        self._mailbox = Mailbox(self.space, self._header, self._post)
        self._mailbox.request(RequestOp.MODULES)
        self._entries = Entries(self.space, self._header)
        put_back(self._leftovers(), self._entries, self.space, self.machine)
        modules = read_modules(self.space, self._header)
        self.survey = survey(link.attachment, modules, config.policy, self._entries.originals())
        if not (self.survey.inventory.found or force):
            raise NothingToGainError(link.attachment.vmcoreinfo.osrelease)
        self._mailbox.request(RequestOp.HOLD)
        self.counters = Counters.from_header(self.space.read, self._header)
        self.arena = Arena(self._header.arena, self._header.arena_size)
        self._int3_before = self.counters.int3().hits
        self._adopt(blocks_in_use(self._leftovers(), self._header))
        self.records = Records(self._clean_records(ours_ran=any(self._entries)))
        self._last = self.counters.snapshot(0)
        self._grace: GraceToken | None = None
        self._stale: list[int] = []
        self._stale_in_grace: list[int] = []
        self.patcher = self.make_patcher(config.poke.protocol)

    def make_patcher(self, protocol: Protocol, machine: Machine | None = None) -> Patcher:
        """A patcher that changes this guest's sites by ``protocol``, over ``machine`` if given."""
        return Patcher(
            machine=machine or self.machine,
            space=self.space,
            header=self._header,
            sites=self.survey.inventory.eligible,
            entries=self._entries,
            arena=self.arena,
            records=self.records,
            record_offset=self.counters.offset,
            protocol=protocol,
            batch_sites=self._config.poke.batch_sites,
        )

    @property
    def int3_hits(self) -> int:
        """Calls that met a breakpoint of ours since attach, as the guest counted them."""
        return self.counters.int3().hits - self._int3_before

    def apply(self, wanted: Mapping[GuestVirtual, Form]) -> PatchReport:
        """Give sites their forms, and start counting anew where a learning window opens.

        :raise QemuError: QEMU failed half-way.
        """
        for site, form in wanted.items():
            if form == LEARNING and self._is_full(site):
                old = self.records.renew(site)
                if old is not None:
                    self._stale.append(old)
        report = self.patcher.apply(wanted)
        self._last = self.counters.snapshot(self.records.extent)
        return report

    def drain(self) -> None:
        """Take note of stops that others made; to be called once an epoch.

        :raise QemuError: the gdbstub is gone.
        """
        self._stub.drain()

    def mend(self) -> None:
        """Put back the sites that a failed change has left half-way.

        :raise QemuError: QEMU failed again.
        """
        interrupted = [left for left in self._leftovers() if left.standing is Standing.INTERRUPTED]
        put_back(interrupted, self._entries, self.space, self.machine)

    def count(self) -> dict[GuestVirtual, SiteEpoch]:
        """What each site's record gained since the last count or change; never stops the guest."""
        now = self.counters.snapshot(self.records.extent)
        gained = difference(self._last, now).by_record()
        self._last = now
        counts = {}
        for record, gain in gained.items():
            site = self.records.site(record)
            if site is not None:
                counts[site] = self._epoch(gain)
        return counts

    def recycle(self) -> None:
        """Move retired blocks and stale records on: ask for a grace period, or take it as over.

        Does not wait; called once an epoch.

        :raise KernelError: the module is gone, or refused.
        """
        if self._grace is not None:
            if not self._mailbox.result():
                return
            self.arena.grace_end(self._grace)
            self._grace = None
            cleared = self._cleared(self._stale_in_grace)
            forget(self._last, cleared)
            self.records.recycle(cleared)
            self._stale_in_grace = []
        if self.arena.usage().retired or self._stale:
            self._grace = self.arena.grace_begin()
            self._stale_in_grace, self._stale = self._stale, []
            self._mailbox.post(RequestOp.GRACE)

    def restore(self) -> list[str]:
        """Put every site back and let the module go; answer how the text differs from before.

        The module stays held where a site could not be put back: its code still refers to ours.

        :raise QemuError, KernelError: QEMU failed, or the module is gone.
        """
        for _ in range(_RESTORE_ATTEMPTS):
            forms = self.patcher.observe()
            left = {site: ORIGINAL for site, form in forms.items() if form != ORIGINAL}
            if not left:
                break
            self.patcher.apply(left)
        else:
            forms = self.patcher.observe()
        lines = differences(
            self.survey.texts,
            read_text(self.space, self.survey.regions),
            self.survey.symbols.name,
        )
        if all(form == ORIGINAL for form in forms.values()):
            self._release()
        else:
            _log.error("some sites hold somebody else's bytes: optpoline.ko stays loaded for them")
        return lines

    def _release(self) -> None:
        """Let the module go, once nobody runs in our blocks any more."""
        try:
            self._request_grace()
        except RequestTimeoutError as error:
            _log.error("%s; optpoline.ko stays loaded until a later run ends cleanly", error)
            return
        self._mailbox.request(RequestOp.RELEASE)

    def _request_grace(self) -> None:
        self._mailbox.request(
            RequestOp.GRACE, timeout_seconds=self._config.poke.grace_timeout_seconds
        )

    def _epoch(self, gain: RecordGain) -> SiteEpoch:
        """Only functions that the guest's symbols name, and not our own, may become targets."""
        known = {target: count for target, count in gain.calls.items() if self._is_target(target)}
        unknown = sum(gain.calls.values()) - sum(known.values())
        return SiteEpoch(known, gain.other + unknown, gain.hits)

    def _is_target(self, address: GuestVirtual) -> bool:
        own = 0 <= address - self._header.module_text < self._header.module_text_size
        return not own and self.survey.symbols.is_function_entry(address)

    def _is_full(self, site: GuestVirtual) -> bool:
        """Whether a CPU's record of ``site`` has no slot left for a target that is new."""
        record = self.records.of(site)
        if record is None or record >= self._last.shape[1]:
            return False
        targets = self._last[:, record]["slots"]["target"]
        return bool((targets != 0).sum(axis=1).max() == RECORD_SLOTS)

    def _leftovers(self) -> list[Leftover]:
        return find_leftovers(self._entries, self.space, self._header)

    def _adopt(self, blocks: Iterable[GuestVirtual]) -> None:
        """Keep what a probe on a patched site may still jump to."""
        stubs = {address: register for register, address in self._header.learn_stub.items()}
        decoder = Decoder(Assembler())
        for address in blocks:
            try:
                size = min(BLOCK_BYTES_MAX, self.arena.base + self.arena.size - address)
                block = decoder.decode_block(self.space.read(address, size), address, stubs)
                self.arena.adopt(address, block.size)
            except (TranslationError, CodegenError, ArenaError) as error:
                _log.warning("a probe refers to %#x in the arena: %s", address, error)

    def _clean_records(self, *, ours_ran: bool) -> list[int]:
        """All records, cleared; what an earlier daemon's code still runs in is waited for."""
        untouched = clean(self.counters.snapshot(self.counters.capacity))
        dirty = sorted(set(range(self.counters.capacity)) - set(untouched))
        if dirty or ours_ran:
            self._request_grace()
        return [*untouched, *self._cleared(dirty)]

    def _cleared(self, records: Sequence[int]) -> list[int]:
        """Zero records that nothing counts into; answer those that are zero now."""
        writes = []
        owners = []
        with self.space.snapshot() as pages:
            for record in records:
                for address in self.counters.copies(record):
                    found = pages.read(address, RECORD.itemsize)
                    if any(found):
                        writes.append(Write(address, found, bytes(RECORD.itemsize)))
                        owners.append(record)
        found_instead = self.machine.write(writes) if writes else []
        busy = {
            owner for owner, found in zip(owners, found_instead, strict=True) if found is not None
        }
        return [record for record in records if record not in busy]

    def _post(self, writes: Sequence[MailboxWrite]) -> None:
        found = self.machine.write(
            [Write(write.address, write.expected, write.data) for write in writes]
        )
        if any(item is not None for item in found):
            raise MailboxChangedError("the guest's mailbox changed while a request was written")
