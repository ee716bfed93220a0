"""Puts back what an earlier daemon left, lets its module go, and leaves.

Needs neither symbols nor sites: the poke table names what was ever patched.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from optpolined.addresses import GuestVirtual
from optpolined.config import GuestConfig
from optpolined.kernel.errors import KernelError, RequestTimeoutError
from optpolined.kernel.module.abi import STATIC_KINDS, RequestOp
from optpolined.kernel.module.attachment import Attachment
from optpolined.kernel.module.guards import check_text_guard
from optpolined.kernel.module.header import read_status
from optpolined.kernel.module.module_list import read_modules
from optpolined.kernel.sites.declarations import read_declarations
from optpolined.kernel.symbols.symbols import Symbols
from optpolined.patching.poke_entries import PokeEntries
from optpolined.patching.protocol.steps import Protocol
from optpolined.patching.recovery import find_leftovers, put_back
from optpolined.patching.static_calls import StaticCalls, find_static_calls
from optpolined.session.link import Link, connect, refuse_on_failure, transport_of
from optpolined.session.mailbox import open_mailbox, pass_grace
from optpolined.session.transport.stopped import StoppedTransport

__all__ = ("Recovered", "recover", "recover_only")


_log = logging.getLogger(__name__)


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
    transport = transport_of(link, config, time.monotonic)
    mailbox = open_mailbox(attachment, transport)
    with refuse_on_failure():
        entries = PokeEntries(space, header)
        if link.monitor.status() == "running":
            mailbox.request(RequestOp.MODULES)
        check_text_guard(space, header)

    def grace() -> None:
        pass_grace(mailbox, link.monitor, timeout_seconds=config.poke.grace_timeout_seconds)

    leftovers = find_leftovers(entries, space, header)
    try:
        put_back(leftovers, entries, space, transport, grace)
    except RequestTimeoutError as error:
        _log.error("%s; some inline sites are left half restored, which is legal", error)
    static_places = 0
    if any(entry.kind in STATIC_KINDS for entry in entries):
        static_places = _restore_static_calls(attachment, entries, transport)
    again = find_leftovers(entries, space, header) if leftovers else []
    left = [leftover.entry.site for leftover in again]
    recovered = Recovered(
        restored=len(leftovers) - len(left) + static_places,
        foreign=_names(attachment, left),
        running=link.monitor.status() == "running",
        was_held=read_status(space, header).held,
    )
    if recovered.was_held and recovered.is_complete:
        grace()
        mailbox.request(RequestOp.RELEASE)
    return recovered


def _restore_static_calls(
    attachment: Attachment, entries: PokeEntries, transport: StoppedTransport
) -> int:
    """Point the static calls where they were built to go: only code says which there are.

    Answers how many places changed.
    """
    space = attachment.space
    symbols = Symbols.load(space, attachment.vmcoreinfo)
    symbols.set_modules(space, read_modules(space, attachment.header))
    declared = read_declarations(space, symbols.runs)
    calls, _ = find_static_calls(declared.records, space, symbols, entries.originals())
    return StaticCalls(
        transport=transport,
        space=space,
        symbols=symbols,
        entries=entries,
        protocol=Protocol.BREAKPOINT,
        calls=calls,
    ).restore()


def _names(attachment: Attachment, sites: Sequence[GuestVirtual]) -> list[str]:
    """The sites for people; by symbols only where there is one to name, for that takes a second."""
    if not sites:
        return []
    try:
        name = Symbols.load(attachment.space, attachment.vmcoreinfo).name
    except KernelError:
        return [f"{site:#x}" for site in sites]
    return [name(site) for site in sites]
