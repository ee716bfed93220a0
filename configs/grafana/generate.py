"""Write the dashboards, as Grafana provisions them: ``make dashboards``.

    python -m configs.grafana.generate

optpolined-overview.json    all guests, each with a link to
optpolined-guest.json       one guest in depth
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from configs.grafana.guest import guest
from configs.grafana.overview import overview

__all__ = ("DIRECTORY", "generate")

DIRECTORY = Path(__file__).parent / "dashboards"

_DASHBOARDS = {"optpolined-overview": overview, "optpolined-guest": guest}


def generate() -> Mapping[str, str]:
    """The text of each file, by its name."""
    return {f"{name}.json": _text(build()) for name, build in _DASHBOARDS.items()}


def _text(dashboard: Dashboard) -> str:
    built = dashboard.build()
    for place, panel in enumerate(built.panels or (), 1):
        panel.id_val = place  # so that a link to a panel stays good
    return json.dumps(built, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def main() -> int:
    """Write them all; answer the exit code."""
    DIRECTORY.mkdir(exist_ok=True)
    for name, text in generate().items():
        (DIRECTORY / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"dashboards: {DIRECTORY.parent.name}/{DIRECTORY.name}/{name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
