"""A guest that is attached, surveyed, and ready to be patched."""

import logging
import time
from collections.abc import Mapping

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import Form
from optpolined.config import Settings
from optpolined.kernel.module.header import Header
from optpolined.kernel.paging import AddressSpace
from optpolined.patching.arena import Arena
from optpolined.patching.counter_records import counts_all
from optpolined.patching.inline_sites import Found
from optpolined.patching.patcher import Patcher, PatchReport
from optpolined.patching.protocol.steps import Protocol
from optpolined.patching.protocol.transport import Transport
from optpolined.patching.static_calls import StaticCalls
from optpolined.session.access import GuestAccess
from optpolined.session.census import CensusTaker
from optpolined.session.counting import SiteCounters
from optpolined.session.migration import is_migrating
from optpolined.session.modules import LoadedModules
from optpolined.session.reclaiming import Reclaimer
from optpolined.session.restoring import put_all_back, release
from optpolined.session.survey import ModuleChange, Survey
from optpolined.session.tally import Tally
from optpolined.session.text import differences, read_text
from optpolined.session.transport.stopped import StoppedTransport

__all__ = ("Session",)

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.01


class Session:
    """The guest while it is attached: its sites, what stands at them, and how that is changed.

    ``attach()`` of attach.py makes one.
    """

    def __init__(
        self,
        access: GuestAccess,
        loaded: LoadedModules,
        survey: Survey,
        arena: Arena,
        counters: SiteCounters,
    ) -> None:
        """Write nothing to the guest."""
        self._access = access
        self._loaded = loaded
        self.survey = survey
        self.arena = arena
        self.counters = counters
        self._reclaimer = Reclaimer(access, arena, counters)
        self.census = CensusTaker(access, survey)
        self._restoring = False
        self._is_over = False
        choice = access.settings.config.poke.protocol
        self.patcher = self.make_patcher(
            choice.for_sites(access.transport.kind), inline_protocol=choice.for_pairs()
        )
        self.static_calls = StaticCalls(
            transport=access.transport,
            space=access.space,
            symbols=survey.symbols,
            entries=access.entries,
            protocol=choice.for_pairs(),
            calls=survey.static_calls,
        )

    @property
    def settings(self) -> Settings:
        """The settings that hold now; a reload changes them."""
        return self._access.settings

    @property
    def space(self) -> AddressSpace:
        """The guest's virtual memory."""
        return self._access.space

    @property
    def header(self) -> Header:
        """What the guest's module published of itself."""
        return self._access.header

    @property
    def transport(self) -> StoppedTransport:
        """The way by which bytes get into the guest."""
        return self._access.transport

    @property
    def tally(self) -> Tally:
        """What is counted through all attachments."""
        return self._access.tally

    def make_patcher(
        self,
        protocol: Protocol,
        transport: Transport | None = None,
        *,
        inline_protocol: Protocol | None = None,
    ) -> Patcher:
        """Make a patcher of this guest's sites by ``protocol``; ``transport`` is for tests.

        :param inline_protocol: Changes the inline parts, if ``protocol`` does not.
        """
        return Patcher(
            transport=transport or self._access.transport,
            grace=self._access.pass_grace,
            space=self.space,
            header=self.header,
            sites=self.survey.inventory.eligible,
            entries=self._access.entries,
            arena=self.arena,
            records=self.counters.records,
            record_offset=self.counters.counters.offset,
            protocol=protocol,
            inline_protocol=inline_protocol,
            batch_sites=self._access.settings.config.poke.batch_sites,
            is_held_up=self._is_held_up,
        )

    @property
    def poke_table_defects(self) -> int:
        """The entries of the poke table that make no sense."""
        return self._access.entries.defects

    def apply(self, wanted: Mapping[GuestVirtual, Form]) -> PatchReport:
        """Give sites their forms; where all calls are to count, a full record is replaced first.

        :raise QemuError: QEMU failed half-way.
        """
        for site, form in wanted.items():
            if counts_all(form) and self.counters.is_full(site):
                old = self.counters.records.renew(site)
                if old is not None:
                    self._reclaimer.retire_records((old,))
        report = self.patcher.apply(wanted)
        self.counters.start_anew()
        return report

    def look(self) -> dict[GuestVirtual, Found]:
        """Return what stands at every touched site; ``None`` where the bytes are foreign.

        Call this once an epoch, before anything else: it also sees that a guardian watches, and
        takes in the gdbstub's reports of stops that other programs made.

        :raise GuestReplacedError: the memory is not the one that we left.
        :raise ModuleGoneError: the guest was reset, or our module unloaded.
        :raise QemuError: QEMU failed.
        """
        self._access.keep_guarded()
        stub = self._access.link.stub
        assert stub is not None
        stub.drain()
        self._access.module_status()
        return self.patcher.observe()

    def follow_modules(self) -> ModuleChange | None:
        """Take in modules that came or went since the last time; ``None`` where none did.

        :raise GuardedError: one came that watches the text: nothing may be changed from now on.
        :raise KernelError: the module list makes no sense.
        """
        if self._reclaimer.is_waiting:
            return None  # the mailbox is busy: another epoch will do
        if not self._loaded.have_changed():
            return None
        modules = self._loaded.read()
        change = self.survey.set_modules(modules, self._access.entries.originals())
        self.static_calls.replace_calls(self.survey.static_calls)
        self.census.follow_modules()
        self.patcher.drop_sites(change.went)
        for site in change.went:
            self._reclaimer.retire_records(self.counters.records.release_site(site))
        return change

    def mend(self) -> None:
        """Put back the sites that a failed change has left half-way.

        :raise KernelError: the poke table is gone.
        :raise QemuError: QEMU failed again.
        """
        self._access.put_back_interrupted()

    def recycle(self) -> None:
        """Reuse retired blocks and stale records, as far as a grace period allows it.

        Call this once an epoch; it does not wait.

        :raise KernelError: the module is gone, or refused.
        :raise QemuError: QEMU failed.
        """
        self._reclaimer.end_grace()
        if not self._loaded.have_changed():  # else follow_modules() needs the mailbox first
            self._reclaimer.begin_grace()

    def restore(self, *, running: bool = True) -> list[str]:
        """Put every site back and let the module go; return how the text differs from before.

        The module stays held where a site could not be put back, because its code still leads to
        ours.  It also stays held in a guest that does not run: which tasks sleep in our blocks is
        not known then.

        :raise QemuError, KernelError: QEMU failed, or the module is gone.
        """
        self._is_over = True
        if running:
            self._catch_up()
        self._restoring = True
        all_back = put_all_back(self._access, self.patcher, self.static_calls)
        lines = self.text_differences()
        if not running:
            _log.warning("the guest is paused: optpoline.ko stays loaded until a later run")
        elif all_back:
            release(self._access)
        else:
            _log.error("some sites could not be put back: optpoline.ko stays loaded for them")
        return lines

    def leave(self) -> None:
        """Leave the guest as it is: :meth:`close` puts nothing back."""
        self._is_over = True

    def close(self) -> None:
        """Put everything back, unless :meth:`restore` or :meth:`leave` was called.

        :raise QemuError, KernelError: QEMU failed, or the module is gone.
        """
        if not self._is_over:
            for line in self.restore(running=self._access.is_running):
                _log.error("the text is not what it was: %s", line)

    def text_differences(self) -> list[str]:
        """Return how the text differs from before, a line for each of the first places."""
        now = read_text(self.space, self.survey.texts)
        return differences(self.survey.texts, now, self.survey.symbols.name)

    def _is_held_up(self) -> bool:
        """Return whether no batch may begin now.

        The guest migrates, no guardian watches, or a module came that may allow no change.  To put
        sites back is right without a guardian too.
        """
        is_guarded = self._access.keep_guarded()
        if not self._restoring and (not is_guarded or self._loaded.have_changed()):
            return True
        return is_migrating(self._access.link.monitor)

    def _catch_up(self) -> None:
        """Follow the modules as they are now, because one of them may allow no change."""
        poke = self._access.settings.config.poke
        deadline = time.monotonic() + poke.grace_timeout_seconds
        while self._loaded.have_changed() and time.monotonic() < deadline:
            self._access.link.alive()
            self.recycle()  # ends a grace period that occupies the mailbox, and begins none
            if self.follow_modules() is None:
                time.sleep(_RETRY_SECONDS)
