"""The stops of a guest: short, counted, and never the end of somebody else's pause."""

import gc
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ("STOP_BUCKETS_SECONDS", "StopStatistics", "Stopper")

STOP_BUCKETS_SECONDS = (5e-5, 1e-4, 2e-4, 4e-4, 7e-4, 1e-3, 1.5e-3, 2e-3, 5e-3, 1e-2, 5e-2)

_KEPT_STOPS = 65_536


class Stoppable(Protocol):
    """What a stop needs of the gdbstub."""

    def stop(self) -> bool: ...
    def resume(self) -> None: ...


@dataclass(slots=True)
class StopStatistics:
    """Durations in seconds, from the request to stop until the request to run."""

    count: int = 0
    sum_seconds: float = 0.0
    max_seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(STOP_BUCKETS_SECONDS) + 1))
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT_STOPS))

    def add(self, seconds: float) -> None:
        """Count one stop."""
        self.count += 1
        self.sum_seconds += seconds
        self.max_seconds = max(self.max_seconds, seconds)
        self.buckets[bisect_left(STOP_BUCKETS_SECONDS, seconds)] += 1
        self.recent.append(seconds)

    def quantile(self, share: float) -> float:
        """What ``share`` of the recent stops did not exceed; 0 where there are none."""
        ordered = sorted(self.recent)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Stopper:
    """Stops all vCPUs for the time of a ``with`` block."""

    def __init__(
        self,
        stub: Stoppable,
        clock: Callable[[], float],
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """:param alive: Called before each stop: a change of many sites takes many of them."""
        self._stub = stub
        self._clock = clock
        self._alive = alive
        self.statistics = StopStatistics()

    @contextmanager
    def stopped(self) -> Iterator[float]:
        """Give the time at which all vCPUs stood: work within the block counts from there.

        What is counted is longer, by what QEMU takes to stop and to resume them.  Where somebody
        else has paused the guest, it is not resumed at the end, and no stop is counted.  The
        garbage collector waits, for it can take longer than the whole stop.

        :raise QemuError: the stub failed, or the guest was resumed from outside in the block.
        """
        self._alive()
        was_enabled = gc.isenabled()
        gc.disable()
        began = self._clock()
        try:
            ours = self._stub.stop()
            try:
                yield self._clock()
            finally:
                self._stub.resume()
                if ours:
                    self.statistics.add(self._clock() - began)
        finally:
            if was_enabled:
                gc.enable()
