"""What can stand at a site."""

from collections.abc import Sequence
from dataclasses import dataclass

from optpolined.addresses import GuestVirtual
from optpolined.x86 import Register

__all__ = (
    "KEY_BITS_MAX",
    "LEARNING",
    "MAX_LEAVES",
    "MAX_TARGETS",
    "ORIGINAL",
    "Chain",
    "Code",
    "Form",
    "Key",
    "Keyed",
    "LearnKeys",
    "Original",
    "Tree",
)

MAX_TARGETS = 16
"""The longest chain, in targets."""

KEY_BITS_MAX = 6
"""The widest key, in bits."""

MAX_LEAVES = 1 << KEY_BITS_MAX
"""The largest tree of either kind, in leaves."""


@dataclass(frozen=True, slots=True)
class Original:
    """The site as the kernel was built: a call or jmp to its register's retpoline thunk."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Compare with each target in turn and branch to the one that matches, else count and go slow.

    ``targets`` are in the order of comparison.  A call that matches none passes the register's
    learning stub, which counts it by target in the site's record.  With ``counts_hits`` the direct
    calls are counted in the record too (``struct optp_record.hits``); only an audit does that.
    """

    targets: tuple[GuestVirtual, ...]
    counts_hits: bool = False

    def with_targets(self, targets: Sequence[GuestVirtual]) -> "Chain":
        """The same form with other targets, one for each of ``self.targets``."""
        return Chain(tuple(targets), self.counts_hits)


@dataclass(frozen=True, slots=True)
class Tree:
    """Find the target by halves in 2 to 64 of them, ordered by address; else count and go slow.

    Their order does not matter and is not kept.
    """

    targets: tuple[GuestVirtual, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(sorted(self.targets)))

    def with_targets(self, targets: Sequence[GuestVirtual]) -> "Tree":
        """The same form with other targets, one for each of ``self.targets``."""
        return Tree(tuple(targets))


@dataclass(frozen=True, slots=True)
class Key:
    """Some bits of a register that tell, as a rule, where the call will go.

    The key's index is ``(register >> shift) & ((1 << bits) - 1)``.  ``bits`` is 1 to 6, and all of
    them lie in the lower 31 of the register.
    """

    register: Register
    shift: int
    bits: int


@dataclass(frozen=True, slots=True)
class Keyed:
    """Find the leaf by the bits of ``key``; where its target matches go there, else go slow.

    ``leaves`` are 1 to 64 pairs of an index and its target; an index stands once, a target may
    stand at several.  Their order does not matter and is not kept.  A call whose index has no leaf,
    or has another target, is counted and goes slow.
    """

    key: Key
    leaves: tuple[tuple[int, GuestVirtual], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "leaves", tuple(sorted(self.leaves)))

    @property
    def targets(self) -> tuple[GuestVirtual, ...]:
        """The target of each leaf, by rising index."""
        return tuple(target for _, target in self.leaves)

    def with_targets(self, targets: Sequence[GuestVirtual]) -> "Keyed":
        """The same form with other targets, one for each of ``self.targets``."""
        indices = [index for index, _ in self.leaves]
        return Keyed(self.key, tuple(zip(indices, targets, strict=True)))


@dataclass(frozen=True, slots=True)
class LearnKeys:
    """Note which target the call's index of ``key`` had last, then count the call and go slow.

    The notes are the site's key table: a percpu array of ``1 << key.bits`` u32, each the low half
    of a target.
    """

    key: Key

    @property
    def targets(self) -> tuple[GuestVirtual, ...]:
        """Empty, because every call goes slow."""
        return ()

    def with_targets(self, targets: Sequence[GuestVirtual]) -> "LearnKeys":
        """Return the same form, because it has no targets."""
        assert not targets
        return self


Code = Chain | Tree | Keyed | LearnKeys
"""The forms that are blocks of code in the arena."""

Form = Original | Code

ORIGINAL = Original()
LEARNING = Chain(())
"""The chain of no targets: every call is counted by target, then takes the thunk."""
