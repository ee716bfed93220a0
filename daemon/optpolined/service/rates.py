"""How often each site is called, as far as it was ever counted."""

from collections.abc import Mapping
from dataclasses import dataclass

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import Chain
from optpolined.learning.strategy import Snapshot
from optpolined.service.inline import Found

__all__ = ("Rate", "Rates")


@dataclass(slots=True)
class Rate:
    """Calls per second of one site: all of them when last counted, and those missed just now."""

    calls_per_second: float = 0.0
    misses_per_second: float = 0.0


class Rates:
    """Rates of all sites that were ever counted; for people, decisions do not use them."""

    def __init__(self) -> None:
        self._rates: dict[GuestVirtual, Rate] = {}
        self.counted_calls = 0

    def update(self, snapshot: Snapshot) -> None:
        """Take in one epoch."""
        for rate in self._rates.values():
            rate.misses_per_second = 0.0
        for address, counts in snapshot.sites.items():
            form = snapshot.installed.get(address)
            if not isinstance(form, Chain) or snapshot.seconds <= 0:
                continue
            slow = sum(counts.calls.values()) + counts.other
            self.counted_calls += slow
            rate = self._rates.setdefault(address, Rate())
            if not form.targets or form.counts_hits:
                rate.calls_per_second = (slow + counts.hits) / snapshot.seconds
            if form.targets:
                rate.misses_per_second = slow / snapshot.seconds

    def promoted(self, forms: Mapping[GuestVirtual, Found]) -> dict[GuestVirtual, Rate]:
        """The rates of the sites whose calls are direct now, the most called first."""
        rates = {
            address: self._rates.get(address, Rate())
            for address, form in forms.items()
            if isinstance(form, Chain) and form.targets
        }
        return dict(sorted(rates.items(), key=lambda item: -item[1].calls_per_second))
