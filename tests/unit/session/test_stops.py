"""Stops are counted, end after an error, and never end another program's pause."""

import gc

import pytest

from optpolined.api.status import STOP_BUCKETS_SECONDS
from optpolined.session.transport.stops import Stopper, StopStatistics


class Stub:
    def __init__(self, *, ours: bool = True) -> None:
        self.ours = ours
        self.calls: list[str] = []

    def stop(self) -> bool:
        self.calls.append("stop")
        return self.ours

    def resume(self) -> None:
        self.calls.append("resume")


def test_a_stop_ends_also_after_an_error() -> None:
    stub = Stub()
    with pytest.raises(RuntimeError), Stopper(stub, lambda: 0.0).stopped():
        raise RuntimeError
    assert stub.calls == ["stop", "resume"]


def test_only_our_own_stops_are_counted() -> None:
    stopper = Stopper(Stub(ours=False), lambda: 0.0)
    with stopper.stopped():
        pass
    assert stopper.statistics.count == 0


def test_the_garbage_collector_rests_within_a_stop_and_works_after_it() -> None:
    with Stopper(Stub(), lambda: 0.0).stopped():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_statistics_count_by_bucket() -> None:
    statistics = StopStatistics()
    for seconds in (1e-5, 3e-4, 3e-4, 9.0):
        statistics.add(seconds)
    assert statistics.count == 4
    assert statistics.max_seconds == 9.0
    assert statistics.buckets[0] == 1
    assert statistics.buckets[STOP_BUCKETS_SECONDS.index(4e-4)] == 2
    assert statistics.buckets[-1] == 1
    assert statistics.quantiles(0.5, 1.0) == [3e-4, 9.0]
    summary = statistics.summary()
    assert (summary.count, summary.p50_seconds, summary.buckets[-1]) == (4, 3e-4, 1)


def test_a_quantile_of_nothing_is_zero() -> None:
    assert StopStatistics().quantiles(0.99) == [0.0]


def test_each_stop_is_a_sign_of_life() -> None:
    signs: list[int] = []
    stopper = Stopper(Stub(), lambda: 0.0, alive=lambda: signs.append(1))
    for _ in range(3):
        with stopper.stopped():
            pass
    assert len(signs) == 3
