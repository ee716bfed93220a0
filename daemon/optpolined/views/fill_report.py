"""Fills in the report of a run."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict

from optpolined.addresses import GuestVirtual
from optpolined.api.status import ArenaUse, Status
from optpolined.codegen.forms import Chain
from optpolined.session.link import Link
from optpolined.session.session import Session
from optpolined.views.report import RunReport, SiteCounts, StopCounts

__all__ = ("begin_report", "fill_in_sites", "fill_in_work")


def begin_report(guest: str, link: Link, session: Session, attach_seconds: float) -> RunReport:
    """Return a report with what is known right after attach."""
    inventory = session.survey.inventory
    return RunReport(
        guest=guest,
        kernel=link.attachment.vmcoreinfo.osrelease,
        accel=link.accelerator,
        vcpus=link.vcpus,
        sites=SiteCounts(inventory.found, len(inventory.eligible), dict(inventory.skipped)),
        attach_seconds=attach_seconds,
    )


def fill_in_sites(
    report: RunReport,
    promoted: Mapping[GuestVirtual, Chain],
    skipped: dict[str, int],
    arena: ArenaUse,
) -> None:
    """Fill in the sites, before they are put back."""
    report.promoted = len(promoted)
    report.sites.skipped = skipped
    report.arena = asdict(arena)
    report.targets_histogram = _by_targets(promoted.values())


def _by_targets(chains: Collection[Chain]) -> dict[str, int]:
    sizes = Counter(len(chain.targets) for chain in chains)
    return {str(size): count for size, count in sorted(sizes.items())}


def fill_in_work(report: RunReport, status: Status, seconds: float) -> None:
    """Fill in the work of the whole run from the last status."""
    stops = status.stops
    report.int3_hits = status.int3_hits
    report.seconds = seconds
    report.stops = StopCounts(
        stops.count,
        stops.p50_seconds,
        stops.p99_seconds,
        stops.max_seconds,
        stops.sum_seconds,
    )
    report.pokes, report.refused = status.pokes, dict(status.refused)
