"""The live view: a screen on a terminal, lines elsewhere."""

from io import StringIO

from rich.console import Console

from optpolined.api.status import DaemonPhase, HotSite, Status
from optpolined.telemetry.live import LiveView


def show(*statuses: Status, terminal: bool) -> str:
    out = StringIO()
    console = Console(file=out, force_terminal=terminal, width=110)
    with LiveView(console) as view:
        for status in statuses:
            view.show(status)
    return out.getvalue()


RUNNING = Status(
    guest="vm1",
    phase=DaemonPhase.RUNNING,
    seconds=12.0,
    eligible=7000,
    states={"promoted": 61},
    targets_histogram={1: 60, 2: 1},
    hottest=(HotSite("vfs_write+0x1f", ("pipe_write", "ext4_write"), 4e4, 12.0),),
)


def test_a_terminal_shows_the_hottest_sites_with_their_targets() -> None:
    screen = show(RUNNING, terminal=True)
    assert "vfs_write+0x1f" in screen
    assert "pipe_write, ext4_write" in screen
    assert "40,000" in screen


def test_names_from_the_guest_are_not_markup() -> None:
    site = HotSite("evil [red]text[/]", ("[bold]x",), 1.0, 0.0)
    assert "[red]text[/]" in show(Status("vm1", hottest=(site,)), terminal=True)


def test_elsewhere_a_line_comes_when_the_phase_changes() -> None:
    learning = Status("vm1", DaemonPhase.LEARNING)
    lines = show(learning, learning, learning, RUNNING, terminal=False).splitlines()
    assert len(lines) == 2
    assert "61 promoted" in lines[1]


def test_a_released_stub_is_shown() -> None:
    released = Status("vm1", DaemonPhase.RELEASED, stub_released=True)
    assert "stub released" in show(released, terminal=True)
    assert "stub released" in show(RUNNING, released, terminal=False).splitlines()[1]
