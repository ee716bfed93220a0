"""One site in depth, for 80 columns."""

import re
import time
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from optpolined.api.sites import Event, Explanation, Listing, Part, SiteRow
from optpolined.ctl.rendering.sites import STATE_STYLES
from optpolined.ctl.rendering.text import printable, rate, styled

__all__ = ("explained",)

_INDENT = (0, 0, 0, 2)

_NAMED = re.compile(r"0x[0-9a-f]+ <(.+?)>")
"""An address that has a name; the line has space for one of the two."""


def explained(explanation: Explanation) -> RenderableType:
    """Render all that the daemon knows of a site, for a terminal or for a pipe."""
    return Group(*_sections(explanation))


def _sections(it: Explanation) -> Iterator[RenderableType]:
    row = it.row
    yield Text.assemble(
        styled(row.site, "bold"),
        "  ",
        styled(row.state, STATE_STYLES.get(row.state, "bold")),
        styled(f": {row.reason}"),
    )
    yield styled(f"{row.address}: {it.kind} by {it.register}; {row.form}; {_rates(row)}")
    if row.targets:
        yield _heading("direct calls to")
        yield _targets(row)
    for part in it.parts:
        yield from _part(part, named=len(it.parts) > 1)
    if it.block is not None:
        yield _heading(f"its block, {it.block.size} bytes of the arena")
        yield _listing(it.block)
    yield _heading("decisions and changes, the newest first")
    yield _history(it.history) if it.history else Padding(styled("none yet"), _INDENT)


def _rates(row: SiteRow) -> str:
    return f"{rate(row.calls_per_second)} calls/s, {rate(row.misses_per_second)} missed/s"


def _part(part: Part, *, named: bool) -> Iterator[RenderableType]:
    of = f" ({part.name})" if named else ""
    if part.original == part.standing:
        yield _heading(f"code, as it was built{of}")
        yield _listing(part.standing)
        return
    yield _heading(f"original code{of}")
    yield _listing(part.original)
    yield _heading(f"code now{of}")
    yield _listing(part.standing)


def _heading(text: str) -> Text:
    return Text.assemble("\n", styled(text, "bold"))


def _grid() -> Table:
    return Table.grid(padding=(0, 2, 0, 0), pad_edge=False)


def _targets(row: SiteRow) -> RenderableType:
    table = _grid()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for target in row.targets:
        share = "-" if target.share is None else f"{target.share:.1%}"
        table.add_row(share, styled(f"{target.name} ({target.address})"))
    return Padding(table, _INDENT)


def _listing(listing: Listing) -> RenderableType:
    table = _grid()
    table.add_column(no_wrap=True, style="dim")
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for line in listing.lines:
        code, text = line.code.replace(" ", ""), _NAMED.sub(r"\1", line.text)
        table.add_row(styled(line.address.removeprefix("0x")), styled(code), styled(text))
    return Padding(table, _INDENT)


def _history(history: Sequence[Event]) -> RenderableType:
    table = _grid()
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for event in history:
        when = time.strftime("%b %d %H:%M:%S", time.localtime(event.at))
        table.add_row(styled(when, "dim"), styled(event.kind), styled(_says(event)))
    return Padding(table, _INDENT)


def _says(event: Event) -> str:
    goes = f"{event.form}{' -> ' if event.targets else ''}{', '.join(event.targets)}"
    head = ": ".join(filter(None, (event.state, event.reason)))
    return printable("; ".join(filter(None, (head, goes))) + f" (epoch {event.epoch})")
