"""Durations: their number, their sum, and how many are in each bucket."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from optpolined.api.status import Durations

__all__ = ("Timings",)


@dataclass(slots=True)
class Timings:
    """Durations in seconds; ``bounds`` are the upper bounds of the buckets, without infinity."""

    bounds: Sequence[float]
    count: int = 0
    sum_seconds: float = 0.0
    buckets: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.buckets = [0] * (len(self.bounds) + 1)

    def add(self, seconds: float) -> None:
        """Add one duration."""
        self.count += 1
        self.sum_seconds += seconds
        self.buckets[bisect_left(self.bounds, seconds)] += 1

    def summary(self) -> Durations:
        """Return all of them for the status."""
        return Durations(self.count, self.sum_seconds, tuple(self.buckets))
