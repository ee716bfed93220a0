"""The cost model against what was measured, and against sense."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpolined.codegen.forms import Key
from optpolined.learning.cost import COST_RANGES, Costs
from optpolined.learning.errors import SettingError
from optpolined.learning.strategy import Share
from optpolined.x86 import Register

from .synthetic import target

COSTS = Costs()
FORESEEN = Costs(randomness_share=0.0)
KEY = Key(Register.RSI, 3, 4)


def even(number: int) -> list[Share]:
    return [(target(n), 1 / number) for n in range(number)]


def skewed(number: int) -> list[Share]:
    return [(target(0), 0.9)] + [(target(n), 0.1 / (number - 1)) for n in range(1, number)]


def chain(shares: list[Share], costs: Costs = COSTS) -> float:
    return costs.chain([share for _, share in shares]) / costs.retpoline_cycles


@pytest.mark.parametrize(("number", "measured"), [(2, 0.48), (4, 0.79), (8, 0.93), (16, 1.14)])
def test_chains_in_random_order_cost_what_was_measured(number: int, measured: float) -> None:
    assert chain(even(number)) == pytest.approx(measured, rel=0.11)


@pytest.mark.parametrize(("number", "measured"), [(4, 0.84), (8, 1.16), (16, 1.52)])
def test_trees_in_random_order_cost_what_was_measured(number: int, measured: float) -> None:
    assert COSTS.tree(even(number)) / 36 == pytest.approx(measured, rel=0.10)


@pytest.mark.parametrize(("number", "measured"), [(2, 0.86), (4, 1.00), (8, 1.02), (16, 1.03)])
def test_one_of_many_targets_costs_what_was_measured(number: int, measured: float) -> None:
    uncounted = Costs(miss_cycles=37.0)
    assert chain(even(number)[:1], uncounted) == pytest.approx(measured, rel=0.10)


@pytest.mark.parametrize(("number", "measured"), [(2, 0.24), (4, 0.29), (8, 0.26), (16, 0.27)])
def test_skewed_chains_cost_what_was_measured(number: int, measured: float) -> None:
    assert chain(skewed(number)) == pytest.approx(measured, rel=0.25)


def test_foreseen_calls_cost_what_was_measured() -> None:
    leaves = [(n, target(n)) for n in range(16)]
    assert chain(even(1), FORESEEN) * 36 == pytest.approx(4.0)
    assert FORESEEN.keyed(even(16), KEY, leaves) == pytest.approx(4.7)


def test_a_call_without_a_leaf_is_a_miss() -> None:
    shares = even(2)
    known = FORESEEN.keyed(shares, KEY, [(5, shares[0][0])])
    assert known > 0.5 * FORESEEN.miss_cycles
    assert FORESEEN.keyed(shares, KEY, [(5, target(9))]) == FORESEEN.miss_cycles


SHARES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=16).map(
    lambda parts: [
        (target(n), part / max(1.0, sum(parts)))
        for n, part in enumerate(sorted(parts, reverse=True))
    ]
)


@given(SHARES)
def test_costs_are_finite_and_not_below_a_direct_call(shares: list[Share]) -> None:
    leaves = [(n, share[0]) for n, share in enumerate(shares)]
    for cycles in (
        COSTS.chain([share for _, share in shares]),
        COSTS.tree(shares),
        COSTS.keyed(shares, KEY, leaves),
    ):
        assert COSTS.direct_cycles - 1e-6 <= cycles < 1000


@given(SHARES)
def test_noise_never_makes_a_form_cheaper(shares: list[Share]) -> None:
    leaves = [(n, share[0]) for n, share in enumerate(shares)]
    assert FORESEEN.chain([s for _, s in shares]) <= COSTS.chain([s for _, s in shares])
    assert FORESEEN.tree(shares) <= COSTS.tree(shares)
    assert FORESEEN.keyed(shares, KEY, leaves) <= COSTS.keyed(shares, KEY, leaves)


@pytest.mark.parametrize("name", COST_RANGES)
def test_a_cost_beyond_its_range_is_named(name: str) -> None:
    for value in (-1.0, COST_RANGES[name][1] * 2, float("nan")):
        with pytest.raises(SettingError, match=f"^{name} = "):
            Costs(**{name: value})
