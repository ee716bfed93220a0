"""Walk the steps of a protocol over a machine."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol as TypingProtocol

from optpolined.poke.protocol import Change, Phase, Protocol, Step, Write, steps

__all__ = ("Machine", "Refusal", "Report", "execute")


class Machine(TypingProtocol):
    """What the engine needs of a guest, or of a model of one."""

    def write(self, writes: Sequence[Write]) -> Sequence[bytes | None]:
        """Make each write in a stop of all vCPUs, in order; on return the vCPUs run.

        Each compares and writes within one stop; the stops are cut between writes.  The answer has
        an item for each write: ``None`` where it was made, else the bytes that stood there instead
        (empty where nothing is mapped).
        """


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

    :raise QemuError: whatever the machine raises; the sites must then be read again before anything
        else is done to them (recovery).
    """
    report = Report()
    given_up: dict[int, Phase] = {}
    for step in steps(changes, protocol):
        live = [item for item in step.writes if _goes_on(given_up.get(item.change), step)]
        found = machine.write([item.write for item in live]) if live else ()
        for item, bytes_found in zip(live, found, strict=True):
            if bytes_found is not None and item.change not in given_up:
                given_up[item.change] = step.phase
                report.refused.append(Refusal(item.change, step.phase, item.write, bytes_found))
        if step.phase is Phase.PREPARE and given_up:
            given_up = dict.fromkeys(range(len(changes)), Phase.PREPARE)
    report.done = [number for number in range(len(changes)) if number not in given_up]
    return report


def _goes_on(given_up_in: Phase | None, step: Step) -> bool:
    if step.phase is Phase.DISARM:
        return given_up_in in (None, Phase.PREPARE, Phase.BREAK)
    return given_up_in is None
