"""A guest that is attached, surveyed, and ready to be patched."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping

from optpolined.addresses import GuestVirtual
from optpolined.codegen.assemble import Assembler
from optpolined.codegen.decode import BLOCK_BYTES_MAX, Decoder
from optpolined.codegen.errors import CodegenError
from optpolined.codegen.forms import ORIGINAL, Form
from optpolined.config import GuestConfig
from optpolined.kernel.errors import (
    ArenaError,
    GuardedError,
    RequestTimeoutError,
    TranslationError,
)
from optpolined.kernel.module.abi import RECORD_SLOTS, RequestOp
from optpolined.kernel.module.counters import (
    Counters,
    Difference,
    RecordGain,
    clean,
    difference,
    each_cpu,
    forget,
)
from optpolined.kernel.module.guards import check_text_guard, integrity_guard
from optpolined.kernel.module.header import read_status
from optpolined.kernel.module.module_list import read_modules
from optpolined.learning.strategy import SiteEpoch
from optpolined.patching.arena import Arena, GraceToken
from optpolined.patching.counter_records import RecordAllocator, counts_all, key_table_records
from optpolined.patching.inline_sites import Found
from optpolined.patching.patcher import Patcher, PatchReport
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.protocol.standing import Standing
from optpolined.patching.protocol.steps import Protocol
from optpolined.patching.protocol.transport import Transport
from optpolined.patching.record_clearing import clear
from optpolined.patching.recovery import (
    Leftover,
    blocks_in_use,
    find_leftovers,
    put_back,
)
from optpolined.patching.static_calls import StaticCallError, StaticCalls
from optpolined.qemu.errors import ResumedError
from optpolined.session.key_table import read_key_table
from optpolined.session.link import Link, NothingToGainError, transport_of
from optpolined.session.mailbox import open_mailbox, pass_grace
from optpolined.session.migration import is_migrating
from optpolined.session.survey import ModuleChange, Survey
from optpolined.session.tally import Tally
from optpolined.session.text import differences, read_text

__all__ = ("Session",)

_log = logging.getLogger(__name__)

_RESTORE_ATTEMPTS = 3
_RETRY_SECONDS = 0.01
_Counts = dict[GuestVirtual, SiteEpoch]


class Session:
    """The guest while it is attached: its sites, what stands at them, and how that is changed."""

    def __init__(
        self,
        link: Link,
        config: GuestConfig,
        clock: Callable[[], float],
        *,
        force: bool,
        tally: Tally | None = None,
    ) -> None:
        """Put back what an earlier daemon left, survey the guest, and hold its module.

        :param tally: Where stops, grace periods and recoveries are counted.

        :raise NothingToGainError: there is no site to patch, and ``force`` does not ask for none.
        :raise KernelError: what the guest says makes no sense.
        :raise QemuError: QEMU failed.
        """
        assert link.stub is not None
        self._stub, self._monitor = link.stub, link.monitor
        self._alive, self._restoring = link.alive, False
        self._config = config
        self._clock = clock
        self.tally = tally or Tally()
        self.space = link.attachment.space
        self.header = link.attachment.header
        self.transport = transport_of(link, config, clock, self.tally.stops)
        self.stopper = self.transport.stopper
        self._mailbox = open_mailbox(link.attachment, self.transport, link.alive)
        self._mailbox.request(RequestOp.MODULES)
        self._entries = PokeEntries(self.space, self.header)
        check_text_guard(self.space, self.header)
        modules = read_modules(self.space, self.header)
        self._recover()
        self._generation = self._modules_generation()
        self.survey = Survey(link.attachment, modules, config.policy, self._entries.originals())
        guard = integrity_guard(self.survey.symbols.addresses, self.space.read, modules)
        if guard is not None:
            raise GuardedError(guard)
        if not (self.survey.inventory.found or force):
            raise NothingToGainError(link.attachment.vmcoreinfo.osrelease)
        self._mailbox.request(RequestOp.HOLD)
        self.counters = Counters.from_header(self.space.read, self.header)
        self.arena = Arena(self.header.arena, self.header.arena_size)
        self._int3_before = self.counters.int3().hits
        self._adopt(blocks_in_use(self._leftovers(), self.header))
        self.records = RecordAllocator(self._clean_records(ours_ran=any(self._entries)))
        self._last = self.counters.snapshot(0)
        self._grace: GraceToken | None = None
        self._grace_began = 0.0
        self._stale: list[int] = []
        self._stale_in_grace: list[int] = []
        self.patcher = self.make_patcher(config.poke.protocol)
        self.static_calls = StaticCalls(
            transport=self.transport,
            space=self.space,
            symbols=self.survey.symbols,
            entries=self._entries,
            protocol=config.poke.protocol,
            calls=self.survey.static_calls,
        )
        self.static_calls.settle()

    def _recover(self) -> None:
        """Put back what a daemon that died has left changed."""
        leftovers = self._leftovers()
        self.tally.recoveries += sum(left.standing is not Standing.FOREIGN for left in leftovers)
        put_back(leftovers, self._entries, self.space, self.transport, self._request_grace)

    def make_patcher(self, protocol: Protocol, transport: Transport | None = None) -> Patcher:
        """A patcher that changes this guest's sites by ``protocol``; ``transport`` is for tests."""
        return Patcher(
            transport=transport or self.transport,
            grace=self._request_grace,
            space=self.space,
            header=self.header,
            sites=self.survey.inventory.eligible,
            entries=self._entries,
            arena=self.arena,
            records=self.records,
            record_offset=self.counters.offset,
            protocol=protocol,
            batch_sites=self._config.poke.batch_sites,
            is_held_up=self._is_held_up,
        )

    @property
    def poke_table_defects(self) -> int:
        """The entries of the poke table that make no sense."""
        return self._entries.defects

    @property
    def int3_hits(self) -> int:
        """Calls that met a breakpoint of ours since attach, as the guest counted them."""
        return self.counters.int3().hits - self._int3_before

    def apply(self, wanted: Mapping[GuestVirtual, Form]) -> PatchReport:
        """Give sites their forms, and let those count anew that are to count all their calls.

        :raise QemuError: QEMU failed half-way.
        """
        for site, form in wanted.items():
            if counts_all(form) and self._is_full(site):
                old = self.records.renew(site)
                if old is not None:
                    self._stale.append(old)
        report = self.patcher.apply(wanted)
        self._last = self.counters.snapshot(self.records.extent)
        return report

    def look(self) -> dict[GuestVirtual, Found]:
        """What stands at every touched site; ``None`` where it is somebody else's.

        To be called once an epoch, before anything else: also sees to the gdbstub's reports of
        stops that others made.

        :raise GuestReplacedError: the memory is not the one that we left.
        :raise ModuleGoneError: the guest was reset, or our module unloaded.
        :raise QemuError: QEMU failed.
        """
        self._stub.drain()
        read_status(self.space, self.header)
        return self.patcher.observe()

    def follow_modules(self) -> ModuleChange | None:
        """Follow modules that came or went since the last time; ``None`` where none did.

        :raise GuardedError: one came that watches the text: nothing may be changed from now on.
        :raise KernelError: the module list makes no sense.
        """
        if self._grace is not None:
            return None  # the mailbox is busy: another epoch will do
        generation = self._modules_generation()
        if generation == self._generation:
            return None
        self._mailbox.request(RequestOp.MODULES)
        self._generation = generation
        self._entries.reload()  # those of modules that went have gone too
        check_text_guard(self.space, self.header)
        modules = read_modules(self.space, self.header)
        change = self.survey.follow(modules, self._entries.originals())
        self.static_calls.replace_calls(self.survey.static_calls)
        self.patcher.drop_sites(change.went)
        for site in change.went:
            self._stale += self.records.release_site(site)
        return change

    def mend(self) -> None:
        """Put back the sites that a failed change has left half-way.

        :raise KernelError: the poke table is gone.
        :raise QemuError: QEMU failed again.
        """
        self._entries.reload()  # some of those that were booked may never have been written
        interrupted = [left for left in self._leftovers() if left.standing is Standing.INTERRUPTED]
        put_back(interrupted, self._entries, self.space, self.transport, self._request_grace)

    def count(self, by_cpu: dict[int, _Counts] | None = None) -> _Counts:
        """What each site gained since the last count or change, and on each CPU; stops nobody."""
        last, self._last = self._last, self.counters.snapshot(self.records.extent)
        if by_cpu is not None:
            by_cpu.update(enumerate(map(self._by_site, each_cpu(last, self._last))))
        return self._by_site(difference(last, self._last))

    def _by_site(self, gained: Difference) -> _Counts:
        of = ((self.records.site(record), gain) for record, gain in gained.by_record().items())
        return {site: self._epoch(gain) for site, gain in of if site is not None}

    def key_targets(self, site: GuestVirtual) -> dict[int, GuestVirtual]:
        """Which target each index of the site's key was last seen with; empty where it has no key.

        Where CPUs differ, what most of them saw.  A wrong one costs time, never correctness.

        :raise TranslationError: the counters are not mapped any more.
        """
        key = self.survey.inventory.eligible[site].key
        table = None if key is None else self.records.key_table(site, key_table_records(key))
        if key is None or table is None:
            return {}
        records = range(table, table + key_table_records(key))
        return read_key_table(key, records, self.counters, self.space, self.is_target)

    def recycle(self) -> None:
        """Move retired blocks and stale records on: ask for a grace period, or take it as over.

        Does not wait; called once an epoch.

        :raise KernelError: the module is gone, or refused.
        """
        if self._grace is not None:
            if not self._mailbox.result():
                return
            self.arena.grace_end(self._grace)
            self.tally.graces.add(self._clock() - self._grace_began)
            self._grace = None
            cleared = clear(self._stale_in_grace, self.counters, self.space, self.transport)
            forget(self._last, (record for record in cleared if record < self._last.shape[1]))
            self.records.recycle(cleared)
            self._stale_in_grace = []
        if self._modules_generation() != self._generation:
            return  # follow_modules() needs the mailbox first
        if (self.arena.usage().retired or self._stale) and self._mailbox.idle():
            token = self.arena.grace_begin()
            self._mailbox.post(RequestOp.GRACE)
            self._grace, self._grace_began = token, self._clock()
            self._stale_in_grace, self._stale = self._stale, []

    def restore(self, *, running: bool = True) -> list[str]:
        """Put every site back and let the module go; answer how the text differs from before.

        The module stays held where a site could not be put back, for its code still refers to ours,
        and where the guest does not run, for nobody can tell then who sleeps in our blocks.

        :raise QemuError, KernelError: QEMU failed, or the module is gone.
        """
        if running:
            self._catch_up()
        self._restoring = True
        for _ in range(_RESTORE_ATTEMPTS):
            forms = self.patcher.observe()
            left = {site: ORIGINAL for site, form in sorted(forms.items()) if form != ORIGINAL}
            if not left:
                break
            try:
                self.patcher.apply(left)
            except ResumedError:
                self.mend()
            except RequestTimeoutError as error:
                _log.error("%s; some inline sites are left half restored, which is legal", error)
                break
        static_calls_are_restored = self._restore_static_calls()
        forms = self.patcher.observe()
        lines = self.text_differences()
        if not running:
            _log.warning("the guest is paused: optpoline.ko stays loaded until a later run")
        elif static_calls_are_restored and all(form == ORIGINAL for form in forms.values()):
            self._release()
        else:
            _log.error("some sites could not be put back: optpoline.ko stays loaded for them")
        return lines

    def _restore_static_calls(self) -> bool:
        try:
            self.static_calls.restore()
        except (StaticCallError, ResumedError) as error:
            _log.error("%s", error)
            return False
        return True

    def text_differences(self) -> list[str]:
        """How the text differs from what it was before, a line for each of the first places."""
        now = read_text(self.space, self.survey.texts)
        return differences(self.survey.texts, now, self.survey.symbols.name)

    def _release(self) -> None:
        """Let the module go, once nobody runs in our blocks any more."""
        try:
            self._request_grace()
        except RequestTimeoutError as error:
            _log.error("%s; optpoline.ko stays loaded until a later run ends cleanly", error)
            return
        self._mailbox.request(RequestOp.RELEASE)

    def _request_grace(self) -> None:
        began = self._clock()
        pass_grace(
            self._mailbox, self._monitor, timeout_seconds=self._config.poke.grace_timeout_seconds
        )
        self.tally.graces.add(self._clock() - began)

    def _epoch(self, gain: RecordGain) -> SiteEpoch:
        """Only functions that the guest's symbols name, and not our own, may become targets."""
        known = {target: count for target, count in gain.calls.items() if self.is_target(target)}
        unknown = sum(gain.calls.values()) - sum(known.values())
        return SiteEpoch(known, gain.other + unknown, gain.hits)

    def is_target(self, address: GuestVirtual) -> bool:
        """Whether a site may call ``address`` directly: a function begins there, not our own."""
        own = 0 <= address - self.header.module_text < self.header.module_text_size
        return not own and self.survey.symbols.is_function_entry(address)

    def _is_full(self, site: GuestVirtual) -> bool:
        """Whether a CPU's record of ``site`` has no slot left for a target that is new."""
        record = self.records.of(site)
        if record is None or record >= self._last.shape[1]:
            return False
        targets = self._last[:, record]["slots"]["target"]
        return bool((targets != 0).sum(axis=1).max() == RECORD_SLOTS)

    def _is_held_up(self) -> bool:
        """Whether the guest is on its way, or a module comes that may allow no change."""
        if not self._restoring and self._modules_generation() != self._generation:
            return True
        return is_migrating(self._monitor)

    def _catch_up(self) -> None:
        """Follow the modules as they are now, for one of them may allow no change."""
        deadline = time.monotonic() + self._config.poke.grace_timeout_seconds
        while self._modules_generation() != self._generation and time.monotonic() < deadline:
            self._alive()
            self.recycle()  # ends a grace period that occupies the mailbox, and begins none
            if self.follow_modules() is None:
                time.sleep(_RETRY_SECONDS)

    def _modules_generation(self) -> int:
        return read_status(self.space, self.header).modules_generation

    def _leftovers(self) -> list[Leftover]:
        return find_leftovers(self._entries, self.space, self.header)

    def _adopt(self, blocks: Iterable[GuestVirtual]) -> None:
        """Keep what a probe on a patched site may still jump to."""
        stubs = {address: register for register, address in self.header.learn_stub.items()}
        decoder = Decoder(Assembler())
        for address in blocks:
            try:
                size = min(BLOCK_BYTES_MAX, self.arena.base + self.arena.size - address)
                block = decoder.decode_block(self.space.read(address, size), address, stubs)
                self.arena.mark_used(address, block.size)
            except (TranslationError, CodegenError, ArenaError) as error:
                _log.warning("a probe refers to %#x in the arena: %s", address, error)

    def _clean_records(self, *, ours_ran: bool) -> list[int]:
        """All records, cleared; what an earlier daemon's code still runs in is waited for."""
        untouched = clean(self.counters.snapshot(self.counters.capacity))
        dirty = sorted(set(range(self.counters.capacity)) - set(untouched))
        if dirty or ours_ran:
            self._request_grace()
        return [*untouched, *clear(dirty, self.counters, self.space, self.transport)]
