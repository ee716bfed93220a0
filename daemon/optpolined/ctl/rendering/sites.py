"""Sites and static calls as lines or tables."""

from collections.abc import Iterable

from rich.table import Table

from optpolined.api.refusal import Refusal
from optpolined.api.sites import SiteRow, StaticCallRow, Target
from optpolined.ctl.rendering.text import rate, styled

__all__ = ("STATE_STYLES", "site_line", "site_table", "static_call_line", "target_names")

STATE_STYLES = {
    "promoted": "green",
    "pinned": "cyan",
    "learning": "yellow",
    "relearning": "yellow",
    "missing": "red",
    "banned": "magenta",
}
"""The styles of the states that deserve attention."""


def site_line(row: SiteRow) -> str:
    """Return one site as a line."""
    goes = f" -> {', '.join(target.name for target in row.targets)}" if row.targets else ""
    calls = f", {rate(row.calls_per_second)} calls/s" if row.calls_per_second else ""
    missed = f", {rate(row.misses_per_second)} missed/s" if row.misses_per_second else ""
    return f"{row.site}  {row.state}{goes}: {_reason(row)}{calls}{missed}"


def _reason(row: SiteRow) -> str:
    """Return why the site is in its state; a label of :class:`Refusal` with its meaning."""
    if row.reason in set(Refusal):
        return f"{row.reason}, because {Refusal(row.reason).meaning}"
    return row.reason


def site_table(rows: Iterable[SiteRow]) -> Table:
    """Return sites as a table."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("calls/s", justify="right", no_wrap=True)
    table.add_column("missed/s", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("site", overflow="fold")
    table.add_column("direct calls to: why", overflow="fold")
    for row in rows:
        goes = f"{target_names(row.targets)}: " if row.targets else ""
        table.add_row(
            rate(row.calls_per_second),
            rate(row.misses_per_second),
            styled(row.state, STATE_STYLES.get(row.state, "")),
            styled(row.site),
            styled(f"{goes}{_reason(row)}"),
        )
    return table


def target_names(targets: Iterable[Target]) -> str:
    """Return the names of targets, each with its share where that is known."""
    return ", ".join(
        target.name if target.share is None else f"{target.name} {target.share:.0%}"
        for target in targets
    )


def static_call_line(call: StaticCallRow) -> str:
    """Return one static call as a line."""
    module = f" [{call.module}]" if call.module else ""
    built = "" if call.target == call.built else f" (built: {call.built or 'NULL'})"
    return f"{call.key}{module} -> {call.target or 'NULL'}{built}, {call.sites} sites"
