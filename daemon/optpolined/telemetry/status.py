"""One guest at one moment, as the views and the metrics show it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

__all__ = ("ArenaUse", "HotSite", "Phase", "RuledSite", "Status", "StopSummary")


class Phase(Enum):
    """What the daemon is doing."""

    ATTACHING = "attaching"
    LEARNING = "learning"
    RUNNING = "running"
    PAUSED = "paused by somebody else"
    RELEASED = "stub released"
    MIGRATING = "waiting for a migration"
    AUDITING = "auditing"
    DETACHING = "detaching"
    DETACHED = "detached"


@dataclass(frozen=True, slots=True)
class HotSite:
    """A promoted site: where it is, what it calls, and how often in calls per second."""

    site: str
    targets: tuple[str, ...]
    calls_per_second: float
    misses_per_second: float


@dataclass(frozen=True, slots=True)
class RuledSite:
    """A site that somebody has decided about: pinned to a target, or banned."""

    site: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class ArenaUse:
    """The arena's bytes; the rest is free.

    ``degraded``: not all blocks that were wanted lately could be held together.  ``denied`` sites
    would be promoted, and ``waiting`` ones would learn, if there were room.
    """

    total_bytes: int = 0
    used_bytes: int = 0
    retired_bytes: int = 0
    degraded: bool = False
    denied: int = 0
    denied_per_second: float = 0.0
    """The calls of the denied sites, as last measured."""
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class StopSummary:
    """The stops so far; ``buckets`` as in `service/stops.py`, one more than its bounds."""

    count: int = 0
    sum_seconds: float = 0.0
    p50_seconds: float = 0.0
    p99_seconds: float = 0.0
    max_seconds: float = 0.0
    buckets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Status:
    """All that is known; counts are since attach."""

    guest: str
    phase: Phase = Phase.ATTACHING
    kernel: str = ""
    accelerator: str = ""
    vcpus: int = 0
    seconds: float = 0.0
    epoch: int = 0
    stub_released: bool = False
    """The gdbstub is a debugger's: nothing is changed until it is taken back."""
    found: int = 0
    eligible: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    states: Mapping[str, int] = field(default_factory=dict)
    targets_histogram: Mapping[int, int] = field(default_factory=dict)
    """Number of promoted sites by number of targets."""
    hottest: tuple[HotSite, ...] = ()
    ruled: tuple[RuledSite, ...] = ()
    """The first 64 by address; ``states`` counts them all."""
    counted_calls: int = 0
    """Calls that reached a learning stub: of sites in a learning window, and misses."""
    direct_per_second: float = 0.0
    """Estimated from the rates seen while learning, less the misses."""
    missed_per_second: float = 0.0
    pokes: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    int3_hits: int = 0
    arena: ArenaUse = ArenaUse()
    stops: StopSummary = StopSummary()

    @property
    def promoted(self) -> int:
        """Sites whose calls are direct now."""
        return sum(self.targets_histogram.values())
