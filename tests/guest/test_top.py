"""`optpolinectl top` and `explain` in a real terminal, over a real daemon on a guest at work.

What the terminal showed is kept in build/top.txt and build/explain.txt.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest.image.boot import Guest
from tests.guest.command import COMMAND
from tests.guest.harness import PATIENCE_SECONDS, end_load, start_load
from tests.guest.running import Running, text_was_put_back
from tests.guest.terminal import Terminal

CONTROL = COMMAND.with_name("optpolinectl")
BUILD = Path("build")

FEW_SITES = """
[policy]
mode = "opt-in"
include = ["vfs_*", "security_file_*", "pipe_*", "ksys_*", "do_*", "*_read*", "*_write*"]
"""
"""Enough to be promoted, and quick to learn."""

FIGURES = (
    r"stops +[\d,]+: p50 [\d.]+, p99 [\d.]+, max [\d.]+ ms",
    r"calls +[\d,]+ direct/s \([\d.]+% of all\), [\d,]+ missed/s",
)


@pytest.fixture(scope="module")
def where(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Yield the options that name a guest whose daemon has promoted some sites."""
    directory = tmp_path_factory.mktemp("top")
    start_load(guest)
    daemon = Running(guest, directory, FEW_SITES)
    try:
        daemon.wait_for(lambda status: status.promoted >= 3)
        yield ["--guest", "test", "--config-dir", str(directory)]
        code, errors = daemon.end()
        assert code == 0, errors
        assert text_was_put_back(daemon)
    finally:
        daemon.kill()
        end_load(guest)


def control(*arguments: str) -> str:
    return subprocess.run(
        [CONTROL, *arguments], check=True, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    ).stdout


def site_column(screen: str) -> list[str]:
    """Return the sites in the table, from the top."""
    return re.findall(r"^ *[\d,]+ +[\d,]+ +[a-z]+ +(\S+)", screen, re.MULTILINE)


def calls_column(screen: str) -> list[int]:
    rows = re.findall(r"^ *([\d,]+) +[\d,]+ +[a-z]+ +\S", screen, re.MULTILINE)
    return [int(row.replace(",", "")) for row in rows]


def shows_hottest(screen: str) -> bool:
    """Return whether the screen shows the daemon at work, and the sites called most first."""
    calls = calls_column(screen)
    return (
        screen.startswith(" test  ")
        and "promoted  " in screen
        and site_column(screen) != []
        and all(re.search(pattern, screen) for pattern in FIGURES)
        and "calls/s v" in screen
        and calls == sorted(calls, reverse=True)
        and calls[0] > 0
    )


def test_top_shows_the_hottest_sites_sorts_filters_explains_and_quits(
    where: list[str], tmp_path: Path
) -> None:
    top = [CONTROL, "top", "--interval", "0.5", *where]
    with Terminal(tmp_path / "tmux", top, size=(100, 30)) as terminal:
        # The screen is drawn again all the time, and may be seen half drawn.
        screen = terminal.wait_for(shows_hottest)
        (BUILD / "top.txt").write_text(screen, encoding="utf-8")

        terminal.press("a")
        terminal.wait_for(lambda shown: "site v" in shown and "by address" in shown)
        terminal.press("m")
        terminal.wait_for(lambda shown: "missed/s v" in shown)
        terminal.press("c", "/")
        terminal.press(*"vfs_")
        terminal.press("Enter")
        terminal.wait_for(
            lambda shown: (
                "filter 'vfs_'" in shown
                and site_column(shown) != []
                and all("vfs_" in site for site in site_column(shown))
            )
        )
        terminal.press("p", "Enter")
        terminal.wait_for(lambda shown: "code now" in shown and "vfs_" in shown.splitlines()[0])
        terminal.press("Escape")
        terminal.wait_for(lambda shown: "paused: press p to continue" in shown)
        terminal.press("q")
        assert terminal.wait_end() == 0


def test_explain_shows_the_call_the_block_its_compares_and_why(
    where: list[str], tmp_path: Path
) -> None:
    control("freeze", *where)  # what is told several times must be the same
    (row,) = json.loads(
        control(
            *("sites", "--state", "promoted", "--order", "calls", "--top", "1", "--json"), *where
        )
    )["sites"]
    with Terminal(
        tmp_path / "tmux", [CONTROL, "explain", row["site"], *where], size=(80, 60)
    ) as terminal:
        assert terminal.wait_end() == 0
        shown = terminal.screen().rstrip()
    assert max(map(len, shown.splitlines())) <= 80
    (BUILD / "explain.txt").write_text(f"{shown}\n", encoding="utf-8")

    said = json.loads(control("explain", row["site"], "--json", *where))["explanation"]
    assert shown.startswith(f"{row['site']}  {said['row']['state']}: ")
    before, now, block, history = (
        shown.index(heading)
        for heading in (
            "original code\n",
            "code now\n",
            "its block, ",
            "decisions and changes, the newest first\n",
        )
    )
    assert before < now < block < history
    assert re.search(r"(call|jmp) .*__x86_indirect_thunk_r", shown[before:now])
    assert re.search(r"(call|jmp) .*arena\+0x", shown[now:block])
    assert "__x86_indirect_thunk" not in shown[now:block]
    for target in row["targets"]:
        assert re.search(rf"cmp .*{re.escape(target['name'])}", shown[block:history])
        assert re.search(rf"je .*{re.escape(target['name'])}", shown[block:history])
    assert re.search(r"jmp .*learning stub of r", shown[block:history])
    assert re.search(r"decided +promoted: \d+ targets? takes? \d+%", shown[history:])
    assert re.search(r"changed +\S+", shown[history:])
