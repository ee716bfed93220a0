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
    assert worth.coverage == pytest.approx(900 / 1100)
    assert worth.cycles_saved_per_second == pytest.approx(900 * (36 - 4) - 100 * (39 - 36))
    assert worth.learning_overhead_share == 0


def test_targets_of_unknown_shares_count_alike() -> None:
    rates = learned()
    form = Chain((ONE, TWO))
    worth = rates.worth(rates.promoted({HOT: form}), {HOT: form}, {}, COSTS)
    assert worth.cycles_saved_per_second == pytest.approx(1000 * (36 - COSTS.chain([0.5, 0.5])))


def test_a_site_that_is_gone_counts_no_more() -> None:
    rates = learned()
    rates.forget([COLD])
    assert rates.of(COLD).calls_per_second == 0
    assert rates.of(HOT).calls_per_second == 1000
