import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.learning.shares import (
    Contest,
    blend,
    choose,
    contest,
    covers,
    estimate,
    extend,
    look,
)
from optpolined.learning.strategy import SiteEpoch

from .synthetic import A, B, C, D, E, F, target


def test_odd_counters_are_dropped() -> None:
    seen = look(SiteEpoch({A: 5, B: -3, C: 0, GuestVirtual(0): 9, D: 10**400}, other=-1, hits=-7))
    assert seen.calls == {A: 5, D: 1 << 64}
    assert seen.slow == seen.total == 5 + (1 << 64)


def test_other_and_hits_are_calls_without_a_name() -> None:
    seen = look(SiteEpoch({A: 5}, other=3, hits=2))
    assert (seen.slow, seen.total) == (8, 10)
    assert blend((), seen, 1.0) == ((A, 0.5),)


def test_the_average_moves_and_forgets() -> None:
    shares = blend((), look(SiteEpoch({A: 10})), 1.0)
    shares = blend(shares, look(SiteEpoch({B: 10})), 0.25)
    assert shares == ((A, 0.75), (B, 0.25))
    for _ in range(30):
        shares = blend(shares, look(SiteEpoch({B: 10})), 0.25)
    assert [share[0] for share in shares] == [B]


def test_a_guest_with_hundreds_of_targets_is_bounded() -> None:
    seen = look(SiteEpoch({target(number): 1000 - number for number in range(448)}))
    shares = blend((), seen, 1.0)
    assert [share[0] for share in shares] == [target(number) for number in range(16)]


HEAT = ((A, 0.5), (B, 0.4), (C, 0.06), (D, 0.02), (E, 0.02))


@pytest.mark.parametrize(
    ("enough", "most", "chosen"),
    [
        (0.5, 4, (A,)),
        (0.9, 4, (A, B)),
        (0.9, 1, ()),
        (0.95, 4, (A, B, C)),
        (0.98, 4, (A, B, C, D)),
        (1.0, 4, ()),
        (1.0, 5, (A, B, C, D, E)),
    ],
)
def test_the_fewest_targets_are_chosen(
    enough: float, most: int, chosen: tuple[GuestVirtual, ...]
) -> None:
    assert choose(HEAT, enough, most) == chosen
    assert not chosen or covers(HEAT, chosen, enough)


def test_free_places_go_to_what_is_worth_them() -> None:
    assert extend(HEAT, (A, B), 0.05, 4) == HEAT[:3]
    assert extend(HEAT, (A, B), 0.05, 2) == HEAT[:2]
    assert extend(HEAT, (A, B), 0.01, 4) == HEAT[:4]


def test_hits_are_shared_out_as_before() -> None:
    shares = [share for _, share in estimate(((A, 0.6), (B, 0.2)), 0.4)]
    assert shares == pytest.approx([0.3, 0.1])
    assert estimate(((A, 0.0), (B, 0.0)), 0.4) == ((A, 0.2), (B, 0.2))


def test_a_free_place_needs_no_margin() -> None:
    ended = contest(((A, 0.9),), ((A, 0.9), (B, 0.1)), worth=0.05, margin=0.5, most=4)
    assert ended == Contest(((A, 0.9), (B, 0.1)), came=1, gone=0)


@pytest.mark.parametrize(("share", "wins"), [(0.14, False), (0.15, True), (0.5, True)])
def test_a_taken_place_needs_the_margin(share: float, wins: bool) -> None:
    ended = contest(((A, 0.4), (B, 0.05)), ((C, share),), worth=0.05, margin=0.1, most=2)
    assert {name for name, _ in ended.chain} == ({A, C} if wins else {A, B})
    assert (ended.came, ended.gone) == (wins, wins)


def test_without_leave_nobody_loses_his_place() -> None:
    ended = contest(((A, 0.0),), ((C, 1.0),), worth=0.05, margin=None, most=1)
    assert ended == Contest(((A, 0.0),), came=0, gone=0)


def test_of_equally_weak_targets_the_last_goes() -> None:
    weak = ((A, 0.0), (B, 0.0), (C, 0.0))
    ended = contest(weak, ((F, 1.0),), worth=0.05, margin=0.1, most=3)
    assert ended.chain == ((F, 1.0), (A, 0.0), (B, 0.0))


@given(
    st.dictionaries(
        st.integers(min_value=-5, max_value=1 << 64).map(GuestVirtual), st.integers(), max_size=40
    ),
    st.integers(),
    st.integers(),
    st.floats(min_value=0.01, max_value=1.0),
)
def test_shares_are_shares(
    calls: dict[GuestVirtual, int], other: int, hits: int, weight: float
) -> None:
    seen = look(SiteEpoch(calls, other, hits))
    if seen.total:
        shares = blend((), seen, weight)
        assert all(0 < share <= 1 for _, share in shares)
        assert sum(share for _, share in shares) <= 1 + 1e-9
        assert {name for name, _ in shares} <= calls.keys() - {0}
