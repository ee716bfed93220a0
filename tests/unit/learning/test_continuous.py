"""Cree's rule, number by number, and what the counters make of it."""

import pytest

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.learning.continuous import Continuous, ContinuousState
from optpolined.learning.errors import StateError
from optpolined.learning.settings import ContinuousSettings
from optpolined.learning.strategy import Decision, SiteEpoch, Snapshot, Strategy

from .synthetic import SECONDS, A, B, C, D, E, F, G, Run, Site, mix, phases, site, steady, target

S = site(0)
PAIR = Chain((A, B), counts_hits=True)


class Bench:
    """One site that counts what it is told to, in the form that was asked for."""

    def __init__(self, settings: ContinuousSettings | None = None) -> None:
        self.strategy = Continuous(settings)
        self.state = self.strategy.initial([S])
        self.epoch = 0
        self.count()

    @property
    def form(self) -> Form:
        return self.strategy.wanted(self.state).get(S, ORIGINAL)

    def count(
        self, calls: dict[GuestVirtual, int] | None = None, other: int = 0, hits: int = 0
    ) -> Form:
        counts = {S: SiteEpoch(calls or {}, other, hits)} if calls or other or hits else {}
        installed = self.strategy.wanted(self.state)
        snapshot = Snapshot(self.epoch, SECONDS, counts, installed)
        self.state, _ = self.strategy.decide(self.state, snapshot)
        self.epoch += 1
        return self.form


def run(sites: dict[GuestVirtual, Site], *, noise: int | None = None) -> Run:
    return Run(sites, strategy=Continuous(), noise=noise)


def test_it_is_a_strategy() -> None:
    strategy: Strategy[ContinuousState] = Continuous()
    state = strategy.initial([S])
    assert strategy.site_statuses(state)[S].state == "cold"
    state, decision = strategy.decide(state, Snapshot(0, SECONDS, {}, {}))
    assert decision.wanted == strategy.wanted(state) == {S: LEARNING}


@pytest.mark.parametrize(("calls", "form"), [(1000, LEARNING), (1001, PAIR)])
def test_more_than_a_thousand_counted_calls_trigger_an_update(calls: int, form: Form) -> None:
    assert Bench().count({A: calls - 400, B: 400}) == form


def test_calls_add_up_over_the_epochs() -> None:
    bench = Bench()
    forms = [bench.count({A: 250, B: 150}) for _ in range(3)]
    assert forms == [LEARNING, LEARNING, PAIR]


@pytest.mark.parametrize(("best", "form"), [(250, LEARNING), (251, PAIR)])
def test_the_best_needs_more_than_250(best: int, form: Form) -> None:
    bench = Bench(ContinuousSettings(candidates=8, update_calls=600))
    rest = {target(n): 100 for n in range(2, 6)}
    assert bench.count({A: best, B: 101, **rest}) == form
    # It starts over, patched or not.
    assert bench.count({A: 100, B: 100}, hits=100) == form


def test_more_than_a_thousand_misses_wipe_the_candidates() -> None:
    bench = Bench()
    six = {A: 120, B: 110, C: 100, D: 90, E: 80, F: 70}
    bench.count(six)
    assert bench.state.sites[S].misses == 150
    wide = {target(n): 250 for n in range(10, 14)}
    bench.count(wide)
    assert bench.state.sites[S].candidates == ()
    assert bench.state.sites[S].misses == 0
    assert bench.form == LEARNING
    assert bench.count({E: 600, F: 500}) == Chain((E, F), counts_hits=True)


def test_of_two_thresholds_the_first_at_an_even_pace_counts() -> None:
    even = {target(n): 1000 for n in range(7)}
    assert Bench().count({**even, A: 1001, B: 1001}) == PAIR
    assert Bench().count(even, other=2000) == LEARNING


def test_hits_are_shared_as_they_were_won() -> None:
    bench = Bench()
    assert bench.count({A: 900, B: 600}) == PAIR
    bench.count(hits=1500)
    assert bench.state.sites[S].hits == (900, 600)
    # 1001 of C beat the 600 of B, without any margin.
    assert bench.count({C: 1001}) == Chain((C, A), counts_hits=True)


def test_a_current_target_stays_where_counts_are_equal() -> None:
    bench = Bench()
    bench.count({C: 1200, D: 1001})
    bench.count(hits=2201)
    assert bench.count({A: 1001, B: 900}) == Chain((C, D), counts_hits=True)


def test_a_challenger_needs_no_margin() -> None:
    bench = Bench()
    bench.count({C: 1200, D: 1001})
    bench.count(hits=2201)
    assert bench.count({A: 1002, B: 900}) == Chain((C, A), counts_hits=True)


def test_the_hits_of_one_target_keep_a_dead_one_alive_for_one_update() -> None:
    bench = Bench()
    bench.count({A: 900, B: 600})
    assert bench.form == PAIR
    # A is dead and B has all the hits, but A is believed to have its part of them.
    assert bench.count({C: 1001}, hits=1500) == Chain((C, A), counts_hits=True)
    assert bench.count({B: 1500}, hits=1001) == Chain((B, C), counts_hits=True)


def test_a_wipe_asks_for_a_fresh_record_where_most_misses_found_no_slot() -> None:
    bench = Bench()
    assert bench.count({G: 10}, other=2000) == ORIGINAL
    assert bench.strategy.site_statuses(bench.state)[S].state == "wiped"
    assert bench.count() == LEARNING


def test_a_promoted_site_keeps_its_targets_through_a_wipe() -> None:
    bench = Bench()
    bench.count({A: 900, B: 600})
    assert bench.count({G: 10}, other=2000, hits=300) == LEARNING
    # In the learning form its targets are counted one by one.
    assert bench.count({A: 20, B: 900, F: 500}) == PAIR
    assert bench.state.sites[S].hits == (180 + 20, 120 + 900)
    assert bench.count({F: 501}, hits=10) == Chain((B, F), counts_hits=True)


def test_a_wipe_in_the_epoch_after_a_wipe_does_not_delay() -> None:
    bench = Bench()
    bench.count({A: 900, B: 600})
    bench.count(other=2000)
    assert bench.count(other=2000) == PAIR


def test_counts_of_another_form_do_not_count() -> None:
    bench = Bench()
    for form in (ORIGINAL, PAIR, Chain((A,))):
        snapshot = Snapshot(bench.epoch, SECONDS, {S: SiteEpoch({A: 5000})}, {S: form})
        bench.state, decision = bench.strategy.decide(bench.state, snapshot)
        bench.epoch += 1
        assert decision == Decision()


def test_a_stable_site_is_covered_and_left_alone() -> None:
    guest = run({S: steady(9000, 900)}, noise=1).epochs(100)
    assert guest.totals.coverage(3) == 1.0
    assert sum(guest.totals.pokes) == 2


def test_it_follows_a_phase_change_at_once() -> None:
    guest = run({S: phases(20, mix(9000), mix(9000, first=4))}).epochs(40)
    assert guest.totals.coverage(22, 40) == 1.0


def test_near_ties_flip_for_ever() -> None:
    guest = run({S: steady(9000, 3000, 2990)}, noise=3).epochs(400)
    assert sum(guest.totals.pokes[:200]) > 2
    assert sum(guest.totals.pokes[200:]) > 2


def test_many_even_targets_are_never_patched() -> None:
    guest = run({S: steady(*[1000] * 16)}).epochs(50)
    assert guest.targets(S) == ()


def test_phases_whose_targets_fill_the_record_are_followed() -> None:
    changes = [mix(9000, 8000, 700, first=3 * n) for n in range(8)]
    guest = run({S: phases(20, *changes)})
    guest.epochs(160)
    assert guest.targets(S) == (target(21), target(22))


@pytest.mark.parametrize("text", ["", "[]", '{"version": 2}', '{"version": 1, "more": 1}'])
def test_a_state_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(StateError, match=r"^not a state of the continuous strategy: ") as caught:
        Continuous().load(text)
    assert "\n" not in str(caught.value)
