"""Puts back what an earlier daemon left, lets its module go, and leaves.

Needs neither symbols nor sites: the poke table names what was ever patched.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from optpolined.addresses import GuestVirtual
from optpolined.config import GuestConfig
from optpolined.kernel.abi import RequestOp
from optpolined.kernel.attach import Attachment
from optpolined.kernel.errors import KernelError
from optpolined.kernel.header import read_status
from optpolined.kernel.symbols import Symbols
from optpolined.service.attach import Link, connect, refuse_on_failure
from optpolined.service.entries import Entries
from optpolined.service.machine import GuestMachine
from optpolined.service.recovery import find_leftovers, put_back
from optpolined.service.requests import open_mailbox

__all__ = ("Recovered", "recover", "recover_only")


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was done: ``restored`` sites; those of ``foreign`` hold somebody else's bytes."""

    restored: int
    foreign: Sequence[str]
    running: bool
    was_held: bool

    @property
    def is_complete(self) -> bool:
        """Whether nothing of an earlier daemon is left."""
        return not self.foreign and (self.running or not self.was_held)

    def __str__(self) -> str:
        said = f"{self.restored} sites restored" if self.restored else "nothing to restore"
        if self.foreign:
            sites = ", ".join(self.foreign)
            return f"{said}; optpoline.ko stays held: somebody else's bytes stand at {sites}"
        if not self.is_complete:
            return f"{said}; optpoline.ko stays held: the guest is paused"
        return f"{said}; optpoline.ko {'released' if self.was_held else 'was not held'}"


def recover_only(config: GuestConfig) -> Recovered:
    """Restore the guest of ``config``; its module is let go unless something still leads to it.

    :raise AttachRefusedError: the guest cannot be attached to.
    :raise OptpolinedError: the guest or QEMU failed; this can be done again.
    """
    with connect(config) as link:
        return recover(link, config)


def recover(link: Link, config: GuestConfig) -> Recovered:
    """Restore the guest at the other end of ``link``."""
    attachment = link.attachment
    space, header = attachment.space, attachment.header
    machine = GuestMachine.of(link, config, time.monotonic)
    with refuse_on_failure():
        entries = Entries(space, header)
    leftovers = find_leftovers(entries, space, header)
    put_back(leftovers, entries, space, machine)
    again = find_leftovers(entries, space, header) if leftovers else []
    left = [leftover.entry.site for leftover in again]
    recovered = Recovered(
        restored=len(leftovers) - len(left),
        foreign=_names(attachment, left),
        running=link.monitor.status() == "running",
        was_held=read_status(space, header).held,
    )
    if recovered.was_held and recovered.is_complete:
        mailbox = open_mailbox(attachment, machine)
        mailbox.request(RequestOp.GRACE, timeout_seconds=config.poke.grace_timeout_seconds)
        mailbox.request(RequestOp.RELEASE)
    return recovered


def _names(attachment: Attachment, sites: Sequence[GuestVirtual]) -> list[str]:
    """The sites for people; by symbols only where there is one to name, for that takes a second."""
    if not sites:
        return []
    try:
        name = Symbols.load(attachment.space, attachment.vmcoreinfo).name
    except KernelError:
        return [f"{site:#x}" for site in sites]
    return [name(site) for site in sites]
