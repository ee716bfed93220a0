"""The protocol of a strategy: its snapshots and its decisions.

A strategy is pure: no I/O, no clock, no randomness.  The same state and the same snapshots give the
same decisions, so a recorded trace replays exactly.

A strategy decides which targets a site gets, and names them as ``Original``, ``LEARNING`` or
``Chain``.  shape.py chooses the form at the site, and no strategy depends on that.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from optpolined.addresses import GuestVirtual
from optpolined.codegen.forms import LEARNING, ORIGINAL, Form

__all__ = ("Decision", "Share", "SiteEpoch", "SiteStatus", "Snapshot", "Strategy")

StateT = TypeVar("StateT")


Share = tuple[GuestVirtual, float]
"""A target and its part of the site's calls, 0 to 1.  A plain tuple, because there are a hundred
thousand, and the garbage collector skips tuples of numbers."""


@dataclass(frozen=True, slots=True)
class SiteEpoch:
    """What the record of one site gained in one epoch, summed over the CPUs."""

    calls: Mapping[GuestVirtual, int]
    """Calls that reached the learning stub, by target: all calls of a site that learns, the misses
    of a promoted one."""
    other: int = 0
    """Calls whose target found no slot."""
    hits: int = 0
    """Direct calls; counted only by ``Chain(counts_hits=True)``."""
    keyed: bool = False
    """Whether the site learns its key too, so that it can become a tree by key."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One epoch of a guest."""

    epoch: int
    """It rises; a snapshot that is not newer than the last one is ignored."""
    seconds: float
    """The length of the epoch."""
    sites: Mapping[GuestVirtual, SiteEpoch]
    """Only the sites that counted anything."""
    installed: Mapping[GuestVirtual, Form]
    """What stood in the live text of each site for the whole epoch.  ``ORIGINAL`` where absent:
    the counts of such a site are not used, so a site that changed in the epoch is left out."""
    covered: AbstractSet[GuestVirtual] = frozenset()
    """The sites that learn by census and never by a stub: every count of such a site, where
    ``ORIGINAL`` stood, is from a census.  A strategy that knows nothing of that sees ``LEARNING``
    in ``installed`` where it asked for it; see :meth:`with_stubs`."""
    census: bool = False
    """Whether a census counted all calls of the covered sites, for the whole epoch."""

    def with_stubs(self, asking: Iterable[GuestVirtual]) -> "Snapshot":
        """The same epoch as if the covered sites of ``asking`` had learning stubs in a census."""
        if not self.census:
            return self
        learned = {
            site: LEARNING
            for site in asking
            if site in self.covered and self.installed.get(site, ORIGINAL) == ORIGINAL
        }
        return replace(self, installed={**self.installed, **learned})


@dataclass(frozen=True, slots=True)
class Decision:
    """What an epoch changed; sites that are not named stay as they are."""

    wanted: Mapping[GuestVirtual, Form] = field(default_factory=dict)
    """The form of each site whose wanted form changed."""
    shares: Mapping[GuestVirtual, Sequence[Share]] = field(default_factory=dict)
    """The shares by which the targets were chosen, in the order of the chain, of each site in
    ``wanted`` that is to have targets and does not count its hits."""
    states: Mapping[GuestVirtual, str] = field(default_factory=dict)
    """The name of the state of each site whose state changed."""
    reasons: Mapping[GuestVirtual, str] = field(default_factory=dict)
    """Why, for the same sites as in ``states``; one short line each."""


@dataclass(frozen=True, slots=True)
class SiteStatus:
    """The state of a site."""

    state: str
    reason: str
    wanted: Form


class Strategy(Protocol[StateT]):
    """Turns snapshots into wanted forms.

    States are immutable: a method that changes a state returns a new one.  Wanted forms start as
    ``ORIGINAL``.  No method but :meth:`load` raises, whatever the guest counted.
    """

    def initial(self, sites: Iterable[GuestVirtual]) -> StateT:
        """Return the state before the first epoch.

        :param sites: The sites that may be patched.
        """

    def add_sites(self, state: StateT, sites: Iterable[GuestVirtual]) -> StateT:
        """Add sites of a loaded module; known sites stay as they are."""

    def drop_sites(self, state: StateT, sites: Iterable[GuestVirtual]) -> StateT:
        """Drop sites whose module was unloaded, or that may no longer be patched."""

    def decide(self, state: StateT, snapshot: Snapshot) -> tuple[StateT, Decision]:
        """Decide on one epoch.

        :return: The state after it, and what changed.
        """

    def wanted(self, state: StateT) -> Mapping[GuestVirtual, Form]:
        """Return the wanted form of every site; those that want ``ORIGINAL`` are left out."""

    def site_statuses(self, state: StateT) -> Mapping[GuestVirtual, SiteStatus]:
        """Return the state of every site, for the operator."""

    def dump(self, state: StateT) -> str:
        """Return the state as JSON."""

    def load(self, text: str) -> StateT:
        """Return the state that :meth:`dump` wrote.

        :raise StateError: ``text`` is not a state of this strategy.
        """
