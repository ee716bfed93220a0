"""Pins and bans, around every strategy."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.learning.errors import StateError
from optpolined.learning.overridden import BANNED, PINNED, Overridden, OverriddenState, Override
from optpolined.learning.strategies import StrategyName
from optpolined.learning.strategy import Decision, SiteStatus, Snapshot

from .synthetic import SECONDS, A, B, Run, phases, replay, site, steady
from .test_properties import SNAPSHOTS
from .test_rivals import make

PIN = Override(B, "pinned to b")
BAN = Override(None, "banned by 'x*'")
SITES = [site(n) for n in range(4)]

every = pytest.mark.parametrize("name", list(StrategyName))


def governed(name: StrategyName) -> Run:
    """Four sites that call A, under a strategy with overrides."""
    mixes = {address: steady(5000, 10) for address in SITES}
    return Run(mixes, strategy=Overridden(make(name)))


def rule(run: Run, overrides: dict[GuestVirtual, Override]) -> None:
    strategy, state = run.strategy, run.state
    assert isinstance(strategy, Overridden)
    assert isinstance(state, OverriddenState)
    run.state = strategy.set_overrides(state, overrides)


@every
def test_who_is_not_ruled_on_is_decided_about_as_ever(name: StrategyName) -> None:
    plain = Run({address: steady(5000, 10) for address in SITES}, strategy=make(name)).epochs(30)
    run = governed(name).epochs(30)
    assert run.decisions == plain.decisions
    rule(run, {})
    assert replay(run.strategy, run.state, run.snapshots[:3]) == [Decision()] * 3


@every
@pytest.mark.parametrize("before", [0, 1, 3, 12])
def test_a_pin_holds_whatever_is_learned(name: StrategyName, before: int) -> None:
    run = governed(name).epochs(before)
    rule(run, {SITES[0]: PIN})
    run.epochs(1)
    told = run.decisions[-1]
    assert told.wanted[SITES[0]] == Chain((B,))
    assert (told.states[SITES[0]], told.reasons[SITES[0]]) == (PINNED, PIN.reason)
    run.epochs(40)
    assert run.guest.installed[SITES[0]] == Chain((B,))
    assert all(SITES[0] not in decision.wanted for decision in run.decisions[before + 1 :])
    assert run.strategy.wanted(run.state)[SITES[0]] == Chain((B,))
    assert run.strategy.site_statuses(run.state)[SITES[0]] == SiteStatus(
        PINNED, PIN.reason, Chain((B,))
    )


@every
def test_a_banned_site_goes_back_and_stays_there(name: StrategyName) -> None:
    run = governed(name).epochs(6)
    assert run.guest.installed[SITES[1]] != ORIGINAL
    rule(run, {SITES[1]: BAN})
    run.epochs(40)
    assert run.guest.installed[SITES[1]] == ORIGINAL
    assert SITES[1] not in run.strategy.wanted(run.state)
    assert run.strategy.site_statuses(run.state)[SITES[1]] == SiteStatus(
        BANNED, BAN.reason, ORIGINAL
    )


@every
def test_a_site_that_is_set_free_learns_from_nothing(name: StrategyName) -> None:
    run = governed(name).epochs(6)
    rule(run, {SITES[0]: PIN, SITES[1]: BAN})
    run.epochs(3)
    rule(run, {SITES[1]: PIN})
    run.epochs(1)
    assert run.guest.installed[SITES[0]] == LEARNING
    assert run.guest.installed[SITES[1]] == Chain((B,))
    rule(run, {})
    run.epochs(60)
    for address in SITES[:2]:
        assert A in run.targets(address)
        assert run.name(address) != PINNED


def test_a_site_that_goes_takes_its_ruling_along() -> None:
    run = governed(StrategyName.HYSTERESIS).epochs(2)
    rule(run, {SITES[0]: PIN, SITES[1]: BAN})
    run.state = run.strategy.drop_sites(run.state, SITES[:2])
    assert run.strategy.site_statuses(run.state).keys() == set(SITES[2:])
    run.epochs(1)
    assert not run.decisions[-1].wanted.keys() & set(SITES[:2])
    run.state = run.strategy.add_sites(run.state, SITES[:1])
    run.epochs(1)
    assert run.decisions[-1].wanted[SITES[0]] == LEARNING


RULINGS = st.dictionaries(st.sampled_from(SITES), st.sampled_from([PIN, BAN, Override(A, "a")]))
STEPS = st.lists(st.tuples(SNAPSHOTS, st.none() | RULINGS), max_size=20)


@every
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_decisions_add_up_to_what_is_wanted_and_outlive_a_dump(
    name: StrategyName, steps: list[tuple[Snapshot, dict[GuestVirtual, Override] | None]]
) -> None:
    strategy: Overridden[Any] = Overridden(make(name))
    state = strategy.initial(SITES)
    standing: dict[GuestVirtual, Form] = {}
    for snapshot, overrides in steps:
        if overrides is not None:
            state = strategy.set_overrides(state, overrides)
        state = strategy.load(strategy.dump(state))
        state, decision = strategy.decide(state, snapshot)
        standing.update(decision.wanted)
        asked = {address: form for address, form in standing.items() if form != ORIGINAL}
        assert strategy.wanted(state) == asked
        told = strategy.site_statuses(state)
        assert told.keys() == set(SITES)
        for address, override in state.overrides.items():
            assert told[address].wanted == override.form


def test_something_else_is_no_state() -> None:
    with pytest.raises(StateError, match="a strategy with overrides"):
        Overridden(make(StrategyName.HYSTERESIS)).load('{"version": 2}')


def test_a_site_that_is_pinned_and_set_free_between_two_epochs_is_told_of() -> None:
    run = Run(
        {SITES[0]: phases(9, {A: 5000.0})}, strategy=Overridden(make(StrategyName.HYSTERESIS))
    )
    run.epochs(12)
    assert run.guest.installed[SITES[0]] == Chain((A,))
    rule(run, {SITES[0]: PIN})
    rule(run, {})
    snapshot = Snapshot(99, SECONDS, {}, dict(run.guest.installed))
    _, decision = run.strategy.decide(run.state, snapshot)
    assert decision.wanted == {SITES[0]: LEARNING}
