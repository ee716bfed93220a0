"""Call rates: how often each site is called, and what its direct calls are worth.

There is one estimate of a site's rate.  The arena budget, the status, the coverage and the tables
of sites all take it from here.  Nothing here does I/O or reads a clock.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import Chain, Form
from optpolined.learning.cost import Costs
from optpolined.learning.strategy import Share, SiteEpoch, Snapshot

__all__ = ("CallRates", "Rate", "Worth")

_NEWEST_WEIGHT = 0.5
"""The weight of the newest epoch in a rate."""

_NO_CALLS = SiteEpoch({})


@dataclass(slots=True)
class Rate:
    """The calls per second of one site: all of them, and the misses of the last epoch."""

    calls_per_second: float = 0.0
    """The moving average of the epochs in which all calls of the site were counted."""
    misses_per_second: float = 0.0
    measured: float = -math.inf
    """The last epoch in which all calls of the site were counted."""

    @property
    def direct_per_second(self) -> float:
        """The calls that do not miss; the calls may be older than the misses."""
        return max(0.0, self.calls_per_second - self.misses_per_second)


@dataclass(frozen=True, slots=True)
class Worth:
    """What the promoted and the learning sites are worth now, by rates and cost model."""

    direct_per_second: float
    missed_per_second: float
    coverage: float | None
    """The share of all calls that are direct; ``None`` where no call was counted yet."""
    cycles_saved_per_second: float
    """Against retpolines."""
    learning_overhead_share: float
    """What learning stubs cost beyond retpolines, as a share of what all calls would cost by
    retpolines."""


class CallRates:
    """The rates of all sites that were ever counted.

    A site whose form counts all its calls is measured in each epoch, also where it was not called:
    the rate of a site that falls silent halves with each epoch.  In any other form a site keeps the
    rate that was measured last.
    """

    def __init__(self) -> None:
        self._rates: dict[GuestVirtual, Rate] = {}
        self.counted_calls = 0
        """Calls that passed a learning stub."""
        self.missed_calls = 0
        """Those of them that a promoted site missed."""
        self._learning_per_second = 0.0

    def update(self, snapshot: Snapshot) -> None:
        """Take in one epoch."""
        self._learning_per_second = 0.0
        for rate in self._rates.values():
            rate.misses_per_second = 0.0
        if snapshot.seconds <= 0:
            return
        for address, form in snapshot.installed.items():
            if isinstance(form, Chain):
                self._count(address, form, snapshot)
        if snapshot.census:
            self._take_census(snapshot)

    def _take_census(self, snapshot: Snapshot) -> None:
        """Measure the covered sites that stood as they were built: a census sees all calls."""
        for address in snapshot.covered & (snapshot.sites.keys() | self._rates.keys()):
            if not isinstance(snapshot.installed.get(address), Chain):
                counts = snapshot.sites.get(address, _NO_CALLS)
                calls = sum(counts.calls.values()) + counts.other
                self.counted_calls += calls
                rate = self._rates.setdefault(address, Rate())
                _measure(rate, calls / snapshot.seconds, snapshot.epoch)

    def _count(self, address: GuestVirtual, form: Chain, snapshot: Snapshot) -> None:
        counts = snapshot.sites.get(address, _NO_CALLS)
        slow = sum(counts.calls.values()) + counts.other
        self.counted_calls += slow
        rate = self._rates.setdefault(address, Rate())
        if not form.targets or form.counts_hits:
            _measure(rate, (slow + counts.hits) / snapshot.seconds, snapshot.epoch)
        if form.targets:
            self.missed_calls += slow
            rate.misses_per_second = slow / snapshot.seconds
        else:
            self._learning_per_second += slow / snapshot.seconds

    def drop_sites(self, sites: Iterable[GuestVirtual]) -> None:
        """Drop the rates of sites whose module was unloaded."""
        for site in sites:
            self._rates.pop(site, None)

    def of(self, site: GuestVirtual) -> Rate:
        """Return the rate of one site."""
        return self._rates.get(site, Rate())

    def calls_per_second(self, sites: Iterable[GuestVirtual]) -> float:
        """Return how often these sites are called together."""
        return sum(self.of(site).calls_per_second for site in sites)

    def promoted(self, forms: Mapping[GuestVirtual, Form]) -> dict[GuestVirtual, Rate]:
        """Return the rates of the sites whose calls are direct now, the most called first.

        :param forms: What stands at the sites, in the strategy's words.
        """
        rates = {
            address: self.of(address)
            for address, form in forms.items()
            if isinstance(form, Chain) and form.targets
        }
        return dict(sorted(rates.items(), key=lambda item: -item[1].calls_per_second))

    def worth(
        self,
        promoted: Mapping[GuestVirtual, Rate],
        forms: Mapping[GuestVirtual, Form],
        shares: Mapping[GuestVirtual, Sequence[Share]],
        costs: Costs,
    ) -> Worth:
        """Return what the promoted sites save and what the learning sites cost.

        :param promoted: As of :meth:`promoted`.
        :param forms: What stands at these sites, in the forms that they really have.
        :param shares: The shares by which the targets of these sites were chosen.
        """
        direct = missed = saved = 0.0
        slow_costs = costs.chain(())
        for site, rate in promoted.items():
            direct += rate.direct_per_second
            missed += rate.misses_per_second
            hit = costs.form(forms[site], _of_hits(forms[site], shares.get(site, ())))
            saved += rate.direct_per_second * (costs.retpoline_cycles - hit)
            saved -= rate.misses_per_second * (slow_costs - costs.retpoline_cycles)
        everything = sum(rate.calls_per_second for rate in self._rates.values())
        everything = max(everything, direct + missed)
        overhead = self._learning_per_second * (slow_costs - costs.retpoline_cycles)
        by_retpolines = everything * costs.retpoline_cycles
        return Worth(
            direct,
            missed,
            direct / everything if everything else None,
            saved,
            max(0.0, overhead / by_retpolines) if by_retpolines else 0.0,
        )


def _measure(rate: Rate, calls_per_second: float, epoch: int) -> None:
    weight = 1.0 if rate.measured == -math.inf else _NEWEST_WEIGHT
    rate.calls_per_second += weight * (calls_per_second - rate.calls_per_second)
    rate.measured = epoch


def _of_hits(form: Form, shares: Sequence[Share]) -> list[Share]:
    """Return the shares of the calls that hit; equal shares where none is known."""
    targets = set(getattr(form, "targets", ()))
    known = [(target, share) for target, share in shares if target in targets and share > 0]
    total = sum(share for _, share in known)
    if total <= 0:
        return [(target, 1 / len(targets)) for target in sorted(targets)]
    return [(target, share / total) for target, share in known]
