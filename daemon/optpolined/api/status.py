"""One guest at one moment, as the views and the metrics show it.

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
    """What the daemon is doing."""

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
    """What works together here."""

    optpolined: str = ""
    module_abi: int = 0
    """The ABI of the guest's optpoline.ko."""
    qemu: str = ""


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class HotSite:
    """A promoted site: where it is, what it calls, and how often in calls per second."""

    site: str
    targets: tuple[str, ...]
    calls_per_second: float
    misses_per_second: float


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class OverriddenSite:
    """A site that somebody has decided about: pinned to a target, or banned."""

    site: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
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


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class Durations:
    """How long something took, each time."""

    count: int = 0
    sum_seconds: float = 0.0
    buckets: tuple[int, ...] = ()
    """How many were in each bucket, one more than there are bounds; empty where there were none."""


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class StopSummary(Durations):
    """The stops so far; the quantiles are of the recent ones."""

    p50_seconds: float = 0.0
    p99_seconds: float = 0.0
    max_seconds: float = 0.0


@dataclass(frozen=True, slots=True, config=DOCUMENTED)
class Status:
    """All that is known; counts are since the daemon started, through all its attachments."""

    guest: str
    phase: DaemonPhase = DaemonPhase.ATTACHING
    trouble: str = ""
    """Why the guest is not attached to, where it is not; one line."""
    versions: Versions = Versions()
    kernel: str = ""
    accelerator: str = ""
    vcpus: int = 0
    seconds: float = 0.0
    """Since this attachment began."""
    attachments: int = 0
    """A guest that is reset is attached to anew."""
    epoch: int = 0
    epochs: Durations = Durations()
    """The daemon's work in each epoch, without the wait for the next; by EPOCH_BUCKETS_SECONDS."""
    stub_released: bool = False
    """The gdbstub is a debugger's: nothing is changed until it is taken back."""
    frozen: bool = False
    """Somebody asked to change nothing."""
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
    """The share of the calls at eligible sites that are direct, estimated likewise; none where no
    call was counted yet."""
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
    """Changes given up because of what stood there, by reason."""
    int3_hits: int = 0
    poke_table_defects: int = 0
    """Entries of the guest's poke table that make no sense and are ignored: something else wrote to
    it."""
    arena: ArenaUse = ArenaUse()
    stops: StopSummary = StopSummary()
    """By STOP_BUCKETS_SECONDS."""
    stop_budget_seconds: float = 0.0
    """What the daemon's own work in one stop may take, as configured."""
    graces: Durations = Durations()
    """Grace periods that the guest was asked for, by GRACE_BUCKETS_SECONDS."""
    recoveries: int = 0
    """Sites put back that nobody looked after: a daemon that died had left them changed, or this
    one when it lost the guest, or a snapshot held them."""
    rescues: int = 0
    """How often the guest was resumed after a daemon that died had left it stopped."""
    read_errors: int = 0
    """Attachments that ended because the guest's memory could not be read, or made no sense."""
    journal: tuple[Event, ...] = ()
    """What was decided and changed last, the newest first; at most 64."""

    @property
    def promoted(self) -> int:
        """Sites whose calls are direct now."""
        return sum(self.targets_histogram.values())


STATUS: TypeAdapter[Status] = TypeAdapter(Status)
