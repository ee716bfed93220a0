"""A census at once, then one each interval, and never more of the time than is allowed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpolined.control.census_schedule import CensusSchedule
from optpolined.learning.config import CensusConfig

CONFIG = CensusConfig(interval_seconds=5.0, duty_share=0.1)
NOW = 1000.0


def test_the_first_census_is_due_at_once_and_has_longer_epochs() -> None:
    schedule = CensusSchedule()
    assert schedule.is_first
    assert schedule.is_due(CONFIG, -1e9)
    assert schedule.epoch_seconds(CONFIG) == 0.3
    schedule.note(CONFIG, NOW, NOW + 1)
    assert not schedule.is_first
    assert schedule.epoch_seconds(CONFIG) == 0.1


def test_the_next_one_is_due_an_interval_after_the_start() -> None:
    schedule = CensusSchedule()
    schedule.note(CONFIG, NOW, NOW + 1)
    assert not schedule.is_due(CONFIG, NOW + 4.9)
    assert schedule.is_due(CONFIG, NOW + 5)


def test_the_first_one_may_take_long_and_a_later_one_is_followed_by_a_rest() -> None:
    schedule = CensusSchedule()
    schedule.note(CONFIG, NOW, NOW + 3)
    assert schedule.is_due(CONFIG, NOW + 5)
    schedule.note(CONFIG, NOW + 5, NOW + 6)
    assert not schedule.is_due(CONFIG, NOW + 14.9)
    assert schedule.is_due(CONFIG, NOW + 15)
    schedule.note(CONFIG, NOW + 15, NOW + 15.1)
    assert schedule.is_due(CONFIG, NOW + 20)


def test_where_none_is_wanted_none_is_due() -> None:
    config = CONFIG.model_copy(update={"enabled": False})
    assert not CensusSchedule().is_due(config, NOW)


def test_settings_that_are_read_again_hold_at_once() -> None:
    schedule = CensusSchedule()
    schedule.note(CONFIG, NOW, NOW + 0.1)
    sooner = CONFIG.model_copy(update={"interval_seconds": 1.0})
    assert schedule.is_due(sooner, NOW + 1)
    assert not schedule.is_due(CONFIG, NOW + 1)


def test_a_clock_that_stands_still_gives_no_second_census() -> None:
    schedule = CensusSchedule()
    schedule.note(CONFIG, NOW, NOW)
    assert not schedule.is_due(CONFIG, NOW)


@given(
    lengths=st.lists(st.floats(0.001, 30), min_size=1, max_size=30),
    duty=st.sampled_from((0.01, 0.05, 0.5, 1.0)),
    interval=st.sampled_from((0.5, 5.0, 60.0)),
)
def test_later_censuses_take_no_more_than_their_share_of_the_time(
    lengths: list[float], duty: float, interval: float
) -> None:
    config = CensusConfig(interval_seconds=interval, duty_share=duty)
    schedule = CensusSchedule()
    schedule.note(config, 0.0, 1.0)
    now = began = max(interval, 1.0)
    taken = 0.0
    for length in lengths:
        assert schedule.is_due(config, now)
        schedule.note(config, now, now + length)
        taken += length
        due = max(now + interval, now + length / duty)
        assert not schedule.is_due(config, now + 0.999 * (due - now))
        now = due + 1e-6
    assert taken <= duty * (now - began) * (1 + 1e-9)
    assert len(lengths) <= (now - began) / interval + 1


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_that_cannot_be_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="duty_share"):
        CensusConfig(duty_share=share)
