import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optpolined.learning.backoff import Backoff, Pauses

PAUSES = Pauses(first=16, longest=4096, calm=64)


def test_the_first_time_is_free() -> None:
    assert Backoff(5).ready_at(PAUSES) == 5


def test_the_pause_doubles_up_to_the_longest() -> None:
    backoff, pauses = Backoff(0), []
    for _ in range(12):
        epoch = backoff.ready_at(PAUSES)
        backoff = backoff.strike(epoch, PAUSES)
        pauses.append(backoff.ready_at(PAUSES) - epoch)
    assert pauses == [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 4096, 4096, 4096]


def test_a_long_calm_halves_it() -> None:
    backoff = Backoff(0).strike(10, PAUSES).strike(30, PAUSES).strike(100, PAUSES)
    assert backoff.level == 3
    trouble = 2 * 100
    ready = backoff.ready_at(PAUSES)
    assert backoff.strike(ready + trouble - 1, PAUSES).level == 4
    assert backoff.strike(ready + trouble, PAUSES).level == 3
    assert backoff.strike(ready + 3 * trouble, PAUSES).level == 2


def test_what_is_forgiven_is_forgotten() -> None:
    backoff = Backoff(0).strike(10, PAUSES).strike(10_000, PAUSES)
    assert backoff == Backoff(born=10, last=10_000, level=1)


@pytest.mark.parametrize("period", [1, 2, 5, 16, 63, 64, 65, 200, 1000])
def test_strikes_grow_with_the_logarithm_of_time(period: int) -> None:
    def strikes(end: int) -> int:
        backoff, number = Backoff(0), 0
        for epoch in range(period, end, period):
            if epoch >= backoff.ready_at(pauses):
                backoff, number = backoff.strike(epoch, pauses), number + 1
        return number

    pauses = Pauses(first=16, longest=1 << 20, calm=64)
    counts = [strikes((period << doubling) * 32) for doubling in range(8)]
    assert all(later - earlier <= 2 for earlier, later in itertools.pairwise(counts))
    assert counts[0] <= 12


@given(st.lists(st.integers(min_value=0, max_value=1 << 62), max_size=50))
def test_no_sequence_of_epochs_breaks_it(epochs: list[int]) -> None:
    backoff = Backoff(0)
    for epoch in epochs:
        backoff = backoff.strike(epoch, PAUSES)
        assert 1 <= backoff.level <= 10
        assert epoch < backoff.ready_at(PAUSES) <= epoch + PAUSES.longest
