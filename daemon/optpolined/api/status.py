"""One guest at one moment, as views and metrics show it.

The status API gives a :class:`Status` as JSON; ``STATUS.json_schema()`` is its schema.
"""

from collections.abc import Mapping
from dataclasses import field
from enum import Enum

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from optpolined.api.sites import DOCUMENTED, Event

__all__ = (
    "EPOCH_BUCKETS_SECONDS",
    "GRACE_BUCKETS_SECONDS",
    "STATUS",
    "STOP_BUCKETS_SECONDS",
    "ArenaUse",
    "DaemonPhase",
    "Durations",
    "HotSite",
    "OverriddenSite",
    "Status",
    "StopSummary",
    "Versions",
)

STOP_BUCKETS_SECONDS = (5e-5, 1e-4, 2e-4, 4e-4, 7e-4, 1e-3, 1.5e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2)
"""Upper bounds, without infinity."""
EPOCH_BUCKETS_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
GRACE_BUCKETS_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class DaemonPhase(Enum):
    """The phase that the daemon is in."""

    ATTACHING = "attaching"
    LEARNING = "learning"
    RUNNING = "running"
    FROZEN = "frozen"
    PAUSED = "paused by somebody else"
    RELEASED = "stub released"
    MIGRATING = "waiting for a migration"
    AUDITING = "auditing"
    DETACHING = "detaching"
    DETACHED = "detached"


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class Versions:
    """The versions of the parts that work together."""

    optpolined: str = ""
    module_abi: int = 0
    """The ABI of the guest's optpoline.ko."""
    qemu: str = ""


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class HotSite:
    """A promoted site, its targets, and its rates in calls per second."""

    site: str
    targets: tuple[str, ...]
    calls_per_second: float
    misses_per_second: float


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class OverriddenSite:
    """A site that the operator has decided about: pinned to a target, or banned."""

    site: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class ArenaUse:
    """The arena's bytes; the rest is free.

    ``degraded``: the blocks that were wanted lately did not all fit at the same time.  ``denied``
    sites would be promoted, and ``waiting`` sites would learn, if there were space.
    """

    total_bytes: int = 0
    used_bytes: int = 0
    retired_bytes: int = 0
    degraded: bool = False
    denied: int = 0
    denied_per_second: float = 0.0
    """The calls of the denied sites, as last measured."""
    waiting: int = 0


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class Durations:
    """How long something took each time."""

    count: int = 0
    sum_seconds: float = 0.0
    buckets: tuple[int, ...] = ()
    """The count of each bucket, one more than there are bounds; empty before the first time."""


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class StopSummary(Durations):
    """The stops so far; the quantiles are of the recent ones."""

    p50_seconds: float = 0.0
    p99_seconds: float = 0.0
    max_seconds: float = 0.0


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class Status:
    """All that is known; counts are since the start of the daemon, over all its attachments."""

    guest: str
    phase: DaemonPhase = DaemonPhase.ATTACHING
    trouble: str = ""
    """Why the daemon is not attached to the guest, in one line; empty where it is."""
    versions: Versions = Versions()
    kernel: str = ""
    accelerator: str = ""
    vcpus: int = 0
    seconds: float = 0.0
    """Since this attachment began."""
    attachments: int = 0
    """The daemon attaches again after each reset of the guest."""
    epoch: int = 0
    epochs: Durations = Durations()
    """The daemon's work in each epoch, without the wait for the next; by EPOCH_BUCKETS_SECONDS."""
    stub_released: bool = False
    """A debugger has the gdbstub: no site is changed until it is taken back."""
    frozen: bool = False
    """The operator asked to change no site."""
    found: int = 0
    eligible: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Sites that are left alone, by reason."""
    states: Mapping[str, int] = field(default_factory=dict)
    """Eligible sites by state."""
    targets_histogram: Mapping[int, int] = field(default_factory=dict)
    """Number of promoted sites by number of targets."""
    hottest: tuple[HotSite, ...] = ()
    """The hottest promoted sites, as many as metrics.hottest_sites says."""
    ruled: tuple[OverriddenSite, ...] = ()
    """The first 64 by address; ``states`` counts them all."""
    counted_calls: int = 0
    """Calls that reached a learning stub: of sites in a learning window, and misses."""
    missed_calls: int = 0
    """Of these, the misses of promoted sites."""
    direct_per_second: float = 0.0
    """Estimated from the rates seen while learning, less the misses."""
    missed_per_second: float = 0.0
    coverage: float | None = None
    """The share of the calls at eligible sites that are direct, estimated in the same way; null
    before the first counted call."""
    learning_overhead_share: float = 0.0
    """What learning stubs cost in the last epoch beyond a retpoline, as a share of what all calls
    would cost by retpolines; by the cost model."""
    cycles_saved_per_second: float = 0.0
    """Against retpolines, by the cost model; misses are subtracted."""
    protocol: str = ""
    """How sites are changed: breakpoint or stopped."""
    pokes: int = 0
    """Sites changed."""
    refused: Mapping[str, int] = field(default_factory=dict)
    """Changes that were given up, by reason."""
    int3_hits: int = 0
    poke_table_defects: int = 0
    """Entries of the guest's poke table that make no sense and are ignored: something else wrote to
    it."""
    arena: ArenaUse = ArenaUse()
    stops: StopSummary = StopSummary()
    """By STOP_BUCKETS_SECONDS."""
    stop_budget_seconds: float = 0.0
    """The limit of the daemon's own work in one stop, as configured."""
    graces: Durations = Durations()
    """Grace periods that the guest was asked for, by GRACE_BUCKETS_SECONDS."""
    recoveries: int = 0
    """Sites that were put back after a daemon died, after this one lost the guest, or after a
    snapshot was loaded that held them."""
    rescues: int = 0
    """How often the guest was resumed after a dead daemon had left it stopped."""
    guardian_restarts: int = 0
    """How often another guardian was started because the last one had died."""
    read_errors: int = 0
    """Attachments that ended because the guest's memory could not be read, or made no sense."""
    journal: tuple[Event, ...] = ()
    """The last decisions and changes, the newest first; at most 64."""

    @property
    def promoted(self) -> int:
        """Sites whose calls are direct now."""
        return sum(self.targets_histogram.values())


STATUS: TypeAdapter[Status] = TypeAdapter(Status)
