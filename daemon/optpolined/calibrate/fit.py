"""Fits the cost table (learning/cost.py) to measured cycles.

Measured at one hot site with nothing around it but the loop, which is included, as the table's
defaults were:

- ``retpoline_cycles``, ``direct_cycles`` (a chain of one target) and ``miss_cycles`` (the same,
  whose target never comes, with the learning stub behind it) as they are;
- ``position_cycles`` from a chain of 16 whose last target is called, and ``miss_position_cycles``
  from one whose targets never come: a fifteenth of what they take longer than a chain of one;
- ``tree_level_cycles`` and ``keyed_level_cycles`` from trees of 16 leaves of which one is called:
  a quarter of what they take longer than a chain of one.

``misprediction_cycles`` is fitted to chains and trees of 2, 4, 8 and 16 targets in random order:
what the model says of each is ``base + slope * misprediction_cycles``, and the least squares of the
relative errors give the number.  ``randomness_share`` says what order the guest calls its targets
in, which no host can measure: it stays what it was.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from optpolined.addresses import GuestVirtual
from optpolined.calibrate.forms import (
    CHAIN,
    DIRECT,
    DISPATCH,
    FORMS,
    KEYED_16,
    LAST_OF_16,
    MISS_1,
    MISS_16,
    ONE_TARGET,
    RETPOLINE,
    STEPS,
    TREE,
    TREE_OF_16,
)
from optpolined.calibrate.measure import Case
from optpolined.calibrate.programs import Layout, Order, Setting
from optpolined.learning.cost import COST_RANGES, Costs

__all__ = ("RANDOM", "STEADY", "Cycles", "fit")

Cycles = Mapping[str, float]
"""The cycles of a call in each form."""

_STEPS: Final = 15
_LEVELS: Final = 4
_DIGITS: Final = 3

STEADY: Final = Case(
    "one target",
    Setting(1, layout=Layout.PACKED),
    {name: FORMS[name] for name in (DIRECT, RETPOLINE, ONE_TARGET, MISS_1, MISS_16, KEYED_16)}
    | STEPS,
    DIRECT,
    placements=8,
    rounds=5,
)

RANDOM: Final = {
    targets: Case(
        f"{targets} targets in random order",
        Setting(16, targets, Order.RANDOM, Layout.PACKED),
        {name: DISPATCH[name] for name in (RETPOLINE, CHAIN, TREE)},
        RETPOLINE,
        placements=2,
        rounds=3,
    )
    for targets in (2, 4, 8, 16)
}
"""The cases of random order, by the number of targets."""


def fit(steady: Cycles, random: Mapping[int, Cycles], before: Costs) -> Costs:
    """Return the table that explains what was measured.

    :param steady: The cycles of :data:`STEADY`.
    :param random: The cycles of the cases of :data:`RANDOM`, by their number of targets.
    :param before: The table from which the costs are taken that cannot be measured.
    :raise SettingError: a measured cost is out of its range.
    """
    one, miss = steady[ONE_TARGET], steady[MISS_1]
    found = {
        "retpoline_cycles": steady[RETPOLINE],
        "direct_cycles": one,
        "position_cycles": (steady[LAST_OF_16] - one) / _STEPS,
        "miss_cycles": miss,
        "miss_position_cycles": (steady[MISS_16] - miss) / _STEPS,
        "tree_level_cycles": (steady[TREE_OF_16] - one) / _LEVELS,
        "keyed_level_cycles": (steady[KEYED_16] - one) / _LEVELS,
    }
    costs = _with(before, found)
    return _with(costs, {"misprediction_cycles": _misprediction(costs, random)})


def _misprediction(costs: Costs, random: Mapping[int, Cycles]) -> float:
    foreseen = replace(costs, misprediction_cycles=0.0, randomness_share=1.0)
    unforeseen = replace(foreseen, misprediction_cycles=1.0)
    products = squares = 0.0
    for targets, cycles in random.items():
        shares = [(GuestVirtual(1 + number), 1 / targets) for number in range(targets)]
        parts = [share for _, share in shares]
        for name, base, one in (
            (CHAIN, foreseen.chain(parts), unforeseen.chain(parts)),
            (TREE, foreseen.tree(shares), unforeseen.tree(shares)),
        ):
            slope = (one - base) / cycles[name]
            products += slope * (1 - base / cycles[name])
            squares += slope * slope
    return products / squares


def _with(costs: Costs, found: Mapping[str, float]) -> Costs:
    """Return ``costs`` with what was found; a cost below its range becomes the least allowed."""
    rounded = {
        name: max(COST_RANGES[name][0], round(value, _DIGITS)) for name, value in found.items()
    }
    return replace(costs, **rounded)
