"""The traces of tests/traces, and what hysteresis makes of them."""

import io
import itertools
from functools import cache
from pathlib import Path

import pytest

from optpolined.codegen.forms import Original
from optpolined.config import LearningConfig
from optpolined.lab.actual_calls import EpochCalls, find_actual_calls
from optpolined.lab.clairvoyant import foresee
from optpolined.lab.replay import ReplayResult, replay, replay_recorded
from optpolined.learning.settings import LearningSettings
from optpolined.learning.shape import Shaper
from optpolined.learning.strategies import StrategyName
from optpolined.learning.trace.model import Trace
from optpolined.learning.trace.reader import read_traces
from optpolined.learning.trace.writer import TraceWriter
from tests.laboratory.scenarios import CPUS, SCENARIOS, alternation, name, site

FILES = Path(__file__).parents[2] / "traces"
TRANQUIL = [title for title in SCENARIOS if not title.startswith("alternation")]
PATIENT = LearningConfig(hysteresis=LearningSettings(quarantine_epochs_max=1_000_000))


@cache
def scenario(title: str) -> tuple[Trace, list[EpochCalls]]:
    (trace,) = read_traces(FILES / f"{title}.trace")
    return trace, find_actual_calls(trace)


@cache
def outcome(title: str, strategy: StrategyName) -> ReplayResult:
    return replay(*scenario(title), strategy, LearningConfig())


@pytest.mark.parametrize("title", SCENARIOS)
def test_the_files_are_what_the_scenarios_make(title: str) -> None:
    file, trace = io.BytesIO(), SCENARIOS[title]()
    with TraceWriter(file, trace.header) as writer:
        for epoch in trace.epochs:
            writer.write(epoch, name)
    content = (FILES / f"{title}.trace").read_bytes()
    assert scenario(title)[0] == trace
    assert len(content) < 24_000


@pytest.mark.parametrize("title", SCENARIOS)
def test_a_made_up_trace_is_the_whole_truth(title: str) -> None:
    trace, actual = scenario(title)
    for epoch, calls in zip(trace.epochs, actual, strict=True):
        assert calls == {
            address: {cpu: gain.calls for cpu, gain in by_cpu.items()}
            for address, by_cpu in epoch.counts.items()
        }


@pytest.mark.parametrize("title", TRANQUIL)
def test_hysteresis_covers_what_can_be_covered(title: str) -> None:
    best = foresee(scenario(title)[1], Shaper())
    assert outcome(title, StrategyName.HYSTERESIS).score.coverage >= 0.95 * best.coverage


@pytest.mark.parametrize("title", ["drift", "bursts", "phase-change"])
def test_hysteresis_pokes_at_most_a_fifth_as_often_as_continuous(title: str) -> None:
    mine, theirs = (
        sum(outcome(title, strategy).score.pokes)
        for strategy in (StrategyName.HYSTERESIS, StrategyName.CONTINUOUS)
    )
    assert 5 * mine <= theirs


@pytest.mark.parametrize("period", [0.5, 0.9, 1, 1.1, 2, 3, 10, 30])
def test_pokes_of_an_alternation_grow_with_the_logarithm_of_time(period: float) -> None:
    trace = alternation(period, 4000)
    made = replay(trace, find_actual_calls(trace), StrategyName.HYSTERESIS, PATIENT)
    sums = list(itertools.accumulate(made.score.pokes))
    growth = [sums[2 * n - 1] - sums[n - 1] for n in (250, 500, 1000, 2000)]
    # A doubling of the trace lets in one strike and the pokes around it, however long it is.
    assert max(growth) <= 30
    assert growth[-1] <= 14


def test_after_a_phase_change_the_right_targets_stand_in_time() -> None:
    trace, actual = scenario("phase-change")
    settings = LearningConfig().hysteresis
    change = 120
    for address in trace.epochs[0].came:
        before = {t for calls in actual[change - 1][address].values() for t in calls}
        after = {t for calls in actual[change][address].values() for t in calls} - before
        standing: set[int] = set()
        right = []
        for decision in outcome("phase-change", StrategyName.HYSTERESIS).decisions:
            right.append(after <= standing)
            form = decision.get(address)
            if form is not None:
                standing = set() if isinstance(form, Original) else set(form.targets)
        # What is decided at the end of an epoch stands in the next.
        assert after
        assert right.index(True) - change <= settings.promote_epochs + 1
        assert all(right[right.index(True) :])


def test_with_censuses_only_hot_sites_are_poked_and_once() -> None:
    trace, actual = scenario("census-cold-and-hot")
    hot = {address for address, by_cpu in actual[0].items() if len(by_cpu) == CPUS}
    assert len(hot) == 12
    made = outcome("census-cold-and-hot", StrategyName.HYSTERESIS)
    poked = {site for made in made.decisions for site in made}
    assert poked == hot
    by_stub = trace.epochs[0].came.keys() - trace.epochs[0].covered
    assert len(by_stub) == 2
    # A covered site gets its final form at once; the others get a stub first.
    assert sum(made.score.pokes) == len(hot) + len(by_stub)
    rival = outcome("cold-and-hot", StrategyName.HYSTERESIS)
    assert 20 * sum(made.score.pokes) <= sum(rival.score.pokes)


def test_what_becomes_hot_is_promoted_within_two_censuses() -> None:
    trace, actual = scenario("census-phase-change")
    change = 150
    runs = [place for place, epoch in enumerate(trace.epochs) if epoch.census]
    starts = [place for place in runs if place - 1 not in runs]
    first, second = [place for place in starts if place >= change][:2]
    made = outcome("census-phase-change", StrategyName.HYSTERESIS)
    new = actual[change].keys() - actual[change - 1].keys()
    assert new == {site(3)}
    (when,) = [place for place, decision in enumerate(made.decisions) if site(3) in decision][1:]
    assert first <= when < second + 4
    score = made.score
    settled = slice(second + 4, None)
    # What the tails of the sites take stays slow.
    assert sum(score.direct[settled]) >= 0.93 * sum(score.calls[settled])
    assert score.censuses == len(starts)


def test_the_scenarios_are_what_they_say() -> None:
    cold, _ = scenario("cold-and-hot")
    assert len(cold.epochs[0].came) == 1010
    _, actual = scenario("one-cpu-differs")
    assert not actual[0][site(0)][0].keys() & actual[0][site(0)][1].keys()
    _, actual = scenario("wrap-and-reset")
    calls = [sum(made.values()) for epoch in actual for made in epoch[site(0)].values()]
    assert max(calls) < 2000
    for period in (0.5, 1):
        seen = [set(epoch[site(0)][0]) for epoch in find_actual_calls(alternation(period, 9))]
        assert not seen[0] & seen[1]


def test_the_recorded_run_of_the_demo_is_decided_as_it_was() -> None:
    trace, actual = scenario("demo")
    assert (FILES / "demo.trace").stat().st_size < 300_000
    assert not trace.is_cut
    assert sum(epoch.seconds for epoch in trace.epochs) > 120
    recorded = replay_recorded(trace, actual)
    assert recorded.differs_at is None
    # 0.976; what is lost are the first epochs, in which no strategy knows anything.
    best = foresee(actual, Shaper())
    assert recorded.score.coverage >= 0.97 * best.coverage


def test_on_the_calls_of_the_demo_hysteresis_is_ahead_of_its_rivals() -> None:
    best = foresee(scenario("demo")[1], Shaper())
    mine, *theirs = (outcome("demo", strategy).score for strategy in StrategyName)
    assert mine.coverage >= 0.95 * best.coverage
    for their in theirs:
        assert mine.coverage > their.coverage
        assert mine.saved_cycles > their.saved_cycles
