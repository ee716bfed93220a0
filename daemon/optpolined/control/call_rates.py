"""How often each site is called, as far as it was ever counted, and what that is worth."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import Chain, Form
from optpolined.learning.cost import Costs
from optpolined.learning.strategy import Share, SiteEpoch, Snapshot

__all__ = ("CallRates", "Rate", "Worth")


@dataclass(slots=True)
class Rate:
    """Calls per second of one site: all of them when last counted, and those missed just now."""

    calls_per_second: float = 0.0
    misses_per_second: float = 0.0

    @property
    def direct_per_second(self) -> float:
        """What does not miss; the calls may be older than the misses."""
        return max(0.0, self.calls_per_second - self.misses_per_second)


@dataclass(frozen=True, slots=True)
class Worth:
    """What the promoted sites and the learning ones are worth now, by rates and cost model."""

    direct_per_second: float
    missed_per_second: float
    coverage: float | None
    """The share of all calls that are direct; none where nothing was counted yet."""
    cycles_saved_per_second: float
    """Against retpolines."""
    learning_overhead_share: float
    """What learning stubs cost beyond retpolines, of what all calls would cost by retpolines."""


class CallRates:
    """Rates of all sites that were ever counted; for people, decisions do not use them."""

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
        for address, counts in snapshot.sites.items():
            form = snapshot.installed.get(address)
            if isinstance(form, Chain):
                self._count(address, form, counts, snapshot.seconds)

    def _count(self, address: GuestVirtual, form: Chain, counts: SiteEpoch, seconds: float) -> None:
        slow = sum(counts.calls.values()) + counts.other
        self.counted_calls += slow
        rate = self._rates.setdefault(address, Rate())
        if not form.targets or form.counts_hits:
            rate.calls_per_second = (slow + counts.hits) / seconds
        if form.targets:
            self.missed_calls += slow
            rate.misses_per_second = slow / seconds
        else:
            self._learning_per_second += slow / seconds

    def forget(self, sites: Iterable[GuestVirtual]) -> None:
        """Drop sites that are gone."""
        for site in sites:
            self._rates.pop(site, None)

    def of(self, site: GuestVirtual) -> Rate:
        """The rate of one site."""
        return self._rates.get(site, Rate())

    def promoted(self, forms: Mapping[GuestVirtual, Form]) -> dict[GuestVirtual, Rate]:
        """The rates of the sites whose calls are direct now, the most called first.

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
        """What all this is worth.

        :param promoted: As of :meth:`promoted`.
        :param forms: What stands at these sites, in the forms that they really have.
        :param shares: By which their targets were chosen.
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


def _of_hits(form: Form, shares: Sequence[Share]) -> list[Share]:
    """The shares of the calls that hit; alike for all targets where nothing is known of them."""
    targets = set(getattr(form, "targets", ()))
    known = [(target, share) for target, share in shares if target in targets and share > 0]
    total = sum(share for _, share in known)
    if total <= 0:
        return [(target, 1 / len(targets)) for target in sorted(targets)]
    return [(target, share / total) for target, share in known]
