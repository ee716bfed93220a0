"""How often sites are called, and what that is worth by the cost model."""

import pytest

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, Chain, Form
from optpolined.control.call_rates import CallRates
from optpolined.learning.cost import Costs
from optpolined.learning.strategy import SiteEpoch, Snapshot

HOT, COLD, ONE, TWO = map(GuestVirtual, (0x10, 0x20, 0x100, 0x200))
COSTS = Costs()
PROMOTED = Chain((ONE,))


def epoch(number: int, sites: dict[GuestVirtual, SiteEpoch], **forms: Form) -> Snapshot:
    installed = {HOT: forms.get("hot", LEARNING), COLD: forms.get("cold", LEARNING)}
    return Snapshot(number, 0.5, sites, installed)


def learned() -> CallRates:
    """The hot site is called 1000 times a second, the cold one 100 times."""
    rates = CallRates()
    rates.update(epoch(1, {HOT: SiteEpoch({ONE: 500}), COLD: SiteEpoch({TWO: 40}, 10)}))
    return rates


def test_nothing_is_worth_nothing() -> None:
    worth = CallRates().worth({}, {}, {}, COSTS)
    assert (worth.coverage, worth.cycles_saved_per_second) == (None, 0)
    assert worth.learning_overhead_share == 0


def test_what_learns_costs_and_is_not_direct() -> None:
    rates = learned()
    assert (rates.counted_calls, rates.missed_calls) == (550, 0)
    worth = rates.worth({}, {}, {}, COSTS)
    assert worth.coverage == 0
    assert worth.learning_overhead_share == pytest.approx((39 - 36) / 36)


def test_a_promoted_site_saves_what_its_hits_save_less_its_misses() -> None:
    rates = learned()
    rates.update(epoch(2, {HOT: SiteEpoch({TWO: 50})}, hot=PROMOTED))
    assert (rates.counted_calls, rates.missed_calls) == (600, 50)
    promoted = rates.promoted({HOT: PROMOTED, COLD: LEARNING})
    assert promoted.keys() == {HOT}
    worth = rates.worth(promoted, {HOT: PROMOTED}, {HOT: [(ONE, 0.9)]}, COSTS)
    assert (worth.direct_per_second, worth.missed_per_second) == (900, 100)
    assert worth.coverage == pytest.approx(900 / (1000 + 50))  # COLD was silent
    assert worth.cycles_saved_per_second == pytest.approx(900 * (36 - 4) - 100 * (39 - 36))
    assert worth.learning_overhead_share == 0


def test_targets_of_unknown_shares_count_alike() -> None:
    rates = learned()
    form = Chain((ONE, TWO))
    worth = rates.worth(rates.promoted({HOT: form}), {HOT: form}, {}, COSTS)
    assert worth.cycles_saved_per_second == pytest.approx(1000 * (36 - COSTS.chain([0.5, 0.5])))


def test_a_site_that_is_gone_counts_no_more() -> None:
    rates = learned()
    rates.drop_sites([COLD])
    assert rates.of(COLD).calls_per_second == 0
    assert rates.of(HOT).calls_per_second == 1000


def test_a_site_that_falls_silent_while_it_learns_loses_its_rate() -> None:
    rates = learned()
    seen = []
    for number in range(2, 6):
        seen.append(rates.of(HOT).calls_per_second)
        rates.update(epoch(number, {COLD: SiteEpoch({TWO: 50})}))
    assert seen == [1000, 500, 250, 125]
    assert rates.of(HOT).measured == 5


def test_a_silent_site_does_not_lower_the_coverage_for_ever() -> None:
    rates = learned()
    for number in range(2, 12):
        rates.update(epoch(number, {}, cold=PROMOTED))
    worth = rates.worth(rates.promoted({COLD: PROMOTED}), {COLD: PROMOTED}, {}, COSTS)
    assert worth.coverage == pytest.approx(100 / (100 + 1000 / 1024))


def test_a_promoted_site_that_counts_only_misses_keeps_its_rate() -> None:
    rates = learned()
    for number in range(2, 12):
        rates.update(epoch(number, {}, hot=PROMOTED))
    assert rates.of(HOT).calls_per_second == 1000
    assert rates.of(HOT).measured == 1


def test_a_chain_that_counts_its_hits_is_measured_in_silence_too() -> None:
    rates = learned()
    counting = Chain((ONE,), counts_hits=True)
    rates.update(epoch(2, {HOT: SiteEpoch({TWO: 50}, hits=450)}, hot=counting))
    assert rates.of(HOT).calls_per_second == 1000
    rates.update(epoch(3, {}, hot=counting))
    assert rates.of(HOT).calls_per_second == 500


def test_rates_of_sites_add_up() -> None:
    assert learned().calls_per_second([HOT, COLD, ONE]) == 1100
