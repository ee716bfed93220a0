"""What a scrape of a guest with many sites costs the daemon; `make bench-scrape`.

    python -m tests.bench.scrape

/metrics is asked for over HTTP, as Prometheus does, of the daemon's own server, over a guest that
is made up.  The time is CPU time of this process: of the daemon's part, and the client's with it.
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
    """One guest, scraped over and over."""

    sites: int
    milliseconds: float
    """The median, of CPU time."""
    worst_milliseconds: float
    series: int
    bytes: int


def scrape(sites: int, *, hottest: int = _HOTTEST, runs: int = _RUNS) -> Scrape:
    """Scrape a guest with so many sites, of which so many are told one by one."""
    status = MadeUpGuest(sites, hottest=hottest).status()  # the loop makes it, once an epoch
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
    """One line about it."""
    return (
        f"{found.sites:6} sites: {found.milliseconds:.1f} ms of CPU a scrape, at worst "
        f"{found.worst_milliseconds:.1f}; {found.series} series, {found.bytes / 1024:.0f} KiB"
    )


def main() -> int:
    """Measure, and print; answer the exit code."""
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
