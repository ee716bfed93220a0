"""Measures what a scrape of a guest with many sites costs the daemon: `make bench-scrape`.

    python -m tests.bench.scrape

It asks the daemon's own server for /metrics over HTTP, as Prometheus does; the guest is made up.
The time is CPU time of this process: the daemon's part and the client's.
"""

import http.client
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from statistics import median
from typing import Final
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from optpolined.config import MetricsConfig
from optpolined.telemetry.metrics import StatusCollector
from tests.unit.telemetry.made_up import MadeUpGuest, served

__all__ = ("Scrape", "scrape", "told")

SITES: Final = (800, 8_000, 80_000)
CLAIM_MILLISECONDS: Final = 50
_HOTTEST: Final = 200  # the most that the settings allow
_RUNS: Final = 50


@dataclass(frozen=True, slots=True)
class Scrape:
    """The figures of one guest that was scraped many times."""

    sites: int
    milliseconds: float
    """The median of the CPU time."""
    worst_milliseconds: float
    series: int
    bytes: int


def scrape(sites: int, *, hottest: int = _HOTTEST, runs: int = _RUNS) -> Scrape:
    """Scrape a guest with so many sites; so many of them have series of their own."""
    status = MadeUpGuest(
        sites, hottest=hottest
    ).status()  # the loop makes the status, once an epoch
    registry = CollectorRegistry()
    registry.register(StatusCollector(lambda: status))
    taken = []
    with served(MadeUpGuest(1), registry) as url:
        host, port = urlsplit(url).hostname or "", urlsplit(url).port
        with closing(http.client.HTTPConnection(host, port)) as client:
            for _ in range(runs):
                began = time.process_time()
                client.request("GET", "/metrics")
                body = client.getresponse().read()
                taken.append((time.process_time() - began) * 1e3)
    families = text_string_to_metric_families(body.decode())
    series = sum(len(family.samples) for family in families)
    return Scrape(sites, median(taken), max(taken), series, len(body))


def told(found: Scrape) -> str:
    """Return the result as one line."""
    return (
        f"{found.sites:6} sites: {found.milliseconds:.1f} ms of CPU a scrape, at worst "
        f"{found.worst_milliseconds:.1f}; {found.series} series, {found.bytes / 1024:.0f} KiB"
    )


def main() -> int:
    """Measure, and print; return the exit code."""
    default = MetricsConfig().hottest_sites
    for hottest in (default, _HOTTEST):
        sys.stdout.write(f"scrape: the {hottest} hottest sites one by one\n")
        for sites in SITES:
            found = scrape(sites, hottest=hottest)
            verdict = "under" if found.milliseconds < CLAIM_MILLISECONDS else "NOT under"
            sys.stdout.write(f"{told(found)}; {verdict} {CLAIM_MILLISECONDS} ms\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
