"""Walk a plan over a machine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol as TypingProtocol

from optpolined.patching.protocol.steps import (
    Change,
    Grace,
    Plan,
    Protocol,
    Step,
    StepPhase,
    Write,
    steps,
)

__all__ = ("GivenUp", "Machine", "PatientMachine", "PlanResult", "execute", "walk")


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
class GivenUp:
    """A change that was given up because something else stood at its address."""

    change: int
    phase: StepPhase
    write: Write
    found: bytes


@dataclass(slots=True)
class PlanResult:
    """What became of the changes, by number; those that are in neither list were not tried."""

    done: list[int] = field(default_factory=list)
    refused: list[GivenUp] = field(default_factory=list)


def execute(changes: Sequence[Change], protocol: Protocol, machine: Machine) -> PlanResult:
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


def walk(plan: Plan, machine: PatientMachine) -> PlanResult:
    """Make the changes of a plan, as :func:`execute` does; it may hold grace periods.

    A change that is given up stays where its last write left it, which every plan makes a form that
    means what the site has always meant.  Nobody waits for changes that are given up.

    :raise QemuError: as for :func:`execute`.
    """
    return _walk(plan, machine, machine.grace)


def _walk(plan: Plan, machine: Machine, grace: Callable[[], None] | None) -> PlanResult:
    numbers = sorted(
        {item.change for step in plan if isinstance(step, Step) for item in step.writes}
    )
    report = PlanResult()
    given_up: dict[int, StepPhase] = {}
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
                report.refused.append(GivenUp(item.change, step.phase, item.write, bytes_found))
        if step.phase is StepPhase.PREPARE and StepPhase.PREPARE in given_up.values():
            given_up = dict.fromkeys(numbers, StepPhase.PREPARE) | given_up
        if step.phase is StepPhase.DISARM:
            given_up = dict.fromkeys(given_up, StepPhase.DISARM)
    report.done = [number for number in numbers if number not in given_up]
    return report


def _goes_on(given_up_in: StepPhase | None, step: Step) -> bool:
    if step.phase is StepPhase.DISARM:
        return given_up_in in (None, StepPhase.PREPARE, StepPhase.BREAK, StepPhase.UNREACHED)
    return given_up_in is None
