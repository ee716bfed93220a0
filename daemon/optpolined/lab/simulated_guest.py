"""A guest made from a trace: the forms at its sites decide what it counts.

It counts as optpoline.ko does, with 7 slots a record and CPU, which the first targets claim.  A
site that is to count all its calls gets a fresh record if one of its records is full.  Pokes take
effect at once, between two epochs, and the arena has space for all blocks.

A covered site that is to learn stays as it was built, as in the daemon, and a census counts all its
calls.  The trace says which epochs belong to a census.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form, LearnKeys, Original
from optpolined.kernel.module.abi import RECORD_SLOTS
from optpolined.lab.actual_calls import UNKNOWN_TARGET, EpochCalls
from optpolined.learning.strategy import SiteEpoch

__all__ = ("SimulatedGuest", "as_poked")


class SimulatedGuest:
    """A guest; ``forms`` is its text, and sites that are not in it are as they were built."""

    def __init__(self) -> None:
        self.forms: dict[GuestVirtual, Form] = {}
        self.covered: AbstractSet[GuestVirtual] = frozenset()
        """The sites that learn by census."""
        self._claimed: dict[GuestVirtual, dict[int, set[GuestVirtual]]] = {}

    def poke(self, wanted: Mapping[GuestVirtual, Form]) -> dict[GuestVirtual, Form]:
        """Give sites their forms; return the sites that had another form before."""
        changes = {
            site: form
            for site, form in as_poked(wanted, self.covered).items()
            if form != self.forms.get(site, ORIGINAL)
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

    def drop_site(self, site: GuestVirtual) -> None:
        """Drop a site whose module was unloaded."""
        self.forms.pop(site, None)
        self._claimed.pop(site, None)

    def count(self, actual: EpochCalls, *, census: bool = False) -> dict[GuestVirtual, SiteEpoch]:
        """Return what the sites count in one epoch, summed over the CPUs.

        :param census: Whether a census counts the calls of the covered sites.
        """
        counts = {}
        for site, by_cpu in actual.items():
            form = self.forms.get(site, ORIGINAL)
            if isinstance(form, Original):
                if census and site in self.covered:
                    counts[site] = _all_calls(by_cpu)
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
                elif target != UNKNOWN_TARGET and (target in slots or len(slots) < RECORD_SLOTS):
                    slots.add(target)
                    calls[target] = calls.get(target, 0) + number
                else:
                    other += number
        return SiteEpoch(calls, other, hits)


def as_poked(
    wanted: Mapping[GuestVirtual, Form], covered: AbstractSet[GuestVirtual]
) -> dict[GuestVirtual, Form]:
    """Return what the daemon pokes for these wanted forms."""
    return {
        site: ORIGINAL if form == LEARNING and site in covered else form
        for site, form in wanted.items()
    }


def _all_calls(by_cpu: Mapping[int, Mapping[GuestVirtual, int]]) -> SiteEpoch:
    """Return what a census counts of a site: its pairs are never short of slots."""
    calls: dict[GuestVirtual, int] = {}
    for made in by_cpu.values():
        for target, number in made.items():
            calls[target] = calls.get(target, 0) + number
    other = calls.pop(UNKNOWN_TARGET, 0)
    return SiteEpoch(calls, other)


def _counts_all(form: Form) -> bool:
    return isinstance(form, LearnKeys) or (
        isinstance(form, Chain) and (form.counts_hits or not form.targets)
    )
