"""Puts back what an earlier daemon left, lets its module go, and leaves.

The first steps are those of attach.py: open, look, recover.  The poke table names what was ever
patched, so that no site has to be found.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from optpolined.config import GuestConfig, Settings
from optpolined.kernel.errors import RequestTimeoutError
from optpolined.kernel.module.abi import STATIC_KINDS
from optpolined.kernel.sites.declarations import read_declarations
from optpolined.kernel.symbols.symbols import Symbols
from optpolined.patching.protocol.steps import Protocol
from optpolined.patching.static_calls import StaticCalls, find_static_calls
from optpolined.patching.thunk_heads import HeadState, name_of
from optpolined.session.access import GuestAccess
from optpolined.session.link import Link, connect, refuse_on_failure
from optpolined.session.modules import look_first
from optpolined.session.tally import Tally

__all__ = ("Recovered", "recover", "recover_only")


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was done: ``restored`` sites and ``thunks``; what is left of another patcher's bytes.

    ``foreign`` names the sites that hold such bytes, and the thunks that still lead to the module.
    """

    restored: int
    foreign: Sequence[str]
    running: bool
    was_held: bool
    thunks: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether nothing of an earlier daemon is left."""
        return not self.foreign and (self.running or not self.was_held)

    def __str__(self) -> str:
        done = [f"{self.thunks} thunks restored"] if self.thunks else []
        done += [f"{self.restored} sites restored"] if self.restored else []
        said = ", ".join(done) or "nothing to restore"
        if self.foreign:
            sites = ", ".join(self.foreign)
            return f"{said}; optpoline.ko stays held: foreign bytes stand at {sites}"
        if not self.is_complete:
            return f"{said}; optpoline.ko stays held: the guest is paused"
        return f"{said}; optpoline.ko {'released' if self.was_held else 'was not held'}"


def recover_only(config: GuestConfig) -> Recovered:
    """Restore the guest of ``config``; release its module unless something still leads to it.

    :raise AttachRefusedError: the guest cannot be attached to, or guards its integrity.
    :raise OptpolinedError: the guest or QEMU failed; this can be done again.
    """
    with connect(config) as link:
        return recover(link, Settings(config))


def recover(link: Link, settings: Settings) -> Recovered:
    """Restore the guest at the other end of ``link``."""
    with refuse_on_failure():
        access = GuestAccess(link, settings, time.monotonic, Tally())
        symbols = look_first(access, ask=access.is_running).symbols
        before = access.leftovers()
        armed = _armed(access)
    try:
        access.recover()
    except RequestTimeoutError as error:
        _log.error("%s; some inline sites are left half restored, which is legal", error)
    static_places = 0
    if any(entry.kind in STATIC_KINDS for entry in access.entries):
        static_places = _restore_static_calls(access, symbols)
    left = [leftover.entry.site for leftover in access.leftovers()] if before else []
    thunks_left = [name_of(register) for register in access.heads.leading_to_stubs()]
    recovered = Recovered(
        restored=len(before) - len(left) + static_places,
        foreign=[*(symbols.name(site) for site in left), *thunks_left],
        running=access.is_running,
        was_held=access.module_status().held,
        thunks=armed - _armed(access),
    )
    if recovered.was_held and recovered.is_complete:
        access.release_module()
    return recovered


def _armed(access: GuestAccess) -> int:
    """Return how many thunks lead every indirect call through the module."""
    return sum(state is HeadState.ARMED for state in access.heads.states().values())


def _restore_static_calls(access: GuestAccess, symbols: Symbols) -> int:
    """Point the static calls where they were built to go; return how many places changed.

    Only code says which static calls there are.
    """
    space, originals = access.space, access.entries.originals()
    declared = read_declarations(space, symbols.runs)
    calls, _ = find_static_calls(declared.records, space, symbols, originals)
    return StaticCalls(
        transport=access.transport,
        space=space,
        symbols=symbols,
        entries=access.entries,
        protocol=Protocol.BREAKPOINT,
        calls=calls,
    ).restore()
