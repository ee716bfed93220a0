"""Measures how many of a guest's indirect calls are direct now."""

from dataclasses import dataclass

from optpolined.codegen.forms import Chain
from optpolined.learning.strategy import Snapshot

__all__ = ("Coverage", "audit")


@dataclass(frozen=True, slots=True)
class Coverage:
    """The calls of one audit window, summed over all its sites."""

    direct: int
    """Calls that a chain made direct."""
    missed: int
    """Calls that passed a chain and took the slow path."""
    unpromoted: int
    """Calls of sites that are not promoted."""

    @property
    def share(self) -> float:
        """Direct calls over all calls, 0 to 1; 0 without calls."""
        total = self.direct + self.missed + self.unpromoted
        return self.direct / total if total else 0.0


def audit(snapshot: Snapshot) -> Coverage:
    """Count a snapshot taken while every eligible site stood in a form that counts all its calls.

    That is ``Chain(targets, counts_hits=True)`` where the site is promoted and ``LEARNING``
    elsewhere.  Hits of a chain that does not count them are unknown, so such a chain can only make
    the share look smaller.
    """
    direct = missed = unpromoted = 0
    for address, site in snapshot.sites.items():
        slow = max(0, site.other) + sum(calls for calls in site.calls.values() if calls > 0)
        form = snapshot.installed.get(address)
        if isinstance(form, Chain) and form.targets:
            direct += max(0, site.hits)
            missed += slow
        else:
            unpromoted += slow
    return Coverage(direct, missed, unpromoted)
