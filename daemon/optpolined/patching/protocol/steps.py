"""The two poke protocols, as plans: what is written in which order.

`breakpoint` (what text_poke_bp_batch() does from inside; Linux 6.1, arch/x86/kernel/alternative.c):

    PREPARE  arena blocks and poke-table entries, while nothing refers to them
    BREAK    0xCC over the first byte
    Sync
    TAIL     the bytes behind it
    Sync
    HEAD     the first byte
    Sync
    DISARM   the entries say that no 0xCC of ours stands there any more

Each step ends before the next begins.  A Sync serialises every vCPU: none carries bytes that it
fetched before a step into the time after the Sync.  Between BREAK and HEAD a vCPU that reaches the
site traps.  The guest's own handler sends it down the slow path, so the tail is never executed
while it changes.

`stopped`: PREPARE, then WHOLE: all bytes of the instruction in one stop.  vCPUs stop between
instructions, so this is right where a site is exactly one instruction, and it needs no handler.
Only a transport that stops the guest can do that.

How the bytes get into the guest is the transport's business (`transport.py`).  A plan is a sequence
of steps, syncs and grace periods; `inline_change.py` makes one that needs all three.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from optpolined.addresses import GuestVirtual
from optpolined.patching.protocol.errors import ChangeError
from optpolined.x86 import INT3

__all__ = (
    "Change",
    "Grace",
    "Plan",
    "Protocol",
    "SiteWrite",
    "Step",
    "StepPhase",
    "Sync",
    "Write",
    "breakpoint_writes",
    "steps",
    "stopped_writes",
)


class Protocol(Enum):
    """How an instruction is replaced."""

    BREAKPOINT = "breakpoint"
    STOPPED = "stopped"


class StepPhase(Enum):
    """What a step does; in the order of execution."""

    PREPARE = "prepare"
    BREAK = "break"
    TAIL = "tail"
    HEAD = "head"
    WHOLE = "whole"
    UNREACHED = "unreached"
    DISARM = "disarm"


@dataclass(frozen=True, slots=True)
class Write:
    """Replace ``expect`` by ``data``, both of the same length, or leave everything as it is."""

    address: GuestVirtual
    expect: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class Change:
    """Replace the instruction at ``site``.

    ``before`` is what stands there.  Where its first byte is 0xCC, a breakpoint of ours stands
    there already, and the change ends an interrupted one.  ``prepare`` is written before the first
    byte changes: the block that the new instruction refers to, and under `breakpoint` the armed
    poke-table entry.  ``disarm`` is written after the last byte.
    """

    site: GuestVirtual
    before: bytes
    after: bytes
    prepare: tuple[Write, ...] = ()
    disarm: Write | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.before) == len(self.after):
            raise ChangeError(
                f"site {self.site:#x}: {len(self.after)} bytes cannot replace {len(self.before)}"
            )
        if self.after[0] == INT3:
            raise ChangeError(f"site {self.site:#x}: the new instruction would be a breakpoint")


@dataclass(frozen=True, slots=True)
class SiteWrite:
    """A write on behalf of the change number ``change``."""

    change: int
    write: Write


@dataclass(frozen=True, slots=True)
class Step:
    """Writes of one phase, in any order; all of them are made before the next step begins."""

    phase: StepPhase
    writes: tuple[SiteWrite, ...]


@dataclass(frozen=True, slots=True)
class Sync:
    """Every vCPU is serialised: none executes bytes that it fetched before."""


@dataclass(frozen=True, slots=True)
class Grace:
    """A grace period of the guest: every task and CPU has left code that it was in before."""


Plan = Sequence[Step | Sync | Grace]

_SYNCED = frozenset({StepPhase.BREAK, StepPhase.TAIL, StepPhase.HEAD})
"""The phases of `breakpoint` that every vCPU must see before the next one begins."""


def steps(changes: Sequence[Change], protocol: Protocol) -> tuple[Step | Sync, ...]:
    """Return the steps that make ``changes``; phases with nothing to write are left out.

    The order within a step does not matter.  It is that of the addresses, so that a transport may
    join close writes.

    :raise ChangeError: a breakpoint of ours stands at a site that `stopped` is to change.
    """
    make = breakpoint_writes if protocol is Protocol.BREAKPOINT else stopped_writes
    by_phase: dict[StepPhase, list[SiteWrite]] = {phase: [] for phase in StepPhase}
    for number, change in enumerate(changes):
        for phase, write in make(change):
            by_phase[phase].append(SiteWrite(number, write))
    plan: list[Step | Sync] = []
    for phase, writes in by_phase.items():
        if writes:
            plan.append(Step(phase, tuple(sorted(writes, key=lambda item: item.write.address))))
            plan += [Sync()] if phase in _SYNCED else []
    return tuple(plan)


def breakpoint_writes(change: Change) -> Iterable[tuple[StepPhase, Write]]:
    """Give each write that `breakpoint` makes for one change, with its phase."""
    site, before, after = change.site, change.before, change.after
    trap = bytes([INT3])
    for write in change.prepare:
        yield StepPhase.PREPARE, write
    if before[0] != INT3:
        yield StepPhase.BREAK, Write(site, before, trap + before[1:])
    # Written whole, so that the compare covers the breakpoint too: the tail may only change while
    # our own 0xCC stands in front of it.
    yield StepPhase.TAIL, Write(site, trap + before[1:], trap + after[1:])
    yield StepPhase.HEAD, Write(site, trap + after[1:], after)
    if change.disarm is not None:
        yield StepPhase.DISARM, change.disarm


def stopped_writes(change: Change) -> Iterable[tuple[StepPhase, Write]]:
    """Give each write that `stopped` makes for one change, with its phase.

    :raise ChangeError: a breakpoint of ours stands at the site.
    """
    if change.before[0] == INT3:
        raise ChangeError(
            f"site {change.site:#x}: holds a breakpoint; only the breakpoint protocol ends that"
        )
    for write in change.prepare:
        yield StepPhase.PREPARE, write
    yield StepPhase.WHOLE, Write(change.site, change.before, change.after)
