"""Other settings for a strategy at work."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optpolined.codegen.forms import Chain, Tree
from optpolined.config import LearningConfig
from optpolined.learning.pupil import make_pupil
from optpolined.learning.settings import ContinuousSettings, EpochSettings
from optpolined.learning.shape import ShapeSettings
from optpolined.learning.strategies import StrategyName
from optpolined.learning.strategy import Snapshot

from .synthetic import SyntheticGuest, site, steady
from .test_properties import QUICK, SNAPSHOTS


def config(name: StrategyName, targets: int) -> LearningConfig:
    return LearningConfig(
        strategy=name,
        hysteresis=replace(QUICK, max_targets=targets, promote_share=0.5, demote_share=0.6),
        continuous=ContinuousSettings(fast_targets=targets, candidates=targets),
        epoch=EpochSettings(max_targets=targets, learn_epochs=3, retrain_epochs=6),
        shape=ShapeSettings(chain_targets_max=targets + 1),
    )


@pytest.mark.parametrize("name", StrategyName)
@settings(deadline=None)
@given(steps=st.lists(st.one_of(SNAPSHOTS, st.integers(min_value=1, max_value=4)), max_size=30))
def test_settings_may_change_between_any_two_epochs(
    name: StrategyName, steps: list[Snapshot | int]
) -> None:
    pupil = make_pupil(config(name, 2))
    pupil.follow({site(n): None for n in range(4)}, ())
    for step in steps:
        if isinstance(step, int):
            pupil.adopt(config(name, step))
        else:
            pupil.decide(step)
    assert set(pupil.wanted) <= {site(n) for n in range(4)}


def test_what_was_learned_stays_and_the_next_decision_is_by_the_new_settings() -> None:
    name = StrategyName.HYSTERESIS
    pupil = make_pupil(config(name, 1))
    pupil.follow({site(0): None}, ())
    guest = SyntheticGuest({site(0): steady(1000.0, 900.0, 800.0)})

    def run(epochs: int) -> None:
        for _ in range(epochs):
            pupil.decide(guest.step())
            guest.poke(pupil.wanted)

    run(40)
    before = dict(pupil.states)
    pupil.adopt(config(name, 4))
    assert pupil.states == before
    run(200)
    form = pupil.wanted[site(0)]
    assert isinstance(form, Chain | Tree)
    assert len(form.targets) == 3
