"""Metrics, dashboards and alerts of Prometheus over a guest under load and its daemon.

all_alerts.py has the alerts that take longer to cause.
"""

import math
import sys
from functools import partial

import pytest

from optpolined.api.requests import Ban
from tests.guest.harness import wait_until
from tests.observability.conftest import Scene
from tests.observability.daemon import GUEST
from tests.observability.dashboards import asked, dashboards
from tests.observability.lens import RULE_FILES, expressions, without_thresholds
from tests.observability.probe import Probe
from tests.observability.prometheus import Tools
from tests.unit.telemetry.test_metrics import SERIES_AT_MOST

FAST = "[learning]\nepoch_milliseconds = 200\n"


def test_promtool_finds_nothing_wrong_with_the_metrics(scene: Scene, tools: Tools) -> None:
    scene.daemon.start(FAST)
    scene.daemon.wait(lambda status: len(status.hottest) > 10)
    assert tools.check("check", "metrics", stdin=scene.daemon.page()) == ""


def test_foreign_bytes_at_a_site_are_alerted_about(scene: Scene) -> None:
    """The guest sets a kprobe on a promoted site, which can then no longer be put back."""
    (hottest, *_) = wait_until(
        lambda: scene.daemon.sites("vfs_*", "promoted"), "a site of vfs_* is promoted"
    )
    site = hottest.site
    with Probe(scene.guest, site):
        scene.daemon.ask(Ban(what=site))
        alert = scene.prometheus.wait_fires("OptpolinedForeignText")
    assert alert["labels"]["guest"] == GUEST
    assert "reason" not in alert["labels"]


def test_a_daemon_that_was_killed_is_missed_and_the_next_tells_what_it_put_back(
    scene: Scene,
) -> None:
    scene.daemon.kill()
    alert = scene.prometheus.wait_fires("OptpolinedDown")
    assert alert["annotations"]["summary"] == f"No daemon manages the guest of {GUEST}."
    scene.daemon.start(FAST)
    alert = scene.prometheus.wait_fires("OptpolinedRecovered")
    status = scene.daemon.status()
    assert status.recoveries > 0
    assert int(float(alert["value"])) == status.recoveries + status.rescues
    scene.prometheus.wait(
        "resolves OptpolinedDown", lambda: scene.prometheus.firing("OptpolinedDown") is None
    )


def test_every_expression_of_the_dashboards_gives_numbers(scene: Scene) -> None:
    """Look since the start of the run, because what is rare need not happen just now."""
    scene.prometheus.wait_gives("optpolined_grace_period_seconds_count > 0")
    scene.prometheus.wait_gives("optpolined_site_calls_per_second")
    assert scene.prometheus.label_values("guest", "optpolined_up") == [GUEST]
    for dashboard in dashboards():
        for where, expr in asked(dashboard, GUEST):
            wait_until(
                partial(numbers_of, scene, expr),
                f"{dashboard.name}: {where}: {expr} gives a number",
                lambda numbers: any(map(math.isfinite, numbers)),
            )


def numbers_of(scene: Scene, expr: str) -> list[float]:
    """All that ``expr`` has given since the start of the run."""
    found = scene.prometheus.since_start(expr)
    return [float(value) for series in found for _, value in series["values"]]


def test_every_rule_looks_at_something_that_is_there(scene: Scene) -> None:
    for rules in RULE_FILES:
        for name, expr in expressions(rules).items():
            for part in without_thresholds(expr):
                wait_until(
                    partial(scene.prometheus.since_start, part), f"{name}: {part} gives something"
                )


def test_a_scrape_is_bounded(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """Its time is printed and not asserted, because machines are shared."""
    (series,) = scene.prometheus.instant("max_over_time(scrape_samples_scraped[10m])")
    (seconds,) = scene.prometheus.instant("avg_over_time(scrape_duration_seconds[10m])")
    sites = scene.daemon.status().found
    assert int(series["value"][1]) <= SERIES_AT_MOST
    with capsys.disabled():
        sys.stdout.write(
            f"\n{sites} sites: a scrape has {series['value'][1]} series and takes "
            f"{float(seconds['value'][1]) * 1e3:.1f} ms\n"
        )
