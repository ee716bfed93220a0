"""Finds the calls that were really made, as far as a trace shows them.

What a trace holds depends on what stood at the sites.  To try another strategy on the same calls,
all of them must be known, by target.  They are reconstructed epoch by epoch, site by site and CPU
by CPU:

1. Where the site learned (``LEARNING``, ``LearnKeys``, or the original in an epoch of a census that
   covered the site), every call was counted and is known.  Calls that found no slot have the target
   ``UNKNOWN_TARGET``, which no form can name.  A made-up trace has nothing else.
2. Where a chain counted its hits, its misses are known, and so is the sum of its hits.  The sum is
   split among the chain's targets in the proportions of the last time that the site learned (the
   next time, if it had not learned before); evenly, if it never learned.  A census does not tell
   CPUs apart, so its proportions are those of all CPUs.
3. Where a form counted its misses alone, these are known.  Its targets are assumed to be called at
   the rates that 1 or 2 measured last (next, if they were not measured before).
4. Where nothing was counted (the original, or foreign bytes), all targets are assumed to be called
   at these rates.

"Last measured" is the nearest unbroken run of such epochs in time, with the mean of its rates;
the earlier of two that are equally near.  So what was not measured is assumed not to have changed.
A site that falls silent or changes its targets behind a chain shows that only when it is next
measured.  Rates are rounded down to whole calls, and the remainder is carried over to the next
epoch, so that a slow rate is not lost.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import ORIGINAL, Chain, Form, LearnKeys, Original
from optpolined.learning.strategy import SiteEpoch
from optpolined.learning.trace.model import Trace

__all__ = ("UNKNOWN_TARGET", "Calls", "EpochCalls", "find_actual_calls")

UNKNOWN_TARGET = GuestVirtual(0)
"""The target of calls whose target was not noted."""

Calls = Mapping[int, Mapping[GuestVirtual, int]]
"""The calls of one site in one epoch, by CPU and target."""

EpochCalls = dict[GuestVirtual, Calls]
"""The calls of all sites that were called in one epoch."""

_NOTHING = SiteEpoch({})


class _Observation(NamedTuple):
    """One site in one epoch of the trace, by the number of the epoch."""

    place: int
    seconds: float
    form: Form
    by_cpu: Mapping[int, SiteEpoch]
    in_census: bool
    """Whether a census counted the calls of the original."""

    @property
    def counts_all(self) -> bool:
        return self.in_census or _counts_all(self.form)

    @property
    def measures(self) -> bool:
        return self.counts_all or _counts_hits(self.form)


@dataclass(slots=True)
class _MeasuredRun:
    """Epochs in a row that measured a site: the sum of their calls, and of their time."""

    first: int
    last: int
    seconds: float = 0.0
    calls: dict[int, dict[GuestVirtual, int]] = field(default_factory=dict)
    in_census: bool = False
    """Whether a census measured a part of it, under CPU 0 for all of them."""

    def add(self, seen: _Observation, calls: Calls) -> None:
        self.last = seen.place
        self.in_census |= seen.in_census
        self.seconds += seen.seconds
        for cpu, counts in calls.items():
            mine = self.calls.setdefault(cpu, {})
            for target, count in counts.items():
                mine[target] = mine.get(target, 0) + count

    def of_cpu(self, cpu: int) -> Mapping[GuestVirtual, int]:
        return self.calls.get(0 if self.in_census else cpu, {})

    def distance(self, place: int) -> int:
        return max(self.first - place, place - self.last, 0)


def find_actual_calls(trace: Trace) -> list[EpochCalls]:
    """Return the calls of each epoch of the trace."""
    actual: list[EpochCalls] = [{} for _ in trace.epochs]
    for site, lifetimes in _lifetimes(trace).items():
        for observations in lifetimes:
            for place, calls in _Site(observations).calls():
                if calls:
                    actual[place][site] = calls
    return actual


def _lifetimes(trace: Trace) -> dict[GuestVirtual, list[list[_Observation]]]:
    """Yield each site that was ever called, once for each time that its module was loaded."""
    called = {site for epoch in trace.epochs for site in epoch.counts}
    lifetimes: dict[GuestVirtual, list[list[_Observation]]] = {site: [] for site in called}
    present: set[GuestVirtual] = set()
    standing = zip(trace.standing(), trace.covering(), strict=True)
    for place, ((epoch, forms), covered) in enumerate(standing):
        present.difference_update(epoch.went)
        for site in called & epoch.came.keys():
            present.add(site)
            lifetimes[site].append([])
        for site in present:
            form, gains = forms.get(site, ORIGINAL), epoch.counts.get(site, {})
            in_census = epoch.census and form == ORIGINAL and site in covered
            lifetimes[site][-1].append(_Observation(place, epoch.seconds, form, gains, in_census))
    return lifetimes


def _counts_all(form: Form) -> bool:
    return isinstance(form, LearnKeys) or (isinstance(form, Chain) and not form.targets)


def _counts_hits(form: Form) -> bool:
    return isinstance(form, Chain) and form.counts_hits and bool(form.targets)


class _Site:
    """One site, from the load of its module to the unload."""

    def __init__(self, observations: Sequence[_Observation]) -> None:
        self._observations = observations
        self._owed: dict[tuple[int, GuestVirtual], float] = {}
        self._learned: list[_MeasuredRun] = []
        self._learned = self._measured_runs(lambda seen: seen.counts_all)
        self._measured = self._measured_runs(lambda seen: seen.measures)

    def calls(self) -> Iterator[tuple[int, Calls]]:
        """Yield the number and the calls of each epoch."""
        for seen in self._observations:
            if seen.measures:
                yield seen.place, self._counted(seen)
            else:
                yield seen.place, self._assumed(seen)

    def _measured_runs(self, belongs: Callable[[_Observation], bool]) -> list[_MeasuredRun]:
        runs: list[_MeasuredRun] = []
        for seen in self._observations:
            if not belongs(seen):
                continue
            if not runs or runs[-1].last != seen.place - 1:
                runs.append(_MeasuredRun(seen.place, seen.place))
            runs[-1].add(seen, self._counted(seen))
        return runs

    def _counted(self, seen: _Observation) -> Calls:
        """Return the calls of an epoch that counted all of them (rules 1 and 2)."""
        return {cpu: self._split(seen, cpu, gain) for cpu, gain in seen.by_cpu.items()}

    def _split(self, seen: _Observation, cpu: int, gain: SiteEpoch) -> dict[GuestVirtual, int]:
        calls = _noted(gain)
        if not gain.hits or not isinstance(seen.form, Chain) or not seen.form.targets:
            return calls
        nearest = _nearest(self._learned, seen.place)
        known = {} if nearest is None else nearest.of_cpu(cpu)
        weights = [known.get(target, 0) for target in seen.form.targets]
        if not sum(weights):
            weights = [1] * len(weights)
        left, of = gain.hits, sum(weights)
        for target, weight in zip(seen.form.targets, weights, strict=True):
            # Split what is left by the weights that are left, so that rounding loses no call.
            part = left * weight // of if of else 0
            left, of = left - part, of - weight
            if part:
                calls[target] = calls.get(target, 0) + part
        return calls

    def _assumed(self, seen: _Observation) -> Calls:
        """Return the calls of an epoch that counted only misses, or nothing (rules 3 and 4)."""
        targets = None if isinstance(seen.form, Original) else set(seen.form.targets)
        calls = {cpu: _noted(gain) for cpu, gain in seen.by_cpu.items()}
        nearest = _nearest(self._measured, seen.place)
        if nearest is None or nearest.seconds <= 0:
            return {cpu: counts for cpu, counts in calls.items() if counts}
        for cpu, counts in nearest.calls.items():
            for target, count in counts.items():
                if targets is not None and target not in targets:
                    continue
                owed = self._owed.get((cpu, target), 0.0) + count * seen.seconds / nearest.seconds
                self._owed[cpu, target] = owed - int(owed)
                if int(owed):
                    mine = calls.setdefault(cpu, {})
                    mine[target] = mine.get(target, 0) + int(owed)
        return {cpu: counts for cpu, counts in calls.items() if counts}


def _noted(gain: SiteEpoch) -> dict[GuestVirtual, int]:
    """Return the calls that were counted by target."""
    calls = dict(gain.calls)
    if gain.other:
        calls[UNKNOWN_TARGET] = calls.get(UNKNOWN_TARGET, 0) + gain.other
    return calls


def _nearest(runs: Sequence[_MeasuredRun], place: int) -> _MeasuredRun | None:
    return min(runs, key=lambda run: run.distance(place), default=None)
