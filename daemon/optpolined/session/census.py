"""A census of the attached guest: every indirect call counted, between two writes to the thunks.

census.start()                  # one stop: every call is counted from now on
...
counted = census.read()         # no stop: the calls since start() or the last read(), by site
census.stop()                   # one stop: the thunks are as they were
"""

import logging
from collections.abc import Set as AbstractSet

from optpolined.addresses import GuestVirtual
from optpolined.kernel.errors import KernelError
from optpolined.kernel.module.abi import RequestOp
from optpolined.kernel.module.census import Census, CensusCounts, gained
from optpolined.kernel.sites.attribution import Attributed, Attribution
from optpolined.patching.thunk_heads import census_refusal
from optpolined.session.access import GuestAccess
from optpolined.session.survey import Survey

__all__ = ("CensusTaker",)

_log = logging.getLogger(__name__)


class CensusTaker:
    """Takes censuses of one guest.  ``refusal`` says why none can be taken; ``None`` where one can.

    The module must be held, because during a census every indirect call passes its stubs.
    """

    def __init__(self, access: GuestAccess, survey: Survey) -> None:
        """Write nothing to the guest.

        :raise KernelError: the module's tables make no sense.
        :raise QemuError: the guest's memory cannot be read at all.
        """
        self._access = access
        self._survey = survey
        self._heads = access.heads
        self._slots = Census.from_header(access.space.read, access.header)
        self._last: CensusCounts | None = None
        self._is_crowded = False
        self.refusal = census_refusal(access.header, access.space)
        self._attribution = self._attribute()

    @property
    def covered(self) -> AbstractSet[GuestVirtual]:
        """The sites whose calls a census counts; none where no census can be taken."""
        return frozenset() if self.refusal else self._attribution.covered

    def follow_modules(self) -> None:
        """Take in the sites that there are now; to be called when modules came or went."""
        self._attribution = self._attribute()

    def start(self) -> bool:
        """Let every indirect call be counted; return whether it is.

        :raise KernelError: the counts are not mapped any more.
        :raise QemuError: QEMU failed; :meth:`stop` puts back what was changed.
        """
        if self.refusal is not None or (self._is_crowded and not self._clear()):
            return False
        self._last = self._slots.read()
        if self._heads.arm():
            return True
        self.refusal = "another program wrote to the thunks of the guest"
        _log.warning("no census is taken any more: %s", self.refusal)
        return False

    def start_anew(self) -> None:
        """Count from now on: what was counted until now belongs to forms that have changed."""
        self._last = self._slots.read()

    def read(self) -> Attributed:
        """Return the calls since :meth:`start`, or since they were last read.

        :raise KernelError: the counts are not mapped any more.
        :raise QemuError: the guest's memory cannot be read at all.
        """
        assert self._last is not None, "a census is read after its start"
        before, self._last = self._last, self._slots.read()
        counts = gained(before, self._last)
        self._is_crowded |= counts.other > 0
        return self._attribution.attribute(counts.pairs())

    def stop(self) -> bool:
        """Put the thunks back; return whether none counts any more.

        :raise QemuError: QEMU failed; this can be done again.
        """
        if self._heads.disarm():
            return True
        self.refusal = "a thunk of the guest cannot be put back"
        _log.error("%s: every indirect call by it is counted until then, and slower", self.refusal)
        return False

    def _clear(self) -> bool:
        """Have the slots emptied, because some calls found none; the mailbox may be busy."""
        if not self._access.mailbox.idle():
            return False
        try:
            self._access.mailbox.request(RequestOp.CENSUS_CLEAR)
        except KernelError as error:
            _log.warning("no census now: its slots cannot be cleared: %s", error)
            return False
        self._is_crowded = False
        return True

    def _attribute(self) -> Attribution:
        survey = self._survey

        def entry_of(address: GuestVirtual) -> GuestVirtual | None:
            function = survey.symbols.function(address)
            return None if function is None else function.start

        return Attribution(survey.inventory.eligible, entry_of, survey.text_at)
