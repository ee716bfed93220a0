"""What can stand at a site."""

from dataclasses import dataclass

from optpolined.addresses import GuestVirtual

__all__ = ("LEARNING", "ORIGINAL", "Chain", "Form", "Original")


@dataclass(frozen=True, slots=True)
class Original:
    """The site as the kernel was built: a call or jmp to its register's retpoline thunk."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Compare with each target in turn and branch to the one that matches, else count and go slow.

    ``targets`` are in the order of comparison.  A call that matches none passes the register's
    learning stub, which counts it by target in the site's record.  With ``counts_hits`` the direct
    calls are counted in the record too (``struct optp_record.hits``): an audit, not for every day.
    """

    targets: tuple[GuestVirtual, ...]
    counts_hits: bool = False


Form = Original | Chain

ORIGINAL = Original()
LEARNING = Chain(())
"""The chain of no targets: every call is counted by target, then takes the thunk."""
