"""The rules of a learning window, one site at a time, with exact counts."""

import itertools

from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain
from optpolined.learning.cost import Costs
from optpolined.learning.hysteresis import Hysteresis
from optpolined.learning.settings import LearningSettings
from optpolined.learning.shape import FormChoice, Shaper, ShapeSettings

from .synthetic import A, B, C, D, E, F, Run, mix, phases, site, steady, target

S = site(0)


def test_all_sites_start_in_a_window() -> None:
    run = Run({site(number): steady(100) for number in range(3)}).epochs(1)
    assert run.decisions[0].wanted == {site(number): LEARNING for number in range(3)}
    assert set(run.decisions[0].states.values()) == {"learning"}


def test_agreement_promotes_after_promote_epochs() -> None:
    run = Run({S: steady(100, 900)}).epochs(4)
    assert [dict(decision.wanted) for decision in run.decisions[1:]] == [{}, {}, {S: Chain((B, A))}]
    assert run.decisions[-1].states == {S: "promoted"}
    assert run.decisions[-1].reasons == {S: "2 targets take 100% of 1000 calls/s"}


def test_promote_epochs_is_obeyed() -> None:
    run = Run({S: steady(1000)}, LearningSettings(promote_epochs=6)).epochs(6)
    assert run.name(S) == "learning"
    assert run.epochs(1).name(S) == "promoted"


def test_a_target_that_is_worth_a_free_place_comes_along() -> None:
    run = Run({S: steady(910, 60, 30)}).epochs(4)
    assert run.targets(S) == (A, B)


def test_a_chain_is_no_longer_than_max_targets() -> None:
    run = Run({S: steady(500, 420, 80)}, LearningSettings(max_targets=2)).epochs(4)
    assert run.targets(S) == (A, B)


def test_too_many_targets_are_left_alone_with_the_reason() -> None:
    run = Run({S: steady(*[100] * 16)}).epochs(11)
    assert run.name(S) == "megamorphic"
    assert run.guest.installed[S] == ORIGINAL
    assert run.decisions[-1].reasons[S] == "the hottest 7 targets take 44%, 90% needed"


def test_targets_that_do_not_pay_are_left_alone_with_the_reason() -> None:
    run = Run({S: steady(*[200] * 7)}).epochs(11)
    assert run.name(S) == "megamorphic"
    assert run.guest.installed[S] == ORIGINAL
    assert run.decisions[-1].reasons[S] == "direct calls to 7 targets would save 6%, 8% needed"


def test_more_than_max_targets_are_taken_where_they_are_skewed_and_pay() -> None:
    run = Run({S: steady(500, 150, 100, 80, 70, 60, 40)}).epochs(4)
    assert run.targets(S) == (A, B, C, D, E, F)
    assert run.decisions[-1].shares[S][0] == (A, 0.5)


def test_a_named_tree_is_built_whether_it_pays_or_not() -> None:
    shaper = Shaper(ShapeSettings(form=FormChoice.TREE))
    run = Run({S: steady(*[200] * 7)}, strategy=Hysteresis(None, shaper)).epochs(4)
    assert len(run.targets(S)) == 7


def test_a_cpu_whose_retpolines_are_cheap_needs_no_chains() -> None:
    shaper = Shaper(None, Costs(retpoline_cycles=12.0))
    run = Run({S: steady(500, 500), site(1): steady(1000)}, strategy=Hysteresis(None, shaper))
    run.epochs(11)
    assert run.name(S) == "megamorphic"
    assert run.targets(site(1)) == (A,)


def test_a_megamorphic_site_is_looked_at_again_ever_more_rarely() -> None:
    run = Run({S: steady(*[100] * 16)}).epochs(600)
    opened = [k for k, decision in enumerate(run.decisions) if decision.wanted.get(S) == LEARNING]
    pauses = [later - earlier for earlier, later in itertools.pairwise(opened)]
    assert pauses == [26, 42, 74, 138, 266]


def test_a_megamorphic_site_that_settles_is_promoted() -> None:
    run = Run({S: lambda epoch: mix(*[100] * 16) if epoch < 50 else mix(900)}).epochs(120)
    assert run.targets(S) == (A,)


def test_too_few_calls_make_a_cold_site() -> None:
    run = Run({S: steady(18)}).epochs(11)
    assert run.name(S) == "cold"
    assert run.guest.installed[S] == ORIGINAL
    assert run.decisions[-1].reasons[S] == "under 20 calls/s in most of the window"


def test_quiet_epochs_neither_promote_nor_reset() -> None:
    run = Run({S: lambda epoch: mix(1000) if epoch % 3 == 1 else mix(0, 10)}).epochs(7)
    assert run.name(S) == "learning"
    assert run.epochs(1).targets(S) == (A,)


def test_a_window_that_is_about_to_agree_gets_its_time() -> None:
    run = Run({S: lambda epoch: mix(1000) if epoch >= 9 else {}}).epochs(11)
    assert run.name(S) == "learning"
    assert run.epochs(1).targets(S) == (A,)


def test_but_not_for_ever() -> None:
    run = Run({S: lambda epoch: mix(1000) if epoch == 9 else {}}).epochs(14)
    assert run.name(S) == "cold"


def test_targets_that_alternate_below_the_epoch_share_the_chain() -> None:
    run = Run({S: phases(1, mix(1000), mix(0, 1000))}).epochs(8)
    assert set(run.targets(S)) == {A, B}


def test_marginal_targets_do_not_break_the_agreement() -> None:
    # C and D take turns at being the third; any of the sets reaches the share.
    run = Run({S: phases(1, mix(500, 390, 60, 50), mix(500, 390, 50, 60))}).epochs(4)
    assert set(run.targets(S)) == {A, B, C, D}


def test_a_site_of_many_targets_with_a_hot_one_is_promoted() -> None:
    run = Run({S: steady(1000, *[5] * 10)}).epochs(4)
    assert run.targets(S) == (A,)


def test_no_target_that_found_no_slot_is_named() -> None:
    rates = {target(number): 100.0 for number in range(20)}
    run = Run({S: lambda epoch: rates if epoch < 20 else mix(1000, first=30)}).epochs(150)
    assert run.targets(S) == (target(30),)


def test_a_window_needs_the_learning_stub_to_have_stood_there() -> None:
    run = Run({S: steady(1000)})
    for _ in range(12):
        snapshot = run.guest.step()
        run.state, _decision = run.strategy.decide(run.state, snapshot)
        run.guest.poke({S: Chain((E,))})
    assert run.name(S) == "cold"
