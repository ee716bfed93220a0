"""A pause that doubles, and halves again only after a calm that outlasts the trouble."""

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ("Backoff", "Pauses")


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long the pauses of a :class:`Backoff` are, in epochs."""

    first: int
    longest: int
    calm: int
    """The shortest calm that undoes a doubling."""


class Backoff(NamedTuple):
    """The record of one kind of trouble at one site, in epochs.

    Each strike is followed by a pause, twice as long as the one before.  A calm of twice the time
    over which the site misbehaved (and of ``calm`` at least) undoes one doubling, three times that
    time undoes two, and so on.  So whatever its rhythm, a site strikes about log2(time) times at
    most, until the pauses have their greatest length.
    """

    born: int
    """Trouble is counted from here."""
    last: int = 0
    """The last strike."""
    level: int = 0
    """The doublings that are in force."""

    def ready_at(self, pauses: Pauses) -> int:
        """The first epoch after the pause."""
        if self.level == 0:
            return self.born
        return self.last + min(pauses.first << (self.level - 1), pauses.longest)

    def strike(self, epoch: int, pauses: Pauses) -> "Backoff":
        """Add a strike."""
        level = self.level
        if not level:
            return Backoff(self.born, epoch, 1)
        span = max(pauses.calm, 2 * (self.last - self.born))
        calm = max(0, epoch - self.ready_at(pauses))
        level -= (1 + calm // span).bit_length() - 1
        if level <= 0:
            return Backoff(self.last, epoch, 1)
        # Doublings beyond the longest pause have no effect, but a calm would have to undo them.
        highest = (pauses.longest // pauses.first).bit_length() + 1
        return Backoff(self.born, epoch, min(level + 1, highest))
