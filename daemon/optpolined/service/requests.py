"""The module's mailbox, written through the machine as everything else is."""

from collections.abc import Sequence

from optpolined.kernel.attach import Attachment
from optpolined.kernel.errors import KernelError
from optpolined.kernel.services import Mailbox, MailboxWrite
from optpolined.poke.execute import Machine
from optpolined.poke.protocol import Write

__all__ = ("MailboxChangedError", "open_mailbox")


class MailboxChangedError(KernelError):
    """The mailbox changed while a request was being written into it."""


def open_mailbox(attachment: Attachment, machine: Machine) -> Mailbox:
    """The mailbox of the guest's module; a request raises MailboxChangedError where it must."""

    def post(writes: Sequence[MailboxWrite]) -> None:
        found = machine.write(
            [Write(write.address, write.expected, write.data) for write in writes]
        )
        if any(item is not None for item in found):
            raise MailboxChangedError("the guest's mailbox changed while a request was written")

    return Mailbox(attachment.space, attachment.header, post)
