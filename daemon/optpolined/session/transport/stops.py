"""The stops of a guest: short and counted.  They never end another program's pause."""

import gc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from optpolined.api.status import STOP_BUCKETS_SECONDS, StopSummary
from optpolined.telemetry.timings import Timings

__all__ = ("StopStatistics", "Stopper")

_KEPT_STOPS = 65_536


class Stoppable(Protocol):
    """What a stop needs of the gdbstub."""

    def stop(self) -> bool: ...
    def resume(self) -> None: ...


@dataclass(slots=True)
class StopStatistics(Timings):
    """Durations in seconds, from the request to stop until the request to run."""

    bounds: Sequence[float] = STOP_BUCKETS_SECONDS
    max_seconds: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT_STOPS))

    def add(self, seconds: float) -> None:
        """Count one stop."""
        Timings.add(self, seconds)
        self.max_seconds = max(self.max_seconds, seconds)
        self.recent.append(seconds)

    def quantiles(self, *shares: float) -> list[float]:
        """Return what each share of the recent stops did not exceed; 0 before the first stop."""
        ordered = sorted(self.recent) or [0.0]
        return [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in shares]

    def summary(self) -> StopSummary:
        """Return all stops, summed up for the status."""
        half, most = self.quantiles(0.5, 0.99)
        return StopSummary(
            self.count, self.sum_seconds, tuple(self.buckets), half, most, self.max_seconds
        )


class Stopper:
    """Stops all vCPUs for the time of a ``with`` block."""

    def __init__(
        self,
        stub: Stoppable,
        clock: Callable[[], float],
        statistics: StopStatistics | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """Stop by ``stub``.

        :param statistics: Where stops are counted, if something else reads that too.
        :param alive: Called before each stop: a change of many sites takes many of them.
        """
        self._stub = stub
        self._clock = clock
        self._alive = alive
        self.statistics = statistics or StopStatistics()

    @contextmanager
    def stopped(self) -> Iterator[float]:
        """Give the time at which all vCPUs stood; work within the block counts from there.

        The stop that is counted is longer, because QEMU takes time to stop and to resume the vCPUs.
        A guest that was paused already is not resumed at the end, and no stop is counted.  The
        garbage collector waits, because it can take longer than the whole stop.

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
