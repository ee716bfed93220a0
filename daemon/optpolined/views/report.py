"""The report of one run, as JSON and as lines for a terminal."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ("RunReport", "SiteCounts", "StopCounts")


@dataclass(slots=True)
class SiteCounts:
    """How many sites were found, and how many may be changed."""

    found: int = 0
    eligible: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class StopCounts:
    """The stops of the guest, measured on the host."""

    count: int = 0
    p50_seconds: float = 0.0
    p99_seconds: float = 0.0
    max_seconds: float = 0.0
    sum_seconds: float = 0.0
    """For so long the guest stood still, all stops together."""


@dataclass(slots=True)
class RunReport:
    """The work of one run of the daemon; ``--report FILE`` writes it.

    ``coverage`` is measured in the audit window: direct calls over all calls of eligible sites;
    ``None`` where no audit was asked for, or no call was made in it.
    """

    guest: str
    kernel: str = ""
    accel: str = ""
    vcpus: int = 0
    sites: SiteCounts = field(default_factory=SiteCounts)
    promoted: int = 0
    targets_histogram: dict[str, int] = field(default_factory=dict)
    coverage: float | None = None
    audited_calls: dict[str, int] = field(default_factory=dict)
    pokes: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    int3_hits: int = 0
    arena: dict[str, float] = field(default_factory=dict)
    """As in ``api.status.ArenaUse``, before the sites were put back."""
    stops: StopCounts = field(default_factory=StopCounts)
    attach_seconds: float = 0.0
    seconds: float = 0.0
    text_identical_after_detach: bool = False
    text_differences: list[str] = field(default_factory=list)
    migrated_away: bool = False
    left_to_debugger: bool = False
    """A debugger had the gdbstub at the end, so that no site could be put back."""
    lost: bool = False
    """The guest was reset or replaced, and not attached to again: its text is unknown."""

    def write(self, path: Path) -> None:
        """Write the report as JSON.

        :raise OSError: the file cannot be written.
        """
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def lines(self) -> list[str]:
        """Return a summary for a terminal."""
        coverage = "not audited"
        if self.coverage is not None:
            coverage = f"{self.coverage:.1%} of the calls at eligible sites are direct"
        chains = ", ".join(f"{count} of {size}" for size, count in self.targets_histogram.items())
        same = "identical" if self.text_identical_after_detach else "NOT identical"
        identical = f"{same} after detach"
        if self.migrated_away:
            identical = "not compared: it has migrated with the guest"
        if self.left_to_debugger:
            identical = "not restored: a debugger has the gdbstub"
        if self.lost:
            identical = "not compared: the guest was reset or replaced, and not attached to again"
        milliseconds = (
            f"{name} {seconds * 1e3:.2f} ms"
            for name, seconds in (
                ("p50", self.stops.p50_seconds),
                ("p99", self.stops.p99_seconds),
                ("max", self.stops.max_seconds),
            )
        )
        return [
            f"guest      {self.guest}: {self.kernel}, {self.accel}, {self.vcpus} vCPUs",
            f"time       attached in {self.attach_seconds:.1f} s, {self.seconds:.0f} s in all",
            f"sites      {self.sites.found} found, {self.sites.eligible} eligible",
            f"promoted   {self.promoted} (by number of targets: {chains or 'none'})",
            f"coverage   {coverage}",
            f"stops      {self.stops.count}, {self._stopped()}: {', '.join(milliseconds)}",
            f"int3       {self.int3_hits} hits, sent down the slow path",
            f"pokes      {self.pokes}",
            *self._arena_lines(),
            f"text       {identical}",
            *(f"           {difference}" for difference in self.text_differences),
        ]

    def _stopped(self) -> str:
        stopped = self.stops.sum_seconds
        share = stopped / self.seconds if self.seconds else 0.0
        return f"{stopped:.2f} s together, {share:.2%} of the time"

    def _arena_lines(self) -> list[str]:
        if not self.arena.get("degraded"):
            return []
        kib = self.arena["total_bytes"] / 1024
        calls = f"{self.arena['denied_per_second']:,.0f} calls/s"
        sites = f"{self.arena['denied']:.0f} sites with {calls}"
        return [f"arena      {kib:.0f} KiB are too small: no space for {sites}"]
