"""A status in figures: a name and a line for each."""

from collections.abc import Mapping, Sequence

from optpolined.api.status import Status, StopSummary

__all__ = ("Figure", "calls", "counts", "figure_lines", "figures", "milliseconds")

Figure = tuple[str, str]


def figure_lines(status: Status) -> list[str]:
    """Return the figures, and then the overridden sites."""
    lines = [f"{name:<10} {value}" for name, value in figures(status)]
    return lines + [f"{site.state:<10} {site.site}: {site.reason}" for site in status.ruled]


def figures(status: Status) -> Sequence[Figure]:
    """Return the figures, the most important first."""
    found = [
        ("guest", status.guest),
        ("phase", f"{status.phase.value}, epoch {status.epoch}, {status.seconds:,.0f} s"),
        ("trouble", status.trouble),
        ("kernel", f"{status.kernel or 'unknown'}, {status.accelerator}, {status.vcpus} vCPUs"),
        ("versions", _versions(status)),
        ("sites", f"{status.found} found, {status.eligible} eligible, {status.promoted} promoted"),
        ("states", counts(status.states)),
        ("skipped", counts(status.skipped)),
        ("calls", calls(status)),
        ("pokes", f"{status.pokes:,} {status.protocol}{_refused(status.refused)}"),
        ("stops", milliseconds(status.stops)),
        ("int3_hits", f"{status.int3_hits:,}"),
        ("arena", _arena(status)),
        ("rescued", _rescued(status)),
    ]
    return [(name, value) for name, value in found if value]


def calls(status: Status) -> str:
    """Return how many calls are direct, and how many miss."""
    coverage = "no calls yet" if status.coverage is None else f"{status.coverage:.1%} of all"
    return (
        f"{status.direct_per_second:,.0f} direct/s ({coverage}), "
        f"{status.missed_per_second:,.0f} missed/s"
    )


def milliseconds(stops: StopSummary) -> str:
    """Return how often and how long the guest was stopped."""
    if not stops.count:
        return "none"
    times = (
        f"{name} {seconds * 1e3:.2f}"
        for name, seconds in (
            ("p50", stops.p50_seconds),
            ("p99", stops.p99_seconds),
            ("max", stops.max_seconds),
        )
    )
    return f"{stops.count:,}: {', '.join(times)} ms"


def _versions(status: Status) -> str:
    versions = status.versions
    told = (
        ("optpolined", versions.optpolined),
        ("optpoline.ko ABI", versions.module_abi),
        ("QEMU", versions.qemu),
    )
    return ", ".join(f"{name} {version}" for name, version in told if version)


def counts(numbers: Mapping[str, int]) -> str:
    """Return each name with its number."""
    return ", ".join(f"{name} {number}" for name, number in numbers.items())


def _refused(reasons: Mapping[str, int]) -> str:
    return f"; refused: {counts(reasons)}" if reasons else ""


def _arena(status: Status) -> str:
    arena = status.arena
    if not arena.total_bytes:
        return ""
    room = f"{arena.used_bytes // 1024:,} of {arena.total_bytes // 1024:,} KiB used"
    if not arena.degraded:
        return room
    denied = f"{arena.denied} sites with {arena.denied_per_second:,.0f} calls/s"
    return f"{room}: too small, no space for {denied}"


def _rescued(status: Status) -> str:
    told = (
        ("guest resumed", status.rescues),
        ("sites put back", status.recoveries),
        ("reads failed", status.read_errors),
    )
    return ", ".join(f"{count:,} {name}" for name, count in told if count)
