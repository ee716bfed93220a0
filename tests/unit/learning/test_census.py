"""Strategies on sites that learn by census: nothing is known of them between two censuses."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.learning.hysteresis import Hysteresis
from optpolined.learning.settings import LearningSettings
from optpolined.learning.strategies import StrategyName
from optpolined.learning.strategy import SiteEpoch, Snapshot, Strategy

from .synthetic import SECONDS, Mix, Run, Site, SyntheticGuest, mix, phases, replay, site, steady
from .test_properties import PHASES, QUICK, SNAPSHOTS
from .test_rivals import make

S, T = site(0), site(1)
Schedule = Callable[[int], bool]
"""Returns whether a census counts in an epoch."""


class CensusGuest(SyntheticGuest):
    """A guest in which the sites of ``covered`` learn by census, and the others by a stub."""

    def __init__(
        self, sites: Mapping[GuestVirtual, Site], covered: set[GuestVirtual], schedule: Schedule
    ) -> None:
        super().__init__(sites)
        self.covered = covered
        self.schedule = schedule
        self.asking: dict[GuestVirtual, bool] = {}

    def poke(self, wanted: Mapping[GuestVirtual, Form]) -> None:
        """Change what is not so already; a covered site that is to learn stays the original."""
        self.asking.update({address: form == LEARNING for address, form in wanted.items()})
        poked = {a: ORIGINAL if self._learns(a) else form for a, form in wanted.items()}
        super().poke({a: f for a, f in poked.items() if f != self.installed.get(a, ORIGINAL)})

    def _learns(self, address: GuestVirtual) -> bool:
        return address in self.covered and self.asking.get(address, False)

    def step(self) -> Snapshot:
        snapshot = super().step()
        seen = replace(snapshot, covered=self.covered, census=self.schedule(self.epoch))
        return seen.with_stubs(filter(self._learns, self.asking))

    def _call(self, address: GuestVirtual) -> SiteEpoch | None:
        is_original = self.installed.get(address, ORIGINAL) == ORIGINAL
        if not (is_original and address in self.covered and self.schedule(self.epoch)):
            return super()._call(address)
        rates = self.sites[address](self.epoch)
        calls = {called: self._number(rate) for called, rate in rates.items()}
        self.totals.calls[-1] += sum(calls.values())
        return SiteEpoch({c: number for c, number in calls.items() if number})


def run_with(
    sites: Mapping[GuestVirtual, Site],
    schedule: Schedule,
    *,
    covered: set[GuestVirtual] | None = None,
    strategy: Strategy[Any] | None = None,
    options: LearningSettings | None = None,
) -> Run:
    run = Run(sites, options, strategy=strategy)
    run.guest = CensusGuest(sites, set(sites) if covered is None else covered, schedule)
    return run


def never(_epoch: int) -> bool:
    return False


def every(pause: int, length: int) -> Schedule:
    """Return a schedule: a census of ``length`` epochs, then ``pause`` epochs without one."""
    return lambda epoch: epoch % (pause + length) < length


def recurring(epochs: list[bool]) -> Schedule:
    return lambda epoch: epochs[epoch % len(epochs)]


def follow(plan: list[tuple[int, Mix]]) -> Site:
    track = [rates for length, rates in plan for _ in range(length)]
    return lambda epoch: track[epoch % len(track)]


def play(
    plans: list[list[tuple[int, Mix]]],
    schedule: Schedule,
    *,
    covered: set[GuestVirtual],
    strategy: Strategy[Any],
) -> Run:
    sites = {site(number): follow(plan) for number, plan in enumerate(plans)}
    return run_with(sites, schedule, covered=covered, strategy=strategy).epochs(80)


ALL = pytest.mark.parametrize("strategy", [make(name) for name in StrategyName])
PLANS = st.lists(PHASES, min_size=2, max_size=3)
SCHEDULES = st.lists(st.booleans(), min_size=1, max_size=12).map(recurring)
COVERED = st.sets(st.integers(min_value=0, max_value=2).map(site))
relaxed = settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))


@settings(deadline=None)
@given(st.lists(SNAPSHOTS, max_size=30))
def test_a_cold_site_that_no_census_saw_stays_as_it_is(snapshots: list[Snapshot]) -> None:
    strategy = Hysteresis(QUICK)
    sites = {site(n) for n in range(5)}
    state = strategy.initial(sites)
    few = QUICK.census_min_calls - 1
    for epoch, snapshot in enumerate(snapshots):
        state, decision = strategy.decide(state, replace(snapshot, epoch=epoch, covered=sites))
        assert not decision.wanted
        assert set(decision.states.values()) <= {"cold"}
        assert not decision.states or epoch == 0
        # A census that sees a site called now and then leaves it cold too.
        seldom = {a: SiteEpoch({GuestVirtual(16): few}) for a in snapshot.sites}
        seen = Snapshot(epoch, SECONDS, seldom, {}, covered=sites, census=True)
        assert strategy.decide(state, seen)[1].wanted == {}
    assert not strategy.wanted(state)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=4), st.integers(1, 5), st.integers(0, 20))
def test_a_hot_site_is_promoted_after_promote_epochs_of_censuses(
    pauses: list[int], promote_epochs: int, first: int
) -> None:
    options = LearningSettings(promote_epochs=promote_epochs, learn_epochs=20)
    censuses = [first]
    for place in range(1, promote_epochs):
        censuses.append(censuses[-1] + 1 + (pauses[place - 1] if place <= len(pauses) else 0))
    sites = {S: steady(1000, 10), T: steady(1)}
    run = run_with(sites, lambda epoch: epoch in censuses, options=options).epochs(first)
    assert {run.name(S), run.name(T)} == {"cold"}
    while run.guest.epoch + 1 < censuses[-1]:
        run.epochs(1)
        assert run.name(S) == ("learning" if run.guest.epoch >= first else "cold")
    assert not run.targets(S)
    run.epochs(1)
    assert run.name(S) == "promoted"
    assert run.targets(S)
    assert run.name(T) == "cold"
    assert sum(run.totals.pokes) == 1  # straight to its final form


@relaxed
@given(PLANS, SCHEDULES, COVERED)
def test_epochs_without_a_census_neither_promote_nor_reset(
    plans: list[list[tuple[int, Mix]]], schedule: Schedule, covered: set[GuestVirtual]
) -> None:
    run = play(plans, schedule, covered=covered, strategy=Hysteresis(QUICK))
    state = run.strategy.initial(run.guest.sites)
    for snapshot, decision in zip(run.snapshots, run.decisions, strict=True):
        before = state
        state, _ = run.strategy.decide(state, snapshot)
        for address in covered & before.sites.keys() if not snapshot.census else ():
            old, new = before.sites[address], state.sites[address]
            # Only what stands as it was built depends on censuses: a chain counts its misses.
            if old.belief is None:
                assert address not in decision.shares
                assert new.window in (old.window, None)
                if old.deadline is not None and old.deadline > snapshot.epoch:
                    assert new is old


@ALL
@relaxed
@given(plans=PLANS, schedule=SCHEDULES, covered=COVERED)
def test_a_replay_decides_the_same_from_any_point_on(
    strategy: Strategy[Any],
    plans: list[list[tuple[int, Mix]]],
    schedule: Schedule,
    covered: set[GuestVirtual],
) -> None:
    run = play(plans, schedule, covered=covered, strategy=strategy)
    state = strategy.initial(run.guest.sites)
    assert replay(strategy, state, run.snapshots) == run.decisions
    for middle in (7, 45):
        resumed = state
        for snapshot in run.snapshots[:middle]:
            resumed, _ = strategy.decide(resumed, snapshot)
        assert strategy.load(strategy.dump(resumed)) == resumed
        resumed = strategy.load(strategy.dump(resumed))
        assert replay(strategy, resumed, run.snapshots[middle:]) == run.decisions[middle:]


@ALL
@relaxed
@given(plans=PLANS, schedule=SCHEDULES, covered=COVERED)
def test_no_target_is_named_that_was_not_counted_at_that_site(
    strategy: Strategy[Any],
    plans: list[list[tuple[int, Mix]]],
    schedule: Schedule,
    covered: set[GuestVirtual],
) -> None:
    run = play(plans, schedule, covered=covered, strategy=strategy)
    counted: dict[GuestVirtual, set[GuestVirtual]] = {address: set() for address in run.guest.sites}
    for snapshot, decision in zip(run.snapshots, run.decisions, strict=True):
        for address, seen in snapshot.sites.items():
            counted[address] |= seen.calls.keys()
        for address, form in decision.wanted.items():
            assert not isinstance(form, Chain) or set(form.targets) <= counted[address]


@ALL
def test_without_a_census_nothing_at_a_covered_site_is_poked(strategy: Strategy[Any]) -> None:
    run = run_with({S: steady(2000), T: steady(5)}, never, strategy=strategy).epochs(60)
    assert sum(run.totals.pokes) == 0
    assert not run.guest.installed


@ALL
def test_every_strategy_learns_from_censuses_and_pokes_only_final_forms(
    strategy: Strategy[Any],
) -> None:
    run = run_with({S: steady(2000), T: steady(0)}, every(7, 3), strategy=strategy).epochs(4)
    assert run.targets(S) == (next(iter(mix(1))),)
    assert run.guest.installed.keys() == {S}
    assert sum(run.totals.pokes) == 1


def test_a_site_with_too_many_targets_waits_for_a_census() -> None:
    many = phases(14, mix(*[100] * 60), mix(1000))
    run = run_with({S: many}, every(11, 3), options=QUICK).epochs(14)
    assert run.name(S) == "cold"
    assert run.guest.installed.get(S, ORIGINAL) == ORIGINAL
    run.epochs(3)
    assert run.name(S) == "promoted"


def test_a_site_that_changed_its_targets_is_right_again_without_a_census() -> None:
    before, after = mix(400, 300, 200, 180), mix(400, 300, 200, 180, first=8)
    run = run_with({S: phases(45, before, after)}, every(20, 4)).epochs(45)
    assert run.targets(S) == tuple(before)
    run.epochs(4)  # its record counts the misses
    assert run.targets(S) == tuple(after)
    assert sum(run.totals.pokes) == 3


def test_a_site_that_must_learn_again_does_so_within_two_censuses() -> None:
    before, after = mix(900, 100), mix(*[200] * 6, first=8)
    run = run_with({S: phases(42, before, after)}, every(10, 4)).epochs(42)
    assert run.targets(S) == tuple(before)
    run.epochs(28)
    assert set(run.targets(S)) == set(after)
    assert sum(run.totals.pokes) <= 5
