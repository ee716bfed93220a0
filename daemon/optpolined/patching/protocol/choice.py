"""Which poke protocol changes what, as the operator chose it."""

from enum import Enum

from optpolined.patching.protocol.steps import Protocol
from optpolined.patching.protocol.transport import TransportKind

__all__ = ("ProtocolChoice",)


class ProtocolChoice(Enum):
    """The setting ``poke.protocol``.

    Where the transport stops the guest anyway, a site that is one instruction is best replaced
    whole: one write in one stop, in place of three writes in three.  Two instructions that change
    together (an inline part, the sites of a static call) need the breakpoint in any case.
    """

    AUTO = "auto"
    BREAKPOINT = "breakpoint"
    STOPPED = "stopped"

    def for_sites(self, kind: TransportKind) -> Protocol:
        """Return the protocol for sites that are one instruction."""
        if self is ProtocolChoice.AUTO:
            return Protocol.STOPPED if kind is TransportKind.STOPPED else Protocol.BREAKPOINT
        return Protocol(self.value)

    def for_pairs(self) -> Protocol:
        """Return the protocol for instructions that change together."""
        return Protocol.BREAKPOINT if self is ProtocolChoice.AUTO else Protocol(self.value)
