"""What holds for every strategy, whatever a guest does."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.learning.continuous import Continuous
from optpolined.learning.hysteresis import Hysteresis
from optpolined.learning.periodic import Periodic
from optpolined.learning.settings import ContinuousSettings, LearningSettings, PeriodicSettings
from optpolined.learning.shape import Shaper
from optpolined.learning.strategies import StrategyName, make_strategy
from optpolined.learning.strategy import Decision, Snapshot, Strategy

from .synthetic import SECONDS, Mix, Run, mix, phases, replay, site, steady
from .test_properties import PHASES, QUICK, SNAPSHOTS

SITES = [site(n) for n in range(4)]


def make(name: StrategyName) -> Strategy[Any]:
    return make_strategy(
        name,
        hysteresis=QUICK,
        continuous=ContinuousSettings(update_calls=300, wipe_misses=300, patch_calls=60),
        periodic=PeriodicSettings(learn_epochs=4, worker_epochs=2, retrain_epochs=9, max_targets=3),
        shaper=Shaper(),
    )


every = pytest.mark.parametrize("strategy", [make(name) for name in StrategyName])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("hysteresis", Hysteresis), ("continuous", Continuous), ("periodic", Periodic)],
)
def test_a_name_makes_its_strategy(name: str, kind: type) -> None:
    assert type(make(StrategyName(name))) is kind


@every
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(SNAPSHOTS, max_size=30))
def test_nothing_that_a_snapshot_says_raises(
    strategy: Strategy[Any], snapshots: list[Snapshot]
) -> None:
    state = strategy.initial(SITES)
    for snapshot in snapshots:
        state, decision = strategy.decide(state, snapshot)
        assert set(decision.wanted) <= set(SITES)
        assert decision.states.keys() == decision.reasons.keys()
        assert all("\n" not in reason for reason in decision.reasons.values())
    assert strategy.load(strategy.dump(state)) == state


@every
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(SNAPSHOTS, max_size=30))
def test_no_target_is_named_that_was_not_counted_at_that_site(
    strategy: Strategy[Any], snapshots: list[Snapshot]
) -> None:
    state = strategy.initial(SITES)
    counted: dict[GuestVirtual, set[GuestVirtual]] = {address: set() for address in SITES}
    standing: dict[GuestVirtual, Form] = {}
    for epoch, snapshot in enumerate(snapshots):
        # What the strategy asked for stands there, so that its states are reached.
        answered = replace(snapshot, epoch=epoch, installed=strategy.wanted(state))
        for address in answered.sites.keys() & counted.keys():
            calls = answered.sites[address].calls
            counted[address] |= {name for name, number in calls.items() if number > 0}
        state, decision = strategy.decide(state, answered)
        standing.update(decision.wanted)
        for address, form in decision.wanted.items():
            assert isinstance(form, Chain) or form == ORIGINAL
            named = form.targets if isinstance(form, Chain) else ()
            assert set(named) <= counted[address] - {0}
            assert len(set(named)) == len(named)
            told = decision.shares.get(address, ())
            if isinstance(form, Chain) and not form.counts_hits:
                assert tuple(target for target, _ in told) == named
                assert sum(share for _, share in told) <= 1 + 1e-9
            else:
                assert not told
    poked = {address: form for address, form in standing.items() if form != ORIGINAL}
    assert strategy.wanted(state) == poked


def play(strategy: Strategy[Any], plan: list[tuple[int, Mix]]) -> Run:
    track = [rates for length, rates in plan for _ in range(length)]
    run = Run({SITES[0]: lambda epoch: track[epoch % len(track)]}, strategy=strategy)
    return run.epochs(50)


@every
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(PHASES)
def test_a_replay_decides_the_same_from_any_point_on(
    strategy: Strategy[Any], plan: list[tuple[int, Mix]]
) -> None:
    run = play(strategy, plan)
    state = strategy.initial(run.guest.sites)
    assert replay(strategy, state, run.snapshots) == run.decisions
    for snapshot in run.snapshots[:23]:
        state, _ = strategy.decide(state, snapshot)
    state = strategy.load(strategy.dump(state))
    assert replay(strategy, state, run.snapshots[23:]) == run.decisions[23:]


@every
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(PHASES)
def test_empty_epochs_give_no_target_up(
    strategy: Strategy[Any], plan: list[tuple[int, Mix]]
) -> None:
    run = play(strategy, plan)
    state, standing = run.state, dict(run.guest.installed)
    for epoch in range(50, 53):
        state, decision = strategy.decide(state, Snapshot(epoch, SECONDS, {}, dict(standing)))
        for address, form in decision.wanted.items():
            # A window without calls may end; Periodic retrains by the clock.
            gives_up = form == ORIGINAL and standing[address] != LEARNING
            assert not gives_up or isinstance(strategy, Periodic)
        standing.update(decision.wanted)


@every
def test_snapshots_out_of_order_are_ignored(strategy: Strategy[Any]) -> None:
    run = Run({SITES[0]: steady(5000)}, strategy=strategy).epochs(6)
    for snapshot in run.snapshots:
        assert strategy.decide(run.state, snapshot) == (run.state, Decision())


@every
def test_sites_come_and_go_and_nothing_of_them_stays(strategy: Strategy[Any]) -> None:
    run = Run({address: steady(5000, *[900] * 12) for address in SITES}, strategy=strategy)
    run.epochs(8)
    run.state = strategy.add_sites(run.state, [site(9), SITES[0]])
    assert strategy.site_statuses(run.state).keys() == {*SITES, site(9)}
    run.state = strategy.drop_sites(run.state, [*SITES, site(9), site(10)])
    assert not strategy.site_statuses(run.state)
    assert all(not decision.wanted for decision in run.epochs(30).decisions[8:])
    run.state = strategy.add_sites(run.state, SITES)
    assert set(run.epochs(10).decisions[-10].states) == set(SITES)


@every
def test_the_order_of_the_mappings_does_not_show(strategy: Strategy[Any]) -> None:
    run = Run({address: steady(900, 800, *[700] * 5) for address in SITES}, strategy=strategy)
    run.epochs(1)
    snapshot = run.guest.step()
    backward = replace(
        snapshot,
        sites={
            address: replace(seen, calls=dict(reversed(list(seen.calls.items()))))
            for address, seen in reversed(list(snapshot.sites.items()))
        },
    )
    forward = strategy.decide(run.state, snapshot)[0]
    assert strategy.dump(forward) == strategy.dump(strategy.decide(run.state, backward)[0])


def test_the_old_state_is_not_touched() -> None:
    for strategy in (make(name) for name in StrategyName):
        run = Run({address: steady(900, 90) for address in SITES}, strategy=strategy).epochs(3)
        before = strategy.dump(run.state)
        strategy.decide(run.state, run.guest.step())
        assert strategy.dump(run.state) == before


def test_hysteresis_pokes_less_than_its_rivals_where_sites_alternate() -> None:
    def pokes(strategy: Strategy[Any]) -> int:
        plan = phases(6, mix(9000, 800), mix(9000, 800, first=5), mix(700, 9000, 600))
        return sum(Run({SITES[0]: plan}, strategy=strategy).epochs(1500).totals.pokes)

    mine = pokes(Hysteresis(LearningSettings()))
    assert 5 * mine <= pokes(Continuous())
    assert mine <= pokes(Periodic(PeriodicSettings(retrain_epochs=20)))
