"""The rules of a promoted site."""

import itertools

import pytest

from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain
from optpolined.learning.settings import LearningSettings

from .synthetic import A, B, C, D, E, Run, Site, mix, site, steady, target

S = site(0)


def then(epoch: int, before: dict, after: dict) -> Site:  # type: ignore[type-arg]
    return lambda now: before if now < epoch else after


def forms(run: Run, first: int) -> list[object]:
    return [d.wanted[S] for d in run.decisions[first:] if S in d.wanted]


def test_a_chain_that_hits_is_left_alone() -> None:
    run = Run({S: steady(900, 100)}).epochs(500)
    assert run.totals.pokes[4:] == [0] * 496


def test_misses_below_the_tolerance_are_left_alone() -> None:
    run = Run({S: then(20, mix(1000), mix(960, 40))}).epochs(24)
    assert sum(run.totals.pokes[4:]) == 0


def test_many_misses_cause_an_audit_at_once() -> None:
    run = Run({S: then(20, mix(1000), mix(600, 400))}).epochs(21)
    assert run.decisions[-1].wanted == {S: Chain((A,), counts_hits=True)}
    assert run.name(S) == "missing"
    assert run.decisions[-1].reasons[S] == "400 misses/s, 1000 calls/s when last measured"


def test_a_new_target_is_taken_in_without_a_learning_window() -> None:
    run = Run({S: then(20, mix(1000), mix(600, 400))}).epochs(30)
    assert forms(run, 20) == [Chain((A,), counts_hits=True), Chain((A, B))]


def test_a_phase_change_is_followed_in_three_epochs() -> None:
    settings = LearningSettings()
    run = Run({S: then(20, mix(500, 500), mix(500, 500, first=4))}, settings).epochs(40)
    right = 20 + settings.promote_epochs
    assert run.totals.coverage(right) == 1.0
    assert right - 20 <= settings.promote_epochs + 1


def test_a_full_chain_gives_its_weakest_up() -> None:
    run = Run({S: then(20, mix(400, 300, 200, 100), mix(400, 300, 0, 0, 300))}).epochs(40)
    assert set(run.targets(S)) >= {A, B, E}
    assert run.totals.coverage(30) == 1.0


@pytest.mark.parametrize("challenger", [120, 160])
def test_no_flip_without_the_margin(challenger: float) -> None:
    before = mix(400, 300, 200, 100)
    run = Run({S: then(20, before, {**before, E: challenger})}).epochs(400)
    assert set(run.targets(S)) == {A, B, C, D}
    assert run.name(S) == "promoted"


def test_misses_that_nobody_can_help_lead_to_relearning_and_quarantine() -> None:
    run = Run({S: then(20, mix(1000), mix(*[100] * 12, first=4))}).epochs(55)
    assert forms(run, 20) == [Chain((A,), counts_hits=True), LEARNING, ORIGINAL, LEARNING]
    told = [decision.states[S] for decision in run.decisions[20:] if S in decision.states]
    assert told == ["missing", "relearning", "quarantine", "relearning"]


def test_quarantine_doubles() -> None:
    run = Run({S: then(20, mix(1000), mix(*[100] * 12, first=4))}).epochs(700)
    starts = [k for k, d in enumerate(run.decisions) if d.states.get(S) == "quarantine"]
    ends = [k for k, d in enumerate(run.decisions) if d.states.get(S) == "relearning"][1:]
    lengths = [end - start for start, end in zip(starts, ends, strict=False)]
    assert lengths == [16, 32, 64, 128, 256]


def test_quarantine_is_bounded() -> None:
    settings = LearningSettings(
        quarantine_epochs=4, quarantine_epochs_max=32, audit_interval_epochs=8
    )
    run = Run({S: then(20, mix(1000), mix(*[100] * 12, first=4))}, settings).epochs(400)
    starts = [k for k, d in enumerate(run.decisions) if d.states.get(S) == "quarantine"]
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert gaps[-3:] == [42, 42, 42]


def test_a_site_that_settles_after_quarantine_is_promoted() -> None:
    flap = mix(*[100] * 12, first=4)
    run = Run({S: lambda epoch: mix(1000) if not 20 <= epoch < 60 else flap}).epochs(200)
    assert run.targets(S) == (A,)
    assert run.totals.coverage(120) == 1.0


def test_a_site_that_went_idle_while_relearning_is_cold() -> None:
    flap = mix(*[100] * 12, first=4)
    run = Run({S: lambda e: mix(1000) if e < 20 else flap if e < 23 else {}}).epochs(34)
    assert run.name(S) == "cold"


def test_a_busier_site_of_the_same_mix_is_acquitted() -> None:
    before, after = mix(930, 30, 40), mix(9300, 300, 400)
    run = Run({S: then(20, before, after)}).epochs(60)
    assert forms(run, 20) == [Chain((A,), counts_hits=True), Chain((A,))]
    assert run.strategy.site_statuses(run.state)[S].reason == "hits 93% of 10000 calls/s"


def test_moderate_misses_of_a_quieter_site_are_found() -> None:
    # 100 misses/s of once 10,000 calls/s are nothing; of 200 they are half of all.
    run = Run({S: then(20, mix(10_000), mix(100, 100))}).epochs(350)
    assert set(run.targets(S)) == {A, B}


def test_audits_that_change_nothing_become_rare() -> None:
    rates = mix(900, *[12] * 8)
    run = Run({S: steady(*rates.values())}, LearningSettings(baseline_half_life_epochs=1))
    counts = [sum(run.epochs(250 << k).totals.pokes) for k in range(4)]
    assert all(later - earlier <= 4 for earlier, later in itertools.pairwise(counts))


def test_an_idle_promoted_site_stays() -> None:
    run = Run({S: then(20, mix(1000), {})}).epochs(500)
    assert run.name(S) == "promoted"
    assert sum(run.totals.pokes[4:]) == 0


def test_an_audit_of_a_site_that_fell_silent_ends() -> None:
    run = Run({S: lambda e: mix(0, 1000) if e == 20 else mix(1000) if e < 20 else {}}).epochs(40)
    assert forms(run, 20) == [Chain((A,), counts_hits=True), Chain((A,))]
    assert run.strategy.site_statuses(run.state)[S].reason == "too few calls in the audit"


def test_counts_of_a_form_that_is_not_the_wanted_one_demote_nobody() -> None:
    run = Run({S: steady(1000)}).epochs(4)
    assert run.name(S) == "promoted"
    for form in (LEARNING, ORIGINAL, Chain((target(9),)), Chain((A,), counts_hits=True)):
        for _ in range(20):
            run.guest.poke({S: form})
            run.state, decision = run.strategy.decide(run.state, run.guest.step())
            assert not decision.wanted
