"""The module's mailbox, written through the machine as everything else is."""

import time
from collections.abc import Callable, Sequence

from optpolined.kernel.errors import KernelError, RequestTimeoutError
from optpolined.kernel.module.abi import RequestOp
from optpolined.kernel.module.attachment import Attachment
from optpolined.kernel.module.mailbox import Mailbox, MailboxWrite
from optpolined.patching.protocol.execute import Machine, PatientMachine
from optpolined.patching.protocol.steps import Write
from optpolined.qemu.monitor import Monitor

__all__ = ("MailboxChangedError", "PatientGuest", "open_mailbox", "pass_grace")


class MailboxChangedError(KernelError):
    """The mailbox changed while a request was being written into it."""


def open_mailbox(
    attachment: Attachment, machine: Machine, alive: Callable[[], None] = lambda: None
) -> Mailbox:
    """The mailbox of the guest's module; a request raises MailboxChangedError where it must.

    :param alive: Called while a request is waited for, which always has an end.
    """

    def post(writes: Sequence[MailboxWrite]) -> None:
        found = machine.write(
            [Write(write.address, write.expected, write.data) for write in writes]
        )
        if any(item is not None for item in found):
            raise MailboxChangedError("the guest's mailbox changed while a request was written")

    def sleep(seconds: float) -> None:
        alive()
        time.sleep(seconds)

    return Mailbox(attachment.space, attachment.header, post, sleep=sleep)


def pass_grace(mailbox: Mailbox, monitor: Monitor, *, timeout_seconds: float) -> None:
    """Ask for a grace period and wait for its end.

    :raise RequestTimeoutError: it did not end in time, or the guest is paused: then none ever does.
    :raise KernelError: the module is gone, or refused.
    """
    if monitor.status() != "running":
        raise RequestTimeoutError("no grace period passes in a guest that is paused: resume it")
    mailbox.request(RequestOp.GRACE, timeout_seconds=timeout_seconds)


class PatientGuest(PatientMachine):
    """A machine, and the way to wait for a grace period of its guest."""

    def __init__(self, machine: Machine, grace: Callable[[], None]) -> None:
        self._machine = machine
        self._grace = grace

    def write(self, writes: Sequence[Write]) -> Sequence[bytes | None]:
        """See :class:`optpolined.patching.protocol.execute.Machine`."""
        return self._machine.write(writes)

    def grace(self) -> None:
        """See :class:`optpolined.patching.protocol.execute.PatientMachine`."""
        self._grace()
