"""Which form the targets of a site take, and how strategies are told of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import (
    LEARNING,
    ORIGINAL,
    Chain,
    Form,
    Key,
    Keyed,
    LearnKeys,
    Original,
    Tree,
)
from optpolined.learning.cost import Costs
from optpolined.learning.errors import SettingError
from optpolined.learning.hysteresis import Hysteresis
from optpolined.learning.shape import SHAPE_RANGES, FormChoice, Shaper, Shapes, ShapeSettings
from optpolined.learning.strategy import Decision, Share, SiteEpoch, Snapshot
from optpolined.x86 import Register

from .synthetic import SECONDS, A, B, C, D, E, site, target

S = site(0)
KEY = Key(Register.RDI, 2, 4)
FORESEEN = Costs(randomness_share=0.0)
FORMS = list(FormChoice)


def even(number: int) -> list[Share]:
    return [(target(n), 1 / number) for n in range(number)]


def table(number: int) -> dict[int, GuestVirtual]:
    return {n: target(n) for n in range(number)}


def shaper(form: FormChoice, costs: Costs | None = None) -> Shaper:
    return Shaper(ShapeSettings(form=form), costs)


@pytest.mark.parametrize("form", FORMS)
def test_one_target_is_a_chain(form: FormChoice) -> None:
    assert shaper(form).shape([(A, 0.99)], KEY, {0: A, 1: A}) == Chain((A,))


@pytest.mark.parametrize("form", FORMS)
def test_no_target_is_the_original(form: FormChoice) -> None:
    assert shaper(form).shape([]) == ORIGINAL
    assert not shaper(form).pays([])


def test_a_named_form_is_taken() -> None:
    targets = tuple(target(n) for n in range(6))
    assert shaper(FormChoice.CHAIN).shape(even(6), KEY, table(6)) == Chain(targets)
    assert shaper(FormChoice.TREE).shape(even(6), KEY, table(6)) == Tree(targets)
    leaves = tuple(table(6).items())
    assert shaper(FormChoice.KEYED).shape(even(6), KEY, table(6)) == Keyed(KEY, leaves)


@pytest.mark.parametrize(("key", "known"), [(None, table(3)), (KEY, {}), (KEY, {0: target(9)})])
def test_without_a_key_and_its_table_keyed_is_auto(
    key: Key | None, known: dict[int, GuestVirtual]
) -> None:
    assert shaper(FormChoice.KEYED).shape(even(3), key, known) == Chain((A, B, C))


def test_the_chain_keeps_its_heat_order() -> None:
    shares = [(C, 0.6), (A, 0.3), (B, 0.1)]
    assert shaper(FormChoice.AUTO).shape(shares) == Chain((C, A, B))


@pytest.mark.parametrize("number", [2, 4, 8])
def test_in_random_order_the_chain_is_cheapest(number: int) -> None:
    form = shaper(FormChoice.AUTO).shape(even(number), KEY, table(number))
    assert isinstance(form, Chain)


def test_where_the_order_is_foreseen_a_key_beats_a_long_chain() -> None:
    auto = shaper(FormChoice.AUTO, FORESEEN)
    assert isinstance(auto.shape(even(2), KEY, table(2)), Chain)
    assert isinstance(auto.shape(even(16), KEY, table(16)), Keyed)
    assert isinstance(auto.shape(even(16)), Tree)


def test_a_table_that_lacks_the_hot_targets_is_not_used() -> None:
    auto = shaper(FormChoice.AUTO, FORESEEN)
    assert isinstance(auto.shape(even(8), KEY, {0: target(7)}), Chain)


def test_leaves_are_only_targets_that_were_chosen() -> None:
    known = {0: A, 1: B, 2: target(9), 3: A, 77: B, -1: B}
    form = shaper(FormChoice.KEYED).shape([(A, 0.7), (B, 0.2)], KEY, known)
    assert form == Keyed(KEY, ((0, A), (1, B), (3, A)))


def test_what_pays() -> None:
    auto = shaper(FormChoice.AUTO)
    assert auto.pays(even(4))
    assert not auto.pays(even(8))
    assert not auto.pays([(A, 0.1)])
    assert not auto.pays(even(17))
    tail = [(target(n), 0.05) for n in range(1, 7)]
    assert auto.pays([(target(0), 0.65), *tail])
    assert auto.saving([(A, 1.0)]) == pytest.approx(1 - 4 / 36)


def test_a_named_tree_need_not_pay_but_only_where_it_can_be_had() -> None:
    assert shaper(FormChoice.TREE).pays(even(16))
    assert shaper(FormChoice.KEYED).pays(even(16), keyed=True)
    assert not shaper(FormChoice.KEYED).pays(even(16))


SHARES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20).map(
    lambda parts: [
        (target(n), part / max(1.0, sum(parts)))
        for n, part in enumerate(sorted(parts, reverse=True))
    ]
)
TABLES = st.dictionaries(st.integers(-3, 70), st.integers(0, 30).map(target), max_size=24)
SHAPERS = st.builds(
    Shaper,
    st.builds(
        ShapeSettings,
        st.sampled_from(FORMS),
        st.integers(2, 16),
        st.integers(2, 16),
        st.floats(0.0, 0.9),
    ),
    st.builds(Costs, randomness_share=st.floats(0.0, 1.0)),
)


@given(SHAPERS, SHARES, st.sampled_from([None, KEY]), TABLES)
def test_any_form_can_be_built_and_names_only_what_was_chosen(
    chooser: Shaper, shares: list[Share], key: Key | None, known: dict[int, GuestVirtual]
) -> None:
    form = chooser.shape(shares, key, known)
    names = {name for name, _ in shares}
    assert not isinstance(form, Original | LearnKeys)
    assert set(form.targets) <= names
    assert len(form.targets) <= 16
    assert form == chooser.shape(shares, key, dict(reversed(known.items())))
    match form:
        case Keyed(used, leaves):
            assert used == key
            assert all(known[index] == name and 0 <= index < 16 for index, name in leaves)
        case Tree(targets):
            assert 2 <= len(targets) <= chooser.settings.tree_targets_max
        case Chain(targets):
            assert targets == tuple(name for name, _ in shares[: len(targets)])
    if chooser.pays(shares):
        assert isinstance(form, Keyed) or set(form.targets) == names


def shapes(form: FormChoice = FormChoice.KEYED) -> Shapes:
    made = Shapes(shaper(form))
    made.declare({S: KEY})
    return made


def test_a_site_with_a_key_learns_it() -> None:
    made = shapes()
    decision = Decision({S: LEARNING, site(1): LEARNING})
    assert made.made(decision) == {S: LearnKeys(KEY), site(1): LEARNING}
    assert made.installed({S: LearnKeys(KEY), site(1): LEARNING}) == {
        S: LEARNING,
        site(1): LEARNING,
    }


def test_what_a_strategy_did_not_ask_for_is_told_as_it_is() -> None:
    made = shapes()
    made.made(Decision({S: LEARNING}))
    assert made.installed({S: Chain((A,))}) == {S: Chain((A,))}
    made.made(Decision({S: ORIGINAL}))
    assert made.installed({S: LearnKeys(KEY)}) == {S: LearnKeys(KEY)}
    made.made(Decision({S: LEARNING}))
    made.drop_sites([S, site(5)])
    assert made.installed({S: LearnKeys(KEY)}) == {S: LearnKeys(KEY)}
    assert made.made(Decision({S: LEARNING})) == {S: LEARNING}


def test_audits_stay_chains() -> None:
    audit = Chain((A, B), counts_hits=True)
    assert shapes(FormChoice.TREE).made(Decision({S: audit})) == {S: audit}


def test_calls_without_a_slot_are_named_by_the_table() -> None:
    made = shapes()
    seen = SiteEpoch({A: 10, B: 5}, other=7)
    told = made.counted({S: seen, site(1): seen}, {S: {0: A, 1: C, 2: D, 3: D, 4: E}})
    assert told[S] == SiteEpoch({A: 10, B: 5, C: 3, D: 2, E: 2}, 0, keyed=True)
    assert told[site(1)] == seen
    full = SiteEpoch({A: 10}, other=3)
    assert made.counted({S: full}, {S: {0: A}})[S] == SiteEpoch({A: 10}, 3, keyed=True)


@given(
    st.dictionaries(st.integers(0, 9).map(target), st.integers(0, 99)),
    st.integers(-5, 200),
    st.dictionaries(st.integers(0, 15), st.integers(0, 19).map(target)),
)
def test_the_table_adds_no_calls(
    calls: dict[GuestVirtual, int], other: int, known: dict[int, GuestVirtual]
) -> None:
    told = shapes().counted({S: SiteEpoch(calls, other)}, {S: known})[S]
    assert sum(told.calls.values()) + told.other == sum(calls.values()) + other
    assert all(told.calls[name] == count for name, count in calls.items())


def test_sixteen_targets_by_key_from_seven_slots() -> None:
    strategy, made = Hysteresis(None, shaper(FormChoice.KEYED)), shapes()
    state = strategy.initial([S])
    standing: dict[GuestVirtual, Form] = {}
    known = table(16)
    for epoch in range(8):
        counts = {}
        if standing.get(S) == LearnKeys(KEY):
            counts[S] = SiteEpoch({target(n): 50 for n in range(7)}, other=450)
        tables = {S: known} if counts else {}
        snapshot = Snapshot(epoch, SECONDS, made.counted(counts, tables), made.installed(standing))
        state, decision = strategy.decide(state, snapshot)
        standing.update(made.made(decision))
    assert standing[S] == Keyed(KEY, tuple(known.items()))
    assert strategy.site_statuses(state)[S].state == "promoted"
    misses = Snapshot(8, SECONDS, {S: SiteEpoch({target(40): 500})}, made.installed(standing))
    state, decision = strategy.decide(state, misses)
    assert made.made(decision) == {S: Chain(tuple(known.values()), counts_hits=True)}


@pytest.mark.parametrize("name", SHAPE_RANGES)
def test_a_value_beyond_its_range_is_named(name: str) -> None:
    for value in (-1, 99):
        with pytest.raises(SettingError, match=f"^{name} = "):
            ShapeSettings(**{name: value})  # type: ignore[arg-type]


def test_an_unknown_form_is_named() -> None:
    with pytest.raises(SettingError, match=r"^form = 'hash': must be one of auto, chain, tree"):
        ShapeSettings(form="hash")  # type: ignore[arg-type]
