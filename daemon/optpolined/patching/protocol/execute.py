"""Walk a plan over a machine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol as TypingProtocol

from optpolined.patching.protocol.steps import (
    Change,
    Grace,
    Phase,
    Plan,
    Protocol,
    Step,
    Write,
    steps,
)

__all__ = ("Machine", "PatientMachine", "Refusal", "Report", "execute", "walk")


class Machine(TypingProtocol):
    """What the engine needs of a guest, or of a model of one."""

    def write(self, writes: Sequence[Write]) -> Sequence[bytes | None]:
        """Make each write in a stop of all vCPUs, in order; on return the vCPUs run.

        Each compares and writes within one stop; the stops are cut between writes.  The answer has
        an item for each write: ``None`` where it was made, else the bytes that stood there instead
        (empty where nothing is mapped).
        """


class PatientMachine(Machine, TypingProtocol):
    """A machine that can wait, for plans that hold a grace period."""

    def grace(self) -> None:
        """Return when a grace period of the guest has begun and ended."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A change that was given up because something else stood at its address."""

    change: int
    phase: Phase
    write: Write
    found: bytes


@dataclass(slots=True)
class Report:
    """What became of the changes, by number; those that are in neither list were not tried."""

    done: list[int] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)


def execute(changes: Sequence[Change], protocol: Protocol, machine: Machine) -> Report:
    """Make ``changes``; a change whose site is not as expected is left where it stands.

    A refusal in PREPARE gives up all changes before any site was touched: somebody writes to the
    tables that every breakpoint of the batch depends on.  One in BREAK leaves that site untouched,
    and its entry is disarmed with the others.  One in TAIL, HEAD or WHOLE means that somebody wrote
    over our bytes: the site is theirs, and its entry stays armed, because a 0xCC of ours may have
    been copied.

    :raise ChangeError: the protocol cannot make one of them.
    :raise QemuError: whatever the machine raises; the sites must then be read again before anything
        else is done to them (recovery).
    """
    return _walk(steps(changes, protocol), machine, None)


def walk(plan: Plan, machine: PatientMachine) -> Report:
    """Make the changes of a plan, as :func:`execute` does; it may hold grace periods.

    A change that is given up stays where its last write left it, which every plan makes a form that
    means what the site has always meant.  Nobody waits for changes that are given up.

    :raise QemuError: as for :func:`execute`.
    """
    return _walk(plan, machine, machine.grace)


def _walk(plan: Plan, machine: Machine, grace: Callable[[], None] | None) -> Report:
    numbers = sorted(
        {item.change for step in plan if isinstance(step, Step) for item in step.writes}
    )
    report = Report()
    given_up: dict[int, Phase] = {}
    for step in plan:
        if isinstance(step, Grace):
            assert grace is not None, "only the steps of a protocol are walked without one"
            if len(given_up) < len(numbers):
                grace()
            continue
        live = [item for item in step.writes if _goes_on(given_up.get(item.change), step)]
        found = machine.write([item.write for item in live]) if live else ()
        for item, bytes_found in zip(live, found, strict=True):
            if bytes_found is not None and item.change not in given_up:
                given_up[item.change] = step.phase
                report.refused.append(Refusal(item.change, step.phase, item.write, bytes_found))
        if step.phase is Phase.PREPARE and Phase.PREPARE in given_up.values():
            given_up = dict.fromkeys(numbers, Phase.PREPARE) | given_up
        if step.phase is Phase.DISARM:
            given_up = dict.fromkeys(given_up, Phase.DISARM)
    report.done = [number for number in numbers if number not in given_up]
    return report


def _goes_on(given_up_in: Phase | None, step: Step) -> bool:
    if step.phase is Phase.DISARM:
        return given_up_in in (None, Phase.PREPARE, Phase.BREAK, Phase.UNREACHED)
    return given_up_in is None
