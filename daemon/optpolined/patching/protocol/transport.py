"""How the bytes of a plan get into the guest, whatever the plan is.

    outcomes = transport.write(writes)      # an Outcome for each Write
    transport.sync()                        # from here on no vCPU executes older bytes

The steps (`steps.py`) say what is written in which order.  A transport says how.  Two kinds exist:

    stopped   each write is made in a stop of all vCPUs; the re-entry serialises them
    live      bytes are written while the vCPUs run, and sync() serialises them

Only a stopped transport may join close writes into a span, or rewrite bytes that do not change:
under a live one another program may change a byte between its compare and its write.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from optpolined.patching.protocol.steps import Write

__all__ = (
    "UNMAPPED",
    "WRITTEN",
    "Differs",
    "Outcome",
    "Transport",
    "TransportKind",
    "Unmapped",
    "Written",
)


class TransportKind(StrEnum):
    """Whether the vCPUs run while bytes are written."""

    STOPPED = "stopped"
    LIVE = "live"


@dataclass(frozen=True, slots=True)
class Written:
    """The bytes were as expected, and are now the new ones."""


@dataclass(frozen=True, slots=True)
class Differs:
    """Other bytes stood there, which are left as they are.

    They may also have come right after the write: ``found`` is what was read back then.
    """

    found: bytes

    def __str__(self) -> str:
        return self.found.hex(" ")


@dataclass(frozen=True, slots=True)
class Unmapped:
    """No RAM is mapped there."""

    def __str__(self) -> str:
        return "unmapped"


Outcome = Written | Differs | Unmapped
"""What became of a write."""

WRITTEN: Final = Written()
UNMAPPED: Final = Unmapped()


class Transport(Protocol):
    """A way for bytes into a guest, or into a model of one."""

    kind: TransportKind

    def write(self, writes: Sequence[Write]) -> Sequence[Outcome]:
        """Make each write, in order, and answer what became of each.

        A write is compared before it is made.  On return its bytes are in memory; a vCPU may still
        execute those that it fetched before, until the next :meth:`sync`.  A stopped transport
        compares and writes within one stop, and may run the guest between two writes.

        :raise QemuError: the way failed; which of the writes were made is unknown.
        """

    def sync(self) -> None:
        """Return when every vCPU has been serialised since the last write.

        From then on no vCPU executes bytes that it fetched before.  A stopped transport does
        nothing here, because each vCPU has been serialised when it entered the guest again.

        :raise QemuError: the way failed.
        """
