"""What Grafana would ask Prometheus for."""

import json
from collections.abc import Iterator
from pathlib import Path

from configs.grafana.generate import DIRECTORY

__all__ = ("asked", "dashboards")

RATE_INTERVAL = "8s"
"""What Grafana makes of ``$__rate_interval`` is at least four scrapes."""


def dashboards() -> list[Path]:
    """The files that are provisioned."""
    return sorted(DIRECTORY.glob("*.json"))


def asked(dashboard: Path, guest: str) -> Iterator[tuple[str, str]]:
    """Each expression, with where it stands; the variables have values."""
    page = json.loads(dashboard.read_text("utf-8"))
    for panel in page["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], _filled(target["expr"], guest)
    for annotation in page["annotations"]["list"]:
        yield annotation["name"], _filled(annotation["expr"], guest)


def _filled(expr: str, guest: str) -> str:
    filled = expr.replace("$guest", guest).replace("$__rate_interval", RATE_INTERVAL)
    assert "$" not in filled, f"a variable that nobody knows: {filled}"
    return filled
