"""Lists the expressions that Grafana sends to Prometheus."""

import json
from collections.abc import Iterator
from pathlib import Path

from configs.grafana.generate import DIRECTORY

__all__ = ("asked", "dashboards")

RATE_INTERVAL = "8s"
"""Grafana's ``$__rate_interval`` is at least four scrapes."""


def dashboards() -> list[Path]:
    """Return the files that are provisioned."""
    return sorted(DIRECTORY.glob("*.json"))


def asked(dashboard: Path, guest: str) -> Iterator[tuple[str, str]]:
    """Yield each expression with its place; its variables are replaced by values."""
    page = json.loads(dashboard.read_text("utf-8"))
    for panel in page["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], _filled(target["expr"], guest)
    for annotation in page["annotations"]["list"]:
        yield annotation["name"], _filled(annotation["expr"], guest)


def _filled(expr: str, guest: str) -> str:
    filled = expr.replace("$guest", guest).replace("$__rate_interval", RATE_INTERVAL)
    assert "$" not in filled, f"an unknown variable: {filled}"
    return filled
