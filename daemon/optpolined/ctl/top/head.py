"""The figures above the table."""

from rich.text import Text

from optpolined.api.status import Status
from optpolined.ctl.rendering.figures import calls, counts, milliseconds
from optpolined.ctl.rendering.text import styled
from optpolined.ctl.top.source import Seen, View

__all__ = ("head",)


def head(seen: Seen, view: View, *, paused: bool) -> Text:
    """Return the figures in a few lines; the last line says what the table shows."""
    lines = [] if seen.status is None else _figures(seen.status)
    return Text("\n").join([*lines, _shown(seen, view, paused=paused)])


def _figures(status: Status) -> list[Text]:
    title = Text.assemble(
        styled(status.guest, "bold"),
        "  ",
        styled(status.phase.value, "bold"),
        styled(f"  {status.kernel} {status.accelerator}, {status.vcpus} vCPUs"),
        styled(f"  {status.seconds:,.0f} s, epoch {status.epoch}"),
    )
    stops = f"{milliseconds(status.stops)}  int3 {status.int3_hits:,}  pokes {status.pokes:,}"
    figures = [
        ("calls", calls(status)),
        ("sites", f"{status.eligible:,} eligible: {counts(status.states)}"),
        ("stops", stops),
        ("trouble", status.trouble),
    ]
    return [title, *(_figure(name, value) for name, value in figures if value)]


def _figure(name: str, value: str) -> Text:
    return Text.assemble(styled(f"{name:<8}", "dim"), styled(value))


def _shown(seen: Seen, view: View, *, paused: bool) -> Text:
    said = [f"by {view.order}"]
    if view.symbol:
        said.append(f"filter {view.symbol!r}")
    if paused:
        said.append("paused: press p to continue")
    if seen.trouble:
        return Text.assemble(styled(f"{seen.trouble}; ", "bold red"), styled(", ".join(said)))
    return _figure("shown", ", ".join(filter(None, (seen.says, *said))))
