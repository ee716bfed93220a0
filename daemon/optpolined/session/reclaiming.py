"""Retired blocks and stale counter records are reused, each after a grace period."""

from collections.abc import Iterable

from optpolined.kernel.module.abi import RequestOp
from optpolined.patching.arena import Arena, GraceToken
from optpolined.session.access import GuestAccess
from optpolined.session.counting import SiteCounters

__all__ = ("Reclaimer",)


class Reclaimer:
    """Runs one grace period after another, without waiting for them."""

    def __init__(self, access: GuestAccess, arena: Arena, counters: SiteCounters) -> None:
        self._access = access
        self._arena = arena
        self._counters = counters
        self._token: GraceToken | None = None
        self._began = 0.0
        self._stale: list[int] = []
        self._stale_in_grace: list[int] = []

    @property
    def is_waiting(self) -> bool:
        """Whether a grace period is under way, so that the mailbox is busy."""
        return self._token is not None

    def retire_records(self, records: Iterable[int]) -> None:
        """Let these records be cleared and used again after the next grace period."""
        self._stale += records

    def end_grace(self) -> None:
        """Reuse what was retired before the grace period, if it is over.

        :raise KernelError: the module is gone, or refused.
        :raise QemuError: QEMU failed.
        """
        if self._token is None or not self._access.mailbox.result():
            return
        self._arena.grace_end(self._token)
        self._access.tally.graces.add(self._access.clock() - self._began)
        self._token = None
        self._counters.reuse(self._stale_in_grace)
        self._stale_in_grace = []

    def begin_grace(self) -> None:
        """Ask for a grace period, if something waits for one and the mailbox is free.

        :raise KernelError: the module is gone, or refused.
        :raise QemuError: QEMU failed.
        """
        if self.is_waiting or not (self._arena.usage().retired or self._stale):
            return
        if not self._access.mailbox.idle():
            return
        token = self._arena.grace_begin()
        self._access.mailbox.post(RequestOp.GRACE)
        self._token, self._began = token, self._access.clock()
        self._stale_in_grace += self._stale  # after a failure some still wait to be cleared
        self._stale = []
