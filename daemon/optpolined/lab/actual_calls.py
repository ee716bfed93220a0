"""The calls that were really made, as far as a trace can tell.

What a trace holds depends on what stood at the sites.  To ask what another strategy would have made
of the same calls, all of them must be known, by target.  So they are put together again, epoch by
epoch, site by site and CPU by CPU:

1. Where the site learned (``LEARNING``, ``LearnKeys``), every call was counted: that is the truth.
   Calls that found no slot were made to ``NOBODY``, which no form can name.  A trace that was made
   up has nothing else.
2. Where a chain counted its hits, its misses are the truth, and so is the sum of its hits.  The sum
   is split among the chain's targets as these were called when the site last learned (next, where
   it never had before); evenly, where it never did.
3. Where a form counted its misses alone, these are the truth.  Its targets are taken to be called
   at the rates that were last measured by 1 or 2 (next, where they never had been before).
4. Where nothing was counted (the original, or somebody else's bytes), all targets are taken to be
   called at these rates.

"Last measured" is the nearest unbroken stretch of such epochs in time, the earlier of two that are
as near, with the mean of its rates.  So what nobody looked at is taken not to have changed: a site
that fell silent, or changed its mind, behind a chain that hit or a text that did not count shows
only when it is next measured.  Rates are rounded down to whole calls, and what is lost of them is
carried over to the next epoch, so that a slow rate is not lost.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import ORIGINAL, Chain, Form, LearnKeys, Original
from optpolined.learning.strategy import SiteEpoch
from optpolined.learning.trace.model import Trace

__all__ = ("NOBODY", "Calls", "EpochTruth", "find_actual_calls")

NOBODY = GuestVirtual(0)
"""The target of calls whose target nobody noted."""

Calls = Mapping[int, Mapping[GuestVirtual, int]]
"""The calls of one site in one epoch, by CPU and target."""

EpochTruth = dict[GuestVirtual, Calls]
"""The calls of all sites that were called in one epoch."""

_NOTHING = SiteEpoch({})


class _Look(NamedTuple):
    """One site in one epoch of the trace, by its place."""

    place: int
    seconds: float
    form: Form
    by_cpu: Mapping[int, SiteEpoch]


@dataclass(slots=True)
class _Stretch:
    """Epochs in a row that measured a site: all their calls, and all their time."""

    first: int
    last: int
    seconds: float = 0.0
    calls: dict[int, dict[GuestVirtual, int]] = field(default_factory=dict)

    def add(self, look: _Look, calls: Calls) -> None:
        self.last = look.place
        self.seconds += look.seconds
        for cpu, counts in calls.items():
            mine = self.calls.setdefault(cpu, {})
            for target, count in counts.items():
                mine[target] = mine.get(target, 0) + count

    def distance(self, place: int) -> int:
        return max(self.first - place, place - self.last, 0)


def find_actual_calls(trace: Trace) -> list[EpochTruth]:
    """What was called in each epoch of the trace."""
    actual: list[EpochTruth] = [{} for _ in trace.epochs]
    for site, lives in _lives(trace).items():
        for looks in lives:
            for place, calls in _Site(looks).calls():
                if calls:
                    actual[place][site] = calls
    return actual


def _lives(trace: Trace) -> dict[GuestVirtual, list[list[_Look]]]:
    """Each site that was ever called, from each of its comings to its going."""
    called = {site for epoch in trace.epochs for site in epoch.counts}
    lives: dict[GuestVirtual, list[list[_Look]]] = {site: [] for site in called}
    present: set[GuestVirtual] = set()
    for place, (epoch, forms) in enumerate(trace.standing()):
        present.difference_update(epoch.went)
        for site in called & epoch.came.keys():
            present.add(site)
            lives[site].append([])
        for site in present:
            form, gains = forms.get(site, ORIGINAL), epoch.counts.get(site, {})
            lives[site][-1].append(_Look(place, epoch.seconds, form, gains))
    return lives


def _counts_all(form: Form) -> bool:
    return isinstance(form, LearnKeys) or (isinstance(form, Chain) and not form.targets)


def _counts_hits(form: Form) -> bool:
    return isinstance(form, Chain) and form.counts_hits and bool(form.targets)


class _Site:
    """One site from its coming to its going."""

    def __init__(self, looks: Sequence[_Look]) -> None:
        self._looks = looks
        self._owed: dict[tuple[int, GuestVirtual], float] = {}
        self._learned: list[_Stretch] = []
        self._learned = self._stretches(lambda look: _counts_all(look.form))
        self._measured = self._stretches(
            lambda look: _counts_all(look.form) or _counts_hits(look.form)
        )

    def calls(self) -> Iterator[tuple[int, Calls]]:
        """Place and calls of each epoch."""
        for look in self._looks:
            if _counts_all(look.form) or _counts_hits(look.form):
                yield look.place, self._counted(look)
            else:
                yield look.place, self._taken(look)

    def _stretches(self, belongs: Callable[[_Look], bool]) -> list[_Stretch]:
        stretches: list[_Stretch] = []
        for look in self._looks:
            if not belongs(look):
                continue
            if not stretches or stretches[-1].last != look.place - 1:
                stretches.append(_Stretch(look.place, look.place))
            stretches[-1].add(look, self._counted(look))
        return stretches

    def _counted(self, look: _Look) -> Calls:
        """An epoch whose calls were all counted (rules 1 and 2)."""
        return {cpu: self._split(look, cpu, gain) for cpu, gain in look.by_cpu.items()}

    def _split(self, look: _Look, cpu: int, gain: SiteEpoch) -> dict[GuestVirtual, int]:
        calls = _noted(gain)
        if not gain.hits or not isinstance(look.form, Chain) or not look.form.targets:
            return calls
        nearest = _nearest(self._learned, look.place)
        known = {} if nearest is None else nearest.calls.get(cpu, {})
        weights = [known.get(target, 0) for target in look.form.targets]
        if not sum(weights):
            weights = [1] * len(weights)
        left, of = gain.hits, sum(weights)
        for target, weight in zip(look.form.targets, weights, strict=True):
            # What is left, by the weights that are left: nothing is lost to rounding.
            part = left * weight // of if of else 0
            left, of = left - part, of - weight
            if part:
                calls[target] = calls.get(target, 0) + part
        return calls

    def _taken(self, look: _Look) -> Calls:
        """An epoch of which only the misses are known, or nothing (rules 3 and 4)."""
        targets = None if isinstance(look.form, Original) else set(look.form.targets)
        calls = {cpu: _noted(gain) for cpu, gain in look.by_cpu.items()}
        nearest = _nearest(self._measured, look.place)
        if nearest is None or nearest.seconds <= 0:
            return {cpu: counts for cpu, counts in calls.items() if counts}
        for cpu, counts in nearest.calls.items():
            for target, count in counts.items():
                if targets is not None and target not in targets:
                    continue
                owed = self._owed.get((cpu, target), 0.0) + count * look.seconds / nearest.seconds
                self._owed[cpu, target] = owed - int(owed)
                if int(owed):
                    mine = calls.setdefault(cpu, {})
                    mine[target] = mine.get(target, 0) + int(owed)
        return {cpu: counts for cpu, counts in calls.items() if counts}


def _noted(gain: SiteEpoch) -> dict[GuestVirtual, int]:
    """The calls that were counted one by one."""
    calls = dict(gain.calls)
    if gain.other:
        calls[NOBODY] = calls.get(NOBODY, 0) + gain.other
    return calls


def _nearest(stretches: Sequence[_Stretch], place: int) -> _Stretch | None:
    return min(stretches, key=lambda stretch: stretch.distance(place), default=None)
