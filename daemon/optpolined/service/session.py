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
    RequestTimeoutError,
    TranslationError,
)
from optpolined.kernel.guards import integrity_guard
from optpolined.kernel.header import read_status
from optpolined.kernel.modules import read_modules
from optpolined.learning.strategy import SiteEpoch
from optpolined.poke.execute import Machine
from optpolined.poke.protocol import Protocol, Write
from optpolined.poke.recovery import Standing
from optpolined.qemu.errors import ResumedError
from optpolined.service.attach import AttachRefusedError, Link, NothingToGainError
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
from optpolined.service.requests import open_mailbox
from optpolined.service.survey import ModuleChange, Survey
from optpolined.service.text import differences, read_text

__all__ = ("Session",)

_log = logging.getLogger(__name__)

_RESTORE_ATTEMPTS = 3


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
        self.machine = GuestMachine.of(link, config, clock)
        self.stopper = self.machine.stopper
        self._mailbox = open_mailbox(link.attachment, self.machine)
        self._mailbox.request(RequestOp.MODULES)
        self._entries = Entries(self.space, self._header)
        put_back(self._leftovers(), self._entries, self.space, self.machine)
        modules = read_modules(self.space, self._header)
        self._generation = read_status(self.space, self._header).modules_generation
        self.survey = Survey(link.attachment, modules, config.policy, self._entries.originals())
        guard = integrity_guard(self.survey.symbols.addresses, self.space.read, modules)
        if guard is not None:
            raise AttachRefusedError(f"the guest's kernel is guarded by {guard}: not patched")
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

    def look(self) -> dict[GuestVirtual, Form | None]:
        """What stands at every touched site; ``None`` where it is somebody else's.

        To be called once an epoch, before anything else: also sees to the gdbstub's reports of
        stops that others made.

        :raise GuestReplacedError: the memory is not the one that we left.
        :raise ModuleGoneError: the guest was reset, or our module unloaded.
        :raise QemuError: QEMU failed.
        """
        self._stub.drain()
        read_status(self.space, self._header)
        return self.patcher.observe()

    def follow_modules(self) -> ModuleChange | None:
        """Follow modules that came or went since the last time; ``None`` where none did.

        :raise KernelError: the module list makes no sense.
        """
        if self._grace is not None:
            return None  # the mailbox is busy: another epoch will do
        generation = read_status(self.space, self._header).modules_generation
        if generation == self._generation:
            return None
        self._mailbox.request(RequestOp.MODULES)
        self._generation = generation
        modules = read_modules(self.space, self._header)
        change = self.survey.follow(modules, self._entries.originals())
        self.patcher.forget(change.went)
        for site in change.went:
            record = self.records.forget(site)
            if record is not None:
                self._stale.append(record)
        return change

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
        if (self.arena.usage().retired or self._stale) and self._mailbox.idle():
            token = self.arena.grace_begin()
            self._mailbox.post(RequestOp.GRACE)
            self._grace = token
            self._stale_in_grace, self._stale = self._stale, []

    def restore(self, *, running: bool = True) -> list[str]:
        """Put every site back and let the module go; answer how the text differs from before.

        The module stays held where a site could not be put back, for its code still refers to ours,
        and where the guest does not run, for nobody can tell then who sleeps in our blocks.

        :raise QemuError, KernelError: QEMU failed, or the module is gone.
        """
        for _ in range(_RESTORE_ATTEMPTS):
            forms = self.patcher.observe()
            left = {site: ORIGINAL for site, form in forms.items() if form != ORIGINAL}
            if not left:
                break
            try:
                self.patcher.apply(left)
            except ResumedError:
                self.mend()
        forms = self.patcher.observe()
        lines = differences(
            self.survey.texts,
            read_text(self.space, self.survey.texts),
            self.survey.symbols.name,
        )
        if not running:
            _log.warning("the guest is paused: optpoline.ko stays loaded until a later run")
        elif all(form == ORIGINAL for form in forms.values()):
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
