"""Amit's rule: trainings, a worker, and trainings again."""

import pytest

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain
from optpolined.learning.errors import StateError
from optpolined.learning.periodic import Periodic, PeriodicState
from optpolined.learning.settings import PeriodicSettings
from optpolined.learning.shape import FormChoice, Shaper, ShapeSettings
from optpolined.learning.strategy import SiteEpoch, Snapshot, Strategy

from .synthetic import SECONDS, A, B, C, Run, Site, mix, phases, site, steady

S, T = site(0), site(1)
SHORT = PeriodicSettings(learn_epochs=6, worker_epochs=2, retrain_epochs=20)


def run(sites: dict[GuestVirtual, Site], settings: PeriodicSettings = SHORT) -> Run:
    return Run(sites, strategy=Periodic(settings))


def changes(guest: Run, address: GuestVirtual) -> dict[int, object]:
    return {
        epoch: decision.wanted[address]
        for epoch, decision in enumerate(guest.decisions)
        if address in decision.wanted
    }


def test_it_is_a_strategy() -> None:
    strategy: Strategy[PeriodicState] = Periodic()
    state = strategy.initial([S])
    assert strategy.site_statuses(state)[S].state == "idle"
    state, decision = strategy.decide(state, Snapshot(0, SECONDS, {}, {}))
    assert decision.wanted == strategy.wanted(state) == {S: LEARNING}


def test_the_worker_patches_the_most_frequent_target() -> None:
    guest = run({S: steady(400, 600)}).epochs(20)
    assert changes(guest, S) == {0: LEARNING, 2: Chain((B,))}
    assert guest.decisions[2].shares == {S: ((B, 0.6),)}
    assert guest.strategy.site_statuses(guest.state)[S].reason == "1 targets take 60% of 1000 calls"


def test_more_targets_where_the_settings_say_so() -> None:
    settings = PeriodicSettings(max_targets=2)
    guest = run({S: steady(400, 600, 100)}, settings).epochs(5)
    assert guest.targets(S) == (B, A)
    chains = Shaper(ShapeSettings(form=FormChoice.CHAIN, chain_targets_max=2))
    few = Run({S: steady(4, 8, 12)}, strategy=Periodic(PeriodicSettings(max_targets=9), chains))
    assert few.epochs(5).targets(S) == (C, B)


def test_a_site_that_is_called_late_is_patched_by_a_later_worker() -> None:
    guest = run({S: lambda epoch: mix(1000) if epoch >= 4 else {}}).epochs(20)
    assert changes(guest, S) == {0: LEARNING, 4: Chain((A,))}


def test_what_nobody_called_is_the_original_again() -> None:
    guest = run({S: steady(), T: steady(1000)}).epochs(20)
    assert changes(guest, S) == {0: LEARNING, 6: ORIGINAL}
    assert guest.strategy.site_statuses(guest.state)[S].reason == "too few calls in the training"


def test_few_calls_are_enough_or_not() -> None:
    assert run({S: steady(2)}).epochs(8).targets(S) == (A,)
    picky = PeriodicSettings(learn_epochs=6, worker_epochs=2, retrain_epochs=20, min_calls=50)
    assert run({S: steady(2)}, picky).epochs(8).targets(S) == ()


def test_it_trains_again_from_nothing() -> None:
    guest = run({S: phases(15, mix(1000), mix(0, 100))}).epochs(30)
    assert changes(guest, S) == {0: LEARNING, 2: Chain((A,)), 20: LEARNING, 22: Chain((B,))}
    # Between the trainings nothing is looked at.
    assert guest.totals.coverage(15, 20) == 0.0


def test_pokes_grow_with_time_though_nothing_changes() -> None:
    guest = run({S: steady(1000)}).epochs(200)
    assert sum(guest.totals.pokes) == 2 * 200 // SHORT.retrain_epochs


def test_sites_that_come_wait_for_the_training_that_they_missed() -> None:
    guest = run({S: steady(1000)}).epochs(3)
    for address in (T, site(2)):
        guest.guest.sites[address] = steady(500)
        guest.guest.seen[address] = set()
        guest.state = guest.strategy.add_sites(guest.state, [address])
        guest.epochs(8)
    assert guest.targets(T) == (A,)
    assert guest.strategy.site_statuses(guest.state)[site(2)].reason == "came after the training"
    guest.epochs(10)
    assert guest.targets(site(2)) == (A,)


def test_epochs_that_are_missing_do_not_stop_the_worker() -> None:
    strategy = Periodic(SHORT)
    state, _ = strategy.decide(strategy.initial([S, T]), Snapshot(0, SECONDS, {}, {}))
    standing = dict(strategy.wanted(state))
    counts = {S: SiteEpoch({A: 5})}
    state, decision = strategy.decide(state, Snapshot(9, SECONDS, counts, standing))
    assert decision.wanted == {S: Chain((A,)), T: ORIGINAL}
    state, decision = strategy.decide(state, Snapshot(10**9, SECONDS, {}, {}))
    assert decision.wanted == {S: LEARNING, T: LEARNING}


def test_counts_of_another_form_do_not_count() -> None:
    strategy = Periodic(SHORT)
    state, _ = strategy.decide(strategy.initial([S]), Snapshot(0, SECONDS, {}, {}))
    for epoch in (1, 2, 3):
        counts = {S: SiteEpoch({A: 5000})}
        state, decision = strategy.decide(state, Snapshot(epoch, SECONDS, counts, {}))
        assert not decision.wanted


@pytest.mark.parametrize("text", ["", "[]", '{"version": 2}', '{"version": 1, "more": 1}'])
def test_a_state_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(StateError, match=r"^not a state of the periodic strategy: ") as caught:
        Periodic().load(text)
    assert "\n" not in str(caught.value)
