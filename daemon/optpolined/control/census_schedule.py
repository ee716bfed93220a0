"""When the next census is due.  Pure: the caller tells the time."""

import math

from optpolined.learning.config import CensusConfig

__all__ = ("CensusSchedule",)


class CensusSchedule:
    """A census at once, then one each interval; a long one is followed by a long pause.

    Times are in seconds of one clock that never goes back.
    """

    def __init__(self) -> None:
        self._started = -math.inf
        self._rests_until = -math.inf

    @property
    def is_first(self) -> bool:
        """Whether no census has been taken yet."""
        return self._started == -math.inf

    def is_due(self, config: CensusConfig, now: float) -> bool:
        """Return whether a census may begin."""
        soon = self._started + config.interval_seconds
        return config.enabled and now >= max(soon, self._rests_until)

    def epoch_seconds(self, config: CensusConfig) -> float:
        """Return the length of each epoch of the census that is due."""
        return (config.first_milliseconds if self.is_first else config.epoch_milliseconds) / 1e3

    def note(self, config: CensusConfig, started: float, ended: float) -> None:
        """Take in a census; the first one is not held to the duty share."""
        if not self.is_first:
            self._rests_until = started + (ended - started) / config.duty_share
        self._started = started
