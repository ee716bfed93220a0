"""The module's mailbox, written over the transport as everything else is."""

import time
from collections.abc import Callable, Sequence

from optpolined.kernel.errors import KernelError, RequestTimeoutError
from optpolined.kernel.module.abi import RequestOp
from optpolined.kernel.module.attachment import Attachment
from optpolined.kernel.module.mailbox import Mailbox, MailboxWrite
from optpolined.patching.protocol.steps import Write
from optpolined.patching.protocol.transport import Transport, Written
from optpolined.qemu.monitor import Monitor

__all__ = ("MailboxChangedError", "open_mailbox", "pass_grace")


class MailboxChangedError(KernelError):
    """The mailbox changed while a request was being written into it."""


def open_mailbox(
    attachment: Attachment, transport: Transport, alive: Callable[[], None] = lambda: None
) -> Mailbox:
    """Return the mailbox of the guest's module.

    A request raises :class:`MailboxChangedError` where the guest changes the mailbox meanwhile.

    :param alive: Called while a request is waited for.
    """

    def post(writes: Sequence[MailboxWrite]) -> None:
        outcomes = transport.write(
            [Write(write.address, write.expected, write.data) for write in writes]
        )
        if not all(isinstance(outcome, Written) for outcome in outcomes):
            raise MailboxChangedError("the guest's mailbox changed while a request was written")

    def sleep(seconds: float) -> None:
        alive()
        time.sleep(seconds)

    return Mailbox(attachment.space, attachment.header, post, sleep=sleep)


def pass_grace(mailbox: Mailbox, monitor: Monitor, *, timeout_seconds: float) -> None:
    """Ask for a grace period and wait for its end.

    :raise RequestTimeoutError: it did not end in time, or cannot end because the guest is paused.
    :raise KernelError: the module is gone, or refused.
    """
    if monitor.status() != "running":
        raise RequestTimeoutError("no grace period passes in a guest that is paused: resume it")
    mailbox.request(RequestOp.GRACE, timeout_seconds=timeout_seconds)
