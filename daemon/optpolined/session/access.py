"""The means to change one guest: its transport, the mailbox of its module, its poke table."""

import logging
from collections.abc import Callable

from optpolined.config import Settings
from optpolined.kernel.errors import StillInUseError
from optpolined.kernel.module.abi import RequestOp
from optpolined.kernel.module.header import HeaderStatus, read_status
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.protocol.standing import Standing
from optpolined.patching.recovery import Leftover, find_leftovers, put_back
from optpolined.patching.thunk_heads import HeadState, ThunkHeads, name_of
from optpolined.qemu.errors import GuardianError
from optpolined.session.link import Link, transport_of
from optpolined.session.mailbox import open_mailbox, pass_grace
from optpolined.session.tally import Tally

__all__ = ("GuestAccess",)

_log = logging.getLogger(__name__)


class GuestAccess:
    """What an attach, a session and a recovery share; to make one writes nothing to the guest."""

    def __init__(
        self, link: Link, settings: Settings, clock: Callable[[], float], tally: Tally
    ) -> None:
        """Read the poke table of the guest at the other end of ``link``, which is writable.

        :param tally: Where stops, grace periods and recoveries are counted.
        :raise TranslationError: the poke table is not mapped.
        """
        self.link = link
        self.settings = settings
        self.clock = clock
        self.tally = tally
        self.space = link.attachment.space
        self.header = link.attachment.header
        self.transport = transport_of(link, settings.config, clock, tally.stops)
        self.mailbox = open_mailbox(link.attachment, self.transport, link.alive)
        self.entries = PokeEntries(self.space, self.header)
        self.heads = ThunkHeads(self.header, self.space, self.transport)
        self._is_guarded = True

    @property
    def is_running(self) -> bool:
        """Whether the guest runs, so that its module answers requests."""
        return self.link.monitor.status() == "running"

    def keep_guarded(self) -> bool:
        """Start another guardian where the last one died; return whether one watches now."""
        guardian = self.link.guardian
        assert guardian is not None
        try:
            was_dead = guardian.restart_if_dead()
        except GuardianError as error:
            if self._is_guarded:
                _log.error("%s: the guest is not patched until a guardian watches again", error)
            self._is_guarded = False
            return False
        if was_dead:
            self.tally.guardian_restarts += 1
            _log.warning("the guardian had died: another one watches now, pid %d", guardian.pid)
        self._is_guarded = True
        return True

    def module_status(self) -> HeaderStatus:
        """Read the fields of the module's header that change.

        :raise ModuleGoneError: the guest was reset, or the module was unloaded.
        """
        return read_status(self.space, self.header)

    def pass_grace(self) -> None:
        """Ask for a grace period, wait for its end, and count it.

        :raise RequestTimeoutError: it did not end in time, or the guest is paused.
        :raise KernelError: the module is gone, or refused.
        """
        began = self.clock()
        timeout = self.settings.config.poke.grace_timeout_seconds
        pass_grace(self.mailbox, self.link.monitor, timeout_seconds=timeout)
        self.tally.graces.add(self.clock() - began)

    def leftovers(self) -> list[Leftover]:
        """Find the sites of the poke table that do not hold their original instruction."""
        return find_leftovers(self.entries, self.space, self.header)

    def recover(self) -> list[Leftover]:
        """Put back what a daemon that died left changed; return what was found, foreign or ours.

        The thunks come first: as long as they are armed, each indirect call takes longer.

        :raise RequestTimeoutError: no grace period passed; some inline sites are half restored,
            which is legal.
        :raise QemuError: QEMU failed; this can be done again.
        """
        self._end_census()
        found = self.leftovers()
        self.tally.recoveries += sum(left.standing is not Standing.FOREIGN for left in found)
        put_back(found, self.entries, self.space, self.transport, self.pass_grace)
        return found

    def _end_census(self) -> None:
        """Put back the thunks that a daemon that died has left armed."""
        states = self.heads.states()
        for register, state in states.items():
            if state is HeadState.FOREIGN:
                _log.warning(
                    "%s holds bytes that another program wrote: left alone", name_of(register)
                )
        armed = sum(state is HeadState.ARMED for state in states.values())
        if not armed:
            return
        self.tally.recoveries += 1
        if self.heads.disarm():
            _log.warning("ended the census of a daemon that died: %d thunks put back", armed)
        else:
            _log.error("the census of a daemon that died goes on: a thunk cannot be put back")

    def put_back_interrupted(self) -> None:
        """Put back the sites that a failed change left half-way.

        :raise KernelError: the poke table is gone.
        :raise QemuError: QEMU failed again.
        """
        self.entries.reload()  # some entries that we noted may never have been written
        interrupted = [left for left in self.leftovers() if left.standing is Standing.INTERRUPTED]
        put_back(interrupted, self.entries, self.space, self.transport, self.pass_grace)

    def hold_module(self) -> None:
        """Let nothing unload the module until :meth:`release_module`.

        :raise KernelError: the module is gone, refused, or did not answer in time.
        """
        self.mailbox.request(RequestOp.HOLD)

    def release_module(self) -> None:
        """Let the module be unloaded, once no task can sleep in our blocks any more.

        :raise StillInUseError: a thunk leads to the module, which stays held.
        :raise RequestTimeoutError: no grace period passed; the module stays held.
        :raise KernelError: the module is gone, or refused.
        """
        if registers := self.heads.leading_to_stubs():
            raise StillInUseError(name_of(registers[0]))
        self.pass_grace()
        self.mailbox.request(RequestOp.RELEASE)
