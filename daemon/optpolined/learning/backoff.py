"""A pause that doubles, and is forgiven only by a calm that outlasts the trouble."""

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ("Backoff", "Pauses")


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long the pauses of a :class:`Backoff` are, in epochs."""

    first: int
    longest: int
    calm: int
    """The shortest calm that takes a doubling back."""


class Backoff(NamedTuple):
    """The record of one kind of trouble at one site, in epochs.

    After each strike comes a pause, twice as long as the one before.  A calm of twice the time
    over which the site misbehaved (and of ``calm`` at least) takes one doubling back, three times
    that two, and so on.  Whatever its rhythm, a site then strikes at most some log2(time) times,
    until the pauses are as long as they get.
    """

    born: int
    """Trouble is counted from here."""
    last: int = 0
    """The last strike."""
    level: int = 0
    """Doublings that stand."""

    def ready_at(self, pauses: Pauses) -> int:
        """The first epoch after the pause."""
        if self.level == 0:
            return self.born
        return self.last + min(pauses.first << (self.level - 1), pauses.longest)

    def strike(self, epoch: int, pauses: Pauses) -> "Backoff":
        """Trouble again."""
        level = self.level
        if not level:
            return Backoff(self.born, epoch, 1)
        span = max(pauses.calm, 2 * (self.last - self.born))
        calm = max(0, epoch - self.ready_at(pauses))
        level -= (1 + calm // span).bit_length() - 1
        if level <= 0:
            return Backoff(self.last, epoch, 1)
        # One doubling beyond the longest pause and more would have to be calmed for nothing.
        highest = (pauses.longest // pauses.first).bit_length() + 1
        return Backoff(self.born, epoch, min(level + 1, highest))
