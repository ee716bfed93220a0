"""A census on a real guest: what it finds, who cleans up after it, and what it must withstand."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from guest.image.boot import Guest
from optpolined.kernel.module.header import read_status
from optpolined.patching.thunk_heads import HeadState
from optpolined.session.link import connect
from optpolined.session.session import Session
from optpolined.session.text import TextRegion, read_text
from tests.guest.command import optpolined
from tests.guest.harness import (
    PATIENCE_SECONDS,
    config_of,
    end_load,
    load_state,
    open_session,
    start_load,
    wait_until,
    write_config,
)

DURATIONS_SECONDS = (20, 40, 80)
"""A run has a fixed end before its audit; a busy machine needs a longer run."""

# A daemon that stands in a census.
DAEMON = """
import sys, time
from pathlib import Path
from optpolined.config import Settings, load
from optpolined.session.attach import attach
from optpolined.session.link import connect
config = load("test", [Path(sys.argv[1])])
with (
    connect(config) as link,
    attach(link, Settings(config), time.monotonic, force=False) as session,
):
    assert session.census.start()
    print("armed", flush=True)
    time.sleep(600)
"""

TROUBLE = re.compile(r"cut here|WARNING|BUG|Oops|general protection")

CHURN = {
    "hotplug": "echo 0 >/sys/devices/system/cpu/cpu1/online;"
    " echo 1 >/sys/devices/system/cpu/cpu1/online",
    "backtraces": "echo l >/proc/sysrq-trigger; sleep 0.3",
    "modules": "insmod /lib/modules/seed/optseed.ko; rmmod optseed",
    "stacks": "cat /proc/[0-9]*/stack >/dev/null 2>&1",
}
CYCLES = 30
CHURN_ROUNDS = 5


def test_the_daemon_learns_from_censuses_with_few_pokes(guest: Guest, tmp_path: Path) -> None:
    start_load(guest)
    write_config(guest, tmp_path)
    for seconds in DURATIONS_SECONDS:
        report = run_for(seconds, tmp_path)
        assert report["text_identical_after_detach"] is True
        assert report["pokes"] <= 3 * report["promoted"] + 60, report
        if (report["coverage"] or 0) >= 0.9:
            break
    assert report["coverage"] >= 0.9, report
    end_load(guest)


def run_for(seconds: int, directory: Path) -> dict[str, Any]:
    """Run the daemon for so long, then let it audit; return its report."""
    path = directory / "report.json"
    result = optpolined(
        *("--guest", "test", "--config-dir", directory),
        *("--duration", seconds, "--audit", "--report", path),
        timeout_seconds=seconds + PATIENCE_SECONDS,
    )
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def count_some(session: Session) -> None:
    """Take a census that counts calls."""
    assert session.census.start()
    wait_until(lambda: session.census.read().sites, "a census counts calls")
    assert session.census.stop()
    assert set(session._access.heads.states().values()) == {HeadState.ORIGINAL}


@contextmanager
def killed_in_a_census(guest: Guest, directory: Path) -> Iterator[Mapping[TextRegion, bytes]]:
    """Kill a daemon while the thunks are armed, under load; give the text as it was before.

    At the end the text must be that again, the thunks too, and the module released.
    """
    write_config(guest, directory)
    start_load(guest)
    with open_session(config_of(guest)) as session:
        texts = session.survey.texts
    with subprocess.Popen(
        [sys.executable, "-c", DAEMON, directory], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"armed\n"
        finally:
            process.kill()
    with connect(config_of(guest), writable=False) as link:
        space, header = link.attachment.space, link.attachment.header
        assert read_status(space, header).held
        assert all(space.read(thunk, 1) == b"\xe9" for thunk in header.thunk.values())
        before = load_state(guest)["checks"]
        wait_until(
            lambda: load_state(guest)["checks"],
            "the guest works without a daemon",
            lambda now: now >= before + 10,
        )
    yield texts  # without a connection, because QEMU serves one client at a time
    with connect(config_of(guest), writable=False) as link:
        space, header = link.attachment.space, link.attachment.header
        for register, thunk in header.thunk.items():
            head = header.thunk_head[register]
            assert space.read(thunk, len(head)) == head
        assert not read_status(space, header).held
        assert read_text(space, texts) == texts
    end_load(guest)


def test_recover_only_ends_the_census_of_a_daemon_that_was_killed(
    guest: Guest, tmp_path: Path
) -> None:
    recover = ("--guest", "test", "--config-dir", tmp_path, "--recover-only")
    with killed_in_a_census(guest, tmp_path):
        result = optpolined(*recover)
        assert result.returncode == 0, result.stderr
        assert result.stdout == "15 thunks restored; optpoline.ko released\n"
    assert optpolined(*recover).stdout == "nothing to restore; optpoline.ko was not held\n"


def test_an_attach_ends_the_census_of_a_daemon_that_was_killed(
    guest: Guest, tmp_path: Path
) -> None:
    with (
        killed_in_a_census(guest, tmp_path) as texts,
        open_session(config_of(guest)) as session,
    ):
        assert session.tally.recoveries == 1
        assert set(session._access.heads.states().values()) == {HeadState.ORIGINAL}
        assert read_text(session.space, texts) == texts
        count_some(session)


class Churn:
    """Loops in the guest that disturb it, each with a count of its rounds."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        guest.run("touch /run/churn")
        for name, work in CHURN.items():
            guest.run(
                f"(while [ -e /run/churn ]; do {work}; echo >>/run/churn.{name}; done;"
                f" touch /run/churn.{name}.end) >/run/churn.{name}.log 2>&1 &"
            )

    def rounds(self) -> dict[str, int]:
        """Return how often each loop has come round."""
        files = " ".join(f"/run/churn.{name}" for name in CHURN)
        self._guest.run(f"touch {files}")
        lines = self._guest.run(f"wc -l {files}").splitlines()
        return {name: int(line.split()[0]) for name, line in zip(CHURN, lines, strict=False)}

    def end(self) -> None:
        """End the loops, each after a whole round that had no errors."""
        self._guest.run("rm /run/churn")
        wait_until(
            lambda: self._guest.run("ls /run/"),
            "the disturbances end",
            lambda files: all(f"churn.{name}.end" in files for name in CHURN),
        )
        for name in CHURN:
            assert self._guest.run(f"cat /run/churn.{name}.log") == ""


def test_censuses_of_a_guest_that_is_disturbed(boot: Callable[..., Guest]) -> None:
    guest = boot()
    start_load(guest)
    guest.run("echo rate 100 >/proc/optbench; echo run all >/proc/optbench")
    said = []
    with open_session(config_of(guest)) as session:
        churn = Churn(guest)
        cycles = 0

        def cycle() -> tuple[int, dict[str, int]]:
            nonlocal cycles
            count_some(session)
            cycles += 1
            said.append(guest.run("dmesg -c"))
            return cycles, churn.rounds()

        wait_until(
            cycle,
            "all disturbances happen during the censuses",
            lambda seen: seen[0] >= CYCLES and min(seen[1].values()) >= CHURN_ROUNDS,
            pause_seconds=0,
        )
        churn.end()
        said.append(guest.run("dmesg -c"))
    end_load(guest)
    lines = "".join(said).splitlines()
    assert any("NMI backtrace" in line for line in lines)
    assert [line for line in lines if TROUBLE.search(line)] == []


@pytest.mark.parametrize("append", ["pti=on"])
def test_a_census_of_a_guest_with_page_table_isolation(
    boot: Callable[..., Guest], append: str
) -> None:
    guest = boot(append=append)
    start_load(guest)
    with open_session(config_of(guest)) as session:
        assert session.census.refusal is None
        for _ in range(3):
            count_some(session)
    assert "isolation: enabled" in guest.run("dmesg")
    end_load(guest)
