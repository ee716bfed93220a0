"""Which sites get the arena's space, by example and over time, with real learning and arena."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.control.arena_budget import (
    CALM_EPOCHS,
    MEASURE_EPOCHS,
    SILENT_EPOCHS,
    ArenaBudget,
    fit,
)
from optpolined.control.call_rates import CallRates
from optpolined.kernel.errors import ArenaFullError
from optpolined.learning.hysteresis import Hysteresis
from optpolined.learning.strategy import SiteEpoch, Snapshot
from optpolined.patching.arena import UNIT, Arena, rounded

BASE = GuestVirtual(0xFFFFFFFFC0400000)
SECONDS = 0.5
TARGET = GuestVirtual(0xFFFFFFFF82000000)
ONE = Chain((TARGET,))


def site(number: int) -> GuestVirtual:
    return GuestVirtual(0xFFFFFFFF81000000 + 16 * number)


def size_of(_: GuestVirtual, form: Form) -> int:
    """Return about the size that codegen/assemble.py gives."""
    if not isinstance(form, Chain):
        return 0
    return rounded(17 + len(form.targets) * (37 if form.counts_hits else 13))


def counted(rates: Mapping[GuestVirtual, float], epoch: int, form: Form = LEARNING) -> Snapshot:
    """Return an epoch in which all the sites counted all their calls."""
    counts = {site: SiteEpoch({TARGET: int(rate * SECONDS)}) for site, rate in rates.items()}
    return Snapshot(epoch, SECONDS, counts, dict.fromkeys(rates, form))


def room_with(rates: Mapping[GuestVirtual, float], epoch: int = 0) -> ArenaBudget:
    room = ArenaBudget(size_of, CallRates())
    room.rates.update(counted(rates, epoch))
    return room


RATES = {site(number): 100.0 * (number + 1) for number in range(40)}
WANTED: dict[GuestVirtual, Form] = dict.fromkeys(RATES, ONE)


def promoted(forms: Mapping[GuestVirtual, Form | None]) -> set[GuestVirtual]:
    return {site for site, form in forms.items() if isinstance(form, Chain) and form.targets}


def hottest(count: int) -> set[GuestVirtual]:
    return set(sorted(RATES, key=lambda site: -RATES[site])[:count])


def test_where_there_is_space_every_site_gets_what_it_wants() -> None:
    room = room_with(RATES)
    assert room.share(WANTED, {}, 2 << 20, 1) is WANTED
    assert not room.degraded
    assert (room.denied, room.waiting) == ((), 0)


def test_the_hottest_sites_get_the_space_in_order() -> None:
    room = room_with(RATES)
    shared = room.share(WANTED, {}, 32 * UNIT, 1)
    assert room.degraded
    assert promoted(shared) == hottest(21)  # three quarters of seven eighths of 32
    assert list(shared)[:2] == [site(39), site(38)]
    assert set(room.denied) == set(RATES) - hottest(21)
    assert room.rates.calls_per_second(room.denied) == sum(RATES[site] for site in room.denied)


def test_learning_sites_get_a_quarter_and_the_longest_wait_goes_first() -> None:
    room = room_with(RATES)
    learners = [site(number) for number in range(100, 110)]
    room.rates.update(counted(dict.fromkeys(learners[:5], 1000.0), 1))
    wanted = WANTED | dict.fromkeys(learners, LEARNING)
    shared = room.share(wanted, {}, 32 * UNIT, 2)
    assert [site for site in learners if shared[site] == LEARNING] == [*learners[:2], *learners[5:]]
    assert room.waiting == 3
    assert promoted(shared) == hottest(21)


def test_a_learning_site_is_not_displaced_by_a_waiting_one() -> None:
    room = ArenaBudget(size_of, CallRates())
    learners = [site(number) for number in range(100)]
    wanted: dict[GuestVirtual, Form] = dict.fromkeys(learners, LEARNING)
    standing: dict[GuestVirtual, Form | None] = dict.fromkeys(learners[50:60], LEARNING)
    room.rates.update(counted(dict.fromkeys(learners[50:60], 10.0), 1))
    shared = room.share(wanted, standing, 32 * UNIT, 2)
    assert set(learners[50:60]) <= {site for site in learners if shared[site] == LEARNING}


def test_a_silent_site_makes_space_for_one_that_was_not_measured() -> None:
    room = ArenaBudget(size_of, CallRates())
    learners = [site(number) for number in range(100)]
    wanted: dict[GuestVirtual, Form] = dict.fromkeys(learners, LEARNING)
    first = [
        each for each, form in room.share(wanted, {}, 32 * UNIT, 0).items() if form == LEARNING
    ]
    assert len(first) == 28
    loud, silent = first[:3], first[3:]
    room.rates.update(counted(dict.fromkeys(loud, 100.0) | dict.fromkeys(silent, 0.0), 1))
    standing: dict[GuestVirtual, Form | None] = dict.fromkeys(first, LEARNING)
    shared = room.share(wanted, standing, 32 * UNIT, 1)
    second = {each for each, form in shared.items() if form == LEARNING}
    assert second >= set(loud)
    assert not second & set(silent)
    assert len(second) == 28
    again = room.share(wanted, {}, 32 * UNIT, 1 + SILENT_EPOCHS)
    assert room.waiting == 72
    assert [each for each, form in again.items() if form == LEARNING][-1] not in silent


@pytest.mark.parametrize(("hotter", "displaces"), [(1.1, False), (1.5, True)])
def test_a_site_with_a_block_is_displaced_by_a_margin_only(hotter: float, displaces: bool) -> None:
    standing: dict[GuestVirtual, Form | None] = dict.fromkeys(hottest(21), ONE)
    coldest = min(hottest(21), key=lambda site: RATES[site])
    newcomer = site(100)
    room = room_with({**RATES, newcomer: hotter * RATES[coldest]})
    shared = room.share({**WANTED, newcomer: ONE}, standing, 32 * UNIT, 1)
    assert (newcomer in promoted(shared)) is displaces
    assert (shared[coldest] == ORIGINAL) is displaces
    assert len(promoted(shared)) == 21


def test_a_smaller_block_does_not_go_before_a_hotter_one() -> None:
    long = Chain(tuple(GuestVirtual(TARGET + 16 * number) for number in range(4)))
    room = room_with(RATES)
    shared = room.share({**WANTED, site(19): long}, {}, 32 * UNIT, 1)
    assert promoted(shared) == hottest(20)


def test_rates_that_are_old_are_measured_again() -> None:
    room = room_with(RATES)
    standing: dict[GuestVirtual, Form | None] = dict.fromkeys(hottest(21), ONE)
    assert (
        Chain((TARGET,), counts_hits=True)
        not in room.share(WANTED, standing, 32 * UNIT, MEASURE_EPOCHS - 1).values()
    )
    shared = room.share(WANTED, standing, 32 * UNIT, MEASURE_EPOCHS)
    measured = [site for site in WANTED if shared[site] not in (ORIGINAL, ONE)]
    assert measured
    for each in measured:
        granted = each in hottest(21)
        assert shared[each] == (Chain((TARGET,), counts_hits=True) if granted else LEARNING)
    room.rates.update(counted(dict.fromkeys(measured, 1.0), MEASURE_EPOCHS))
    again = room.share(WANTED, standing, 32 * UNIT, MEASURE_EPOCHS + 1)
    assert not [site for site in measured if again[site] not in (ORIGINAL, ONE)]


def test_the_degraded_mode_is_logged_once_at_its_begin_and_once_at_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    room = ArenaBudget(size_of, CallRates())
    few = dict.fromkeys([site(0), site(1)], ONE)
    for epoch in range(3 * CALM_EPOCHS):
        room.share(WANTED if epoch % (CALM_EPOCHS // 2) == 0 else few, {}, 32 * UNIT, epoch)
    assert room.degraded
    for epoch in range(3 * CALM_EPOCHS, 5 * CALM_EPOCHS):
        room.share(few, {}, 32 * UNIT, epoch)
    assert not room.degraded
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "the arena is too small",
        "the arena holds all wanted blocks again",
    ]


def test_sites_with_foreign_bytes_take_no_space() -> None:
    room = room_with(RATES)
    shared = room.share(WANTED, dict.fromkeys(RATES), 32 * UNIT, 1)
    assert not room.degraded
    assert shared is WANTED


@given(
    rates=st.dictionaries(st.integers(0, 200).map(site), st.floats(0, 1e6), max_size=60),
    sizes=st.data(),
    units=st.integers(0, 300),
)
def test_what_is_granted_fits_and_is_the_hottest(
    rates: dict[GuestVirtual, float], sizes: st.DataObject, units: int
) -> None:
    forms = st.builds(Chain, st.integers(0, 4).map(lambda count: (TARGET,) * count), st.booleans())
    wanted: dict[GuestVirtual, Form] = {each: sizes.draw(forms) for each in rates}
    room = room_with(rates)
    shared = room.share(wanted, {}, units * UNIT, sizes.draw(st.integers(0, 100)))
    assert shared.keys() == wanted.keys()
    total = sum(size_of(each, form) for each, form in shared.items())
    assert total <= units * UNIT
    if room.degraded and promoted(shared) and room.denied:
        least = min(room.rates.calls_per_second([each]) for each in promoted(shared))
        assert least >= max(room.rates.calls_per_second([each]) for each in room.denied)
    else:
        assert room.degraded or shared is wanted


def test_changes_wait_for_space_in_order() -> None:
    long = Chain((TARGET,) * 4)
    changes: dict[GuestVirtual, Form] = {
        site(0): ONE,
        site(1): long,
        site(2): ONE,
        site(3): ORIGINAL,
    }
    assert list(fit(changes, size_of, 3 * UNIT)) == [site(0), site(3)]
    assert list(fit(changes, size_of, 5 * UNIT)) == [site(0), site(1), site(2), site(3)]


@dataclass
class Guest:
    """Sites of one target and a rate each, hysteresis, a room, and an arena with grace periods."""

    rates: dict[GuestVirtual, float]
    units: int
    strategy: Hysteresis = field(default_factory=Hysteresis)
    room: ArenaBudget = field(default_factory=lambda: ArenaBudget(size_of, CallRates()))
    forms: dict[GuestVirtual, Form | None] = field(default_factory=dict)
    wanted: dict[GuestVirtual, Form] = field(default_factory=dict)
    blocks: dict[GuestVirtual, GuestVirtual] = field(default_factory=dict)
    epoch: int = 0
    pokes: int = 0

    def __post_init__(self) -> None:
        self.arena = Arena(BASE, self.units * UNIT)
        self.state = self.strategy.initial(self.rates)

    def run(self, epochs: int) -> int:
        """Run some epochs; return how many sites were changed."""
        before = self.pokes
        for _ in range(epochs):
            self.epoch += 1
            self.step()
        return self.pokes - before

    def step(self) -> None:
        installed = {each: form for each, form in self.forms.items() if form is not None}
        counts = {each: self.counts(each, form) for each, form in installed.items()}
        snapshot = Snapshot(self.epoch, SECONDS, counts, installed)
        self.state, decision = self.strategy.decide(self.state, snapshot)
        self.wanted.update(decision.wanted)
        self.room.rates.update(snapshot)
        shared = self.room.share(self.wanted, self.forms, self.arena.size, self.epoch)
        changes = {
            each: form for each, form in shared.items() if form != self.forms.get(each, ORIGINAL)
        }
        token = self.arena.grace_begin()
        fitting = fit(changes, size_of, self.arena.usage().free)
        for each, form in fitting.items():
            self.change(each, form)
        self.pokes += len(fitting)
        self.arena.grace_end(token)
        usage = self.arena.usage()
        assert usage.used + usage.retired + usage.free == self.arena.size
        assert usage.used == sum(
            size_of(each, form or ORIGINAL) for each, form in self.forms.items()
        )

    def counts(self, each: GuestVirtual, form: Form) -> SiteEpoch:
        calls = int(self.rates[each] * SECONDS)
        if form == LEARNING:
            return SiteEpoch({TARGET: calls})
        counts = isinstance(form, Chain) and form.counts_hits
        return SiteEpoch({}, hits=calls if counts else 0)

    def change(self, each: GuestVirtual, form: Form) -> None:
        """As the patcher does; where no free range is long enough it is tried again."""
        block = None
        if isinstance(form, Chain):
            try:
                block = self.arena.allocate(size_of(each, form))
            except ArenaFullError:
                return
        old = self.blocks.pop(each, None)
        if block is not None:
            self.blocks[each] = block
        self.forms[each] = form
        if old is not None:
            self.arena.retire(old)

    def promoted(self) -> set[GuestVirtual]:
        return promoted(self.forms)

    def coldest_first(self, sites: Iterable[GuestVirtual]) -> list[GuestVirtual]:
        return sorted(sites, key=lambda each: self.rates[each])


@pytest.fixture
def small() -> Guest:
    """Two hundred sites of which eighty are hot, and room for forty-two of them."""
    rates = {site(number): 50.0 * 1.05**number if number < 80 else 0.0 for number in range(200)}
    return Guest(rates, units=64)


def test_in_time_the_hottest_are_promoted_and_then_there_is_peace(small: Guest) -> None:
    small.run(600)
    assert small.room.degraded
    assert len(small.promoted()) == 42
    # Within the margin the site that came first stays.
    assert set(small.coldest_first(small.rates)[-37:]) <= small.promoted()
    stays = set(small.promoted())
    for _ in range(200):
        small.run(1)
        assert small.promoted() == stays


def test_a_hot_newcomer_displaces_the_coldest(small: Guest) -> None:
    small.run(600)
    newcomer, coldest = site(150), small.coldest_first(small.promoted())[0]
    small.rates[newcomer] = 1e5
    small.run(300)
    assert newcomer in small.promoted()
    assert coldest not in small.promoted()
    assert len(small.promoted()) == 42


def test_who_has_become_cold_makes_room(small: Guest) -> None:
    small.run(600)
    was_hot = small.coldest_first(small.promoted())[-1]
    small.rates[was_hot] = 0.0
    small.run(8 * MEASURE_EPOCHS)
    assert was_hot not in small.promoted()
    assert len(small.promoted()) == 42


def test_with_room_again_all_are_promoted(small: Guest) -> None:
    small.run(300)
    gone = [site(number) for number in range(42, 200)]
    small.state = small.strategy.drop_sites(small.state, gone)
    small.room.rates.drop_sites(gone)
    small.wanted |= dict.fromkeys(gone, ORIGINAL)
    small.run(200)
    assert not small.room.degraded
    assert small.promoted() == {site(number) for number in range(42)}


def test_who_is_pinned_goes_before_the_hottest_and_is_not_measured() -> None:
    room = room_with(RATES)
    cold = {site(0), site(1)}
    for epoch in (1, 2 * MEASURE_EPOCHS):
        shared = room.share(WANTED, {}, 32 * UNIT, epoch, cold)
        assert all(shared[pinned] == ONE for pinned in cold)
        assert hottest(19) <= promoted(shared)
