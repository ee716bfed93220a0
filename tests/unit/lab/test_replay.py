"""A replay decides what the daemon decided, and accounts for it."""

import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form, Key, LearnKeys
from optpolined.config import LearningConfig
from optpolined.control.recorder import Recorder
from optpolined.lab.actual_calls import UNKNOWN_TARGET, EpochCalls, find_actual_calls
from optpolined.lab.replay import is_recorded, replay, replay_recorded
from optpolined.lab.score import Score, stop_seconds, target_shares
from optpolined.lab.simulated_guest import SimulatedGuest
from optpolined.learning.cost import Costs
from optpolined.learning.overridden import Override
from optpolined.learning.runner import StrategyRunner
from optpolined.learning.settings import LearningSettings, PeriodicSettings
from optpolined.learning.strategies import StrategyName
from optpolined.learning.strategy import SiteEpoch
from optpolined.learning.trace.model import Said, Trace, TraceHeader, summed
from optpolined.learning.trace.reader import read_traces
from optpolined.learning.trace.writer import TraceWriter
from optpolined.x86 import Register
from tests.laboratory.scenarios import alternation, make, site, target

QUICK = LearningConfig(
    hysteresis=LearningSettings(
        promote_epochs=2, learn_epochs=3, audit_epochs=3, quarantine_epochs=2, calm_epochs=4
    ),
    periodic=PeriodicSettings(learn_epochs=4, worker_epochs=2, retrain_epochs=9),
)
KEY = Key(Register.RDI, 0, 3)
A, B = target(0), target(1)


class Live:
    """A daemon at work in a world that makes the calls of a trace, CPU by CPU.

    The first site learns by its key; the last one comes late, goes and comes back, and is
    made to learn again.

    :param said: What is said before which epochs.
    :param covered: Sites that learn by census, until the operator takes none any more.
    """

    def __init__(
        self,
        trace: Trace,
        strategy: StrategyName,
        said: Mapping[int, Sequence[Said]] | None = None,
        covered: frozenset[GuestVirtual] = frozenset(),
    ) -> None:
        self.trace, self.strategy = trace, strategy
        self.said = said or {}
        self.covered = covered
        self.overrides: dict[GuestVirtual, Override] = {}
        self.present: set[GuestVirtual] = set()
        self.sites = list(trace.epochs[0].came)
        self.runner = StrategyRunner(QUICK, strategy)
        self.worlds = [SimulatedGuest(), SimulatedGuest()]
        self.decisions: list[dict[GuestVirtual, Form]] = []

    def record(self, path: Path) -> Trace:
        header = TraceHeader("test", "", self.strategy, QUICK)
        with path.open("wb") as file, TraceWriter(file, header) as writer:
            recorder = Recorder(writer.write, hex)
            for place, calls in enumerate(find_actual_calls(self.trace)):
                for said in self.said.get(place, ()):
                    self.say(said, recorder)
                self.follow(place, recorder)
                self.say(self.overrides, recorder)  # as the governor does
                self.epoch(place, calls, recorder)
        (trace,) = read_traces(path)
        return trace

    def say(self, said: Said, recorder: Recorder) -> None:
        if isinstance(said, LearningConfig):
            self.runner.use_settings(said)
            recorder.note_settings(said)
            return
        self.overrides = dict(said)
        known = {address: override for address, override in said.items() if address in self.present}
        self.runner.set_overrides(known)
        recorder.note_overrides(known)

    def follow(self, place: int, recorder: Recorder) -> None:
        last = self.sites[-1]
        first: dict[GuestVirtual, Key | None] = {**dict.fromkeys(self.sites[:-1]), site(0): KEY}
        late: dict[GuestVirtual, Key | None] = {last: None}
        came = {0: first, 4: late, 20: late, 26: late}.get(place, {})
        went = [last] if place in (15, 26) else []
        for world in self.worlds if place == 15 else ():
            world.drop_site(last)
        self.present.difference_update(went)
        self.present.update(came)
        if came or went:
            self.runner.update_sites(came, went)
            recorder.note_sites(came, went)

    def epoch(self, place: int, calls: EpochCalls, recorder: Recorder) -> None:
        census = place % 9 < 4
        covered = self.covered & self.present if place < 33 else frozenset()
        for world in self.worlds:
            if covered != world.covered:
                world.covered = covered
                world.poke(self.runner.wanted)
        by_cpu = {
            cpu: world.count(
                {s: {cpu: made[cpu]} for s, made in calls.items() if cpu in made}, census=census
            )
            for cpu, world in enumerate(self.worlds)
        }
        called = {address for gains in by_cpu.values() for address in gains}
        counts = {
            address: summed(
                {cpu: gains[address] for cpu, gains in by_cpu.items() if address in gains}
            )
            for address in called
        }
        forms = dict(self.worlds[0].forms)
        tables = {s: {0: A, 1: B} for s, form in forms.items() if isinstance(form, LearnKeys)}
        for _ in range(1 + (place % 7 == 3)):  # what nothing decides on is not part of the trace
            recorder.note_counts(place, 0.5, by_cpu, tables, forms, covered=covered, census=census)
        snapshot = self.runner.snapshot(
            place, 0.5, counts, tables, forms, covered=covered, census=census
        )
        made = self.runner.decide(snapshot)
        recorder.write_epoch(made)
        self.decisions.append(made)
        # The daemon pokes what it can: here, every third change is refused.
        doable = {s: form for s, form in made.items() if (s // 16 + place) % 3}
        for world in self.worlds:
            world.poke(doable)


RATES = st.sampled_from([0.0, 3.0, 40.0, 400.0])
MIXES = st.dictionaries(st.integers(0, 9), RATES, max_size=9)
PHASES = st.lists(st.tuples(st.integers(1, 12), MIXES), min_size=1, max_size=4)


def follow(track: list[dict[int, float]], epoch: int, _cpu: int) -> dict[int, float]:
    return track[epoch % len(track)]


SITES = st.integers(0, 2).map(site)
SAID: st.SearchStrategy[Said] = st.one_of(
    st.dictionaries(
        SITES,
        st.builds(Override, st.sampled_from([None, A, B]), st.just("because")),
    ),
    st.builds(
        lambda name, epochs: QUICK.model_copy(
            update={"strategy": name, "hysteresis": LearningSettings(promote_epochs=epochs)}
        ),
        st.sampled_from(StrategyName),
        st.integers(1, 3),
    ),
)
TALKS = st.dictionaries(
    st.sampled_from([0, 2, 5, 15, 16, 20, 26, 31]), st.lists(SAID, max_size=3), max_size=4
)


@pytest.mark.parametrize("strategy", list(StrategyName))
@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(st.lists(PHASES, min_size=3, max_size=3), TALKS, st.frozensets(SITES))
def test_a_recorded_run_is_decided_as_it_was(
    tmp_path: Path,
    strategy: StrategyName,
    plans: list[list[tuple[int, dict[int, float]]]],
    said: dict[int, list[Said]],
    covered: frozenset[GuestVirtual],
) -> None:
    tracks = [[rates for length, rates in plan for _ in range(length)] for plan in plans]
    calls = make("test", 40, [partial(follow, track) for track in tracks])
    live = Live(calls, strategy, said, covered)
    recorded = live.record(tmp_path / "x.trace")
    assert is_recorded(recorded, strategy, QUICK)
    outcome = replay_recorded(recorded, find_actual_calls(recorded))
    assert outcome.differs_at is None
    assert outcome.decisions == live.decisions
    assert len(outcome.score.calls) == len(outcome.score.pokes) == 40


def test_every_strategy_obeys_the_rulings_of_a_trace(tmp_path: Path) -> None:
    overrides = {site(0): Override(A, "pinned"), site(1): Override(None, "banned")}
    live = Live(alternation(6, 40, sites=3), StrategyName.HYSTERESIS, {6: [overrides]})
    recorded = live.record(tmp_path / "x.trace")
    outcomes = [
        replay(recorded, find_actual_calls(recorded), strategy, QUICK) for strategy in StrategyName
    ]
    for outcome in [replay_recorded(recorded, find_actual_calls(recorded)), *outcomes]:
        assert outcome.differs_at is None
        assert outcome.decisions[6][site(0)] == Chain((A,))
        assert outcome.decisions[6][site(1)] == ORIGINAL
        assert not any({site(0), site(1)} & made.keys() for made in outcome.decisions[7:])


def test_a_recorded_census_is_learned_from_as_it_was(tmp_path: Path) -> None:
    covered = frozenset({site(1), site(2)})
    live = Live(alternation(50, 40, sites=3), StrategyName.HYSTERESIS, {}, covered)
    recorded = live.record(tmp_path / "x.trace")
    assert [epoch.census for epoch in recorded.epochs[:10]] == [True] * 4 + [False] * 5 + [True]
    assert next(recorded.covering()) == {site(1)}  # the last site comes later
    assert any(isinstance(made.get(site(1)), Chain) for made in live.decisions)
    assert not any(e.forms.get(site(1)) == LEARNING for e in recorded.epochs)
    outcome = replay_recorded(recorded, find_actual_calls(recorded))
    assert outcome.differs_at is None
    assert outcome.decisions == live.decisions


def test_a_decision_that_is_not_the_recorded_one_is_told(tmp_path: Path) -> None:
    live = Live(alternation(6, 40, sites=3), StrategyName.HYSTERESIS)
    recorded = live.record(tmp_path / "x.trace")
    recorded.epochs[7].wanted[site(0)] = Chain((A,))  # type: ignore[index]
    assert replay_recorded(recorded, find_actual_calls(recorded)).differs_at == 7


@pytest.mark.parametrize("strategy", list(StrategyName))
def test_a_replay_gives_the_same_each_time(strategy: StrategyName) -> None:
    trace = alternation(6, 60, sites=3)
    first, second = (replay(trace, find_actual_calls(trace), strategy, QUICK) for _ in range(2))
    assert first == second
    assert first.score.first_promotion_seconds is not None


def test_what_was_recorded_is_asked_of_strategy_settings_and_costs() -> None:
    trace = Trace(TraceHeader("test", "", StrategyName.PERIODIC, QUICK), [])
    assert is_recorded(trace, StrategyName.PERIODIC, QUICK)
    assert not is_recorded(trace, StrategyName.CONTINUOUS, QUICK)
    others = QUICK.model_copy(update={"hysteresis": LearningSettings()})
    assert is_recorded(trace, StrategyName.PERIODIC, others)
    for changed in ({"periodic": PeriodicSettings()}, {"costs": Costs(retpoline_cycles=50)}):
        assert not is_recorded(trace, StrategyName.PERIODIC, QUICK.model_copy(update=changed))


def test_the_ledger_accounts_for_an_epoch() -> None:
    score = Score(Costs())
    calls: EpochCalls = {site(0): {0: {A: 60}, 1: {A: 30, B: 10}}, site(1): {0: {B: 7}}}
    score.epoch(calls, 0.5, {})
    score.poke({site(0): LEARNING})
    score.epoch(calls, 0.5, {site(0): LEARNING})
    score.poke({site(0): Chain((A,))})
    assert (score.calls, score.direct, score.pokes) == ([107, 107], [0, 0], [1, 1])
    assert score.saved_cycles == pytest.approx(100 * (36 - 39))
    assert score.first_promotion_seconds == 1.0
    score.epoch(calls, 0.5, {site(0): Chain((A,))})
    assert score.direct[-1] == 90
    assert score.saved_cycles == pytest.approx(-300 + 100 * (36 - Costs().chain([0.9])))
    assert score.coverage == 90 / 321


def test_a_census_is_two_stops_and_makes_calls_dear() -> None:
    score = Score(Costs())
    calls: EpochCalls = {site(0): {0: {A: 100}}, site(1): {0: {B: 10}}}
    score.epoch(calls, 0.1, {}, {site(0)})
    score.epoch(calls, 0.1, {}, {site(0)})
    assert score.saved_cycles == pytest.approx(2 * 100 * (36 - Costs().chain([])))
    assert score.censuses == 1
    one = score.stop_seconds
    assert 2 * 0.36e-3 < one < 2 * 0.5e-3
    score.epoch(calls, 0.5, {})
    score.epoch(calls, 0.1, {site(0): Chain((A,))}, {site(0)})
    assert score.censuses == 2
    assert score.stop_seconds == pytest.approx(2 * one)
    assert score.direct == [0, 0, 0, 100]


def test_a_covered_site_is_not_poked_to_learn() -> None:
    world = SimulatedGuest()
    world.covered = frozenset({site(0)})
    assert world.poke({site(0): LEARNING, site(1): LEARNING}) == {site(1): LEARNING}
    many = {target(n): 3 for n in range(20)}
    calls: EpochCalls = {site(0): {0: many, 1: {A: 4, UNKNOWN_TARGET: 2}}}
    assert world.count(calls) == {}
    counted = world.count(calls, census=True)
    assert counted == {site(0): SiteEpoch({**many, A: 7}, 2)}
    world.poke({site(0): Chain((A,))})
    assert world.count(calls, census=True)[site(0)].calls.keys() <= many.keys() - {A}
    assert world.poke({site(0): LEARNING}) == {site(0): ORIGINAL}


def test_a_flip_is_another_set_of_targets() -> None:
    score = Score(Costs())
    for form in (Chain((A, B)), Chain((B, A)), LEARNING, ORIGINAL, Chain((A, B), counts_hits=True)):
        score.poke({site(0): form})
    assert score.flips == 0
    score.poke({site(0): Chain((A,))})
    assert score.flips == 1


def test_stops_are_cut_into_slices() -> None:
    assert stop_seconds(0) == 0
    assert stop_seconds(1) == pytest.approx(3 * 0.363e-3, rel=0.01)
    assert stop_seconds(1000) == pytest.approx(3 * (6 * 0.36e-3 + 3.24e-3), rel=0.01)


def test_what_a_call_costs_follows_the_form() -> None:
    seen = target_shares({0: {A: 50}, 1: {B: 50}})
    costs = Costs()
    assert costs.form(ORIGINAL, seen.shares) == 36
    assert costs.form(Chain((A, B)), seen.shares) == costs.chain([0.5, 0.5])
    assert costs.form(LearnKeys(KEY), seen.shares) == 39


def test_a_world_has_seven_slots_a_cpu_and_a_fresh_record_where_they_are_full() -> None:
    world, nine = SimulatedGuest(), {target(n): 1 for n in range(9)}
    assert world.count({site(0): {0: nine}}) == {}
    world.poke({site(0): LEARNING})
    assert world.count({site(0): {0: nine}})[site(0)].other == 2
    world.poke({site(0): Chain((target(0),))})
    world.poke({site(0): LEARNING})
    assert world.count({site(0): {0: {target(8): 1}}})[site(0)] == SiteEpoch({target(8): 1})
    world.poke({site(0): Chain((target(8),), counts_hits=True)})
    assert world.count({site(0): {0: {target(8): 3}}})[site(0)].hits == 3


def test_names_of_a_recording_are_asked_for_once() -> None:
    asked: list[GuestVirtual] = []

    def name(address: GuestVirtual) -> str:
        asked.append(address)
        return "f"

    with TraceWriter(io.BytesIO(), TraceHeader("test")) as writer:
        for epoch in alternation(1, 20).epochs:
            writer.write(epoch, name)
    assert len(asked) == len(set(asked)) > 10
