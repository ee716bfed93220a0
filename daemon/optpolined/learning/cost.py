"""The cost model: the cycles of a call in each form, for the targets of a site.

A call whose branches are predicted costs ``direct_cycles`` and a little for each step on its way.
A random order of targets costs more.  A branch that is taken with probability q is mispredicted
2q(1-q) of the time, because predictors do about that with noise; a site's cost is the sum over its
branches.  With 23 cycles a misprediction, fitted, this is within 11 % of what was measured for
chains, trees and chains of one target with 2 to 16 targets in random order, and within 25 % where
one target takes 90 % of the calls and the others share the rest.

The table is for one hot site.  With thousands of sites everything misses its cache and costs more,
but the order of the forms stays the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import Form, Key, Keyed, Original, Tree
from optpolined.learning.ranges import check_ranges
from optpolined.learning.strategy import Share

__all__ = ("COST_RANGES", "Costs", "Leaves")

Leaves = Sequence[tuple[int, GuestVirtual]]
"""Key indices and their targets; an index stands once."""

COST_RANGES: dict[str, tuple[float, float]] = {
    "retpoline_cycles": (0.1, 10_000.0),
    "direct_cycles": (0.0, 10_000.0),
    "position_cycles": (0.0, 1000.0),
    "miss_cycles": (0.0, 10_000.0),
    "miss_position_cycles": (0.0, 1000.0),
    "tree_level_cycles": (0.0, 1000.0),
    "keyed_level_cycles": (0.0, 1000.0),
    "misprediction_cycles": (0.0, 1000.0),
    "randomness_share": (0.0, 1.0),
}
"""The least and the most of each."""


@dataclass(frozen=True, slots=True)
class Costs:
    """The cost table.

    The defaults are medians on a Xeon of the Sapphire Rapids class, the loop included.

    :raise SettingError: A value is out of :data:`COST_RANGES`.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    retpoline_cycles: float = 36.0
    """A call as the kernel was built."""
    direct_cycles: float = 4.0
    """A call that its first compare finds: out of line, one target."""
    position_cycles: float = 0.3
    """Each further compare of a chain on the way to a target, if its branch is predicted."""
    miss_cycles: float = 40.0
    """A call that misses a chain of one target: 37, and 3 for counting it."""
    miss_position_cycles: float = 1.0
    """Each further compare of a miss: 53 with 16 of them, 37 with one."""
    tree_level_cycles: float = 1.0
    """Each level of a tree by target; fitted, because only random orders were measured."""
    keyed_level_cycles: float = 0.175
    """Each bit of a tree by key: 4.7 with 4 bits, if all branches are predicted."""
    misprediction_cycles: float = 23.0
    """A mispredicted branch; fitted."""
    randomness_share: float = 1.0
    """How much of the order of a site's targets is noise to the branch predictor; 0: all of it is
    predicted.  It cannot be measured from outside.  1 is the value for targets in random order,
    with which a form must save the most to pay."""

    def __post_init__(self) -> None:
        check_ranges(self, COST_RANGES)

    def form(self, form: Form, shares: Sequence[Share]) -> float:
        """Return the cycles a call of a site of this form; the shares are in any order."""
        if isinstance(form, Original):
            return self.retpoline_cycles
        share_of = dict(shares)
        known = [(target, share_of.get(target, 0.0)) for target in dict.fromkeys(form.targets)]
        match form:
            case Tree():
                return self.tree(known)
            case Keyed(key, leaves):
                return self.keyed(known, key, leaves)
            case _:
                return self.chain([share for _, share in known])

    def chain(self, shares: Sequence[float]) -> float:
        """Return the cycles a call of a chain whose targets have these shares, in its order."""
        noise = 2.0 * self.randomness_share * self.misprediction_cycles
        cycles = 0.0
        left = 1.0
        for position, share in enumerate(shares):
            if left <= share:
                cycles += left * (self.direct_cycles + self.position_cycles * position)
                return cycles
            cycles += share * (self.direct_cycles + self.position_cycles * position)
            # left * q * (1 - q), where q is share / left
            cycles += noise * share * (left - share) / left
            left -= share
        return cycles + left * (self.miss_cycles + self.miss_position_cycles * (len(shares) - 1))

    def tree(self, targets: Sequence[Share]) -> float:
        """Return the cycles a call of a tree over these targets; they are in any order."""
        shares = [share for _, share in sorted(targets)]
        return self._halves(shares) + self._found(min(1.0, sum(shares)))

    def _halves(self, shares: Sequence[float]) -> float:
        """Return the cycles of the inner branches for these ``shares``, scaled to all calls."""
        total = sum(shares)
        if total <= 0:
            return 0.0
        return self._split(shares) / min(1.0, total)

    def _split(self, shares: Sequence[float]) -> float:
        if len(shares) < 2:
            return 0.0
        middle = len(shares) // 2
        lower, upper = shares[:middle], shares[middle:]
        return (
            self._branch(sum(lower), sum(upper), self.tree_level_cycles)
            + self._split(lower)
            + self._split(upper)
        )

    def keyed(self, targets: Sequence[Share], key: Key, leaves: Leaves) -> float:
        """Return the cycles a call of a tree over the bits of ``key``.

        A target with several leaves is assumed to be called through all of them equally.
        """
        known = dict(targets)
        number: dict[GuestVirtual, int] = {}
        for _, target in leaves:
            number[target] = number.get(target, 0) + 1
        heat = {index: known.get(target, 0.0) / number[target] for index, target in leaves}
        total = sum(heat.values())
        if total <= 0:
            return self._found(0.0)
        return self._bits(heat, key.bits) / min(1.0, total) + self._found(min(1.0, total))

    def _bits(self, heat: Mapping[int, float], bits: int) -> float:
        """Return the cycles of the branches over the lowest ``bits``, as in codegen/source.py."""
        if bits == 0 or not heat:
            return 0.0
        bit = 1 << (bits - 1)
        upper = {index: share for index, share in heat.items() if index & bit}
        lower = {index: share for index, share in heat.items() if not index & bit}
        return (
            self._branch(sum(lower.values()), sum(upper.values()), self.keyed_level_cycles)
            + self._bits(lower, bits - 1)
            + self._bits(upper, bits - 1)
        )

    def _branch(self, one: float, other: float, step: float) -> float:
        """Return the cycles of an inner branch with these shares of the calls on its two sides."""
        both = one + other
        if both <= 0:
            return 0.0
        noise = 2.0 * self.randomness_share * self.misprediction_cycles
        return both * step + noise * one * other / both

    def _found(self, hit: float) -> float:
        """Return the cycles of the compare at the leaf, where this share hits, and after it."""
        noise = 2.0 * self.randomness_share * self.misprediction_cycles
        missed = 1.0 - hit
        return noise * hit * missed + hit * self.direct_cycles + missed * self.miss_cycles
