"""Computes the result of the best possible decisions.

The clairvoyant knows the calls of every epoch before they are made, and its pokes cost nothing and
take no time.  At each site and in each epoch it has the form that is the cheapest for these calls
by the cost model, over as many of the hottest targets as that form needs.  It has no form where
none pays by ``min_saving_share``.  It has the same costs and the same settings of forms as the
strategies, and no other limits.  It takes no census, because it knows the calls.  No strategy that
learns can do as well, and where a site changes each epoch, no strategy should try.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from optpolined.lab.actual_calls import EpochCalls
from optpolined.lab.score import TargetShares, target_shares
from optpolined.learning.shape import Shaper
from optpolined.learning.strategy import Share

__all__ = ("Clairvoyant", "foresee")


@dataclass(slots=True)
class Clairvoyant:
    """The clairvoyant's result; lists have an element for each epoch."""

    calls: list[int] = field(default_factory=list)
    direct: list[float] = field(default_factory=list)
    saved_cycles: float = 0.0

    @property
    def coverage(self) -> float:
        """Direct calls over all calls, 0 to 1; 0 without calls."""
        calls = sum(self.calls)
        return sum(self.direct) / calls if calls else 0.0


def foresee(actual: Sequence[EpochCalls], shaper: Shaper) -> Clairvoyant:
    """Return the clairvoyant's result for these calls."""
    account = Clairvoyant()
    known: dict[tuple[Share, ...], tuple[float, float]] = {}
    for sites in actual:
        calls, direct = 0, 0.0
        for by_cpu in sites.values():
            seen = target_shares(by_cpu)
            if seen.shares not in known:
                known[seen.shares] = _best(seen, shaper)
            saving, covered = known[seen.shares]
            calls += seen.calls
            direct += covered * seen.calls
            account.saved_cycles += saving * shaper.costs.retpoline_cycles * seen.calls
        account.calls.append(calls)
        account.direct.append(direct)
    return account


def _best(seen: TargetShares, shaper: Shaper) -> tuple[float, float]:
    """Return the cycles that the cheapest form saves, and its share of direct calls."""
    best = (0.0, 0.0)
    covered = 0.0
    for number, (_, share) in enumerate(seen.shares[: shaper.targets_max], 1):
        covered += share
        targets = seen.shares[:number]
        if shaper.pays(targets):
            best = max(best, (shaper.saving(targets), covered))
    return best
