"""Whole guests, over many epochs."""

import itertools
import math
import time

import pytest

from optpolined.codegen.forms import Chain
from optpolined.learning.settings import LearningSettings
from optpolined.learning.strategy import Snapshot

from .synthetic import Mix, Run, Site, mix, phases, site, steady

S = site(0)
PATIENT = LearningSettings(quarantine_epochs_max=1_000_000)


def zipf(targets: int, exponent: float, rate: float, first: int) -> Mix:
    weights = [1 / rank**exponent for rank in range(1, targets + 1)]
    return mix(*[rate * weight / sum(weights) for weight in weights], first=first)


def kernel(sites: int, *, exponent: float) -> dict[int, Mix]:
    """Heat falls off from site to site, and from target to target; a third is never called."""
    return {
        number: zipf(1 + number % 7, exponent, 200_000 / (number + 1), number) if number % 3 else {}
        for number in range(sites)
    }


def test_a_stable_guest_is_covered_and_left_alone() -> None:
    mixes = kernel(300, exponent=3.0)
    run = Run({site(n): steady(*m.values(), first=n) for n, m in mixes.items()}, noise=1)
    run.epochs(120)
    assert run.totals.coverage(5) >= 0.90
    assert run.totals.coverage(60) >= 0.95
    promoted = [n for n in mixes if run.name(site(n)) == "promoted"]
    assert len(promoted) >= 190
    windows_of_idle_sites = 100 * 110 / 64
    audits = sum(
        decision.states.get(site(n)) == "missing" for decision in run.decisions for n in mixes
    )
    assert audits <= len(promoted)
    assert sum(run.totals.pokes[12:]) <= 2 * 1.3 * (windows_of_idle_sites + audits)


def test_zipf_targets_are_covered_where_four_of_them_can() -> None:
    sites = {site(n): (lambda _, n=n: zipf(12, 2.5, 2000, n)) for n in range(50)}
    run = Run(sites, noise=2).epochs(200)
    assert run.totals.coverage(10) >= 0.90
    assert sum(run.totals.pokes) <= 50 * 8


def test_a_guest_with_ten_hot_sites_among_hundreds() -> None:
    sites: dict[int, Site] = {n: steady(50_000) if n % 50 == 0 else steady(2) for n in range(500)}
    run = Run({site(n): s for n, s in sites.items()}, noise=3).epochs(60)
    assert run.totals.coverage(5) >= 0.98
    assert [n for n in sites if run.name(site(n)) == "promoted"] == list(range(0, 500, 50))


def test_a_phase_change_of_all_sites_is_followed() -> None:
    sites = {
        site(n): phases(100, mix(900, 100, first=n), mix(500, 500, first=n + 9)) for n in range(100)
    }
    run = Run(sites, noise=4).epochs(200)
    assert run.totals.coverage(104, 200) >= 0.99
    assert sum(run.totals.pokes) <= 100 * 6


def test_slow_drift_is_followed() -> None:
    def drift(epoch: int) -> Mix:
        done = min(1.0, epoch / 300)
        return mix(1000 * (1 - done), 1000 * done)

    run = Run({S: drift}, noise=5).epochs(400)
    assert run.totals.coverage(5) >= 0.97
    assert sum(run.totals.pokes) <= 10


@pytest.mark.parametrize("period", [1, 3, 10, 50])
def test_bursts_do_not_shake_a_chain(period: int) -> None:
    run = Run({S: phases(period, mix(9000, 900), mix(100, 10), {})}, noise=6).epochs(600)
    assert run.totals.coverage(100) == 1.0
    assert sum(run.totals.pokes) <= 12


@pytest.mark.parametrize("period", [1, 2, 3, 5, 8, 30, 100, 400])
def test_alternation_between_few_targets_settles_for_good(period: int) -> None:
    run = Run({S: phases(period, mix(1000), mix(0, 1000), mix(0, 0, 1000))}, noise=7).epochs(1500)
    run.epochs(1500)
    assert run.totals.coverage(1500) == 1.0
    assert sum(run.totals.pokes[1500:]) == 0


@pytest.mark.parametrize("period", [1, 3, 8, 30, 100])
def test_pokes_of_an_alternation_grow_with_the_logarithm_of_time(period: int) -> None:
    mixes = [mix(1000, first=3 * number) for number in range(5)]
    run = Run({S: phases(period, *mixes)}, PATIENT)
    growth = doublings(run)
    # A doubling of the trace lets in one strike, and the pokes around it.
    assert max(growth) <= 30
    assert growth[-1] <= 14
    assert sum(run.totals.pokes) <= 8 * math.log2(8000)


@pytest.mark.parametrize("period", [1, 5, 30])
def test_pokes_between_one_target_and_many_grow_with_the_logarithm_too(period: int) -> None:
    run = Run({S: phases(period, mix(*[100] * 8), mix(1000, first=20))}, PATIENT)
    assert max(doublings(run)) <= 12


def doublings(run: Run) -> list[int]:
    """The pokes that each doubling of the trace added: 500, 1000 ... 8000 epochs."""
    counts = [sum(run.epochs(number).totals.pokes) for number in (500, 500, 1000, 2000, 4000)]
    return [later - earlier for earlier, later in itertools.pairwise(counts)]


def test_one_site_that_flaps_does_not_disturb_the_others() -> None:
    sites: dict[int, Site] = {n: steady(1000, first=n) for n in range(1, 20)}
    sites[0] = phases(7, *[mix(1000, first=50 + 3 * number) for number in range(8)])
    run = Run({site(n): s for n, s in sites.items()}, noise=10).epochs(500)
    for decision in run.decisions[4:]:
        assert set(decision.wanted) <= {S}


def test_the_work_of_an_epoch_follows_the_active_sites() -> None:
    def site_of(number: int) -> Site:
        return steady(400, 400, 180, 10, 8, first=number) if number < 1500 else steady()

    run = Run({site(n): site_of(n) for n in range(8000)}).epochs(2)
    learning = run.guest.step()
    assert len(learning.sites) == 1500
    assert cpu_seconds(run, learning) < 0.25
    run.state = run.strategy.decide(run.state, learning)[0]
    run.epochs(11)
    watched = run.guest.step()
    assert len(watched.sites) == 1500
    assert cpu_seconds(run, watched) < 0.1
    after, decision = run.strategy.decide(run.state, watched)
    assert not decision.wanted
    assert all(after.sites[a] is known for a, known in run.state.sites.items())


def cpu_seconds(run: Run, snapshot: Snapshot) -> float:
    """Return the least CPU time of five runs; a decision is pure, so it can be made again."""
    seconds = []
    for _ in range(5):
        start = time.process_time()
        run.strategy.decide(run.state, snapshot)
        seconds.append(time.process_time() - start)
    return min(seconds)


def test_counting_hits_is_only_for_audits() -> None:
    run = Run({site(n): steady(1000, 200, first=n) for n in range(20)}, noise=11).epochs(100)
    forms = [form for decision in run.decisions for form in decision.wanted.values()]
    assert not [form for form in forms if isinstance(form, Chain) and form.counts_hits]
