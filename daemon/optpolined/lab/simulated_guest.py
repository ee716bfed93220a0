"""A guest made of a trace: what a strategy pokes decides what the guest counts.

It counts as optpoline.ko does: 7 slots a record and CPU, claimed by the first targets that come; a
site that is to count all its calls gets a fresh record where one of its records is full.  Pokes are
done at once, between two epochs; the arena has room for everything.
"""

from collections.abc import Mapping

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import ORIGINAL, Chain, Form, LearnKeys, Original
from optpolined.kernel.module.abi import RECORD_SLOTS
from optpolined.lab.actual_calls import NOBODY, EpochTruth
from optpolined.learning.strategy import SiteEpoch

__all__ = ("SimulatedGuest",)


class SimulatedGuest:
    """``forms`` is its text; sites that are not in it stand as they were built."""

    def __init__(self) -> None:
        self.forms: dict[GuestVirtual, Form] = {}
        self._claimed: dict[GuestVirtual, dict[int, set[GuestVirtual]]] = {}

    def poke(self, wanted: Mapping[GuestVirtual, Form]) -> dict[GuestVirtual, Form]:
        """Give sites their forms; answer those that had others before."""
        changes = {
            site: form for site, form in wanted.items() if form != self.forms.get(site, ORIGINAL)
        }
        for site, form in changes.items():
            if form == ORIGINAL:
                del self.forms[site]
            else:
                self.forms[site] = form
            slots = self._claimed.get(site, {})
            if _counts_all(form) and any(len(mine) >= RECORD_SLOTS for mine in slots.values()):
                del self._claimed[site]
        return changes

    def forget(self, site: GuestVirtual) -> None:
        """A site went with its module."""
        self.forms.pop(site, None)
        self._claimed.pop(site, None)

    def count(self, actual: EpochTruth) -> dict[GuestVirtual, SiteEpoch]:
        """What the sites count of the calls of one epoch, summed over the CPUs."""
        counts = {}
        for site, by_cpu in actual.items():
            form = self.forms.get(site, ORIGINAL)
            if isinstance(form, Original):
                continue
            gain = self._gain(site, form, by_cpu)
            if gain.calls or gain.other or gain.hits:
                counts[site] = gain
        return counts

    def _gain(
        self, site: GuestVirtual, form: Form, by_cpu: Mapping[int, Mapping[GuestVirtual, int]]
    ) -> SiteEpoch:
        assert not isinstance(form, Original)
        direct = set(form.targets)
        counts_hits = isinstance(form, Chain) and form.counts_hits
        records = self._claimed.setdefault(site, {})
        calls: dict[GuestVirtual, int] = {}
        other = hits = 0
        for cpu, made in by_cpu.items():
            slots = records.setdefault(cpu, set())
            for target, number in made.items():
                if target in direct:
                    hits += number if counts_hits else 0
                elif target != NOBODY and (target in slots or len(slots) < RECORD_SLOTS):
                    slots.add(target)
                    calls[target] = calls.get(target, 0) + number
                else:
                    other += number
        return SiteEpoch(calls, other, hits)


def _counts_all(form: Form) -> bool:
    return isinstance(form, LearnKeys) or (
        isinstance(form, Chain) and (form.counts_hits or not form.targets)
    )
