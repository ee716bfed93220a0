"""How the modelled guest behaves, and what may never happen in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

__all__ = ("Handler", "Kind", "Rules", "Violation")


class Kind(Enum):
    """What was broken."""

    TORN = "an instruction was fetched that was never whole"
    WRONG_TARGET = "a call ends in another function than the register names"
    STACK = "the stack is not what the function or its caller expects"
    REGISTERS = "a register is not what it was at the site"
    NOT_ONCE = "a call reaches its function never, or twice"
    FREED = "a block is entered or gone on in after it was freed"
    UNHANDLED = "a breakpoint of ours is not handled"
    ENDLESS = "a call does not end while the daemon does nothing"
    TEXT = "the text at the end is not what was planned"


class Violation(Exception):  # noqa: N818 - it is what the search looks for, and no error
    """A property does not hold; ``trace`` is a shortest way there, a line for each step."""

    def __init__(self, kind: Kind, text: str, trace: Sequence[str] = ()) -> None:
        super().__init__("\n  ".join([f"{kind.value}: {text}", *trace]))
        self.kind = kind
        self.text = text


@dataclass(frozen=True, slots=True)
class Handler:
    """The guest's int3 handler; what can be off are seeded faults."""

    looks_at_byte: bool = True
    looks_again: bool = True
    pushes: bool = True


@dataclass(frozen=True, slots=True)
class Rules:
    """The machine.

    With ``live`` a write is made byte by byte while the vCPUs run, and a sync serialises all of
    them.  Without, each write is made in a stop, which serialises.  The rest are seeded faults when
    they are off.
    """

    live: bool = False
    sync_serialises: bool = True
    stop_holds_sites: bool = True
    grace_waits_for_running: bool = True
    grace_waits_for_sleeping: bool = True
    handler: Handler = Handler()
