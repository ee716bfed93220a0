"""The last hour of a guest, for a chart."""

from collections import deque
from collections.abc import Sequence

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from optpolined.api.sites import DOCUMENTED
from optpolined.api.status import Status

__all__ = ("HISTORY", "INTERVAL_SECONDS", "History", "Sample")

INTERVAL_SECONDS = 10.0
_SAMPLES_MAX = 360


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class Sample:
    """A part of the status at one time."""

    at: float
    """Unix time in seconds."""
    phase: str
    coverage: float | None
    direct_per_second: float
    missed_per_second: float
    promoted: int
    stops: int
    """Since the daemon started."""
    stopped_seconds: float
    """The sum of these stops."""


HISTORY: TypeAdapter[Sequence[Sample]] = TypeAdapter(Sequence[Sample])


class History:
    """One sample every ten seconds, for an hour; any thread may read it."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=_SAMPLES_MAX)

    def add(self, status: Status, at: float) -> None:
        """Add a sample of ``status``, unless the last one is younger than the interval.

        :param at: Unix time in seconds.  Where the clock was set back, the sample is due.
        """
        if self._samples and 0 <= at - self._samples[-1].at < INTERVAL_SECONDS:
            return
        self._samples.append(
            Sample(
                at,
                status.phase.value,
                status.coverage,
                status.direct_per_second,
                status.missed_per_second,
                status.promoted,
                status.stops.count,
                status.stops.sum_seconds,
            )
        )

    def samples(self) -> Sequence[Sample]:
        """Return the samples, the oldest first."""
        return tuple(self._samples)
