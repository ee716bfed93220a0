"""A guest of a few lines: sites with known targets and rates, which answer to what stands there."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.learning.hysteresis import Hysteresis
from optpolined.learning.settings import LearningSettings
from optpolined.learning.strategy import Decision, SiteEpoch, Snapshot, Strategy

StateT = TypeVar("StateT")

SECONDS = 0.5
SLOTS = 7

Mix = Mapping[GuestVirtual, float]
"""Calls per second, by target."""
Site = Callable[[int], Mix]
"""The mix of an epoch."""


def site(number: int) -> GuestVirtual:
    return GuestVirtual(0xFFFFFFFF81000000 + 16 * number)


def target(number: int) -> GuestVirtual:
    return GuestVirtual(0xFFFFFFFF82000000 + 16 * number)


A, B, C, D, E, F, G, H = (target(number) for number in range(8))


def mix(*rates: float, first: int = 0) -> dict[GuestVirtual, float]:
    return {target(first + number): rate for number, rate in enumerate(rates)}


def steady(*rates: float, first: int = 0) -> Site:
    return lambda _: mix(*rates, first=first)


def phases(period: int, *mixes: Mix) -> Site:
    return lambda epoch: mixes[epoch // period % len(mixes)]


@dataclass
class Totals:
    """What truly happened, epoch by epoch."""

    direct: list[int] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    pokes: list[int] = field(default_factory=list)

    def coverage(self, first: int, end: int | None = None) -> float:
        return sum(self.direct[first:end]) / sum(self.calls[first:end])


class SyntheticGuest:
    """Steps its sites; ``installed`` is its text."""

    def __init__(self, sites: Mapping[GuestVirtual, Site], *, noise: int | None = None) -> None:
        self.sites = dict(sites)
        self.installed: dict[GuestVirtual, Form] = {}
        self.random = None if noise is None else Random(noise)
        self.claimed: dict[GuestVirtual, set[GuestVirtual]] = {}
        self.seen: dict[GuestVirtual, set[GuestVirtual]] = {address: set() for address in sites}
        self.epoch = -1
        self.totals = Totals()

    def poke(self, wanted: Mapping[GuestVirtual, Form]) -> None:
        self.installed.update(wanted)
        for address in wanted:
            self.claimed[address] = set()
        self.totals.pokes.append(len(wanted))

    def step(self) -> Snapshot:
        self.epoch += 1
        self.totals.direct.append(0)
        self.totals.calls.append(0)
        counted = {address: self._call(address) for address in self.sites}
        sites = {address: seen for address, seen in counted.items() if seen is not None}
        return Snapshot(self.epoch, SECONDS, sites, dict(self.installed))

    def _number(self, rate: float) -> int:
        mean = rate * SECONDS
        if self.random is None:
            return round(mean)
        return max(0, round(self.random.gauss(mean, mean**0.5)))

    def _call(self, address: GuestVirtual) -> SiteEpoch | None:
        form = self.installed.get(address, ORIGINAL)
        calls: dict[GuestVirtual, int] = {}
        other = hits = 0
        for called, rate in self.sites[address](self.epoch).items():
            number = self._number(rate)
            self.totals.calls[-1] += number
            if not isinstance(form, Chain) or not number:
                continue
            slots = self.claimed.setdefault(address, set())
            if called in form.targets:
                self.totals.direct[-1] += number
                hits += number if form.counts_hits else 0
            elif called in slots or len(slots) < SLOTS:
                slots.add(called)
                self.seen[address].add(called)
                calls[called] = number
            else:
                other += number
        return SiteEpoch(calls, other, hits) if calls or other or hits else None


class Run:
    """A strategy at work on a synthetic guest."""

    def __init__(
        self,
        sites: Mapping[GuestVirtual, Site],
        settings: LearningSettings | None = None,
        *,
        noise: int | None = None,
        strategy: Strategy[Any] | None = None,
    ) -> None:
        self.guest = SyntheticGuest(sites, noise=noise)
        self.strategy = strategy or Hysteresis(settings)
        self.state = self.strategy.initial(sites)
        self.snapshots: list[Snapshot] = []
        self.decisions: list[Decision] = []

    @property
    def totals(self) -> Totals:
        return self.guest.totals

    def epochs(self, number: int) -> "Run":
        for _ in range(number):
            snapshot = self.guest.step()
            self.state, decision = self.strategy.decide(self.state, snapshot)
            self.guest.poke(decision.wanted)
            self.snapshots.append(snapshot)
            self.decisions.append(decision)
        return self

    def name(self, address: GuestVirtual) -> str:
        return self.strategy.site_statuses(self.state)[address].state

    def targets(self, address: GuestVirtual) -> tuple[GuestVirtual, ...]:
        form = self.guest.installed.get(address, ORIGINAL)
        return form.targets if isinstance(form, Chain) else ()


def replay(
    strategy: Strategy[StateT], state: StateT, snapshots: Iterable[Snapshot]
) -> list[Decision]:
    decisions = []
    for snapshot in snapshots:
        state, decision = strategy.decide(state, snapshot)
        decisions.append(decision)
    return decisions


def learning_snapshot(
    epoch: int, sites: Mapping[GuestVirtual, Mix], form: Form = LEARNING
) -> Snapshot:
    """Exact counts of one epoch, all sites in the same form."""
    counts = {
        address: SiteEpoch({called: round(rate * SECONDS) for called, rate in rates.items()})
        for address, rates in sites.items()
    }
    return Snapshot(epoch, SECONDS, counts, dict.fromkeys(sites, form))
