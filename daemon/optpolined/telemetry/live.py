"""The status on a terminal, redrawn in place; elsewhere a line where the phase changes."""

from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from optpolined.api.status import Status

__all__ = ("LiveView",)

_PLAIN_INTERVAL_SECONDS = 10.0


class LiveView:
    """Shows each status that it receives while the ``with`` block runs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._shown: tuple[str, float] = ("", 0.0)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, status: Status) -> None:
        """Draw ``status``."""
        if self._live:
            self._live.update(_screen(status), refresh=True)
            return
        phase, shown_at = self._shown
        if status.phase.value != phase or status.seconds - shown_at >= _PLAIN_INTERVAL_SECONDS:
            self._shown = (status.phase.value, status.seconds)
            self._console.print(_line(status), highlight=False, soft_wrap=True)


def _line(status: Status) -> str:
    return (
        f"[{status.seconds:5.1f} s] {status.phase.value}: {status.eligible} sites, "
        f"{status.promoted} promoted, {status.direct_per_second:,.0f} direct calls/s, "
        f"{status.stops.count} stops (p99 {status.stops.p99_seconds * 1e3:.2f} ms)"
    )


def _screen(status: Status) -> Group:
    head = Text.assemble(
        ("optpolined ", "bold"),
        f"{status.guest}   {status.kernel} {status.accelerator}, {status.vcpus} vCPUs   ",
        (status.phase.value, "bold green"),
        f"   {status.seconds:.0f} s, epoch {status.epoch}",
    )
    states = "  ".join(f"{name} {count}" for name, count in sorted(status.states.items()))
    chains = "  ".join(
        f"{targets}: {count}" for targets, count in sorted(status.targets_histogram.items())
    )
    figures = Table.grid(padding=(0, 2))
    figures.add_row("sites", f"{status.found} found, {status.eligible} eligible")
    figures.add_row("states", states)
    figures.add_row("chains", chains or "none yet")
    figures.add_row(
        "calls",
        f"{status.direct_per_second:,.0f} direct/s (estimated), "
        f"{status.missed_per_second:,.0f} missed/s, {status.counted_calls:,} counted",
    )
    figures.add_row(
        "stops",
        f"{status.stops.count}, p50 {status.stops.p50_seconds * 1e3:.2f} ms, "
        f"p99 {status.stops.p99_seconds * 1e3:.2f} ms, {status.int3_hits} int3 hits",
    )
    if status.arena.degraded:
        figures.add_row(
            "arena",
            f"too small: {status.arena.denied} sites with "
            f"{status.arena.denied_per_second:,.0f} calls/s get no space",
        )
    return Group(head, figures, _hottest(status))


def _hottest(status: Status) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("calls/s", justify="right")
    table.add_column("missed/s", justify="right")
    table.add_column("site", no_wrap=True, max_width=36)
    table.add_column("direct calls to", no_wrap=True, overflow="ellipsis")
    for site in status.hottest:
        table.add_row(
            f"{site.calls_per_second:,.0f}",
            f"{site.misses_per_second:,.0f}",
            Text(site.site),
            Text(", ".join(site.targets)),
        )
    return table
