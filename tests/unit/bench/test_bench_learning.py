"""An epoch's work grows with the sites and no faster; `make bench-learning` has the seconds."""

import sys
from collections.abc import Iterable
from types import FrameType
from typing import Any

from optpolined.learning.hysteresis import Hysteresis
from optpolined.learning.state import HysteresisState
from optpolined.learning.strategy import Decision, Snapshot
from tests.bench.learning import Cost, costs, dearest

FEW, MANY = 100, 1000


class Counted(Hysteresis):
    """Counts the calls, of Python's functions and of its own, that each decision makes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def decide(
        self, state: HysteresisState, snapshot: Snapshot
    ) -> tuple[HysteresisState, Decision]:
        calls = 0

        def count(_frame: FrameType, event: str, _argument: Any) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            return super().decide(state, snapshot)
        finally:
            sys.setprofile(None)
            self.calls.append(calls)


def calls(sites: int) -> list[int]:
    strategy = Counted()
    costs(strategy, sites, cpus=3)
    return strategy.calls


def per_site(counted: Iterable[int], sites: int) -> list[float]:
    return [number / sites for number in counted]


def test_ten_times_the_sites_are_ten_times_the_work() -> None:
    few, many = calls(FEW), calls(MANY)
    assert all(
        most <= least * MANY / FEW * 1.01 + 50 for least, most in zip(few, many, strict=True)
    )
    assert max(per_site(many, MANY)) > 10  # something was decided


def test_the_dearest_epoch_is_told_for_each_kind_of_work() -> None:
    assert dearest([Cost(1.0, 5.0), Cost(3.0, 2.0)]) == Cost(3.0, 5.0)
