"""Sites come, go, and are looked at again; snapshots may be odd."""

import math
from dataclasses import replace

import pytest

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain
from optpolined.learning.errors import StateError
from optpolined.learning.hysteresis import Hysteresis
from optpolined.learning.state import HysteresisState
from optpolined.learning.strategy import Decision, SiteEpoch, Snapshot, Strategy

from .synthetic import A, Run, learning_snapshot, mix, site, steady, target

S = site(0)


def test_a_site_that_was_idle_in_the_first_window_is_found_later() -> None:
    late = {site(number): (lambda epoch: mix(1000) if epoch > 15 else {}) for number in range(64)}
    run = Run(late).epochs(90)
    assert {run.name(address) for address in late} == {"promoted"}
    assert run.totals.coverage(88) == 1.0


def test_windows_rotate_over_all_cold_sites() -> None:
    run = Run({site(number): steady() for number in range(200)}).epochs(11)
    assert not run.strategy.wanted(run.state)
    run.epochs(71)
    opened = [
        [a for a, form in decision.wanted.items() if form == LEARNING]
        for decision in run.decisions[11:]
    ]
    assert {a for addresses in opened for a in addresses} == run.guest.sites.keys()
    assert max(len(addresses) for addresses in opened) <= 200 * 0.125 * 1.5


def test_sites_come_later() -> None:
    run = Run({S: steady(1000)}).epochs(5)
    run.guest.sites[site(1)] = steady(500)
    run.guest.seen[site(1)] = set()
    run.state = run.strategy.add_sites(run.state, [site(1), S])
    assert run.strategy.site_statuses(run.state)[site(1)].state == "cold"
    run.epochs(4)
    assert run.name(S) == run.name(site(1)) == "promoted"
    assert S not in run.decisions[5].wanted


def test_sites_go_and_nothing_of_them_stays() -> None:
    run = Run({S: steady(1000), site(1): steady(), site(2): steady(*[50] * 16)}).epochs(11)
    run.state = run.strategy.add_sites(run.state, [site(3)])
    run.state = run.strategy.drop_sites(run.state, [S, site(1), site(2), site(3), site(4)])
    assert not run.strategy.site_statuses(run.state)
    assert not run.strategy.wanted(run.state)
    assert all(not decision.wanted for decision in run.epochs(200).decisions[11:])
    assert not run.state.due


def test_a_site_that_comes_back_starts_afresh() -> None:
    run = Run({S: steady(1000)}).epochs(5)
    run.state = run.strategy.drop_sites(run.state, [S])
    run.state = run.strategy.add_sites(run.state, [S])
    assert run.epochs(1).decisions[-1].wanted == {S: LEARNING}


@pytest.mark.parametrize("epoch", [-1, 0, 2, 3])
def test_snapshots_out_of_order_are_ignored(epoch: int) -> None:
    run = Run({S: steady(1000)}).epochs(4)
    stale = learning_snapshot(epoch, {S: mix(0, 500)}, run.guest.installed[S])
    assert run.strategy.decide(run.state, stale) == (run.state, Decision())


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf, 1e-300])
def test_an_epoch_of_no_length_says_nothing(seconds: float) -> None:
    run = Run({S: steady(1000)}).epochs(4)
    misses = {S: SiteEpoch({target(7): 5000})}
    snapshot = Snapshot(4, seconds, misses, dict(run.guest.installed))
    state, decision = run.strategy.decide(run.state, snapshot)
    assert decision == Decision()
    assert state.sites == run.state.sites


def test_it_is_a_strategy() -> None:
    strategy: Strategy[HysteresisState] = Hysteresis()
    state, decision = strategy.decide(strategy.initial([S]), learning_snapshot(0, {}))
    assert decision.wanted == strategy.wanted(state) == {S: LEARNING}


def test_missing_epochs_and_unknown_sites_do_no_harm() -> None:
    strategy = Hysteresis()
    state, _ = strategy.decide(strategy.initial([S]), learning_snapshot(0, {}))
    for epoch in (10**3, 10**6, 10**18):
        state, decision = strategy.decide(state, learning_snapshot(epoch, {site(9): mix(1000)}))
        assert set(decision.wanted) <= {S}


def test_target_zero_is_never_named() -> None:
    strategy, state = Hysteresis(), Hysteresis().initial([S])
    for epoch in range(12):
        state, decision = strategy.decide(
            state, learning_snapshot(epoch, {S: {GuestVirtual(0): 1000.0, A: 100.0}})
        )
        assert decision.wanted.get(S) in (None, LEARNING, Chain((A,)))
    assert strategy.wanted(state)[S] == Chain((A,))


def test_wanted_is_what_the_decisions_add_up_to() -> None:
    sites = {site(n): steady(*[100 * n] * n) for n in range(8)}
    run = Run(sites).epochs(60)
    poked = {a: form for a, form in run.guest.installed.items() if form != ORIGINAL}
    assert run.strategy.wanted(run.state) == poked
    assert {a: s.wanted for a, s in run.strategy.site_statuses(run.state).items()} == {
        **dict.fromkeys(sites, ORIGINAL),
        **poked,
    }


def test_the_old_state_is_not_touched() -> None:
    run = Run({site(n): steady(100 * n) for n in range(20)}).epochs(9)
    before = run.strategy.dump(run.state)
    snapshot = run.guest.step()
    first = run.strategy.decide(run.state, snapshot)
    assert run.strategy.dump(run.state) == before
    assert run.strategy.decide(run.state, snapshot) == first


def test_the_order_of_the_mappings_does_not_show() -> None:
    sites = {site(n): mix(1000, first=n) for n in range(50)}
    forward = learning_snapshot(1, sites)
    backward = replace(forward, sites=dict(reversed(list(forward.sites.items()))))
    strategy = Hysteresis()
    state, _ = strategy.decide(strategy.initial(sites), learning_snapshot(0, {}))
    results = [strategy.decide(state, snapshot)[0] for snapshot in (forward, backward)]
    assert strategy.dump(results[0]) == strategy.dump(results[1])


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 2}', '{"version": 1, "more": 1}', '{"version": 1, "due": 3}'],
)
def test_a_state_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(StateError, match=r"^not a state of hysteresis: ") as caught:
        Hysteresis().load(text)
    assert "\n" not in str(caught.value)
