"""A learner on made-up counters: what it learns from a census is what the trace says."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Chain, Form
from optpolined.control.learner import Learner
from optpolined.control.recorder import Recording
from optpolined.kernel.sites.attribution import Attributed
from optpolined.lab.actual_calls import find_actual_calls
from optpolined.lab.replay import replay_recorded
from optpolined.learning.config import CensusConfig, LearningConfig
from optpolined.learning.overridden import Override
from optpolined.learning.strategies import StrategyName
from optpolined.learning.strategy import SiteEpoch
from optpolined.learning.trace.model import TraceHeader
from optpolined.learning.trace.reader import read_traces
from optpolined.session.session import Session

HOT, TAIL, STUB = (GuestVirtual(16 * n) for n in (1, 2, 3))
A, B = GuestVirtual(0x100), GuestVirtual(0x200)


class MadeUpCounters:
    """Counters that stay the same; HOT counted calls that came late to a stub of before."""

    def count(self, by_cpu: dict[int, dict[GuestVirtual, SiteEpoch]] | None) -> object:
        if by_cpu is not None:
            by_cpu.update({0: {STUB: SiteEpoch({A: 100})}, 1: {HOT: SiteEpoch({B: 500})}})
        return {STUB: SiteEpoch({A: 100}), HOT: SiteEpoch({B: 500})}

    def is_target(self, address: GuestVirtual) -> bool:
        return address in (A, B)


def made_up_session() -> SimpleNamespace:
    return SimpleNamespace(
        counters=MadeUpCounters(),
        census=SimpleNamespace(covered=frozenset({HOT, TAIL})),
        survey=SimpleNamespace(
            inventory=SimpleNamespace(
                eligible=dict.fromkeys((HOT, TAIL, STUB), SimpleNamespace(key=None))
            )
        ),
    )


def test_sites_learn_by_stubs_where_no_census_can_be_taken_any_more() -> None:
    session = made_up_session()
    learner = Learner(LearningConfig(), cast("Session", session))
    learner.decide(learner.snapshot(1, 0.5, {}))
    assert learner.to_poke == {STUB: LEARNING}
    session.census.covered = frozenset()  # as where another program wrote to the thunks
    learner.update_coverage()
    learner.decide(learner.snapshot(2, 0.5, {}))
    assert learner.to_poke == dict.fromkeys((HOT, TAIL, STUB), LEARNING)


def test_sites_learn_by_stubs_when_a_reload_turns_censuses_off() -> None:
    learner = Learner(LearningConfig(), cast("Session", made_up_session()))
    learner.decide(learner.snapshot(1, 0.5, {}))
    learner.override_sites({TAIL: Override(None, "banned by 'x'")})
    learner.reload(LearningConfig(census=CensusConfig(enabled=False)))
    learner.decide(learner.snapshot(2, 0.5, {}))
    wanted = {site: form for site, form in learner.to_poke.items() if form != ORIGINAL}
    assert wanted == dict.fromkeys((HOT, STUB), LEARNING)
    assert learner.states[TAIL] == "banned"


def test_a_run_with_censuses_is_replayed_as_it_was_decided(tmp_path: Path) -> None:
    session = made_up_session()
    config = LearningConfig()
    recording = Recording(tmp_path / "x.trace")
    recorder = recording.attach(TraceHeader("x", "", StrategyName.HYSTERESIS, config), hex)
    learner = Learner(config, cast("Session", session), recorder)
    forms: dict[GuestVirtual, Form] = {}
    census = Attributed({HOT: {A: 70, B: 30, GuestVirtual(7): 1}}, nominated={TAIL: 40})
    for epoch in (1, 2, 3):
        learner.decide(learner.snapshot(epoch, 0.1, forms, census))
        forms = {site: form for site, form in learner.to_poke.items() if form != ORIGINAL}
    recording.close()
    assert forms == {HOT: Chain((A, B)), TAIL: LEARNING, STUB: LEARNING}
    (trace,) = read_traces(tmp_path / "x.trace")
    assert all(epoch.census for epoch in trace.epochs)
    assert [epoch.counts[HOT] for epoch in trace.epochs] == [
        {0: SiteEpoch({A: 70, B: 30}, 1)} for _ in trace.epochs
    ]
    # The tail jump was nominated by the census, and learns by a stub from then on.
    assert list(trace.covering()) == [{HOT}] * 3
    assert replay_recorded(trace, find_actual_calls(trace)).differs_at is None
